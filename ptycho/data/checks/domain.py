"""Counts or amplitude: whether what the patterns are taken for fits what is known about their photons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptycho.data.checks.findings import Finding
from ptycho.data.domain import BY_USER, domain_sample, photon_references, steps_of, totals_of

if TYPE_CHECKING:
    from ptycho.data.optics import FileOptions
    from ptycho.data.scan import Scan


def check_domain(scan: Scan, options: FileOptions) -> Finding | None:
    """Warn where patterns that are taken for counts look like amplitude, or the other way round."""
    raw, record = scan.raw, scan.record
    sample = domain_sample(raw, scan.usable)
    whole = raw.diff3d.dtype.kind in "iub" or not (sample % 1).any()
    # Whole numbers have the steps of counts also where they are rounded amplitude.
    kind, why = (None if whole else steps_of(sample)), "single photons leave the steps of it"
    if kind is None:
        references = photon_references(raw)
        found = totals_of(sample, references)
        if found is None:
            return None
        kind, names = found
        # One number may fit by chance; it counts where nothing but a default or a flag is against it.
        alone = names in references
        if alone and (whole or (record.reason != BY_USER and record.domain == "counts")):
            return None
        why = f"its total fits {names}"
    if kind == record.domain:
        return None
    return Finding(
        "domain",
        f"the patterns are taken as {record.domain} ({record.reason}), but look like {kind}: {why}; pass "
        f"--measurement-domain {kind}",
    )
