"""Arrays that a file offers and nobody reads: a better probe, a mask, other patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptycho.checks.findings import Finding

if TYPE_CHECKING:
    from ptycho.files.optics import FileOptions
    from ptycho.scan import Scan

SILENT = {"probe_true"}
"""What our own simulations keep for comparison."""
OFFERS = (
    (("mask", "bad", "good_pix", "goodpix", "valid", "hot"), "rename it to mask or bad_pixels to use it"),
    (("probe", "illumination"), "--probe-key {key} uses it"),
    (("intens", "diffr", "diff3d", "pattern", "counts", "frames"), "rename it to diff3d to use it"),
)
"""Parts of a name -> what to do with the array; the first that fits."""


def check_contents(scan: Scan, options: FileOptions) -> Finding | None:
    """Name the arrays of a file that are not read, and what would use them.

    Parameters
    ----------
    scan : Scan
        Ready for an engine.
    options : FileOptions
        Not used.

    Returns
    -------
    Finding or None
        Key, shape and cure of each.
    """
    offers = []
    for key, shape in scan.raw.unused.items():
        cure = next((cure for parts, cure in OFFERS if any(part in key.lower() for part in parts)), None)
        if cure is not None and key not in SILENT:
            offers.append(f"{key} {shape}: {cure.format(key=key)}")
    if not offers:
        return None
    return Finding("contents", f"the file also holds arrays that are not read ({'; '.join(offers)})")
