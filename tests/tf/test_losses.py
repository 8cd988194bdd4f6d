"""Facts about the loss: real-space terms are those of the reference, weights multiply terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from judges import FLOAT32, FLOAT64, assert_twin, random_complex
from numpy.typing import NDArray

from ptycho.networks.model import Prediction, total_loss
from ptycho.physics import losses as reference
from ptycho.physics.losses import LossTerms
from ptycho.tf import losses as candidate
from ptycho.tf import physics
from ptycho.tf.runtime import tf

Array = NDArray[Any]


def tensor(array: Array) -> Any:
    return tf.constant(array)


def gradient(loss: Any, values: Array) -> Array:
    start = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(start)
        value = loss(start)
    return tape.gradient(value, start).numpy()


def arguments(dtype: type) -> dict[str, Array]:
    """Arguments of every term, by their names; a pixel is dark and one equals its neighbour."""
    rng = np.random.default_rng(2)
    image, patches, labels = (random_complex(rng, *shape) for shape in ((11, 8), (4, 9, 9), (4, 9, 9)))
    image[3, 3] = image[3, 4]
    patches[0, 0, 0] = labels[1, 2, 3] = 0.0
    light = {"image": rng.uniform(0, 5, (11, 8)), "patches": rng.uniform(0, 5, (9, 9))}
    real = np.empty(0, dtype).real.dtype
    complexes = {"image": image, "patches": patches, "labels": labels}
    return {
        **{key: value.astype(dtype) for key, value in complexes.items()},
        **{f"{key}_light": value.astype(real) for key, value in light.items()},
    }


CALLS = {
    "total_variation": ("image", "image_light"),
    "label_error": ("patches", "labels", "patches_light"),
    "supervised_loss": ("patches", "labels", "patches_light"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("dtype", "bar"), [(np.complex128, FLOAT64), (np.complex64, FLOAT32)])
def test_terms_are_those_of_the_reference(name: str, dtype: type, bar: float) -> None:
    given = [arguments(dtype)[key] for key in CALLS[name]]
    exact = [value.astype(np.result_type(value, np.float64)) for value in given]
    expected = np.array(getattr(reference, name)(*exact))
    found = getattr(candidate, name)(*map(tensor, given))
    assert_twin(expected, found, bar)
    with pytest.raises(AssertionError):
        assert_twin(1.001 * expected, found, bar)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_finite_also_where_a_pixel_is_dark(name: str) -> None:
    first, *rest = (arguments(np.complex128)[key] for key in CALLS[name])
    slope = gradient(lambda values: getattr(candidate, name)(values, *map(tensor, rest)), first)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0


def prediction() -> Any:
    rng = np.random.default_rng(5)
    given = {key: tensor(value) for key, value in arguments(np.complex128).items()}
    predicted, amplitude = map(tensor, rng.uniform(0.5, 3, (2, 4, 9, 9)))
    return Prediction(
        predicted, amplitude, given["image"], given["image_light"], given["patches"], given["labels"],
        given["patches_light"],
    )  # fmt: skip


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    found = prediction()
    terms = LossTerms("poisson", 0.5, 0.25, 2.0, 3.0)
    expected = (
        0.5 * physics.poisson_loss(found.predicted, found.amplitude)
        + 0.25 * physics.mean_absolute_loss(found.predicted, found.amplitude)
        + 2.0 * candidate.total_variation(found.image, found.illumination)
        + 3.0 * candidate.label_error(found.patches, found.labels, found.patch_illumination)
    )
    assert float(total_loss(terms, found, candidate)) == pytest.approx(float(expected), rel=1e-6)
    for changed in (LossTerms("amplitude", 0.5, 0.25, 2.0, 3.0), LossTerms("poisson", 0.5, 0.25, 2.0, 0.0)):
        assert float(total_loss(changed, found, candidate)) != pytest.approx(float(expected), rel=1e-3)
