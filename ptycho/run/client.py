"""What a reconstruction for a client does beside the network, for the plug-ins of both backends."""

from __future__ import annotations

import os
from typing import Any

from ptycho.config.config import ModelConfig
from ptycho.errors import ConfigError
from ptycho.run.selection import selection

REFINE_VARIABLE = "PTYCHO_REFINE"
"""Environment variable that keeps a client to what the network alone makes, with the value ``off``."""


def client_options(model: ModelConfig) -> dict[str, Any]:
    """Return the options of ``engine.reconstruct`` with which a client is served: none where the variable
    ``PTYCHO_REFINE`` of the environment is ``off``; ``ConfigError`` where it is neither that nor ``on``.

    A client has no window to ask for a refinement, and the object that ``cnn`` makes of single patterns is
    a start, no result: hidden pixels choose, as in the command.
    """
    chooses = selection(model) if refines() else None
    return {} if chooses is None else {"select": chooses}


def refines() -> bool:
    """Tell whether clients get more than the network alone; ``ConfigError`` as :func:`client_options`."""
    value = os.environ.get(REFINE_VARIABLE, "").strip().lower() or "on"
    if value not in ("on", "off"):
        raise ConfigError(
            f"environment: {REFINE_VARIABLE} is no choice (got {value!r}, expected on or off). "
            "Leave it unset."
        )
    return value == "on"
