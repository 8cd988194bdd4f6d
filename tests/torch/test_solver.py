"""Facts about the accelerated physics steps: they are eq. 8, 10 and 11, whatever the chunks."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from judges import (
    FLOAT64,
    SmallScan,
    assert_twin,
    plain_gradient,
    plain_steps,
    plain_subset_steps,
    random_complex,
    small_scan,
)
from numpy.typing import NDArray
from torch import Tensor

from ptycho import physics as reference
from ptycho.networks.architectures import NOISE_FLOOR
from ptycho.solver.primitives import Primitives
from ptycho.solver.schedule import (
    POISSON_FLOOR,
    STEP_DAMPING,
    SUBSET_MOMENTUM,
    nesterov_momentum,
    subset_schedule,
)
from ptycho_torch.solver import (
    PRIMITIVES,
    Chunk,
    accelerated_steps,
    chunk_gradient,
    noise_level,
    preconditioned_step,
    scan_illumination,
)

Array = NDArray[Any]


def chunked(scan: SmallScan, *cuts: int) -> list[Chunk]:
    """Split the scan before each of the given positions."""
    return [Chunk(*map(torch.from_numpy, part)) for part in scan.chunks(*cuts)]


def flat(scan: SmallScan) -> Tensor:
    return torch.ones(scan.obj.shape, dtype=torch.complex128)


def test_illumination_of_chunks_is_that_of_the_scan() -> None:
    scan = small_scan()
    found = scan_illumination(chunked(scan, 3, 11), scan.obj.shape)
    assert_twin(reference.illumination(scan.probes, scan.corners_yx, scan.obj.shape), found, FLOAT64)
    missing = scan_illumination(chunked(scan, 3, 11)[1:], scan.obj.shape)
    with pytest.raises(AssertionError):
        assert_twin(reference.illumination(scan.probes, scan.corners_yx, scan.obj.shape), missing, 1e-3)


def test_a_step_is_the_gradient_over_the_damped_illumination() -> None:
    scan = small_scan()
    start = 1 + 0.1 * random_complex(np.random.default_rng(1), *scan.obj.shape)
    chunks = chunked(scan, 7)
    weight = reference.illumination(scan.probes, scan.corners_yx, scan.obj.shape)
    gradient = plain_gradient(start, scan.corners_yx, scan.probes, scan.amplitude)
    found = preconditioned_step(torch.from_numpy(start), chunks, torch.from_numpy(weight))
    assert_twin(-gradient / (weight + STEP_DAMPING * weight.max()), found, FLOAT64)
    with pytest.raises(AssertionError):
        assert_twin(gradient / (weight + STEP_DAMPING * weight.max()), found, 1e-3)


@pytest.mark.parametrize("n_steps", [0, 1, 2, 9])
@pytest.mark.parametrize("fractional", [False, True])
def test_accelerated_steps_are_the_written_out_ones(n_steps: int, fractional: bool) -> None:
    scan = small_scan(fractional=fractional)
    chunks = chunked(scan, 5, 6)
    weight = scan_illumination(chunks, scan.obj.shape)
    obj, previous = accelerated_steps(flat(scan), chunks, weight, n_steps)
    momenta = [k / (k + 3) for k in range(n_steps)]
    arguments = (scan.corners_yx, scan.probes, scan.amplitude, scan.obj.shape)
    assert_twin(plain_steps(*arguments, momenta, STEP_DAMPING), obj, FLOAT64)
    assert_twin(plain_steps(*arguments, momenta[:-1], STEP_DAMPING), previous, FLOAT64)


def test_the_judge_catches_missing_momentum() -> None:
    scan = small_scan()
    chunks = chunked(scan)
    found, _ = accelerated_steps(flat(scan), chunks, scan_illumination(chunks, scan.obj.shape), 4)
    slow = plain_steps(scan.corners_yx, scan.probes, scan.amplitude, scan.obj.shape, [0.0] * 4, STEP_DAMPING)
    with pytest.raises(AssertionError):
        assert_twin(slow, found, 1e-3)
    assert [nesterov_momentum(k) for k in (0, 1, 3)] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize("cuts", [(10,), (1, 2, 19), tuple(range(1, 24))])
def test_chunks_change_nothing(cuts: tuple[int, ...]) -> None:
    scan = small_scan()
    whole, split = chunked(scan), chunked(scan, *cuts)
    weight = scan_illumination(whole, scan.obj.shape)
    assert_twin(
        accelerated_steps(flat(scan), whole, weight, 6)[0],
        accelerated_steps(flat(scan), split, weight, 6)[0],
        FLOAT64,
    )


def test_the_true_object_stays_where_it_is() -> None:
    scan = small_scan()
    chunks = chunked(scan)
    found, _ = accelerated_steps(
        torch.from_numpy(scan.obj), chunks, scan_illumination(chunks, scan.obj.shape), 5
    )
    assert_twin(scan.obj, found, 1e-8)


def test_steps_lower_the_misfit_a_thousandfold() -> None:
    scan = small_scan()
    chunks = chunked(scan)
    found, _ = accelerated_steps(flat(scan), chunks, scan_illumination(chunks, scan.obj.shape), 60)

    def misfit(o: Array) -> float:
        patches = reference.extract_patches(o, scan.corners_yx, 16)
        predicted = reference.diffracted_amplitude(patches, scan.probes)
        return float(reference.amplitude_loss(predicted, scan.amplitude))

    assert misfit(found.numpy()) < 1e-3 * misfit(flat(scan).numpy())


def test_every_finished_step_is_reported_and_none_is_differentiated() -> None:
    scan = small_scan()
    chunks = chunked(scan)
    seen: list[int] = []
    start = flat(scan).requires_grad_()
    found, _ = accelerated_steps(start, chunks, scan_illumination(chunks, scan.obj.shape), 3, seen.append)
    assert seen == [0, 1, 2]
    assert not found.requires_grad


def poisson_misfit(obj: Array, scan: SmallScan) -> float:
    """Return a quarter of the negative Poisson log-likelihood, with the floor of the step."""
    patches = reference.extract_patches(obj, scan.corners_yx, scan.probes.shape[-1])
    expected = reference.diffracted_intensity(patches, scan.probes)
    counts = scan.amplitude**2
    floor = POISSON_FLOOR * np.minimum(counts.mean(axis=(1, 2), keepdims=True), 1.0)
    return float((expected - (counts + floor) * np.log(expected + floor)).sum()) / 4


@pytest.mark.parametrize("photons", [1.0, 1e-6])
def test_the_poisson_gradient_is_the_slope_of_the_likelihood(photons: float) -> None:
    scan = small_scan()
    scan = scan._replace(probes=scan.probes * photons**0.5, amplitude=scan.amplitude * photons**0.5)
    rng = np.random.default_rng(3)
    start = 1 + 0.1 * random_complex(rng, *scan.obj.shape)
    way = random_complex(rng, *scan.obj.shape)
    found, other = (
        sum(chunk_gradient(torch.from_numpy(start), chunk, kind) for chunk in chunked(scan, 9)).numpy()
        for kind in ("poisson", "amplitude")
    )
    slope = (poisson_misfit(start + 1e-5 * way, scan) - poisson_misfit(start - 1e-5 * way, scan)) / 2e-5
    assert np.vdot(found, way).real == pytest.approx(slope, rel=1e-5)
    assert np.vdot(other, way).real != pytest.approx(slope, rel=1e-3)


def test_many_photons_make_both_likelihoods_one() -> None:
    scan = small_scan()
    scan = scan._replace(probes=scan.probes * 1e3, amplitude=scan.amplitude * 1e3)
    near = torch.from_numpy(scan.obj * (1 + 1e-4))
    weight = scan_illumination(chunked(scan), scan.obj.shape)
    steps = [preconditioned_step(near, chunked(scan), weight, kind) for kind in ("amplitude", "poisson")]
    assert_twin(steps[0], steps[1], 1e-2)


def test_noise_is_what_is_unexplained_and_needs_no_unit() -> None:
    scan = small_scan()
    weight = reference.illumination(scan.probes, scan.corners_yx, scan.obj.shape)
    wrong = scan.obj * 1.1
    found = noise_level(torch.from_numpy(wrong), chunked(scan, 4), torch.from_numpy(weight))
    patches = reference.extract_patches(wrong, scan.corners_yx, scan.probes.shape[-1])
    missed = scan.amplitude - reference.diffracted_amplitude(patches, scan.probes)
    expected = np.sqrt((missed**2).mean() / (weight + STEP_DAMPING * weight.max())) + NOISE_FLOOR
    assert_twin(expected, found, FLOAT64)
    bright = scan._replace(probes=scan.probes * 7.0, amplitude=scan.amplitude * 7.0)
    same = noise_level(torch.from_numpy(wrong), chunked(bright), torch.from_numpy(49 * weight))
    assert_twin(found, same, 1e-6)


class Blocks(list[Chunk]):
    """A scan in eight parts."""

    def part(self, index: int, count: int) -> list[Chunk]:
        return self[index::count]


def test_steps_on_subsets_are_the_written_out_ones() -> None:
    scan = small_scan(fractional=True)
    cuts = [(k * len(scan.amplitude)) // 8 for k in range(1, 8)]
    blocks = Blocks(chunked(scan, *cuts))
    weight = scan_illumination(blocks, scan.obj.shape)
    found, _ = accelerated_steps(flat(scan), blocks, weight, 5, subsets=4)
    counts = list(subset_schedule(5, 4))
    assert counts == [4, 4, 2, 1, 1]
    written = (scan.chunks(*cuts), scan.obj.shape, counts)
    assert_twin(plain_subset_steps(*written, SUBSET_MOMENTUM, STEP_DAMPING), found, FLOAT64)
    with pytest.raises(AssertionError):
        assert_twin(plain_subset_steps(*written, 0.5, STEP_DAMPING), found, 1e-3)
    whole, _ = accelerated_steps(flat(scan), blocks, weight, 5)
    assert not np.allclose(np.asarray(whole), np.asarray(found), atol=1e-3)


def test_every_primitive_is_supplied_under_the_names_of_its_arguments() -> None:
    names = [name for name in vars(Primitives) if not name.startswith("_")]
    assert len(names) == 13
    for name in names:
        expected = list(inspect.signature(getattr(Primitives, name)).parameters)[1:]
        assert list(inspect.signature(getattr(PRIMITIVES, name)).parameters) == expected
