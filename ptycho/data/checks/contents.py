"""Arrays that a file offers and nobody reads: a better probe, a mask, other patterns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ptycho.data.checks.findings import Finding

if TYPE_CHECKING:
    from ptycho.data.optics import FileOptions
    from ptycho.data.scan import Scan

SILENT = {"probe_true", "data_error"}
"""What our own simulations keep for comparison, and the errors of counts."""
PATTERNS = "intens|diffr|diff3d|pattern|counts|frames|(data|detector)_[0-9]+/data$"
OFFERS = (
    ("mask|bad|good_?pix|valid|hot", "store it as {mask} to use it"),
    ("probe|illumination", "{probe}"),
    ("dark|white|flat|background|gain", "the patterns are taken as corrected by it"),
    (PATTERNS, "store it as {patterns} to use it"),
)
"""Expression that a name holds -> what to do with the array; the first that fits."""


def check_contents(scan: Scan, options: FileOptions) -> Finding | None:
    """Name the arrays of a file that are not read, and what would use them."""
    offers = []
    for key, shape in scan.raw.unused.items():
        cure = next((cure for name, cure in OFFERS if re.search(name, key.lower())), None)
        if cure is not None and key.rpartition("/")[2] not in SILENT:
            offers.append(f"{key} {shape}: {cure.format_map(scan.raw.places).format(key=key)}")
    if not offers:
        return None
    return Finding("contents", f"the file also holds arrays that are not read ({'; '.join(offers)})")
