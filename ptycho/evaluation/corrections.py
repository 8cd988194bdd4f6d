"""How far refined positions lie from those of the scan, and whether that is to be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import PlacedReconstruction
from ptycho.evaluation.figures import new_figure, save_figure
from ptycho.geometry.batches import lit_area_px

RESTLESS_PX = 0.1
"""Steps of the last iteration from which positions have not arrived; noise of 1e4 counts moves them less."""
RESTLESS_SHARE = 0.1
"""The same in units of the whole correction: a large one may end with larger steps."""
FAR = 0.5
"""Correction in units of the diameter of the spot from which a step no longer knows where it leads."""
FAR_SHARE = 0.02
"""Share of patterns that may have moved so far."""
MOST_ARROWS = 2000
"""Patterns whose correction is drawn; of more, as many spread over the scan."""


@dataclass(frozen=True)
class PositionCorrection:
    """Refined positions less those of the scan."""

    moved_yx_px: NDArray[np.float64]  # (J, 2), of mean 0
    spot_px: float  # diameter of the spot
    last_step_px: float | None  # rms of the last iteration; None where a file does not say
    # near field, and another probe than that of the scan: an astigmatic beam looks like another aspect
    aspect_is_free: bool = False

    @property
    def rms_px(self) -> float:
        """Root of the mean squared distance."""
        return float(np.sqrt((self.moved_yx_px**2).sum(axis=1).mean()))

    @property
    def largest_px(self) -> float:
        """Longest distance."""
        return float(np.hypot(*self.moved_yx_px.T).max())

    def affine(self, positions_yx_px: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what is linear in the place: moved = place @ matrix, (2, 2), for places about their mean."""
        places = positions_yx_px - positions_yx_px.mean(axis=0)
        return np.linalg.lstsq(places, self.moved_yx_px, rcond=None)[0]

    def line(self, positions_yx_px: NDArray[np.float64]) -> str:
        """Return the correction in one line."""
        matrix = self.affine(positions_yx_px)
        turn = math.degrees((matrix[0, 1] - matrix[1, 0]) / 2)
        shear = math.degrees(matrix[0, 1] + matrix[1, 0])
        return (
            f"positions corrected by {self.rms_px:.2g} px rms, {self.largest_px:.2g} px at most (scale of y "
            f"{1 + matrix[0, 0]:.4f}, of x {1 + matrix[1, 1]:.4f}, rotation {turn:+.2f} deg, shear "
            f"{shear:+.2f} deg)"
        )

    def caution(self) -> str | None:
        """Return what not to measure in the picture, however well it fits; None where nothing is known."""
        if not self.aspect_is_free:
            return None
        return (
            "positions and probe were refined together in the near field: sizes along y and x may be off by "
            "a few per cent"
        )

    def numbers(self) -> dict[str, Any]:
        """Return what ``metrics.json`` says about it."""
        return {
            "position_rms_px": self.rms_px,
            "position_largest_px": self.largest_px,
            "position_last_step_px": self.last_step_px,
            "aspect_is_free": self.aspect_is_free,
        }

    def doubts(self) -> Iterator[str]:
        """Yield why it is not to be trusted."""
        step = self.last_step_px
        if step is not None and step > max(RESTLESS_PX, RESTLESS_SHARE * self.rms_px):
            yield (
                f"the positions still move by {step:.2g} px in an iteration, after {self.rms_px:.2g} px in "
                "all; raise --refine"
            )
        far = np.hypot(*self.moved_yx_px.T) > FAR * self.spot_px
        if far.mean() > FAR_SHARE:
            yield (
                f"{int(far.sum())} positions were moved by more than half a spot "
                f"({FAR * self.spot_px:.2g} px) and may have gone astray"
            )


def position_correction(placed: PlacedReconstruction) -> PositionCorrection | None:
    """Return the correction of a reconstruction; None where its positions are those of the scan."""
    found = placed.found
    if found.positions_yx_px is None:
        return None
    moved = placed.positions_yx_px - placed.scan.positions_yx_px[placed.rows]
    moved = moved - moved.mean(axis=0)
    if not np.abs(moved).max() > 1e-6:
        return None
    spot_px = 2 * math.sqrt(lit_area_px(found.probe) / math.pi)
    refines_probe = not np.array_equal(found.probe, placed.scan.probe)
    is_free = placed.scan.fresnel_number is not None and refines_probe
    return PositionCorrection(moved, spot_px, found.position_step_px, is_free)


def save_position_correction_png(
    positions_yx_px: NDArray[np.float64], moved_yx_px: NDArray[np.float64], path: str | Path, title: str
) -> Path:
    """Draw how far refined positions (J, 2) moved, ``moved_yx_px`` (J, 2) [px], as arrows from where the scan
    had them; arrows are drawn longer or shorter than they are, and the title says so."""
    chosen = np.unique(np.linspace(0, len(moved_yx_px) - 1, MOST_ARROWS).astype(np.int64))
    start, moved = (positions_yx_px - moved_yx_px)[chosen], moved_yx_px[chosen]
    lengths = np.hypot(*moved.T)
    spacing = float(np.sqrt(np.prod(np.maximum(np.ptp(start, axis=0), 1.0)) / len(start)))
    factor = spacing / max(float(np.quantile(lengths, 0.9)), 1e-9)
    factor = float(f"{factor:.1g}")
    height, width = np.maximum(np.ptp(start, axis=0), 1.0)
    figure = new_figure(6.4, float(np.clip(4.6 * height / width, 1.8, 9.0)) / 0.8)
    axes = figure.add_axes((0.11, 0.1, 0.75, 0.8))
    arrows = axes.quiver(
        start[:, 1], start[:, 0], factor * moved[:, 1], factor * moved[:, 0], lengths,
        angles="xy", scale_units="xy", scale=1.0, cmap="viridis", width=0.003,
    )  # fmt: skip
    room = 2 * spacing
    axes.set_xlim(start[:, 1].min() - room, start[:, 1].max() + room)
    axes.set_ylim(start[:, 0].max() + room, start[:, 0].min() - room)
    axes.set_aspect("equal")
    axes.set_xlabel("x [object px]")
    axes.set_ylabel("y [object px]")
    axes.set_title(f"{title}\narrows {factor:g} times their length", fontsize=9)
    figure.colorbar(arrows, ax=axes, label="moved by [px]", fraction=0.05, pad=0.03)
    return save_figure(figure, path)
