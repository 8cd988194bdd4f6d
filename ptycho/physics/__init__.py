# ruff: noqa: F401
"""The physics in float64 NumPy, the reference that every backend is tested against.

The last two axes of patches, probes and patterns are (y, x); the zero frequency of a pattern is at
``N // 2``. Positions are in object pixels, phases in radians. Symbols and equation numbers follow
``specs/physics.md``. The dtype follows the input: complex128 in, float64 out. Where a function says nothing
else, its arguments are these:

- ``obj``: complex (H, W), the object on its canvas [transmission]; ``shape_yx`` is (H, W) [px]
- ``patches``: complex (J, N, N), cut from it at ``corners_yx``, int (J, 2), canvas indices of pixel (0, 0);
  they and the probes may be larger than a pattern, a whole number M of times (eq. 5b)
- ``probes``: complex (P, N, N), modes, or (J, P, N, N), those of every scan position [sqrt(photons)]
- ``amplitude``: real (J, N, N), measured, negative where nothing was measured; ``predicted``: expected, both
  [sqrt(photons)]
- ``transfer``: complex (J, 2, N), of a near field (``propagation.near_field_transfer``); None: far field
- ``detector``: the transfer, and what is counted beside the light (``detector.Detector``)
"""

from ptycho.physics.background import background_sums, frame_fits
from ptycho.physics.detector import FAR_FIELD, Detector
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
    with_background,
)
from ptycho.physics.misfit import (
    SOFTENING,
    amplitude_loss,
    mapped_waves,
    mean_absolute_loss,
    object_gradient,
    poisson_loss,
    probe_gradient,
    softened_amplitude,
    unmatched_waves,
    wave_residual,
)
from ptycho.physics.motion import count_quantum, motion_equations, object_slope, root_residual
from ptycho.physics.pixel_parts import part_modes, part_modes_adjoint
from ptycho.physics.propagation import (
    centring_phase,
    far_field,
    far_field_adjoint,
    folded,
    near_field,
    near_field_adjoint,
    propagate,
    propagate_back,
    shift_field,
    tiled,
)
from ptycho.physics.variation import variation_equations, variation_gradient, varied_probes
