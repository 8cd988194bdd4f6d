"""The evaluation command: score a reconstruction in every way the named files allow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptycho.cli.console import ConsoleProgress, Parser, run_command, typed_flags, with_dashes
from ptycho.cli.flags import EPILOG, add_file_flags
from ptycho.cli.train_command import DEFAULT_BACKEND, execution_settings, measurement_domain
from ptycho.errors import ConfigError
from ptycho.process.progress import Progress


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command.

    Returns
    -------
    argparse.ArgumentParser
        Parsed values hold only what was given.
    """
    parser = Parser(
        prog="ptycho_evaluate",
        description="Score a reconstruction: against a truth, against another one, by its own patterns, or "
        "by two half scans.",
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    files = parser.add_argument_group("files")
    for flag, kind, text in (
        ("reconstruction", "PATH", "reconstruction.npz or its folder, or an exported file (required)"),
        ("output-dir", "DIR", "where the numbers and pictures go (required)"),
        ("truth", "NPZ", "data file that holds the known truth"),
        ("reference", "PATH", "another reconstruction to compare with"),
        ("test-data", "FILE", "data file it was made from: misfit of every pattern"),
    ):
        files.add_argument(f"--{flag}", type=Path, metavar=kind, help=text)
    files.add_argument(
        "--measurement-domain",
        metavar="NAME",
        help="counts or amplitude; by default as when the reconstruction was made",
    )
    files.add_argument(
        "--probe-key", metavar="KEY", help="key of the data file that holds the probe (default probeGuess)"
    )
    files.add_argument(
        "--pattern-axis",
        type=int,
        choices=(0, 1, 2),
        help="axis that counts the patterns; by default found from the shape",
    )
    add_file_flags(parser)
    halves = parser.add_argument_group("two half scans, with --test-data: a resolution without any truth")
    halves.add_argument(
        "--model-path", type=Path, metavar="PATH", help="trained model that reconstructs both halves"
    )
    halves.add_argument(
        "--refine",
        dest="refine_steps",
        type=int,
        metavar="K",
        help="refine both with at most K steps of the forward model (default 0: none)",
    )
    halves.add_argument("--seed", type=int, metavar="S", help="seed of the split (default 42)")
    halves.add_argument("--backend", metavar="NAME", help="pytorch or tensorflow (default pytorch)")
    halves.add_argument("--accelerator", metavar="NAME", help="auto, cpu, gpu, cuda or mps (default auto)")
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    return parser


def _run(values: dict[str, Any]) -> None:
    from ptycho.data.optics import FileOptions
    from ptycho.run.evaluate import Request, evaluate
    from ptycho.solver.options import RefineOptions

    for name in ("reconstruction", "output_dir"):
        if name not in values:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is missing (got nothing, expected a path). Name it.")
    quiet = values.pop("quiet", False)
    domain = measurement_domain(values)
    backend = values.pop("backend", DEFAULT_BACKEND)
    execution = execution_settings(values, training=False)
    steps = values.pop("refine_steps", 0)
    folder = values.pop("output_dir")
    refine = RefineOptions(steps) if steps else None
    options = FileOptions(**{name: values.pop(name) for name in FileOptions.names() & values.keys()})
    request = Request(
        **values, domain=domain, options=options, backend=backend, execution=execution, refine=refine
    )
    found = evaluate(request, folder, Progress() if quiet else ConsoleProgress())
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
    words = with_dashes(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    values = vars(parser.parse_args(words))
    debug = values.pop("debug", False)
    return run_command(lambda: _run(values), debug=debug, typed=typed_flags(parser, words))
