"""From a data set to a scan: checks, what is certain mended, and the scale decided once."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig
from ptycho.data.checks.findings import Draft
from ptycho.data.checks.registry import check_patterns, check_scan, report
from ptycho.data.optics import FileOptions, upsampling_of
from ptycho.data.raw import RawData
from ptycho.data.scaling import make_scale_record, scaled_probe
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError
from ptycho.geometry.canvas import check_extent


@dataclass(frozen=True)
class ProbeMask:
    """A soft disc that the probe is multiplied with."""

    diameter_px: float | None = None  # at half height; by default half the size of the probe
    sigma_px: float = 1.0  # softness of the edge

    def values(self, n_px: int) -> NDArray[np.float32]:
        """Return the mask (N, N), 0 to 1, centred on the patch."""
        radius = (self.diameter_px if self.diameter_px is not None else n_px / 2) / 2
        axis = np.arange(n_px) - (n_px - 1) / 2
        beyond = np.hypot(axis[:, None], axis) - radius
        if self.sigma_px == 0:
            return (beyond < 0).astype(np.float32)
        return (0.5 * (1.0 - np.tanh(beyond / self.sigma_px))).astype(np.float32)


def mask_of(model: ModelConfig) -> ProbeMask | None:
    """Return the probe mask that a configuration asks for."""
    return ProbeMask(model.probe_mask_diameter, model.probe_mask_sigma) if model.probe_mask else None


def masked(probe: NDArray[np.complex64], model: ModelConfig) -> NDArray[np.complex64]:
    """Return a probe (P, N, N) within the mask that a configuration asks for; itself where there is none."""
    mask = mask_of(model)
    return probe if mask is None else probe * mask.values(probe.shape[-1])


def _in_window(raw: RawData, options: FileOptions) -> RawData:
    """Return a data set with its probe in the middle of the window that the user asks for, dark around it."""
    if options.probe_window is None or raw.probeGuess is None:
        return raw
    modes, side_px = raw.probe_modes, options.probe_window * raw.N
    room = side_px - modes.shape[-1]
    if room < 0:
        raise ConfigError(
            f"{raw.source}: the probe is larger than its window (got {modes.shape[-1]} px and --probe-window "
            f"{options.probe_window}, {side_px} px, expected room for it). Leave out --probe-window."
        )
    widened = copy.copy(raw)
    around = (room // 2, room - room // 2)
    widened.probeGuess = np.pad(modes, ((0, 0), around, around))
    upsampling_of(widened, options)
    return widened


def prepare_scan(
    raw: RawData,
    *,
    domain: Literal["counts", "amplitude"] | None = None,
    mask: ProbeMask | None = None,
    name: str = "scan",
    options: FileOptions | None = None,
) -> Scan:
    """Check a data set, mend what is certain, and decide the scale of the scan once.

    The domain is decided from the data where none is given; the mask is multiplied with the probe.
    ``DataError`` without a probe, or where the data cannot be right (``ptycho.data.checks``).
    """
    options = options or FileOptions()
    upsampling_of(raw, options)  # what contradicts itself is refused here
    draft = check_patterns(Draft(raw), options)
    raw = _in_window(draft.raw, options)
    record = make_scale_record(
        raw, override=domain, left_out=draft.left_out, keep_probe_power=options.keep_probe_power
    )
    probe = scaled_probe(raw, record)
    if mask is not None:
        probe = probe * mask.values(probe.shape[-1])
    scan = Scan(raw, record, probe, raw.positions_yx_px, name, draft.left_out, options=options)
    # The checks name the unit that explains a scan too wide for this machine; the rest is refused after them.
    scan = replace(scan, findings=(*draft.findings, *check_scan(scan)))
    check_extent(raw.positions_yx_px, scan.patch_px, name)
    report(scan.findings, name)
    return scan


def checked(raw: RawData, options: FileOptions | None = None) -> Draft:
    """Return a data set with what is certain mended, as every scan that an engine sees."""
    return check_patterns(Draft(raw), options or FileOptions())
