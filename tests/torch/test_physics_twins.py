"""Facts about the PyTorch physics: names, arguments and numbers of the reference, and true gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from judges import FLOAT32, FLOAT64, adjoint_mismatch, assert_twin, random_complex
from numpy.typing import NDArray
from torch import Tensor
from wide_twins import WIDE_FUNCTIONS, wide_arguments

from ptycho import physics as reference
from ptycho.errors import DataError
from ptycho.physics.detector import FAR_FIELD, Detector
from ptycho.physics.pixel_parts import part_turns
from ptycho.physics.propagation import near_field_transfer
from ptycho_torch import physics as candidate

Array = NDArray[Any]

SHAPE = (41, 34)
N_PATTERNS = 5
SIZES = [16, 17, 32, 31]
PRECISIONS = [(np.complex128, FLOAT64), (np.complex64, FLOAT32)]
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
        "shape_yx": SHAPE,
        "sigma_px": 0.7,
        "axis": 1,
        "strains": True,
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
        "field": field.astype(dtype),
        "waves": field[::-1].astype(dtype),
        "fitting": field.astype(dtype),
        "residual": field.astype(dtype),
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
    return {key: converted(torch.from_numpy, v) for key, v in arguments.items()}


def converted(convert: Callable[[Array], Any], value: Any) -> Any:
    """Convert an array, or those of a detector."""
    if isinstance(value, Detector):
        return Detector(*(converted(convert, part) for part in value))
    return convert(value) if isinstance(value, np.ndarray) else value


def precise(array: Array) -> Array:
    return array.astype(np.result_type(array, np.float64)) if array.dtype.kind in "fc" else array


def both(name: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
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
    assert found["centring_phase"].pop() == "device"
    assert found == expected
    assert len(expected) == 43


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("n_px", SIZES)
@pytest.mark.parametrize(("dtype", "bar"), PRECISIONS)
@pytest.mark.parametrize(("modes", "per_position"), [(1, False), (3, False), (3, True)])
def test_twins_agree(name: str, n_px: int, dtype: type, bar: float, modes: int, per_position: bool) -> None:
    arguments = scan(n_px, dtype, modes=modes, per_position=per_position)
    if name not in NEAR_ALONE:
        del arguments["transfer"]
    for expected, found in zip(*map(all_of, both(name, arguments)), strict=True):
        # A sum over pixels whose terms cancel.
        assert_twin(expected, found, 3 * bar if name == "variation_equations" else bar)
        if found.is_complex():
            assert found.dtype == torch.from_numpy(np.empty(0, dtype)).dtype
        elif found.is_floating_point():
            assert found.dtype == torch.from_numpy(np.empty(0, dtype).real).dtype


@pytest.mark.parametrize("name", NEAR_TOO)
@pytest.mark.parametrize("n_px", [16, 17])
@pytest.mark.parametrize(("dtype", "bar"), PRECISIONS)
def test_twins_agree_in_the_near_field(name: str, n_px: int, dtype: type, bar: float) -> None:
    arguments = scan(n_px, dtype, per_position=True)
    arguments["detector"] = Detector(arguments["transfer"])
    other_way = arguments["transfer"][::-1].copy()
    moved = arguments | {"transfer": other_way, "detector": Detector(other_way)}
    answers = zip(*map(all_of, (*both(name, arguments), both(name, moved)[1])), strict=True)
    for expected, found, wrong in answers:
        assert_twin(expected, found, bar)
        with pytest.raises(AssertionError):
            assert_twin(expected, wrong, 1e-3)


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
@pytest.mark.parametrize(("dtype", "bar"), [(torch.complex128, FLOAT64), (torch.complex64, FLOAT32)])
def test_twins_have_one_centring_phase(n_px: int, dtype: torch.dtype, bar: float) -> None:
    found = candidate.centring_phase(n_px, dtype, "cpu")
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
        physics.patch_indices(corners if physics is reference else torch.from_numpy(corners), 16, SHAPE)


@pytest.mark.parametrize("physics", [reference, candidate])
def test_twins_refuse_a_probe_of_another_size(physics: Any) -> None:
    ones = np.ones if physics is reference else torch.ones
    with pytest.raises(DataError, match=r"got \(9, 9\) and \(8, 8\) px"):
        physics.exit_waves(ones((2, 8, 8)), ones((1, 9, 9)))


# --- adjoints, in tensors ---


@pytest.mark.parametrize("n_px", SIZES)
def test_the_tensor_model_of_a_scan_has_the_expected_adjoint(n_px: int) -> None:
    arrays = scan(n_px, np.complex128)
    t = tensors(arrays)
    probes = candidate.shift_field(t["probes"], t["shifts_yx_px"])

    def forward(o: Array) -> Tensor:
        patches = candidate.extract_patches(torch.from_numpy(o), t["corners_yx"], n_px)
        return candidate.far_field(candidate.exit_waves(patches, probes))

    def back(f: Array, factor: Tensor) -> Tensor:
        waves = (factor * candidate.far_field_adjoint(torch.from_numpy(f))).sum(1)
        return candidate.place_patches(waves, t["corners_yx"], SHAPE)

    x, y = arrays["obj"], arrays["field"]
    assert adjoint_mismatch(forward, lambda f: back(f, probes.conj()), x, y) < 1e-12
    assert adjoint_mismatch(forward, lambda f: back(f, probes), x, y) > 1e-2


def test_the_tensor_shift_has_the_opposite_shift_as_adjoint() -> None:
    t = tensors(scan(17, np.complex128, per_position=True))
    x, y = t["probes"].numpy(), t["field"].numpy()

    def move(field: Array, sign: int) -> Tensor:
        return candidate.shift_field(torch.from_numpy(field), sign * t["shifts_yx_px"])

    assert adjoint_mismatch(lambda v: move(v, 1), lambda v: move(v, -1), x, y) < 1e-12
    assert adjoint_mismatch(lambda v: move(v, 1), lambda v: move(v, 1), x, y) > 1e-2


# --- gradients ---


@pytest.mark.parametrize("n_px", [16, 17])
@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("near", [False, True])
def test_the_object_gradient_is_what_autograd_finds(n_px: int, per_position: bool, near: bool) -> None:
    t = tensors(scan(n_px, np.complex128, per_position=per_position))
    obj = t["obj"].requires_grad_()
    detector = Detector(t["transfer"] if near else None, t["background"])
    patches = candidate.extract_patches(obj, t["corners_yx"], n_px)
    counts = candidate.diffracted_intensity(patches, t["probes"], detector)
    misfit = candidate.softened_amplitude(counts, t["amplitude"]) - t["amplitude"]
    # Autograd returns dL/dRe + i dL/dIm = 2 dL/dO*; with L half the squared misfit this is eq. 9.
    (found,) = torch.autograd.grad(0.5 * (1 + reference.SOFTENING**2) * (misfit**2).sum(), obj)
    written = candidate.object_gradient(obj.detach(), t["corners_yx"], t["probes"], t["amplitude"], detector)
    assert_twin(found, written, FLOAT64)
    with pytest.raises(AssertionError):
        assert_twin(found, written / 2, 1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_pass_gradcheck(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    predicted, measured = 0.5 + 3 * torch.rand(2, 2, 4, 4, generator=generator, dtype=torch.float64)
    loss = getattr(candidate, name)
    assert torch.autograd.gradcheck(lambda p: loss(p, measured), predicted.clone().requires_grad_())


@pytest.mark.parametrize("n_px", [4, 5])
def test_the_forward_model_passes_gradcheck(n_px: int) -> None:
    rng = np.random.default_rng(2)
    corners = torch.tensor([[0, 0], [1, 2]])
    obj = torch.from_numpy(random_complex(rng, n_px + 1, n_px + 2)).requires_grad_()
    probes = torch.from_numpy(random_complex(rng, 2, n_px, n_px)).requires_grad_()
    shifts = torch.from_numpy(rng.uniform(-0.5, 0.5, (2, 2))).requires_grad_()

    def model(o: Tensor, p: Tensor, s: Tensor) -> Tensor:
        return candidate.diffracted_amplitude(
            candidate.extract_patches(o, corners, n_px), candidate.shift_field(p, s)
        )

    assert torch.autograd.gradcheck(model, (obj, probes, shifts))


def test_the_poisson_loss_has_the_gradient_of_the_likelihood() -> None:
    t = tensors(scan(16, np.complex128))
    counts = t["amplitude"] ** 2
    predicted = t["predicted"].requires_grad_()
    (found,) = torch.autograd.grad(candidate.poisson_loss(predicted, t["amplitude"]), predicted)
    nll = torch.nn.PoissonNLLLoss(log_input=False, reduction="sum", eps=0.0)
    (expected,) = torch.autograd.grad(nll(predicted**2, counts) / counts.sum(), predicted)
    assert_twin(expected, found, 1e-6)  # the intensity floor of 1e-8 photons against counts of 0.25 and more
    (other,) = torch.autograd.grad(candidate.amplitude_loss(predicted, t["amplitude"]), predicted)
    with pytest.raises(AssertionError):
        assert_twin(expected, other, 1e-2)


def test_the_poisson_loss_is_flat_and_zero_at_a_perfect_fit() -> None:
    measured = tensors(scan(16, np.complex128))["amplitude"]
    predicted = measured.clone().requires_grad_()
    loss = candidate.poisson_loss(predicted, measured)
    (slope,) = torch.autograd.grad(loss, predicted)
    assert 0 <= loss.item() < 1e-8
    assert slope.abs().max() < 1e-9


def test_a_dark_pattern_has_a_finite_gradient() -> None:
    obj = torch.zeros(1, 8, 8, dtype=torch.complex128, requires_grad=True)
    predicted = candidate.diffracted_amplitude(obj, torch.ones(1, 8, 8, dtype=torch.complex128))
    (slope,) = torch.autograd.grad(candidate.amplitude_loss(predicted, torch.ones(1, 8, 8)), obj)
    assert torch.isfinite(torch.view_as_real(slope)).all()
