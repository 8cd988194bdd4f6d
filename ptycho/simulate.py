"""Entry point of ``python -m ptycho.simulate``."""

from ptycho.cli.simulate_command import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
