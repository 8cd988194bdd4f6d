"""TensorFlow itself, imported once and quietly, and the conversion that it lacks.

While it is imported, TensorFlow's C++ side writes a dozen lines about CPU features and absent GPUs to the
standard error stream, whatever its log settings say; they would bury the one line of a command that fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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

__all__ = ["Tensor", "as_complex", "tf"]

Tensor = tf.Tensor


def as_complex(values: Tensor) -> Tensor:
    """Return real numbers as complex ones of the same precision; the gradient of a cast would warn about the
    part it drops."""
    return tf.complex(values, tf.zeros_like(values))
