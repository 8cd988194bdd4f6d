"""From a data set to a scan: checks, what is certain mended, and the scale decided once."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ptycho.data.checks.findings import Draft
from ptycho.data.checks.registry import check_patterns, check_scan, report
from ptycho.data.optics import FileOptions
from ptycho.data.probe_mask import ProbeMask
from ptycho.data.raw import RawData
from ptycho.data.scaling import make_scale_record, scaled_probe
from ptycho.data.scan import Scan
from ptycho.geometry.canvas import check_extent


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


def checked(raw: RawData) -> Draft:
    """Return a data set with what is certain mended, as every scan that an engine sees."""
    return check_patterns(Draft(raw), FileOptions())
