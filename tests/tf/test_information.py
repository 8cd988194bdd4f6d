"""Facts about the Fisher information of TensorFlow: its numbers are those of the reference (eq. 30)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from judges import FLOAT32, FLOAT64, assert_twin, random_complex, small_scan

from ptycho.data.scaling import NOT_MEASURED
from ptycho.physics.detector import Detector
from ptycho.physics.information import count_score as reference
from ptycho.physics.propagation import near_field_transfer
from ptycho.tf.information import count_score as candidate
from ptycho.tf.runtime import tf


@pytest.mark.parametrize(("dtype", "bar"), [(np.complex128, FLOAT64), (np.complex64, FLOAT32)])
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("off", [("change",), ("noise",), ("change", "noise")])
def test_the_answer_to_counts_that_are_off_is_that_of_the_reference(
    dtype: type, bar: float, near: bool, off: tuple[str, ...]
) -> None:
    found, rng = small_scan(dtype, noisy=True), np.random.default_rng(0)
    real, n_px = found.amplitude.dtype, found.amplitude.shape[-1]
    amplitude = np.where(rng.random(found.amplitude.shape) < 0.1, NOT_MEASURED, found.amplitude)
    transfer = near_field_transfer(n_px, 0.13, rng.uniform(-1, 1, (len(amplitude), 2)))
    detector = Detector(transfer.astype(dtype) if near else None, np.full((n_px, n_px), 0.3, real))
    known = {
        "change": random_complex(rng, *found.obj.shape).astype(dtype),
        "noise": rng.standard_normal(amplitude.shape).astype(real),
    }
    asked = {name: known[name] for name in off}
    scan = (found.obj.astype(dtype), found.corners_yx, found.probes, amplitude.astype(real))
    expected = reference(*scan, detector, **asked)
    own = Detector(*(tf.constant(part) if part is not None else None for part in detector))
    answer: Any = candidate(
        *map(tf.constant, scan), own, **{name: tf.constant(part) for name, part in asked.items()}
    )
    assert_twin(expected, answer, 10 * bar)
