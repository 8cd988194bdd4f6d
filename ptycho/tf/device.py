"""Which device TensorFlow computes on."""

from __future__ import annotations

from contextlib import suppress

from ptycho.errors import ConfigError
from ptycho.tf.runtime import tf


def resolve_accelerator(requested: str) -> str:
    """Return ``cpu`` or ``gpu`` for the requested accelerator (also ``cuda``; ``auto`` takes a GPU where
    there is one, else the CPU); ``ConfigError`` if the machine does not have it, as it never has ``mps``."""
    there = {"cpu": True, "gpu": bool(tf.config.list_physical_devices("GPU"))}
    if requested == "auto":
        return "gpu" if there["gpu"] else "cpu"
    name = "gpu" if requested == "cuda" else requested
    if not there.get(name, False):
        usable = ", ".join(["auto", *(key for key, value in there.items() if value)])
        raise ConfigError(
            f"accelerator: this machine has no {requested} device for TensorFlow (got {requested!r}, "
            f"expected one of {usable}). Pass --accelerator auto."
        )
    return name


def device_name(requested: str) -> str:
    """Return TensorFlow's name of the device of :func:`resolve_accelerator`, and make a GPU share its
    memory."""
    name = resolve_accelerator(requested)
    if name == "gpu":
        # Without this TensorFlow takes the whole memory of every GPU; it cannot be set once one is in use.
        with suppress(RuntimeError):
            for device in tf.config.list_physical_devices("GPU"):
                tf.config.experimental.set_memory_growth(device, True)
    return f"/{name.upper()}:0"
