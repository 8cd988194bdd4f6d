"""Compare reconstructions of one scan with its known truth: a picture, and one line of error for each.

usage: python benchmarks/side_by_side.py --truth SCAN --output PNG NAME=FOLDER [NAME=FOLDER ...]

The last lines are the complex NRMSE of every reconstruction, in the order given. `make demo` ends with them;
the first page shows the picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import PtychoError
from ptycho.evaluation.comparison import read_reconstruction
from ptycho.evaluation.figures import new_figure
from ptycho.evaluation.gauge import solve_gauge
from ptycho.evaluation.metrics import score
from ptycho.run.outputs import truth_on_canvas

SHOWN_PX = 88
"""Side of what the picture shows, in the middle of the scan."""


def compared(folder: Path, scan: Path) -> tuple[float, NDArray[Any], NDArray[Any]]:
    """Return the error of a reconstruction, its middle in the gauge of the truth, and that of the truth."""
    found = read_reconstruction(folder)
    known = truth_on_canvas(scan, found)
    if known is None:
        raise PtychoError(
            f"{scan}: no known truth (expected objectGuess with object_is_truth). Name a simulated scan."
        )
    truth, mask = known
    error = score(found.obj, truth, mask)["complex_nrmse"]
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    middle = tuple(slice((low := (i[0] + i[-1] - SHOWN_PX) // 2), low + SHOWN_PX) for i in (rows, columns))
    return error, solve_gauge(found.obj, truth, mask).obj[middle], truth[middle]


def draw(objects: dict[str, NDArray[Any]], path: Path) -> None:
    """Draw amplitude and phase of every object, in the colours of the first; few colours, to be small."""
    from PIL import Image

    figure = new_figure(2.0 * len(objects), 4.3)
    figure.set_dpi(100)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(2, len(objects))
    first = next(iter(objects.values()))
    for row, (name, part, colours) in enumerate(
        (("amplitude", np.abs, "gray"), ("phase", np.angle, "viridis"))
    ):
        low, high = np.percentile(part(first), (1, 99))
        for axis, (title, obj) in zip(axes[row], objects.items(), strict=True):
            axis.imshow(part(obj), cmap=colours, vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[], title=title if row == 0 else "")
        axes[row][0].set_ylabel(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and print; 2 where a file does not fit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reconstructions", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument(
        "--truth", type=Path, required=True, metavar="SCAN", help="scan with the known object"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PNG", help="where the picture goes")
    options = parser.parse_args(argv)
    shown: dict[str, NDArray[Any]] = {}
    lines = []
    try:
        for item in options.reconstructions:
            name, _, folder = item.rpartition("=")
            error, obj, truth = compared(Path(folder), options.truth)
            shown |= {"truth": truth} if not shown else {}
            shown[f"{name or folder}\nerror {error:.3f}"] = obj
            lines.append((name or folder, error))
    except PtychoError as fault:
        print(fault, file=sys.stderr)
        return 2
    draw(shown, options.output)
    print(options.output)
    width = max(len(name) for name, _ in lines)
    for name, error in lines:
        print(f"{name:<{width}}  complex NRMSE {error:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
