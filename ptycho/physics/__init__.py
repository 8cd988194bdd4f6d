"""The physics in float64 NumPy, the reference that every backend is tested against.

Axes: patches and patterns are ``(..., N, N)``, the last two axes are (y, x). Probe modes are ``(P, N, N)``,
or ``(J, P, N, N)`` when every scan position has its own. Units: positions in object pixels, phase in radians,
probe in sqrt(photons), intensity in photons per pixel. Symbols and equation numbers follow
``specs/physics.md``. The dtype follows the input: complex128 in, float64 out.
"""

from ptycho.physics.filling import filled_amplitude, measured, measured_energy
from ptycho.physics.forward import (
    INTENSITY_FLOOR,
    diffracted_amplitude,
    diffracted_intensity,
    exit_waves,
    extract_patches,
    illumination,
    patch_indices,
    place_patches,
    smoothed_amplitude,
    weighted_patches,
)
from ptycho.physics.gradients import (
    SOFTENING,
    object_gradient,
    probe_gradient,
    softened_amplitude,
    wave_residual,
)
from ptycho.physics.misfit import amplitude_loss, mean_absolute_loss, poisson_loss
from ptycho.physics.propagation import centring_phase, far_field, far_field_adjoint, shift_field

__all__ = [
    "INTENSITY_FLOOR",
    "SOFTENING",
    "amplitude_loss",
    "centring_phase",
    "diffracted_amplitude",
    "diffracted_intensity",
    "exit_waves",
    "extract_patches",
    "far_field",
    "far_field_adjoint",
    "filled_amplitude",
    "illumination",
    "mean_absolute_loss",
    "measured",
    "measured_energy",
    "object_gradient",
    "patch_indices",
    "place_patches",
    "poisson_loss",
    "probe_gradient",
    "shift_field",
    "smoothed_amplitude",
    "softened_amplitude",
    "wave_residual",
    "weighted_patches",
]
