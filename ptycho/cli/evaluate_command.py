"""The evaluation command: score a reconstruction in every way the named files allow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptycho.cli.console import ConsoleProgress, Parser, run_main
from ptycho.cli.flags import EPILOG, Files, Flags, add_file_flags, add_pattern_axis
from ptycho.cli.settings import DEFAULT_BACKEND, execution_settings, settle_domain
from ptycho.errors import ConfigError
from ptycho.process.progress import Progress


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command; parsed values hold only what was given."""
    parser = Parser(
        "ptycho_evaluate",
        "Score a reconstruction: against a truth, against another one, by its own patterns, or by two half "
        "scans.",
        epilog=EPILOG,
    )
    add = Flags(parser, "files")
    add("reconstruction", Path, "PATH", "reconstruction.npz or its folder, or an exported file (required)")
    add("output-dir", Path, "DIR", "where the numbers and pictures go (required)")
    add("truth", Path, "NPZ", "data file that holds the known truth")
    add("reference", Path, "PATH", "another reconstruction to compare with")
    text = "data file it was made from, or all of them in their order: misfit of every pattern"
    add("test-data", Path, "FILE", text, nargs="+", action=Files)
    text = "counts or amplitude; by default as when the reconstruction was made"
    add("measurement-domain", str, "NAME", text)
    add("probe-key", str, "KEY", "key of the data file that holds the probe (default probeGuess)")
    add_pattern_axis(add)
    add_file_flags(parser)
    add = Flags(parser, "two half scans, with --test-data: a resolution without any truth")
    add("model-path", Path, "PATH", "trained model that reconstructs both halves")
    text = "refine both with at most K steps of the forward model (default 0: none)"
    add("refine", int, "K", text, dest="refine_steps")
    add("seed", int, "S", "seed of the split (default 42)")
    add("backend", str, "NAME", "pytorch or tensorflow (default pytorch)")
    add("accelerator", str, "NAME", "auto, cpu, gpu, cuda or mps (default auto)")
    add = Flags(parser)
    add.mark("quiet", "print only errors")
    add.mark("debug", "show tracebacks and debug messages")
    return parser


def _run(values: dict[str, Any]) -> None:
    from ptycho.data.optics import FileOptions
    from ptycho.run.evaluate import Request, evaluate
    from ptycho.solver.options import RefineOptions

    for name in ("reconstruction", "output_dir"):
        if name not in values:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is missing (got nothing, expected a path). Name it.")
    if isinstance(values.get("test_data"), list):
        values["test_data"], *further = values["test_data"]
        values["further_scans"] = tuple(further)
    quiet = values.pop("quiet", False)
    settle_domain(values)
    domain = values.pop("measurement_domain", None)
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
    """Run the command and return its status, as :func:`ptycho.cli.console.run_main`."""
    return run_main(build_parser(), _run, argv)
