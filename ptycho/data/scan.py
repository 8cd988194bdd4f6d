"""A scan made ready for an engine: patterns, positions, probe, and the one record of every scale factor."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig
from ptycho.data.checks.findings import Draft, Finding
from ptycho.data.checks.registry import check_patterns, check_scan, report
from ptycho.data.optics import FileOptions
from ptycho.data.raw import RawData
from ptycho.data.scaling import ScaleRecord, make_scale_record, scaled_probe
from ptycho.geometry.canvas import check_extent


@dataclass(frozen=True)
class Scan:
    """Patterns with everything the forward model needs.

    Attributes
    ----------
    raw : RawData
        Patterns as stored and the optional arrays of the file.
    record : ScaleRecord
        Decisions about domain and scale.
    probe : complex64 array, shape (P, N, N)
        Probe modes [sqrt(photons)].
    positions_yx_px : float64 array, shape (M, 2)
        Patch centres [object px].
    name : str
        File name, for messages.
    left_out : int64 array, shape (K,)
        Patterns that take no part in anything, ascending.
    findings : tuple of Finding
        What the checks found: mended faults and warnings.
    options : FileOptions
        What the user said about the file.
    """

    raw: RawData
    record: ScaleRecord
    probe: NDArray[np.complex64]
    positions_yx_px: NDArray[np.float64]
    name: str
    left_out: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    findings: tuple[Finding, ...] = ()
    options: FileOptions = field(default_factory=FileOptions)

    @property
    def n_px(self) -> int:
        """Pattern size N [px]."""
        return self.raw.N

    @property
    def n_patterns(self) -> int:
        """Number of patterns M, those left out among them."""
        return self.raw.n_patterns

    @property
    def pattern_numbers(self) -> NDArray[np.int64]:
        """Number of each pattern in its file, shape (M,)."""
        return self.raw.pattern_numbers

    @property
    def usable(self) -> NDArray[np.int64]:
        """Patterns that take part, ascending."""
        return np.setdiff1d(np.arange(self.n_patterns), self.left_out)


@dataclass(frozen=True)
class ProbeMask:
    """A soft disc that the probe is multiplied with.

    Attributes
    ----------
    diameter_px : float or None
        Diameter at half height; half the pattern size by default [px].
    sigma_px : float
        Softness of the edge [px].
    """

    diameter_px: float | None = None
    sigma_px: float = 1.0

    def values(self, n_px: int) -> NDArray[np.float32]:
        """Return the mask, centred on the patch.

        Parameters
        ----------
        n_px : int
            Pattern size N [px].

        Returns
        -------
        float32 array, shape (N, N)
            Between 0 and 1.
        """
        radius = (self.diameter_px if self.diameter_px is not None else n_px / 2) / 2
        axis = np.arange(n_px) - (n_px - 1) / 2
        beyond = np.hypot(axis[:, None], axis) - radius
        if self.sigma_px == 0:
            return (beyond < 0).astype(np.float32)
        return (0.5 * (1.0 - np.tanh(beyond / self.sigma_px))).astype(np.float32)


def mask_of(model: ModelConfig) -> ProbeMask | None:
    """Return the probe mask that a configuration asks for.

    Parameters
    ----------
    model : ModelConfig
        ``probe_mask`` and its two numbers.

    Returns
    -------
    ProbeMask or None
        None where no mask is asked for.
    """
    return ProbeMask(model.probe_mask_diameter, model.probe_mask_sigma) if model.probe_mask else None


def masked(probe: NDArray[np.complex64], model: ModelConfig) -> NDArray[np.complex64]:
    """Return a probe within the mask that a configuration asks for.

    Parameters
    ----------
    probe : complex array, shape (P, N, N)
        Probe modes [sqrt(photons)].
    model : ModelConfig
        ``probe_mask`` and its two numbers.

    Returns
    -------
    complex array, shape (P, N, N)
        The probe itself where no mask is asked for.
    """
    mask = mask_of(model)
    return probe if mask is None else probe * mask.values(probe.shape[-1])


def prepare_scan(
    raw: RawData,
    *,
    domain: Literal["counts", "amplitude"] | None = None,
    mask: ProbeMask | None = None,
    name: str = "scan",
    options: FileOptions | None = None,
) -> Scan:
    """Check a data set, mend what is certain, and decide the scale of the scan once.

    Parameters
    ----------
    raw : RawData
        Validated patterns, positions and probe.
    domain : {'counts', 'amplitude'}, optional
        What the patterns hold; decided from the data where it is not given.
    mask : ProbeMask, optional
        Multiplied with the probe.
    name : str
        Name used in messages.
    options : FileOptions, optional
        What the user says about the file.

    Returns
    -------
    Scan
        Ready for an engine.

    Raises
    ------
    DataError
        If the probe is missing, or the data cannot be right (``ptycho.data.checks``).
    """
    options = options or FileOptions()
    draft = check_patterns(Draft(raw), options)
    raw = draft.raw
    record = make_scale_record(
        raw,
        override=domain,
        nphotons=raw.nphotons,
        left_out=draft.left_out,
        keep_probe_power=options.keep_probe_power,
    )
    probe = scaled_probe(raw, record)
    if mask is not None:
        probe = probe * mask.values(raw.N)
    scan = Scan(raw, record, probe, raw.positions_yx_px, name, draft.left_out, options=options)
    # The checks name the unit that explains a scan too wide for this machine; the rest is refused after them.
    scan = replace(scan, findings=(*draft.findings, *check_scan(scan, options)))
    check_extent(raw.positions_yx_px, raw.N, name)
    report(scan.findings, name)
    return scan


def open_scan(
    path: str | Path,
    *,
    domain: Literal["counts", "amplitude"] | None = None,
    mask: ProbeMask | None = None,
    probe_key: str | None = None,
    pattern_axis: int | None = None,
    options: FileOptions | None = None,
) -> Scan:
    """Read a scan from a file and decide its scale.

    Parameters
    ----------
    path : path-like
        NPZ or HDF5 file, see ``specs/data_contracts.md``.
    domain : {'counts', 'amplitude'}, optional
        What the patterns hold; decided from the data where it is not given.
    mask : ProbeMask, optional
        Multiplied with the probe.
    probe_key : str, optional
        Key of the file that holds the probe; ``probeGuess`` by default.
    pattern_axis : int, optional
        Axis that counts the patterns; found from the shape by default.
    options : FileOptions, optional
        What the user says about the optics, the orientation and the partner of the file.

    Returns
    -------
    Scan
        Ready for an engine.

    Raises
    ------
    DataError
        If the file breaks the data contract.
    """
    raw = RawData.from_file(path, probe_key, pattern_axis, options)
    return prepare_scan(raw, domain=domain, mask=mask, name=Path(path).name, options=options)
