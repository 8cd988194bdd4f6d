"""Facts about what is fed to a training run with TensorFlow, and how its optimiser steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.data.feed import GroupSource, TileSource
from ptycho.data.scan import PatternStore, Scan
from ptycho.files.reader import open_scan
from ptycho.geometry.grouping import make_groups
from ptycho.process.progress import Progress
from ptycho.tf.data import specs, stream
from ptycho.tf.optimizer import Optimizer, clipped
from ptycho.tf.runtime import tf


@pytest.fixture(scope="module")
def scan(small_scan: Path) -> Scan:
    return open_scan(small_scan)


# --- batches ---


def test_a_store_holds_the_amplitudes_and_leaves_nothing_behind(scan: Scan) -> None:
    with PatternStore(scan, Progress()) as store:
        folder = store.folder
        found = store.amplitude(np.array([[3, 1]]))
        np.testing.assert_allclose(found**2, scan.raw.diff3d[[[3, 1]]], rtol=1e-6)
        assert any(folder.iterdir())
    assert not folder.exists()


def test_batches_arrive_in_order_and_as_announced(scan: Scan) -> None:
    groups = make_groups(scan.positions_yx_px, gridsize=2, seed=0)
    with PatternStore(scan, Progress()) as store:
        tiles = TileSource(store, scan, np.arange(64), held_out=np.arange(5))
        merged = GroupSource(store, scan, groups, merge=True, own_probe=True)
        cases: list[tuple[Any, list[Any]]] = [(tiles, [5, 0, 63]), (merged, [[2, 0], [1]])]
        for source, order in cases:
            for batch, item in zip(stream(source, order), order, strict=True):
                expected = source[item]
                assert sorted(batch) == sorted(expected)
                for name, array in expected.items():
                    np.testing.assert_array_equal(batch[name], array)
                    assert specs(source.signature)[name].is_compatible_with(batch[name])


# --- the optimiser ---


def plain_adam(weights: np.ndarray, slopes: list[np.ndarray], rate: float) -> np.ndarray:
    """Adam in double precision as its paper writes it."""
    first = second = np.zeros_like(weights)
    for t, slope in enumerate(slopes, 1):
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        weights = weights - rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return weights


def test_adam_takes_the_steps_of_its_paper() -> None:
    rng = np.random.default_rng(0)
    start, slopes = rng.standard_normal(50), [10.0 ** rng.uniform(-9, 0, 50) for _ in range(5)]
    variable = tf.Variable(start.astype(np.float32))
    optimizer = Optimizer(TrainingConfig(ModelConfig()), {"w": variable})
    for slope in slopes:
        optimizer.apply([tf.constant(slope, tf.float32)], 0.01)
    moved = variable.numpy() - start
    np.testing.assert_allclose(moved, plain_adam(start, slopes, 0.01) - start, atol=2e-6)
    # Keras adds the small number to the root of the uncorrected moment: small slopes then take shorter steps.
    keras = tf.Variable(start.astype(np.float32))
    other = tf.keras.optimizers.Adam(0.01, epsilon=1e-8)
    for slope in slopes:
        other.apply_gradients([(tf.constant(slope, tf.float32), keras)])
    assert np.abs(keras.numpy() - start - moved).max() > 1e-4


def test_descent_with_momentum_follows_its_recursion() -> None:
    variable = tf.Variable([1.0])
    settings = TrainingConfig(ModelConfig(), optimizer="sgd", momentum=0.5, weight_decay=0.1)
    optimizer = Optimizer(settings, {"w": variable})
    weight, memory = 1.0, 0.0
    for slope in (0.3, -0.2, 0.1):
        memory = 0.5 * memory + slope + 0.1 * weight
        weight -= 0.01 * memory
        optimizer.apply([tf.constant([slope])], 0.01)
    np.testing.assert_allclose(variable.numpy(), weight, rtol=1e-6)


def test_clipping_limits_the_norm_of_all_or_each_value() -> None:
    slopes = [tf.constant([3.0, 0.0]), tf.constant([[4.0]])]
    found = clipped(slopes, 1.0, "norm")
    np.testing.assert_allclose(float(tf.linalg.global_norm(found)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(clipped(slopes, 6.0, "norm")[0], slopes[0], rtol=1e-6)
    np.testing.assert_array_equal(clipped(slopes, 1.0, "value")[1], [[1.0]])
    assert clipped(slopes, None, "norm")[1] is slopes[1]
