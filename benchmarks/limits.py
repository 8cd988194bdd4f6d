"""The photon limit of the scans of other benchmarks: no unbiased estimate has a smaller error (eq. 30).

usage: python benchmarks/limits.py [--of peers measured ...]

What smooths, learned or not, may end below it; what does not should come close.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ptycho.data.npz import read_npz
from ptycho.simulation.limit import simulated_limit
from ptycho.simulation.simulate import SimulationOptions, simulate

DATASETS = Path(__file__).resolve().parents[1] / "datasets"


def limit_of(options: SimulationOptions) -> float:
    """Return the smallest complex NRMSE of an unbiased estimate from a simulated scan, its probe known."""
    return simulated_limit(options, simulate(options)).nrmse


def options_in(path: Path) -> SimulationOptions:
    """Return the options that a simulated file holds."""
    return SimulationOptions(**json.loads(str(read_npz(path, ["simulation"])["simulation"])))


def of_peers() -> dict[str, SimulationOptions]:
    """Return the scans of ``peers.py``."""
    from peers_cases import CASES

    return {case.title: case.options for case in CASES.values()}


def of_measured() -> dict[str, SimulationOptions]:
    """Return the scans of ``real_scans.py``."""
    from real_scans import FAULTS

    return {fault.title: fault.noisy() for fault in FAULTS.values()}


def of_pages() -> dict[str, SimulationOptions]:
    """Return single scans that the pages quote."""
    bundled = {path.name: options_in(path) for path in sorted(DATASETS.glob("*.npz"))}
    return bundled | {
        "the client, 400 patterns": SimulationOptions(n_px=64, n_y=20, n_x=20, photons=1e6, seed=5),
        "low dose, 72 patterns": SimulationOptions(n_y=9, n_x=8, photons=5e3, seed=4),
        "faults": SimulationOptions(n_px=64, n_y=10, n_x=10, step_px=6.0, photons=1e6, seed=21),
        "35 x 35, steps of 4 px": SimulationOptions(n_y=35, n_x=35, step_px=4.0),
    }


GROUPS: dict[str, Callable[[], dict[str, SimulationOptions]]] = {
    "peers": of_peers,
    "measured": of_measured,
    "pages": of_pages,
}


def main() -> None:
    """Simulate, solve, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--of", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    for group in parser.parse_args().of:
        scans = GROUPS[group]()
        known: dict[SimulationOptions, float] = {}
        for title, asked in scans.items():
            options = replace(asked, probe_error_waves=0.0)  # of the stored probe, which makes no pattern
            if options not in known:
                known[options] = limit_of(options)
            print(f"{group}: {title}: {known[options]:.3g}", flush=True)


if __name__ == "__main__":
    main()
