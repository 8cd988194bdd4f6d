"""Judges shared by the tests: how far two arrays, two halves of an adjoint pair, or two gradients disagree.

A judge knows no formula of the package, but for the gain of eq. 24, which has facts of its own.
:func:`plain_gradient` and :func:`plain_steps` spell the equations of ``specs/physics.md`` out once more,
pattern by pattern and with ``fftshift``, as an independent opinion.
:func:`small_scan` makes data for them from closed forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.geometry.canvas import plan_canvas
from ptycho.physics.slow_phase import phase_gain
from ptycho.solver.schedule import NETWORK_LEAST_GAIN

FLOAT64 = 1e-10
"""Bar for two double-precision answers, relative to the largest value; rounding alone gives about 1e-15."""
FLOAT32 = 1e-6
"""Bar for single precision: a complex64 FFT errs by about 2e-7 of the largest value for N = 64 to 256."""
FLOOR_PHOTONS = 1e-8
SOFTENED = 0.03
"""Photons per pixel that eq. 6 adds under the square root."""


def as_array(values: Any) -> NDArray[Any]:
    """Return a tensor of any framework, or an array, as a NumPy array.

    Parameters
    ----------
    values : array or tensor
        Any shape and dtype.

    Returns
    -------
    array
        The same numbers.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().resolve_conj()
    return np.asarray(values.numpy() if hasattr(values, "numpy") else values)


def assert_twin(reference: Any, candidate: Any, tolerance: float) -> None:
    """Fail unless two answers have one shape and kind of number and differ by little of the largest value.

    Parameters
    ----------
    reference, candidate : array or tensor
        Answer to trust and answer to judge.
    tolerance : float
        Largest difference allowed, relative to ``max |reference|``.
    """
    expected, found = as_array(reference), as_array(candidate)
    assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
    assert found.dtype.kind == expected.dtype.kind, (
        f"dtype {found.dtype}, expected a kind of {expected.dtype}"
    )
    if expected.dtype == bool:
        expected, found = expected.astype(float), found.astype(float)
    largest = float(np.abs(expected).max(initial=0.0))
    # A NaN on either side makes the comparison false, so it fails.
    difference = float(np.abs(found - expected).max(initial=0.0))
    assert difference <= tolerance * largest, f"differs by {difference:.3g}, largest value {largest:.3g}"


def adjoint_mismatch(
    forward: Callable[[Any], Any], adjoint: Callable[[Any], Any], x: NDArray[Any], y: NDArray[Any]
) -> float:
    r"""Return by how much two operators fail to be each other's adjoint.

    .. math:: |\langle Ax, y\rangle - \langle x, A^\dagger y\rangle| / \max(|\langle Ax, y\rangle|,
              |\langle x, A^\dagger y\rangle|)

    Parameters
    ----------
    forward, adjoint : callable
        A and its supposed adjoint, arrays to arrays.
    x, y : complex array
        Independent random vectors in the domain and the range of A.

    Returns
    -------
    float
        0 for an adjoint pair, up to rounding; infinite where a shape is wrong.
    """
    image, back = as_array(forward(x)), as_array(adjoint(y))
    if image.shape != y.shape or back.shape != x.shape:
        return float("inf")
    left, right = np.vdot(y, image), np.vdot(back, x)
    return float(abs(left - right) / max(abs(left), abs(right)))


def gradient_mismatch(
    loss: Callable[[NDArray[Any]], float],
    gradient: Callable[[NDArray[Any]], Any],
    point: NDArray[Any],
    *,
    seed: int = 0,
    directions: int = 4,
    step: float = 1e-5,
) -> float:
    r"""Return by how much a gradient disagrees with central differences along random directions.

    .. math:: \frac{L(z + hd) - L(z - hd)}{2h} \quad\text{against}\quad \mathrm{Re}\,\langle g, d\rangle

    Parameters
    ----------
    loss : callable
        Array to real number.
    gradient : callable
        Array to an array of the same shape; for complex z, :math:`g = 2\,\partial L/\partial z^*`.
    point : float64 or complex128 array
        Where to compare.
    seed : int
        Seed of the directions.
    directions : int
        How many directions, complex where the point is.
    step : float
        h.

    Returns
    -------
    float
        Largest difference, relative to the largest slope; infinite where the shape is wrong.
    """
    rng = np.random.default_rng(seed)
    slope = as_array(gradient(point))
    if slope.shape != point.shape:
        return float("inf")
    numeric, claimed = [], []
    for _ in range(directions):
        direction = rng.standard_normal(point.shape)
        if np.iscomplexobj(point):
            direction = direction + 1j * rng.standard_normal(point.shape)
        numeric.append((loss(point + step * direction) - loss(point - step * direction)) / (2 * step))
        claimed.append(float(np.vdot(slope, direction).real))
    return float(np.abs(np.subtract(numeric, claimed)).max() / np.abs(numeric).max())


def random_complex(rng: np.random.Generator, *shape: int) -> NDArray[np.complex128]:
    """Return complex normal numbers.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source.
    *shape : int
        Shape of the result.

    Returns
    -------
    complex128 array
        Real and imaginary part of unit variance.
    """
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def plain_gradient(
    obj: NDArray[Any], corners_yx: NDArray[np.int64], probes: NDArray[Any], amplitude: NDArray[Any]
) -> NDArray[np.complex128]:
    """Return eq. 9 pattern by pattern, with ``fftshift`` in place of the centring phase.

    Parameters
    ----------
    obj : complex array, shape (H, W)
        Object canvas.
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex array, shape (J, P, N, N)
        Probe modes [sqrt(photons)] of every position.
    amplitude : real array, shape (J, N, N)
        Measured amplitude [sqrt(photons)].

    Returns
    -------
    complex128 array, shape (H, W)
        Gradient [photons].
    """
    n_px = amplitude.shape[-1]
    gradient = np.zeros(obj.shape, dtype=np.complex128)
    for (y, x), modes, measured in zip(corners_yx, probes, amplitude, strict=True):
        window = (slice(y, y + n_px), slice(x, x + n_px))
        fields = [np.fft.fftshift(np.fft.fft2(mode * obj[window], norm="ortho")) for mode in modes]
        expected = sum(np.abs(field) ** 2 for field in fields) + FLOOR_PHOTONS
        predicted = np.sqrt((expected + SOFTENED**2 * measured**2) / (1 + SOFTENED**2))
        for mode, field in zip(modes, fields, strict=True):
            residual = np.fft.ifftshift((1 - measured / predicted) * field)
            gradient[window] += mode.conj() * np.fft.ifft2(residual, norm="ortho")
    return gradient


def plain_advance(
    leading: NDArray[Any],
    step: NDArray[Any],
    light: NDArray[Any],
    gain: NDArray[np.float64] | float,
    damping: float,
) -> NDArray[np.complex128]:
    """Return the object after a step down a gradient, its slow phase further by a gain (eq. 24).

    Parameters
    ----------
    leading, step : complex array, shape (H, W)
        Object with its momentum, and what is taken from it [transmission].
    light : real array, shape (H, W)
        Illumination [photons / pixel].
    gain : float array, shape (H, W)
        What a step falls short of at every frequency.
    damping : float
        Share of the strongest illumination below which a phase does not count and a pixel turns less.

    Returns
    -------
    complex128 array, shape (H, W)
        Object [transmission].
    """
    phase = (leading.conj() * -step).imag / np.maximum(np.abs(leading) ** 2, 0.05)
    faint = light / (damping * light.max())
    phase[faint <= 1] = 0
    further = np.fft.ifft2(gain * np.fft.fft2(phase)).real.clip(-0.5, 0.5)
    return (leading - step) * np.exp(1j * further * np.minimum(faint, 1))


def uphill_share(step: NDArray[Any], way: NDArray[Any]) -> float:
    """Return 1 where a way runs along what a step took away, 0 where it does not; shares up to a cosine of
    0.1 are in proportion."""
    cosine = np.vdot(step, way).real / max(np.linalg.norm(step) * np.linalg.norm(way), 1e-30)
    return float(np.clip(cosine / 0.1, 0, 1))


def momenta_at(momenta: Sequence[float], update: float) -> float:
    """Return the momentum after so many updates, between those of whole numbers along k / (k + 3)."""
    return momenta[round(update)] if update == round(update) else update / (update + 3)


def plain_steps(
    corners_yx: NDArray[np.int64],
    probes: NDArray[Any],
    amplitude: NDArray[Any],
    shape_yx: tuple[int, int],
    momenta: Sequence[float],
    damping: float,
    *,
    learned: int = 0,
) -> NDArray[np.complex128]:
    """Return the object after one step of eq. 10, 11 and 24 for each momentum, from an object of ones.

    Parameters
    ----------
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex array, shape (J, P, N, N)
        Probe modes [sqrt(photons)] of every position.
    amplitude : real array, shape (J, N, N)
        Measured amplitude [sqrt(photons)].
    shape_yx : tuple of int
        Canvas shape (H, W) [px].
    momenta : sequence of float
        Momentum of every step; they begin anew after a step that ran uphill.
    damping : float
        Share of the strongest illumination added to the preconditioner.
    learned : int
        How many of the last steps are those of a network: their momentum is their own, their phase goes no
        further.

    Returns
    -------
    complex128 array, shape (H, W)
        Object [transmission].
    """
    n_px, update = amplitude.shape[-1], 0
    gain = phase_gain(shape_yx, probes[0], 1, NETWORK_LEAST_GAIN)
    weight = np.zeros(shape_yx)
    for (y, x), modes in zip(corners_yx, probes, strict=True):
        weight[y : y + n_px, x : x + n_px] += (np.abs(modes) ** 2).sum(axis=0)
    obj = previous = np.ones(shape_yx, dtype=np.complex128)
    for index, own in enumerate(momenta):
        plain = index < len(momenta) - learned
        leading = obj + (momenta_at(momenta, update) if plain else own) * (obj - previous)
        step = plain_gradient(leading, corners_yx, probes, amplitude) / (weight + damping * weight.max())
        new = plain_advance(leading, step, weight, gain if plain else 0.0, damping)
        update = (update + 1) * (1 - uphill_share(step, new - obj))
        previous, obj = obj, new
    return obj


class SmallScan(NamedTuple):
    """A scan small enough for loops.

    Attributes
    ----------
    obj : complex128 array, shape (H, W)
        True object [transmission].
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex array, shape (J, P, N, N)
        Two probe modes [sqrt(photons)] of every position, drawn where the position has them.
    amplitude : real array, shape (J, N, N)
        Amplitude [sqrt(photons)].
    """

    obj: NDArray[np.complex128]
    corners_yx: NDArray[np.int64]
    probes: NDArray[Any]
    amplitude: NDArray[Any]

    def chunks(self, *cuts: int) -> list[tuple[NDArray[Any], ...]]:
        """Return (corners, probes, amplitude) of the parts that begin at position 0 and at every cut."""
        parts = [np.split(array, cuts) for array in (self.corners_yx, self.probes, self.amplitude)]
        return list(zip(*parts, strict=True))


def small_scan(dtype: Any = np.complex128, *, fractional: bool = True, noisy: bool = False) -> SmallScan:
    """Return 24 overlapping patterns of 16 x 16 px on a non-square canvas in multiples of 8 px.

    Parameters
    ----------
    dtype : complex dtype
        Precision of probes and amplitude.
    fractional : bool
        Put positions between pixels.
    noisy : bool
        Draw photons instead of taking expected counts.

    Returns
    -------
    SmallScan
        About 25,000 photons a pattern.
    """
    rng, n_px = np.random.default_rng(0), 16
    positions = np.stack(np.meshgrid(3.0 * np.arange(6), 4.0 * np.arange(4), indexing="ij"), -1).reshape(
        -1, 2
    )
    if fractional:
        positions = positions + rng.uniform(-0.9, 0.9, positions.shape)
    plan = plan_canvas(positions, n_px, multiple_px=8)
    grid = np.arange(n_px) - (n_px - 1) / 2
    y, x = (grid - plan.shifts_yx_px[:, :1])[:, :, None], (grid - plan.shifts_yx_px[:, 1:])[:, None, :]
    mode = 30 * np.exp((y**2 + x**2) * (1j / 12 - 1 / 18))
    probes = np.stack([mode, 0.05j * x * mode], axis=1)
    rows, columns = np.arange(plan.shape_yx[0])[:, None], np.arange(plan.shape_yx[1])
    phase = 0.6 * np.sin(rows / 4) * np.cos(columns / 3)
    obj = (1 - 0.2 * phase**2) * np.exp(1j * phase)
    patches = np.stack([obj[i : i + n_px, k : k + n_px] for i, k in plan.corners_yx])
    waves = np.fft.fft2(probes * patches[:, None], norm="ortho")
    counts = np.fft.fftshift((np.abs(waves) ** 2).sum(axis=1), axes=(-2, -1))
    amplitude = np.sqrt(rng.poisson(counts) if noisy else counts + FLOOR_PHOTONS)
    real = np.empty(0, dtype).real.dtype
    return SmallScan(obj, plan.corners_yx, probes.astype(dtype), amplitude.astype(real))


def plain_subset_steps(
    blocks: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]],
    shape_yx: tuple[int, int],
    counts: Sequence[int],
    momentum: float,
    damping: float,
) -> NDArray[np.complex128]:
    """Return the object after updates on subsets (eq. 19, 24), from an object of ones.

    Parameters
    ----------
    blocks : sequence of (corners_yx, probes, amplitude)
        Parts of the scan; subset s of S holds the blocks s, s + S, s + 2 S and so on.
    shape_yx : tuple of int
        Canvas shape [px].
    counts : sequence of int
        Subsets of every pass.
    momentum : float
        Bound of the momentum k / (k + 3) of update k, counted from the last one that ran uphill.
    damping : float
        Part of the largest illumination that is added.

    Returns
    -------
    complex128 array, shape (H, W)
        Object.
    """
    obj = previous = np.ones(shape_yx, dtype=np.complex128)
    update = 0
    for count in counts:
        gain = phase_gain(shape_yx, blocks[0][1][0], count, NETWORK_LEAST_GAIN)
        for subset in range(count):
            chosen = [np.concatenate(part) for part in zip(*blocks[subset::count], strict=True)]
            leading = obj + min(update / (update + 3), momentum) * (obj - previous)
            light = np.zeros(shape_yx)
            for (y, x), modes in zip(chosen[0], chosen[1], strict=True):
                light[y : y + modes.shape[-2], x : x + modes.shape[-1]] += (np.abs(modes) ** 2).sum(axis=0)
            step = plain_gradient(leading, *chosen) / (light + damping * light.max())
            new = plain_advance(leading, step, light, gain, damping)
            update = (update + 1) * (1 - uphill_share(step, new - obj))
            previous, obj = obj, new
    return obj
