"""Make every data set of this folder again: one call of ``ptycho_simulate`` per file, with a fixed seed.

Run ``python datasets/make_datasets.py``, or name another folder to write to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS: dict[str, str] = {
    "demo_64.npz": (
        "--scene collage --size 64 --grid 20x20 --step 5.5 --jitter 1 "
        "--probe zone-plate --probe-diameter 28.8 --defocus 1 --photons 1e6 --seed 7"
    ),
    "low_dose_64.npz": (
        "--scene siemens_star --size 64 --grid 20x20 --step 5 --jitter 1 "
        "--probe zone-plate --probe-diameter 28.8 --defocus 1 --photons 5e3 --seed 7"
    ),
}
"""File name and the flags that make it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write all data sets.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process where none are given.

    Returns
    -------
    int
        0 when all files were written, else the status of the first call that failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path(__file__).resolve().parent,
        help="where to write (default: this folder)",
    )
    folder = parser.parse_args(argv).folder
    for name, flags in COMMANDS.items():
        words = ["-m", "ptycho.simulate", "--output", str(folder / name), *flags.split()]
        status = subprocess.run([sys.executable, *words], check=False).returncode
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
