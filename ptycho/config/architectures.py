"""What settings know of an architecture: which are its own, and whether it sees groups or the whole canvas.

An architecture is an entry here; its layers are in ``ptycho.networks.architectures``, and each backend builds
it in ``generators``. Code asks for a property, never for a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptycho.config.choices import closest_hint
from ptycho.errors import ConfigError

if TYPE_CHECKING:
    from ptycho.config.classes import ModelConfig


@dataclass(frozen=True)
class Architecture:
    """One architecture as the settings see it."""

    name: str
    settings: tuple[str, ...]  # of ModelConfig, that no other architecture reads
    whole_canvas: bool  # it sees all patterns of a canvas, not groups of patterns in batches
    rate_by_width: bool  # a wider network starts from a lower learning rate


CNN = Architecture(
    "cnn",
    (
        "model_type", "n_filters_scale", "amp_activation", "object_big", "probe_big", "pad_object",
        "gaussian_smoothing_sigma", "cbam_encoder", "cbam_bottleneck", "cbam_decoder", "eca_encoder",
        "eca_decoder", "spatial_decoder", "decoder_spatial_kernel",
    ),
    whole_canvas=False,
    rate_by_width=True,
)  # fmt: skip
UNROLLED = Architecture(
    "unrolled",
    ("unrolled_steps", "unrolled_width", "unrolled_likelihood"),
    whole_canvas=True,
    rate_by_width=False,
)
KNOWN = {item.name: item for item in (CNN, UNROLLED)}
ARCHITECTURES: tuple[str, ...] = tuple(KNOWN)
WHOLE_CANVAS = {name for name, item in KNOWN.items() if item.whole_canvas}
"""Names of those that see all patterns of a canvas."""


def architecture_of(model: ModelConfig) -> Architecture:
    """Return the architecture that the settings of a network name; ``ConfigError`` where there is none."""
    if model.architecture not in KNOWN:
        raise ConfigError(
            f"model: architecture is {model.architecture!r}, expected one of {', '.join(KNOWN)}. "
            f"{closest_hint(model.architecture, ARCHITECTURES)}"
        )
    return KNOWN[model.architecture]
