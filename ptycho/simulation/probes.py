"""Illuminations for simulated scans: a defocused zone plate, a soft disc, and incoherent modes of either.

Everything is in object pixels and waves, so no wavelength is needed. A probe is centred on patch pixel
``(N - 1) / 2``, has unit power unless scaled, and vanishes at the border of its window, because sub-pixel
shifts are periodic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import ConfigError

TAPER_RADII = (0.36, 0.47)
"""Radii, in units of the window, between which a raised cosine takes the probe from 1 to 0."""
DIAMETER_LIMIT = 2 * TAPER_RADII[0]
"""Largest probe diameter in units of the window; a wider one would be cut by the taper."""
FREQUENCY_LIMIT = 0.4
"""Largest spatial frequency of the illumination [cycles / px], safely below 0.5."""
AIRY = 1.22
"""First zero of the Airy pattern of an aperture with unit outer diameter."""

Complex = NDArray[np.complex128]


def scale_to_photons(probe: Complex, photons: float) -> Complex:
    r"""Scale a probe or modes (..., N, N) so that :math:`\sum|P|^2` is a number of photons."""
    return probe * np.sqrt(photons / (np.abs(probe) ** 2).sum())


def _radius(n_px: int) -> NDArray[np.float64]:
    """Return the distance of every pixel from the patch centre, (N - 1) / 2 [px]."""
    axis = np.arange(n_px) - (n_px - 1) / 2
    return np.hypot(axis[:, None], axis[None, :])


def _taper(n_px: int) -> NDArray[np.float64]:
    """Return the window that is 1 in the middle and 0 at the border."""
    low, high = TAPER_RADII
    ramp = np.clip((_radius(n_px) / n_px - low) / (high - low), 0.0, 1.0)
    return 0.5 * (1.0 + np.cos(np.pi * ramp))


def _check_diameter(n_px: int, diameter_px: float) -> None:
    if not 2.0 <= diameter_px <= DIAMETER_LIMIT * n_px:
        raise ConfigError(
            f"probe: the diameter does not fit (got {diameter_px:g} px, expected 2 to "
            f"{DIAMETER_LIMIT * n_px:.4g} px in a {n_px} px window). Change diameter_px or n_px."
        )


def rim_frequency(diameter_px: float, defocus_waves: float) -> float:
    r"""Return the spatial frequency [cycles / px] of the rim of a lens that lights a given area.

    .. math:: f_{\max} = (1.22 + 4|w|) / D

    with the diameter D [px], and the path difference w between rim and axis [waves].
    """
    return (AIRY + 4 * abs(defocus_waves)) / diameter_px


def _check_frequency(frequency: float, defocus_waves: float, diameter_px: float) -> None:
    """Raise where the illumination [cycles / px] is too fine for the pixels; a NaN is too fine."""
    if not frequency <= FREQUENCY_LIMIT:
        raise ConfigError(
            f"probe: the pixels are too coarse (got {frequency:.3g} cycles/px for {defocus_waves:g} waves of "
            f"defocus over {diameter_px:g} px, expected at most {FREQUENCY_LIMIT:g} cycles/px). "
            "Lower defocus_waves, or raise diameter_px or n_px."
        )


def zone_plate_probe(
    n_px: int, diameter_px: float, *, defocus_waves: float = 1.5, stop_fraction: float = 0.4
) -> Complex:
    r"""Return the illumination (N, N) of a Fresnel zone plate with a central stop, some way out of focus.

    .. math:: P = \mathcal{F}^{-1}\left[A(f)\, e^{-2\pi i\, w\, (f / f_{\max})^2}\right],
              \quad f_{\max} = (1.22 + 4|w|) / D

    A(f) is the ring from ``stop_fraction``, in [0, 1), to 1 in units of :math:`f_{\max}`. The diameter D, 2
    to 0.72 N px, is that of the geometric shadow, :math:`4|w| / f_{\max}`, plus the Airy diameter
    :math:`1.22 / f_{\max}`; w = 0 waves is in focus. ``ConfigError`` where the probe fits neither the window
    nor the pixels, or the stop hides the lens.
    """
    _check_diameter(n_px, diameter_px)
    outer = rim_frequency(diameter_px, defocus_waves)
    _check_frequency(outer, defocus_waves, diameter_px)
    if not 0.0 <= stop_fraction < 1.0:
        raise ConfigError(
            f"probe: the central stop hides the lens (got stop_fraction {stop_fraction:g}, "
            "expected 0 <= stop_fraction < 1). Lower it."
        )
    # A four times larger field keeps the periodic copies of the diffraction rings apart.
    big = 4 * n_px
    axis = np.fft.fftfreq(big)
    frequency = np.hypot(axis[:, None], axis[None, :])
    rim = 0.5 / n_px
    ring = np.clip(0.5 + (outer - frequency) / rim, 0.0, 1.0)
    if stop_fraction > 0.0:
        ring *= np.clip(0.5 + (frequency - stop_fraction * outer) / rim, 0.0, 1.0)
    start = (big - n_px) // 2
    centre = np.exp(-2j * np.pi * axis * (start + (n_px - 1) / 2))
    pupil = ring * np.exp(-2j * np.pi * defocus_waves * (frequency / outer) ** 2) * np.outer(centre, centre)
    cut = slice(start, start + n_px)
    return scale_to_photons(np.fft.ifft2(pupil)[cut, cut] * _taper(n_px), 1.0)


def disc_probe(n_px: int, diameter_px: float, *, defocus_waves: float = 1.0, edge_px: float = 2.0) -> Complex:
    r"""Return a disc (N, N) with a soft edge and a curved wave front.

    .. math:: P = \tfrac12\left(1 + \tanh\frac{R - r}{e}\right) e^{2\pi i\, w\, (r/R)^2}

    The diameter 2 R at half amplitude is 2 to 0.72 N px, e is ``edge_px``; w = 0 waves is a flat wave front.
    ``ConfigError`` where the probe does not fit its window, or its wave front is too curved for the pixels.
    """
    _check_diameter(n_px, diameter_px)
    _check_frequency(4 * abs(defocus_waves) / diameter_px, defocus_waves, diameter_px)
    radius = _radius(n_px)
    amplitude = 0.5 * (1.0 + np.tanh((diameter_px / 2 - radius) / edge_px))
    phase = 2 * np.pi * defocus_waves * (2 * radius / diameter_px) ** 2
    return scale_to_photons(amplitude * np.exp(1j * phase) * _taper(n_px), 1.0)


def refocus(probe: Complex, waves: float, rim_per_px: float) -> Complex:
    r"""Move a probe or modes (..., N, N) along the beam, which keeps spatial frequencies and power.

    .. math:: P' = \mathcal{F}^{-1}\left[e^{-2\pi i\, w\, (f / f_{\max})^2}\, \mathcal{F} P\right]

    w waves are added between the rim of the lens and its axis, ``rim_per_px`` is as :func:`rim_frequency`.
    The probe is kept off the border of its window.
    """
    axis = np.fft.fftfreq(probe.shape[-1])
    squared = (axis[:, None] ** 2 + axis[None, :] ** 2) / rim_per_px**2
    moved = np.fft.ifft2(np.fft.fft2(probe) * np.exp(-2j * np.pi * waves * squared))
    return scale_to_photons(moved * _taper(probe.shape[-1]), (np.abs(probe) ** 2).sum())


PROBES: dict[str, Callable[..., Complex]] = {"zone-plate": zone_plate_probe, "disc": disc_probe}
"""Name of every kind of probe and the function ``(n_px, diameter_px, *, defocus_waves)`` that makes it."""


def incoherent_modes(probe: Complex, n_modes: int, decay: float = 0.3) -> Complex:
    r"""Return orthogonal modes (P, N, N) of a partially coherent probe (N, N), strongest first.

    Mode p is the probe times a polynomial in (y, x), made orthogonal to the modes before it, with the power
    :math:`\propto \mathrm{decay}^p`. All modes together have the power of the probe; mode 0 has its shape.
    ``ConfigError`` unless P is 1 to 10 and 0 < decay <= 1.
    """
    if not 1 <= n_modes <= 10 or not 0.0 < decay <= 1.0:
        raise ConfigError(
            f"probe modes: out of range (got {n_modes} modes with decay {decay:g}, "
            "expected 1 to 10 modes with 0 < decay <= 1). Change n_modes or mode_decay."
        )
    n_px = probe.shape[-1]
    axis = (np.arange(n_px) - (n_px - 1) / 2) / n_px
    powers = [(a, degree - a) for degree in range(4) for a in range(degree + 1)][:n_modes]
    candidates = np.stack([(probe * np.outer(axis**a, axis**b)).ravel() for a, b in powers], axis=1)
    basis, upper = np.linalg.qr(candidates)
    basis = basis * (np.diagonal(upper) / np.abs(np.diagonal(upper)))
    fractions = decay ** np.arange(n_modes)
    total = (np.abs(probe) ** 2).sum()
    modes = basis * np.sqrt(total * fractions / fractions.sum())
    return np.ascontiguousarray(modes.T).reshape(n_modes, n_px, n_px)
