"""The evaluation command: score a reconstruction in every way the named files allow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptycho.cli.console import ConsoleProgress, Parser, run_command, with_dashes
from ptycho.cli.flags import EPILOG
from ptycho.cli.train_command import DEFAULT_BACKEND, execution_settings, measurement_domain
from ptycho.errors import ConfigError
from ptycho.progress import Progress


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command.

    Returns
    -------
    argparse.ArgumentParser
        Parsed values hold only what was given.
    """
    parser = Parser(
        prog="ptycho_evaluate",
        description="Score a reconstruction against a truth, another reconstruction, its own patterns, or by two half "
        "scans.",
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--reconstruction", type=Path, metavar="PATH", help="reconstruction.npz or its folder (required)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="where the numbers and pictures go (required)")
    parser.add_argument("--truth", type=Path, metavar="NPZ", help="data file that holds the known truth")
    parser.add_argument("--reference", type=Path, metavar="PATH", help="another reconstruction to compare with")
    parser.add_argument("--test-data", type=Path, metavar="NPZ", help="data file it was made from: misfit per pattern")
    parser.add_argument("--model-path", type=Path, metavar="PATH",
                        help="trained model: with --test_data, a resolution from two half scans, without any truth")
    parser.add_argument("--backend", metavar="NAME", help="pytorch or tensorflow (default pytorch)")
    parser.add_argument("--accelerator", metavar="NAME", help="auto, cpu, gpu, cuda or mps (default auto)")
    parser.add_argument("--measurement-domain", metavar="NAME", help="counts or amplitude; decided from the file by default")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the split (default 42)")
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    return parser


def _run(values: dict[str, Any]) -> None:
    from ptycho.evaluate import evaluate

    for name in ("reconstruction", "output_dir"):
        if name not in values:
            raise ConfigError(f"--{name} is missing (got nothing, expected a path). Name it.")
    quiet = values.pop("quiet", False)
    domain = measurement_domain(values)
    backend = values.pop("backend", DEFAULT_BACKEND)
    execution = execution_settings(values, training=False)
    found = evaluate(
        values.pop("reconstruction"),
        values.pop("output_dir"),
        **values,
        domain=domain,
        backend=backend,
        execution=execution,
        progress=Progress() if quiet else ConsoleProgress(),
    )
    if quiet:
        return
    width = max(len(name) for name in found.scores)
    for name, value in found.scores.items():
        print(f"{name:<{width}}  {value:.6g}")
    for path in found.files:
        print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process where none are given.

    Returns
    -------
    int
        0 done, 2 bad input, 130 interrupted, 1 our fault.
    """
    values = vars(build_parser().parse_args(with_dashes(sys.argv[1:] if argv is None else argv)))
    debug = values.pop("debug", False)
    return run_command(lambda: _run(values), debug=debug)
