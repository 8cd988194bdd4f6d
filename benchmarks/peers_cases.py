"""The scans of the comparison with other programs, and the settings each program runs with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ptycho.simulation.simulate import SimulationOptions

DEFOCUS_WAVES = 0.3
"""Defocus error of the stored probe where it is off."""
SMALL = SimulationOptions(n_px=64, n_y=35, n_x=35, step_px=4.0, photons=1e6, seed=7)
LARGE = SimulationOptions(n_px=128, n_y=18, n_x=18, step_px=14.0, photons=1e6, seed=7)
DIM_PHOTONS = 1e4
BAR_PHOTONS = 8e3
"""Photons per frame of which the object of the small scan transmits 5.7e3 counts."""


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes
    ----------
    title : str
        Heading of its panel.
    options : SimulationOptions
        How it is simulated.
    dim : bool
        Few photons: smoothing pays.
    """

    title: str
    options: SimulationOptions
    dim: bool = False

    @property
    def probe_is_off(self) -> bool:
        """Whether the stored probe is not the true one."""
        return self.options.probe_error_waves != 0


def _cases() -> dict[str, Case]:
    found = {}
    for short, scan in (("n64", SMALL), ("n128", LARGE)):
        for dose, photons in (("high", scan.photons), ("low", DIM_PHOTONS)):
            for suffix, error in (("", 0.0), ("-defocus", DEFOCUS_WAVES)):
                options = replace(scan, photons=photons, probe_error_waves=error)
                known = "probe off by defocus" if error else "known probe"
                title = f"N = {scan.n_px}, {photons:.0e} photons, {known}".replace("e+0", "e")
                found[f"{short}-{dose}{suffix}"] = Case(title, options, dim=dose == "low")
    bar = replace(SMALL, photons=BAR_PHOTONS)
    found["n64-counts"] = Case("N = 64, 5.7e3 counts, known probe", bar, dim=True)
    return found


CASES = _cases()
"""Every scan by name."""


@dataclass(frozen=True)
class Peer:
    """One algorithm of another program.

    Attributes
    ----------
    program, algorithm : str
        As ``peers_worker.py`` knows them.
    options : dict
        What it runs with on bright scans.
    dim_options : dict
        What changes on scans with few photons.
    model : str
        Likelihood and smoothing that these options mean; the table shows it beside every row.
    """

    program: str
    algorithm: str
    options: dict[str, Any]
    dim_options: dict[str, Any] = field(default_factory=dict)
    model: str = "amplitude, none"

    def chosen(self, case: Case) -> dict[str, Any]:
        """Return the settings for a scan."""
        return {**self.options, **(self.dim_options if case.dim else {})}


BATCH = "reconstructor_options.batch_size"
PEERS = {
    "pty-chi LSQML": Peer("ptychi", "lsqml", {BATCH: 64}),
    "pty-chi rPIE": Peer("ptychi", "rpie", {BATCH: 32, "object_options.alpha": 0.1}),
    "pty-chi autodiff": Peer(
        "ptychi", "autodiff",
        {BATCH: 64, "object_options.optimizer": "adam", "object_options.step_size": 0.02},
    ),
    "PtyLab mPIE": Peer("ptylab", "mPIE", {}),
}  # fmt: skip
"""Every peer by the name that tables and figures show."""
OWN_MODELS = {
    "refine from flat": "amplitude, none",
    "refine from flat, Poisson and TV": "Poisson, total variation",
    "pretrained network": "Poisson, learned",
}
"""Our own ways -> likelihood and smoothing."""


def model_of(label: str, case: Case) -> str:
    """Return the likelihood and the smoothing behind a row, so that unlike things are seen to be unlike."""
    if label in PEERS:
        return PEERS[label].model
    # The network trained on the scan is followed by the refinement that suits the dose.
    return OWN_MODELS.get(label, f"{'Poisson, total variation' if case.dim else 'amplitude, none'} (trained)")
