"""Pixels of the patterns that a reconstruction is not shown, so that they can judge it.

Photons in different detector pixels are independent: what is found without a pixel can explain its counts
only by what is true of the object, never by their noise (eq. 29). Which pixels belong together follows from a
hash of seed, pattern and pixel, so that no mask is stored and every backend hides the same ones.

References
----------
Batson and Royer, Noise2Self, ICML 2019. The hash is the finaliser of SplitMix64, Steele et al., OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.data.feed import Batch, Labels, TileSource
from ptycho.data.scan import PatternStore, Scan
from ptycho.geometry.batches import tile_part
from ptycho.geometry.canvas import CanvasPlan

HIDDEN_SETS, HIDDEN_SHARE = 4, 0.1
"""Sets of pixels that are hidden in turn, and the share of all pixels in each."""
UNSEEN_SHARE = 0.04
"""Share of the pixels that no training by hidden pixels sees, whatever its seed: they tell what it is worth,
also to those who reconstruct the scan with its network."""
UNSEEN = HIDDEN_SETS
"""Number of their set."""
TURNS = 8
"""Ways to mirror and to turn an image. A network that sees every tile in all of them cannot learn a tile by
heart, and it has no reason to prefer a direction."""
_UNSEEN_SEED = -1
"""No run has it."""
WELL_COVERED = 0.9
"""Share of what the light of the median pattern has in common with that of all patterns, from which on a
pattern is none of the rim."""
SHOWN = -1
"""Number of the pixels that are always shown."""
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def pixel_sets(seed: int, indices: NDArray[np.int64], n_px: int) -> NDArray[np.int8]:
    """Return the set that every pixel of the patterns ``indices`` (J,) belongs to, (J, N, N): 0 to
    ``HIDDEN_SETS`` - 1, ``UNSEEN``, which are the same for every seed, or ``SHOWN``."""
    number = np.asarray(indices, np.uint64)[:, None] * np.uint64(n_px**2)
    number = number + np.arange(n_px**2, dtype=np.uint64)
    share = _drawn(number, seed) * (1 - UNSEEN_SHARE)
    found = np.floor(share / HIDDEN_SHARE).astype(np.int8)
    found[found >= HIDDEN_SETS] = SHOWN
    found[_drawn(number, _UNSEEN_SEED) < UNSEEN_SHARE] = UNSEEN
    return found.reshape(-1, n_px, n_px)


def _drawn(number: NDArray[np.uint64], seed: int) -> NDArray[np.float32]:
    """Return random numbers from [0, 1), each the hash of a number and a seed."""
    with np.errstate(over="ignore"):
        mixed = (number + np.uint64(seed + 1) * _MIX[0]) * _MIX[0]
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[1]
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[2]
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def without(amplitude: NDArray[np.float32], sets: NDArray[np.int8], number: int) -> NDArray[np.float32]:
    """Return amplitudes (J, N, N) [sqrt(photons)] with one of the ``sets`` hidden: negative there, and where
    no training looks."""
    return np.where((sets == number) | (sets == UNSEEN), -1, amplitude).astype(np.float32)


def well_covered(corners_yx: NDArray[np.int64], probe: NDArray[np.complex64]) -> NDArray[np.bool_]:
    """Tell of which patterns (T,) the light of the ``probe`` (P, N, N) falls on places that many others see,
    too, from the ``corners_yx`` (T, 2) of their patches on a canvas.

    What is found at the rim of a scan, where hardly another pattern looks, says little of the rest.
    """
    from scipy.signal import fftconvolve

    power = (np.abs(probe) ** 2).sum(axis=0)
    size = len(power)
    common = fftconvolve(power, power[::-1, ::-1])
    y, x = np.moveaxis(corners_yx[:, None] - corners_yx, -1, 0)
    near = (abs(y) < size) & (abs(x) < size)
    shared = np.where(near, common[np.where(near, y, 0) + size - 1, np.where(near, x, 0) + size - 1], 0)
    total = shared.sum(axis=1)
    return total >= WELL_COVERED * np.median(total)


class HidingStore:
    """A ``PatternStore`` one of whose sets of pixels counts as not measured."""

    def __init__(self, store: PatternStore, seed: int, number: int) -> None:
        self.store, self.seed, self.number = store, seed, number
        self.fresnel_number, self.background = store.fresnel_number, store.background
        self.detector_upsampling, self.frame_gain = store.detector_upsampling, store.frame_gain
        self.n_px = store.n_px

    def amplitude(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the amplitudes (\\*S, N, N) of patterns, indices of any shape S [sqrt(photons)], negative
        where nothing is shown."""
        sets = pixel_sets(self.seed, np.ravel(indices), self.n_px)
        shown = self.store.amplitude(indices)
        return without(shown, sets.reshape(shown.shape), self.number)


class HiddenTileSource(TileSource):
    """Tiles of a scan, each with one set of pixels hidden: a network sees the others and starts from what
    plain iterations made of them, and its prediction is compared with those that are hidden.

    ``starts`` (S + 1, 2, H, W), of S = ``HIDDEN_SETS`` sets and the unseen pixels, are the last two iterates
    of the plain iterations on the canvas of ``plan``, which lays the patterns ``indices`` (T,), ascending.
    Item ``number * T + centre`` is the tile around a pattern without the pixels of set ``number``. A batch
    has the ``start`` (2, H, W), the ``compared`` amplitude (J, N, N) [sqrt(photons)], and which ``turn`` of
    the ``TURNS`` its networks see, besides. Unseen pixels are compared where many patterns overlap.
    """

    def __init__(
        self,
        store: PatternStore,
        scan: Scan,
        indices: NDArray[np.int64],
        seed: int,
        plan: CanvasPlan,
        starts: NDArray[np.complex64],
        *,
        own_probe: bool = False,
        own_scale: bool = False,
        labels: Labels | None = None,
    ) -> None:
        beam = {"own_probe": own_probe, "own_scale": own_scale}
        super().__init__(store, scan, indices, labels=labels, **beam)
        self.seed, self.plan, self.starts, self.beam = seed, plan, starts, scan.probe
        self.signature["compared"] = self.signature["amplitude"]
        self.signature["start"] = ((2, None, None), np.complex64)
        self.signature["turn"] = ((), np.int32)

    def __len__(self) -> int:
        return len(self.indices) * len(self.starts)

    def __getitem__(self, item: int) -> Batch:
        """Return the tile of an item."""
        number, centre = divmod(int(item), len(self.indices))
        rows, plan, (low_y, low_x) = tile_part(self.plan, centre)
        batch, (height, width) = self._batch(self.indices[rows], plan), plan.shape_yx
        sets, amplitude = pixel_sets(self.seed, self.indices[rows], self.store.n_px), batch["amplitude"]
        batch["amplitude"] = without(amplitude, sets, number)
        judges = sets == number
        if number == UNSEEN:
            judges &= well_covered(plan.corners_yx, self.beam)[:, None, None]
        batch["compared"] = np.where(judges, amplitude, np.float32(-1))
        batch["start"] = self.starts[number, :, low_y : low_y + height, low_x : low_x + width]
        batch["turn"] = np.array(0 if number == UNSEEN else item % TURNS, np.int32)
        return batch
