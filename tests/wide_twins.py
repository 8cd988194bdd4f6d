"""What the physics of patches wider than patterns is compared on, with the reference, by both backends."""

from __future__ import annotations

from typing import Any

from ptycho import physics as reference
from ptycho.physics.detector import Detector
from ptycho.physics.pixel_parts import part_turns

WIDE_FUNCTIONS = (
    *("folded", "tiled", "propagate", "propagate_back", "diffracted_intensity", "wave_residual"),
    *("object_gradient", "mapped_waves", "motion_equations", "variation_equations"),
    *("part_modes", "part_modes_adjoint"),
)
"""Physics that knows of patches wider than patterns."""


def wide_arguments(
    arguments: dict[str, Any], name: str, n_px: int, windows: int, parts: int, dtype: type
) -> dict[str, Any]:
    """Return the arguments of a function for patches of ``windows`` patterns of ``n_px``, from those of
    patterns as large as the patches."""
    turns = part_turns(n_px, parts, windows).astype(dtype)
    probes = reference.part_modes(arguments["probes"], turns)
    waves = reference.exit_waves(arguments["patches"], probes)
    small = {key: arguments[key][..., :n_px, :n_px] for key in ("amplitude", "field")}
    found = arguments | small | {"turns": turns, "detector": Detector(part_turns=turns), "windows": windows}
    found |= {"probes": probes, "parted": probes, "exit_wave": waves, "fitting": waves}
    found["waves"] = found["field"] if name == "tiled" else waves[::-1].copy()
    return found
