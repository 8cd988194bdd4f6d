"""False alarms and hits of the check for a changing beam, on scans of many kinds.

usage: python benchmarks/beam.py [--seeds 0 150]

A scan is its counts alone: the light of the probe that the object lets through. Objects are pictures that
come with scikit-image, discs, edges, halves, slopes, stripes; every seed draws one, with probe, path,
overlap, number of patterns and dose. Each is taken with a steady beam, with a probe that loses its focus at
the same power, and with changes of the beam.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from wrong_minimum import PICTURES, PROBES, picture
from wrong_minimum import probe as wide_probe

from ptycho.data.checks.beam import BeamChange, is_change, likeliest_change, smear_px
from ptycho.data.checks.overlap import diameter_px, lit_pixels
from ptycho.simulation.positions import spiral_points
from ptycho.simulation.probes import PROBES as SMALL_PROBES

TEXTURES = (*PICTURES, "discs", "edges", "half", "slope", "stripes", "leaves", "blob")
PATHS = ("raster", "snake", "fermat", "random", "scattered")
Factor = Callable[[int, int], NDArray[np.float64]]


def step(amount: float) -> Factor:
    """Return a beam that jumps at one pattern."""
    return lambda count, at: np.where(np.arange(count) >= at, 1 + amount, 1.0)


def decay(amount: float) -> Factor:
    """Return a beam that falls evenly from the first to the last pattern."""
    return lambda count, _: np.linspace(1, 1 - amount, count)


def top_up(amount: float) -> Factor:
    """Return a beam that decays and is filled up again, three times in a scan."""
    return lambda count, at: 1 - amount * (((np.arange(count) - at) / (count / 3)) % 1.0)


def dropped(share: float) -> Factor:
    """Return a beam that loses a share of its light in three single patterns."""
    return lambda count, at: np.where((np.arange(count) - at) % (count // 3 + 1) == 0, 1 - share, 1.0)


CHANGES: dict[str, Factor] = {
    "steady": lambda count, _: np.ones(count),
    **{f"step {100 * amount:+.0f} %": step(amount) for amount in (0.03, -0.05, 0.1, -0.1, -0.3, 0.3)},
    **{f"decay {100 * amount:.0f} %": decay(amount) for amount in (0.1, 0.3)},
    "top-up 10 %": top_up(0.1),
    "dropped 50 %": dropped(0.5),
}
NAMES = [*CHANGES, "out of focus"]


@dataclass(frozen=True)
class Case:
    """What a scan counts in a beam that does not change, before noise."""

    texture: str
    path: str
    overlap: float
    contrast: float
    photons: float  # of a pattern; 0: no noise
    spot_px: float
    smear: float
    places: NDArray[np.float64]  # (M, 2) [px]
    light: NDArray[np.float64]  # (M,), mean 1
    out_of_focus: NDArray[np.float64]  # (M,), the same with a probe that changes its shape
    at: int  # pattern of a jump
    seed: int

    def counts(
        self, factor: NDArray[np.float64], light: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Return the counts (M,) of the scan in a beam of another power in every pattern."""
        mean = factor * (self.light if light is None else light)
        if not self.photons:
            return mean
        return np.random.default_rng([self.seed, 5]).poisson(self.photons * mean).astype(np.float64)


def texture(kind: str, side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a map (side, side) of values in [0, 1]."""
    y, x = np.mgrid[:side, :side] / side
    if kind in PICTURES:
        return picture(kind, side, rng)
    if kind == "slope":
        turn = rng.uniform(0, 2 * np.pi)
        map_ = np.cos(turn) * x + np.sin(turn) * y
    elif kind == "stripes":
        turn = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
        map_ = (np.cos(turn) * x + np.sin(turn) * y) * rng.uniform(2, 12) % 1.0 < 0.5
    elif kind == "half":
        turn = rng.choice([0.0, np.pi / 2, np.pi, rng.uniform(0, 2 * np.pi)])
        inside = np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5) > rng.uniform(-0.2, 0.2)
        map_ = inside * (0.3 + 0.7 * picture(str(rng.choice(PICTURES)), side, rng))
    elif kind == "blob":
        size = np.hypot(y - rng.uniform(0.4, 0.6), x - rng.uniform(0.4, 0.6)) / rng.uniform(0.1, 0.4)
        map_ = np.exp(-(size ** rng.choice([2, 20])))
    elif kind == "edges":
        map_ = np.zeros((side, side))
        for turn in rng.choice([0.0, np.pi / 2, 0.7, 2.1], 3):
            map_ += rng.uniform(0.3, 1) * (np.cos(turn) * x + np.sin(turn) * y > rng.uniform(0.2, 0.8))
    else:
        map_, discs = np.zeros((side, side)), 12 if kind == "discs" else 400
        radii = rng.uniform(0.01, 0.06, discs) if kind == "discs" else 0.02 * rng.random(discs) ** -0.5
        for radius, centre in zip(radii.clip(0, 0.3), rng.random((discs, 2)), strict=True):
            map_[np.hypot(y - centre[0], x - centre[1]) < radius] = rng.random() if kind == "leaves" else 1.0
    map_ = np.asarray(map_, float)
    return (map_ - map_.min()) / max(float(np.ptp(map_)), 1e-9)


def path(kind: str, count: int, step_px: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the places (M, 2) of a scan in the order in which they are taken [px]."""
    if kind == "fermat":
        return spiral_points(count, step_px)
    columns = max(4, round(np.sqrt(count) * rng.choice([0.6, 1.0, 1.0, 1.6])))
    rows = count // columns
    if kind == "scattered":
        return rng.random((count, 2)) * np.sqrt(count) * step_px
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).astype(float)
    if kind == "snake":
        grid[1::2] = grid[1::2, ::-1]
    places = grid.reshape(-1, 2) * step_px
    places = rng.permutation(places) if kind == "random" else places
    return places + rng.choice([0.0, 0.1, 0.3]) * step_px * rng.uniform(-1, 1, places.shape)


def make_case(seed: int) -> Case:
    """Draw a scan."""
    from scipy.ndimage import gaussian_filter, map_coordinates
    from scipy.signal import fftconvolve

    rng = np.random.default_rng([seed, 77])
    n_px = int(rng.choice([32, 64]))
    kind = str(rng.choice([*PROBES, "zone-plate", "disc"]))
    if kind in PROBES:
        probe = wide_probe(kind, n_px, rng)[None]
    else:
        probe = SMALL_PROBES[kind](n_px, n_px * rng.uniform(0.3, 0.5), defocus_waves=rng.uniform(0, 0.5))[
            None
        ]
    power = (np.abs(probe[0]) ** 2)[::-1, ::-1]
    spot = diameter_px(lit_pixels(probe))
    overlap, name = float(rng.uniform(0.5, 0.9)), TEXTURES[seed % len(TEXTURES)]
    way = PATHS[(seed // len(TEXTURES) + seed) % len(PATHS)]
    count = round(60 * (1000 / 60) ** rng.random())
    places = path(way, count, (1 - overlap) * spot, rng)
    places = places - places.min(axis=0) + n_px / 2
    side = int(places.max() + n_px / 2) + 2
    contrast = float(rng.choice([0.0, 0.05, 0.2, 0.4, 0.6, 0.8]))
    # A texture is drawn larger than the scan, which sees a part of it.
    size = min(1400, round(side * rng.choice([1.0, 1.0, 2.0])))
    drawn = texture(name, max(size, side), rng)
    top, left = rng.integers(0, len(drawn) - side + 1, 2)
    through = (1 - contrast * drawn[top : top + side, left : left + side]) ** 2

    def seen(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
        light = fftconvolve(through, kernel, mode="same")
        return map_coordinates(light, places.T, order=1, mode="nearest")

    light = seen(power)
    share = np.linspace(0, 1, len(places))
    wider = gaussian_filter(power, 0.12 * spot)
    drifting = (1 - share) * light + share * seen(wider * power.sum() / wider.sum())
    guessed = rng.random() < 0.15
    mean = light.mean()
    return Case(
        name, way, overlap, contrast, 0.0 if rng.random() < 0.25 else float(10 ** rng.uniform(3, 7)),
        n_px / 2 if guessed else spot, 0.075 * n_px if guessed else smear_px(probe),
        places, light / mean, drifting / mean,
        int(rng.integers(len(places) // 8, 7 * len(places) // 8)), seed,
    )  # fmt: skip


def found(
    case: Case, factor: NDArray[np.float64], light: NDArray[np.float64] | None = None
) -> BeamChange | None:
    """Return the change that the check tells of, or None where it is silent."""
    counts = case.counts(factor, light)
    rows = np.flatnonzero(counts > 0)
    change = likeliest_change(counts[rows], case.places[rows], rows, case.spot_px, case.smear)
    return change if is_change(change) else None


def main() -> None:
    """Print one line for every kind of change, and every false alarm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, default=[0, 150], help="first, and one past the last")
    parser.add_argument("--changes", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--verbose", action="store_true", help="show every alarm")
    options = parser.parse_args()
    cases = [make_case(seed) for seed in range(*options.seeds)]
    long = [len(case.places) >= 200 for case in cases]
    print(f"{len(cases)} scans, {sum(long)} of 200 patterns or more: alarms, and those of long scans")
    for name in options.changes:
        change = CHANGES.get(name, CHANGES["steady"])
        told, exact = [], []
        for case in cases:
            light = case.out_of_focus if name == "out of focus" else None
            count = len(case.places)
            what = found(case, change(count, case.at), light)
            told.append(what is not None)
            true = change(count, case.at)
            if what is not None and name.startswith("step"):
                right = what.kind == "step" and abs(what.pattern - case.at) <= max(2, count // 100)
                exact.append(right and abs(what.factor / true[-1] - 1) < 0.05)
            if options.verbose and (what is not None) == (name in ("steady", "out of focus")):
                print("   ", name, case.seed, case.texture, case.path, f"M {count}", what)
        named = f", right pattern and size {sum(exact)} of {len(exact)}" if exact else ""
        print(
            f"{name:14s} {sum(told):4d} of {len(told)}, {sum(np.array(told)[long]):4d} of {sum(long)}{named}",
            flush=True,
        )


if __name__ == "__main__":
    main()
