"""TensorFlow itself, imported once and quietly, the conversion that it lacks, and the device it computes on.

While it is imported, TensorFlow's C++ side writes a dozen lines about CPU features and absent GPUs to the
standard error stream, whatever its log settings say; they would bury the one line of a command that fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ptycho.run.job import chosen_device


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send file descriptor 2 nowhere for a while; Python errors still travel as exceptions."""
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


if "tensorflow" in sys.modules:
    import tensorflow as tf
else:
    # 3 leaves out the error lines about a missing CUDA driver, which is no error on a machine without GPU.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silent_stderr():
        import tensorflow as tf

Tensor = tf.Tensor


def as_complex(values: Tensor) -> Tensor:
    """Return real numbers as complex ones of the same precision; the gradient of a cast would warn about the
    part it drops."""
    return tf.complex(values, tf.zeros_like(values))


def resolve_accelerator(requested: str) -> str:
    """Return ``cpu`` or ``gpu`` for the requested accelerator (also ``cuda``; ``auto`` takes a GPU where
    there is one, else the CPU); ``ConfigError`` if the machine does not have it, as it never has ``mps``."""
    there = {"cpu": True, "gpu": bool(tf.config.list_physical_devices("GPU"))}
    return chosen_device(requested, there, "TensorFlow")


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
