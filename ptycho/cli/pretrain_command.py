"""The flags of the pre-training, which ``ptycho_torch.pretrain`` runs."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from ptycho.cli.console import Parser
from ptycho.simulation.curriculum import PretrainOptions


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; every flag may be spelled with dashes or underscores.

    Returns
    -------
    argparse.ArgumentParser
        Parser without side effects; what is not given leaves no trace.
    """
    default = PretrainOptions()
    parser = Parser(
        prog="python -m ptycho_torch.pretrain",
        description="Train the learned steps of unrolled on simulated scans, for scans without training.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output-dir", type=Path, required=True, metavar="DIR", help="where wts.h5.zip is written")
    add("--scans", type=int, metavar="K", help=f"scans simulated for each step (default {default.scans})")
    add("--iterations", type=int, metavar="K", help=f"of the optimiser (default {default.iterations})")
    add("--batch-size", type=int, metavar="B", help=f"crops in a batch (default {default.batch_size})")
    add("--learning-rate", type=float, metavar="R", help=f"highest rate (default {default.learning_rate})")
    add("--width", type=int, metavar="W", help=f"filters of the finest level (default {default.width})")
    add("--seed", type=int, metavar="S", help=f"of scans, weights and order (default {default.seed})")
    add("--quiet", action="store_true", help="print only errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def pretrain_options(values: dict[str, Any]) -> PretrainOptions:
    """Return the options among parsed values.

    Parameters
    ----------
    values : dict
        What the parser returned.

    Returns
    -------
    PretrainOptions
        Defaults where nothing was given.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """
    names = {field.name for field in fields(PretrainOptions)}
    return PretrainOptions(**{name: value for name, value in values.items() if name in names})
