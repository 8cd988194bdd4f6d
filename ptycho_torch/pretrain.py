"""Pre-train ``unrolled`` on simulated scans: ``python -m ptycho_torch.pretrain``.

Importing this module loads no framework.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def _run(values: dict[str, Any]) -> None:
    from ptycho.cli.console import ConsoleProgress
    from ptycho.cli.pretrain_command import pretrain_options
    from ptycho.config.choices import BUNDLE_NAME
    from ptycho.networks.bundle import write_bundle
    from ptycho.process.progress import Progress
    from ptycho.run.engines import require_backend
    from ptycho.run.outputs import prepare_folder

    options = pretrain_options(values)
    require_backend("pytorch")
    from ptycho_torch.pretraining import pretrain
    from ptycho_torch.reconstruct import resolve_accelerator

    quiet, accelerator = values.get("quiet", False), values.get("accelerator", "auto")
    resolve_accelerator(accelerator)  # before a folder is made
    folder = prepare_folder(values["output_dir"])
    bundle = pretrain(options, Progress() if quiet else ConsoleProgress(), accelerator=accelerator)
    path = write_bundle(folder / BUNDLE_NAME, bundle)
    if not quiet:
        sys.stdout.write(f"{path}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, by default with the arguments of the process; return its exit status."""
    from ptycho.cli.console import run_main
    from ptycho.cli.pretrain_command import build_parser

    return run_main(build_parser(), _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
