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
    folder = prepare_folder(values["output_dir"])
    from ptycho_torch.pretraining import pretrain

    quiet = values.get("quiet", False)
    path = write_bundle(folder / BUNDLE_NAME, pretrain(options, Progress() if quiet else ConsoleProgress()))
    if not quiet:
        sys.stdout.write(f"{path}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, by default with the arguments of the process; return 0, or 2 when the input was
    bad."""
    from ptycho.cli.console import run_command, typed_flags, with_dashes
    from ptycho.cli.pretrain_command import build_parser

    words = with_dashes(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    values = vars(parser.parse_args(words))
    return run_command(lambda: _run(values), debug="debug" in values, typed=typed_flags(parser, words))


if __name__ == "__main__":
    raise SystemExit(main())
