"""The flags of the pre-training, which ``ptycho_torch.pretrain`` runs."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from ptycho.cli.console import Parser
from ptycho.cli.flags import Flags, accelerator_text
from ptycho.config import choices
from ptycho.simulation.curriculum import PretrainOptions


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; what is not given leaves no trace."""
    default = PretrainOptions()
    parser = Parser(
        "python -m ptycho_torch.pretrain",
        "Train the learned steps of unrolled on simulated scans, for scans without training. The "
        "defaults take about 80 minutes on two CPU cores.",
    )
    add = Flags(parser)
    add("output-dir", Path, "DIR", "where wts.h5.zip is written", required=True)
    add("scans", int, "K", f"scans simulated for each step (default {default.scans})")
    add("iterations", int, "K", f"of the optimiser (default {default.iterations})")
    add("batch-size", int, "B", f"crops in a batch (default {default.batch_size})")
    add("learning-rate", float, "R", f"highest rate (default {default.learning_rate})")
    add("width", int, "W", f"filters of the finest level (default {default.width})")
    add("seed", int, "S", f"of scans, weights and order (default {default.seed})")
    add.choice("accelerator", choices.Accelerator, accelerator_text("auto"))
    add.mark("quiet", "print only errors")
    add.mark("debug", "show the traceback of an error")
    return parser


def pretrain_options(values: dict[str, Any]) -> PretrainOptions:
    """Return the options among parsed values; raise ``ConfigError`` where one is out of range."""
    names = {field.name for field in fields(PretrainOptions)}
    return PretrainOptions(**{name: value for name, value in values.items() if name in names})
