"""Facts about the TensorFlow physics: names, arguments and numbers of the reference, and true gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from judges import FLOAT32, FLOAT64, adjoint_mismatch, assert_twin, gradient_mismatch, random_complex
from numpy.typing import NDArray
from wide_twins import WIDE_FUNCTIONS, wide_arguments

from ptycho import physics as reference
from ptycho.errors import DataError
from ptycho.physics.detector import FAR_FIELD, Detector
from ptycho.physics.pixel_parts import part_turns
from ptycho.physics.propagation import near_field_transfer
from ptycho.tf import physics as candidate
from ptycho.tf.runtime import tf

Array = NDArray[Any]

SHAPE = (41, 34)
N_PATTERNS = 5
SIZES = [16, 17, 32, 31]
PRECISIONS = [(np.complex128, FLOAT64), (np.complex64, FLOAT32)]
MOTION = 3
"""Roundings of the equations of motion: they divide by roots of faint intensities, and square the result."""
LOSSES = ["amplitude_loss", "mean_absolute_loss", "poisson_loss"]


BACKGROUND = 4
"""How much less exact sums are in which counts and expected ones cancel."""


def scan(n_px: int, dtype: type, *, modes: int = 3, per_position: bool = False) -> dict[str, Any]:
    """Arguments of every function of the physics, by their names, for patches on a non-square canvas."""
    rng = np.random.default_rng(n_px)
    corners = np.stack([rng.integers(0, size - n_px + 1, N_PATTERNS) for size in SHAPE], axis=1)
    leading = (N_PATTERNS, modes) if per_position else (modes,)
    obj, probes = random_complex(rng, *SHAPE), random_complex(rng, *leading, n_px, n_px)
    patches, field = (
        random_complex(rng, N_PATTERNS, n_px, n_px),
        random_complex(rng, N_PATTERNS, modes, n_px, n_px),
    )
    measured, predicted = rng.uniform(0.5, 5.0, (2, N_PATTERNS, n_px, n_px))
    real = np.empty(0, dtype).real.dtype
    return {
        "n_px": n_px,
        "axis": 1,
        "strains": True,
        "shape_yx": SHAPE,
        "sigma_px": 0.7,
        "transfer": near_field_transfer(n_px, 0.13, rng.uniform(-1, 1, (N_PATTERNS, 2))).astype(dtype),
        "detector": FAR_FIELD,
        "background": rng.uniform(0, 4, (n_px, n_px)).astype(real),
        "likelihood": "amplitude",
        "corners_yx": corners,
        "shifts_yx_px": rng.uniform(-1.5, 1.5, (N_PATTERNS, 2)).astype(real),
        "obj": obj.astype(dtype),
        "probes": probes.astype(dtype),
        "patches": patches.astype(dtype),
        "exit_wave": field.astype(dtype),
        "residual": field.astype(dtype),
        "field": field.astype(dtype),
        "waves": field[::-1].astype(dtype),
        "fitting": field.astype(dtype),
        "amplitude": measured.astype(real),
        "predicted": predicted.astype(real),
        "intensity": (predicted[::-1] ** 2).astype(real),
        "probe": random_complex(rng, modes, n_px, n_px).astype(dtype),
        "modes": random_complex(rng, 2, n_px, n_px).astype(dtype),
        "turns": part_turns(n_px, 2).astype(dtype),
        "parted": random_complex(rng, N_PATTERNS, 8, n_px, n_px).astype(dtype),
        "weights": rng.uniform(-1, 1, (N_PATTERNS, 3)).astype(real),
        "windows": 1,
    }


def public_functions(module: ModuleType) -> dict[str, list[str]]:
    """Argument names of every public function that a module defines."""
    return {
        name: list(inspect.signature(function).parameters)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__.startswith(module.__name__) and not name.startswith("_")
    }


def tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: converted(tf.constant, v) for key, v in arguments.items()}


def converted(convert: Callable[[Array], Any], value: Any) -> Any:
    """Convert an array, or those of a detector."""
    if isinstance(value, Detector):
        return Detector(*(converted(convert, part) for part in value))
    return convert(value) if isinstance(value, np.ndarray) else value


def precise(array: Array) -> Array:
    return array.astype(np.result_type(array, np.float64)) if array.dtype.kind in "fc" else array


def both(name: str, arguments: dict[str, Any]) -> tuple[Array, Any]:
    """Answers of the reference in its highest precision and of the twin in the precision of the arguments."""
    function = getattr(reference, name)
    chosen = {key: arguments[key] for key in inspect.signature(function).parameters if key in arguments}
    exact = {key: converted(precise, v) for key, v in chosen.items()}
    return function(**exact), getattr(candidate, name)(**tensors(chosen))


def all_of(answer: Any) -> tuple[Any, ...]:
    """The answers of a function that may give several."""
    return answer if isinstance(answer, tuple) else (answer,)


TWINS = sorted(set(public_functions(reference)) - {"centring_phase"})
NEAR_ALONE = ("near_field", "near_field_adjoint")
WAYS = ("propagate", "propagate_back")
SEES_DETECTOR = sorted(name for name in TWINS if "detector" in public_functions(reference)[name])
SEES_DETECTOR = [name for name in SEES_DETECTOR if name not in WAYS]
AFTER_PROPAGATION = ("background_sums", "frame_fits", "with_background")
NEAR_TOO = (*WAYS, *NEAR_ALONE, *sorted({*SEES_DETECTOR} - {*AFTER_PROPAGATION}))


def test_both_modules_have_the_same_functions_and_arguments() -> None:
    expected, found = public_functions(reference), public_functions(candidate)
    assert found == expected
    assert len(expected) >= 18


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("n_px", SIZES)
@pytest.mark.parametrize(("dtype", "bar"), PRECISIONS)
@pytest.mark.parametrize(("modes", "per_position"), [(1, False), (3, False), (3, True)])
def test_twins_agree(name: str, n_px: int, dtype: type, bar: float, modes: int, per_position: bool) -> None:
    arguments = scan(n_px, dtype, modes=modes, per_position=per_position)
    if name not in NEAR_ALONE:
        del arguments["transfer"]
    for expected, found in zip(*map(all_of, both(name, arguments)), strict=True):
        assert_twin(expected, found, bar)
        if found.dtype.is_complex:
            assert found.dtype == tf.as_dtype(dtype)
        elif found.dtype.is_floating:
            assert found.dtype == tf.as_dtype(dtype).real_dtype


@pytest.mark.parametrize("name", NEAR_TOO)
@pytest.mark.parametrize("n_px", [16, 17])
@pytest.mark.parametrize(("dtype", "bar"), PRECISIONS)
def test_twins_agree_in_the_near_field(name: str, n_px: int, dtype: type, bar: float) -> None:
    arguments = scan(n_px, dtype, per_position=True)
    arguments["detector"] = Detector(arguments["transfer"])
    other_way = arguments["transfer"][::-1].copy()
    moved = arguments | {"transfer": other_way, "detector": Detector(other_way)}
    (expected, found), (_, other) = both(name, arguments), both(name, moved)
    factor = MOTION if name in ("motion_equations", "variation_equations") else 1
    for right, own, wrong in zip(*map(all_of, (expected, found, other)), strict=True):
        assert_twin(right, own, factor * bar)
        with pytest.raises(AssertionError):
            assert_twin(right, wrong, 1e-3)


@pytest.mark.parametrize("name", SEES_DETECTOR)
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize(("dtype", "bar"), PRECISIONS)
def test_twins_agree_with_a_background(name: str, near: bool, dtype: type, bar: float) -> None:
    arguments = scan(17, dtype, per_position=True)
    detector = Detector(arguments["transfer"] if near else None, arguments["background"])
    blind = arguments | {"detector": detector._replace(background=None)}
    expected, found = both(name, arguments | {"detector": detector})
    other = both(name, blind)[1]
    for right, own, wrong in zip(*map(all_of, (expected, found, other)), strict=True):
        assert_twin(right, own, BACKGROUND * bar)
        with pytest.raises(AssertionError):
            assert_twin(right, wrong, 1e-3)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "bar"), PRECISIONS)
def test_twins_agree_on_pixels_of_several_parts(parts: int, dtype: type, bar: float) -> None:
    arguments = scan(16, dtype, per_position=True)
    turns = part_turns(16, parts).astype(dtype)
    arguments |= {"turns": turns, "detector": Detector(part_turns=turns)}
    arguments["parted"] = reference.part_modes(arguments["probes"], turns)
    arguments["probes"] = arguments["parted"]
    for name in ("part_modes", "part_modes_adjoint", "variation_equations"):
        for expected, found in zip(*map(all_of, both(name, arguments)), strict=True):
            assert_twin(expected, found, 5 * bar)


@pytest.mark.parametrize("name", WIDE_FUNCTIONS)
@pytest.mark.parametrize(("n_px", "windows", "parts"), [(8, 2, 2), (8, 2, 3), (5, 3, 3)])
@pytest.mark.parametrize(("dtype", "bar"), PRECISIONS)
def test_twins_agree_on_patches_wider_than_patterns(
    name: str, n_px: int, windows: int, parts: int, dtype: type, bar: float
) -> None:
    alike = scan(windows * n_px, dtype, per_position=True)
    arguments = wide_arguments(alike, name, n_px, windows, parts, dtype)
    for expected, found in zip(*map(all_of, both(name, arguments)), strict=True):
        assert tuple(found.shape) == expected.shape
        assert_twin(expected, found, 10 * bar)


@pytest.mark.parametrize("shape", [(17, 17), (3, 16, 16), (N_PATTERNS, 3, 17, 17)])
@pytest.mark.parametrize(("dtype", "bar"), PRECISIONS)
def test_twins_shift_single_fields_stacks_and_one_stack_per_position(
    shape: tuple[int, ...], dtype: type, bar: float
) -> None:
    arguments = scan(16, dtype) | {"field": random_complex(np.random.default_rng(0), *shape).astype(dtype)}
    arguments["shifts_yx_px"][:3] = [[-1, 0], [-0.5, 0.5], [0, 0]]
    expected, found = both("shift_field", arguments)
    assert expected.shape[0] == N_PATTERNS
    assert_twin(expected, found, bar)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_twins_place_real_patches(dtype: type) -> None:
    arguments = scan(17, np.complex128)
    arguments["patches"] = arguments["patches"].real.astype(dtype)
    assert_twin(*both("place_patches", arguments), FLOAT64 if dtype is np.float64 else FLOAT32)


@pytest.mark.parametrize("n_px", SIZES)
@pytest.mark.parametrize(("dtype", "bar"), [(tf.complex128, FLOAT64), (tf.complex64, FLOAT32)])
def test_twins_have_one_centring_phase(n_px: int, dtype: Any, bar: float) -> None:
    found = candidate.centring_phase(n_px, dtype)
    assert found.dtype == dtype
    assert_twin(reference.centring_phase(n_px), found, bar)


def test_the_judge_catches_the_wrong_sign_of_the_shift() -> None:
    arguments = scan(16, np.complex128)
    expected, _ = both("shift_field", arguments)
    _, opposite = both("shift_field", arguments | {"shifts_yx_px": -arguments["shifts_yx_px"]})
    with pytest.raises(AssertionError):
        assert_twin(expected, opposite, FLOAT32)


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (SHAPE[0] - 15, 0), (0, SHAPE[1] - 15)])
@pytest.mark.parametrize("physics", [reference, candidate])
def test_twins_refuse_a_patch_outside_the_canvas(corner: tuple[int, int], physics: Any) -> None:
    corners = np.array([[0, 0], corner])
    with pytest.raises(DataError, match=r"^canvas: .*patches fall outside the 41x34 px object \(got "):
        physics.patch_indices(corners if physics is reference else tf.constant(corners), 16, SHAPE)


@pytest.mark.parametrize("physics", [reference, candidate])
def test_twins_refuse_a_probe_of_another_size(physics: Any) -> None:
    ones = np.ones if physics is reference else tf.ones
    with pytest.raises(DataError, match=r"got \(9, 9\) and \(8, 8\) px"):
        physics.exit_waves(ones((2, 8, 8)), ones((1, 9, 9)))


def test_a_compiled_function_takes_any_canvas() -> None:
    signature = [
        tf.TensorSpec([None, None], tf.complex128),
        tf.TensorSpec([None, 2], tf.int64),
        tf.TensorSpec([3, 16, 16], tf.complex128),
        tf.TensorSpec([None, 16, 16], tf.float64),
    ]
    compiled = tf.function(candidate.object_gradient, input_signature=signature)
    for height, width, count in ((41, 34, 5), (20, 48, 3)):
        arguments = scan(16, np.complex128)
        arguments["obj"] = random_complex(np.random.default_rng(height), height, width)
        corners = arguments["corners_yx"] % (np.array([height, width]) - 16)
        arrays = (arguments["obj"], corners[:count], arguments["probes"], arguments["amplitude"][:count])
        assert_twin(reference.object_gradient(*arrays), compiled(*map(tf.constant, arrays)), FLOAT64)


# --- adjoints, in tensors ---


@pytest.mark.parametrize("n_px", SIZES)
def test_the_tensor_model_of_a_scan_has_the_expected_adjoint(n_px: int) -> None:
    arrays = scan(n_px, np.complex128)
    t = tensors(arrays)
    probes = candidate.shift_field(t["probes"], t["shifts_yx_px"])

    def forward(o: Array) -> Any:
        patches = candidate.extract_patches(tf.constant(o), t["corners_yx"], n_px)
        return candidate.far_field(candidate.exit_waves(patches, probes))

    def back(f: Array, factor: Any) -> Any:
        waves = tf.reduce_sum(factor * candidate.far_field_adjoint(tf.constant(f)), 1)
        return candidate.place_patches(waves, t["corners_yx"], SHAPE)

    x, y = arrays["obj"], arrays["field"]
    assert adjoint_mismatch(forward, lambda f: back(f, tf.math.conj(probes)), x, y) < 1e-12
    assert adjoint_mismatch(forward, lambda f: back(f, probes), x, y) > 1e-2


def test_the_tensor_shift_has_the_opposite_shift_as_adjoint() -> None:
    arrays = scan(17, np.complex128, per_position=True)
    x, y = arrays["probes"], arrays["field"]

    def move(field: Array, sign: int) -> Any:
        return candidate.shift_field(tf.constant(field), tf.constant(sign * arrays["shifts_yx_px"]))

    assert adjoint_mismatch(lambda v: move(v, 1), lambda v: move(v, -1), x, y) < 1e-12
    assert adjoint_mismatch(lambda v: move(v, 1), lambda v: move(v, 1), x, y) > 1e-2


# --- gradients ---


def slope(function: Any, point: Any) -> Any:
    """What the tape finds: dL/dRe + i dL/dIm of a complex point."""
    point = tf.constant(point)
    with tf.GradientTape() as tape:
        tape.watch(point)
        value = function(point)
    return tape.gradient(value, point)


@pytest.mark.parametrize("n_px", [16, 17])
@pytest.mark.parametrize("per_position", [False, True])
def test_the_object_gradient_is_what_the_tape_finds(n_px: int, per_position: bool) -> None:
    arrays = scan(n_px, np.complex128, per_position=per_position)
    t = tensors(arrays)

    def half_misfit(obj: Any) -> Any:
        patches = candidate.extract_patches(obj, t["corners_yx"], n_px)
        counts = candidate.diffracted_intensity(patches, t["probes"])
        misfit = candidate.softened_amplitude(counts, t["amplitude"]) - t["amplitude"]
        return 0.5 * (1 + reference.SOFTENING**2) * tf.reduce_sum(misfit**2)

    found = slope(half_misfit, arrays["obj"])
    written = candidate.object_gradient(t["obj"], t["corners_yx"], t["probes"], t["amplitude"])
    assert_twin(found, written, FLOAT64)
    with pytest.raises(AssertionError):
        assert_twin(found, written / 2, 1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_the_gradient_of_their_differences(name: str) -> None:
    arrays = scan(16, np.complex128)
    loss, measured = getattr(candidate, name), tf.constant(arrays["amplitude"])
    args = (lambda p: float(loss(tf.constant(p), measured)), lambda p: slope(lambda q: loss(q, measured), p))
    assert gradient_mismatch(*args, arrays["predicted"]) < 1e-6
    assert gradient_mismatch(args[0], lambda p: 1.01 * args[1](p), arrays["predicted"]) > 1e-3


@pytest.mark.parametrize("argument", ["obj", "probes", "shifts_yx_px"])
@pytest.mark.parametrize("n_px", [4, 5])
def test_the_forward_model_has_the_gradient_of_its_differences(argument: str, n_px: int) -> None:
    rng = np.random.default_rng(2)
    corners = tf.constant([[0, 0], [1, 2]])
    point = {
        "obj": random_complex(rng, n_px + 1, n_px + 2),
        "probes": random_complex(rng, 2, n_px, n_px),
        "shifts_yx_px": rng.uniform(-0.5, 0.5, (2, 2)),
    }

    def total(values: Any) -> Any:
        t = tensors(point) | {argument: tf.convert_to_tensor(values)}
        probes = candidate.shift_field(t["probes"], t["shifts_yx_px"])
        return tf.reduce_sum(
            candidate.diffracted_amplitude(candidate.extract_patches(t["obj"], corners, n_px), probes)
        )

    assert gradient_mismatch(lambda v: float(total(v)), lambda v: slope(total, v), point[argument]) < 1e-6


@pytest.mark.parametrize("argument", ["patches", "probes"])
def test_stitching_has_the_gradient_of_its_differences(argument: str) -> None:
    arrays = scan(16, np.complex128)
    t = tensors(arrays)

    def total(values: Any) -> Any:
        chosen = t | {argument: tf.convert_to_tensor(values)}
        canvas = candidate.weighted_patches(chosen["patches"], t["corners_yx"], chosen["probes"], SHAPE)
        light = candidate.illumination(chosen["probes"], t["corners_yx"], SHAPE)
        return tf.reduce_sum(tf.abs(canvas) / (light + 1.0))

    assert gradient_mismatch(lambda v: float(total(v)), lambda v: slope(total, v), arrays[argument]) < 1e-6


def test_the_poisson_loss_is_flat_and_zero_at_a_perfect_fit() -> None:
    measured = tf.constant(scan(16, np.complex128)["amplitude"])
    assert 0 <= float(candidate.poisson_loss(measured, measured)) < 1e-8
    assert np.abs(slope(lambda p: candidate.poisson_loss(p, measured), measured)).max() < 1e-9


def test_a_dark_pattern_has_a_finite_gradient() -> None:
    probe, measured = tf.ones((1, 8, 8), tf.complex128), tf.ones((1, 8, 8), tf.float64)

    def loss(obj: Any) -> Any:
        return candidate.amplitude_loss(candidate.diffracted_amplitude(obj, probe), measured)

    assert np.isfinite(slope(loss, np.zeros((1, 8, 8), np.complex128))).all()
