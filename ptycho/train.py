"""Train with TensorFlow: ``python -m ptycho.train``. Importing this module loads no framework."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def cli_main(argv: Sequence[str] | None = None) -> int:
    """Run the training command with this backend and return its exit status."""
    from ptycho.cli import train_command

    return train_command.main(argv, backend="tensorflow", prog="python -m ptycho.train")


if __name__ == "__main__":
    sys.exit(cli_main())
