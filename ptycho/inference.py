"""Reconstruct with TensorFlow: ``python -m ptycho.inference``. Importing this module loads no framework."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def cli_main(argv: Sequence[str] | None = None) -> int:
    """Run the inference command with this backend and return its exit status."""
    from ptycho.cli import inference_command

    return inference_command.main(argv, backend="tensorflow", prog="python -m ptycho.inference")


if __name__ == "__main__":
    sys.exit(cli_main())
