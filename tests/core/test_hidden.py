"""Pixels that a training is not shown: which they are, and that nothing of them reaches the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.data.hidden import (
    HIDDEN_SETS,
    HIDDEN_SHARE,
    SHOWN,
    UNSEEN,
    UNSEEN_SHARE,
    HiddenTileSource,
    HidingStore,
    pixel_sets,
    well_covered,
    without,
)
from ptycho.data.scan import PatternStore, Scan
from ptycho.files.reader import open_scan
from ptycho.geometry.batches import tile_part
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, plan_canvas
from ptycho.networks.schedule import TrainedEpoch
from ptycho.physics.losses import LossTerms
from ptycho.process.progress import Progress
from ptycho.run.feeds import Feed, UnseenPixels, never_worse, unseen_before
from ptycho.run.unseen import CHANCE
from tests.runs import Told

WORD = 2**64 - 1


def independent_set(seed: int, pattern: int, pixel: int, n_px: int) -> int:
    """The set of one pixel, in Python integers."""
    step = 0x9E3779B97F4A7C15

    def drawn(state: int) -> float:
        mixed = (pattern * n_px**2 + pixel + state * step) * step & WORD
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & WORD
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & WORD
        return ((mixed ^ (mixed >> 31)) >> 40) / 2**24

    if drawn(0) < 0.04:
        return UNSEEN
    number = int(0.96 * drawn(seed + 1) / 0.1)
    return number if number < 4 else SHOWN


def test_a_pixel_belongs_to_the_set_that_its_hash_says() -> None:
    rng = np.random.default_rng(0)
    for seed in (0, 42, 2**32 - 1):
        patterns = rng.integers(0, 10**7, 5)
        found = pixel_sets(seed, patterns, 16)
        expected = [[independent_set(seed, int(j), pixel, 16) for pixel in range(256)] for j in patterns]
        np.testing.assert_array_equal(found.reshape(5, 256), expected)


def test_sets_have_their_share_and_no_pattern_in_them() -> None:
    sets = pixel_sets(3, np.arange(400), 32)
    shares = np.array([(sets == number).mean() for number in range(HIDDEN_SETS)])
    np.testing.assert_allclose(shares, HIDDEN_SHARE, atol=0.002)
    assert (sets == UNSEEN).mean() == pytest.approx(UNSEEN_SHARE, abs=0.001)
    # Neighbours, along all three axes, and seeds know nothing of each other.
    hidden = (sets == 0).astype(float)
    for axis in range(3):
        low, high = np.delete(hidden, 0, axis), np.delete(hidden, -1, axis)
        assert abs(np.corrcoef(low.ravel(), high.ravel())[0, 1]) < 0.01
    others = pixel_sets(4, np.arange(400), 32)
    other = (others == 0).astype(float)
    assert abs(np.corrcoef(hidden.ravel(), other.ravel())[0, 1]) < 0.01
    # Whoever judges a network by what no training saw needs not know its seed.
    np.testing.assert_array_equal(others == UNSEEN, sets == UNSEEN)


def test_hidden_and_bad_pixels_count_as_not_measured() -> None:
    amplitude = np.random.default_rng(1).uniform(0, 3, (6, 16, 16)).astype(np.float32)
    amplitude[:, 3, 4] = -1
    sets = pixel_sets(0, np.arange(6), 16)
    seen = without(amplitude, sets, 1)
    hidden = (sets == 1) | (sets == UNSEEN)
    assert (seen[hidden] == -1).all()
    np.testing.assert_array_equal(seen[~hidden], amplitude[~hidden])


def source_of(scan: Scan, store: PatternStore) -> tuple[HiddenTileSource, NDArray[Any]]:
    """Tiles of a scan whose starts are numbered pixels: set, iterate, row and column."""
    indices = scan.usable
    plan = plan_canvas(scan.positions_yx_px[indices], scan.patch_px, multiple_px=CANVAS_MULTIPLE_PX)
    starts = np.arange((HIDDEN_SETS + 1) * 2 * np.prod(plan.shape_yx)).reshape(-1, 2, *plan.shape_yx)
    starts = starts.astype(np.complex64)
    return HiddenTileSource(store, scan, indices, 7, plan, starts), starts


@pytest.fixture
def few_patterns_in_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptycho.geometry.batches.tile_patterns", lambda n_px: 9)


def test_a_tile_compares_with_what_it_does_not_show(small_scan: Path) -> None:
    scan = open_scan(small_scan)
    with PatternStore(scan, Progress()) as store:
        source, _ = source_of(scan, store)
        assert len(source) == (HIDDEN_SETS + 1) * scan.n_patterns
        for number in range(HIDDEN_SETS + 1):
            batch = source[number * scan.n_patterns + 5]
            shown, compared = batch["amplitude"] >= 0, batch["compared"] >= 0
            assert not (shown & compared).any()
            share = UNSEEN_SHARE if number == UNSEEN else HIDDEN_SHARE
            inside = well_covered(source.plan.corners_yx, scan.probe)
            assert 0 < inside.sum() < scan.n_patterns
            judging = inside if number == UNSEEN else np.ones_like(inside)
            assert np.array_equal(compared.any(axis=(1, 2)), judging)
            assert compared[judging].mean() == pytest.approx(share, abs=0.01)
            measured = store.amplitude(scan.usable)
            np.testing.assert_array_equal(batch["compared"][compared], measured[compared])
            np.testing.assert_array_equal(batch["amplitude"][shown], measured[shown])


def test_no_training_sees_the_pixels_that_validate(small_scan: Path) -> None:
    scan = open_scan(small_scan)
    with PatternStore(scan, Progress()) as store:
        source, _ = source_of(scan, store)
        validating = source[UNSEEN * scan.n_patterns]["compared"] >= 0
        assert validating.any()
        for number in range(HIDDEN_SETS):
            batch = source[number * scan.n_patterns]
            assert (batch["amplitude"][validating] == -1).all()
            assert (batch["compared"][validating] == -1).all()


@pytest.mark.usefixtures("few_patterns_in_a_tile")
def test_a_tile_is_a_part_of_the_whole_canvas(small_scan: Path) -> None:
    scan = open_scan(small_scan)
    with PatternStore(scan, Progress()) as store:
        source, starts = source_of(scan, store)
        for centre in (0, 17, scan.n_patterns - 1):
            rows, part, (low_y, low_x) = tile_part(source.plan, centre)
            assert len(rows) == 9
            assert centre in rows
            np.testing.assert_allclose(part.positions_yx_px, source.plan.positions_yx_px[rows], atol=1e-9)
            assert all(side % CANVAS_MULTIPLE_PX == 0 for side in part.shape_yx)
            assert (part.corners_yx >= 0).all()
            assert (part.corners_yx + part.patch_px <= part.shape_yx).all()
            batch = source[2 * scan.n_patterns + centre]
            height, width = part.shape_yx
            cut = starts[2, :, low_y : low_y + height, low_x : low_x + width]
            np.testing.assert_array_equal(batch["start"], cut)
            assert batch["start"].shape == (2, height, width)
            np.testing.assert_array_equal(batch["corners"], part.corners_yx)


def test_groups_of_patterns_hide_what_each_pattern_hides(small_scan: Path) -> None:
    groups = np.arange(12).reshape(3, 4)
    with PatternStore(open_scan(small_scan), Progress()) as store:
        hiding = HidingStore(store, 7, 2)
        found = hiding.amplitude(groups)
        assert found.shape == (3, 4, store.n_px, store.n_px)
        np.testing.assert_array_equal(
            found.reshape(12, store.n_px, store.n_px), hiding.amplitude(np.arange(12))
        )


def test_the_plain_iterations_never_see_what_is_hidden(small_scan: Path) -> None:
    scan = open_scan(small_scan)
    with PatternStore(scan, Progress()) as store:
        hiding = HidingStore(store, 7, 2)
        indices = scan.usable[3:9]
        before = hiding.amplitude(indices)
        sets = pixel_sets(7, indices, scan.n_px)
        hidden = (sets == 2) | (sets == UNSEEN)
        changed = store.amplitude(indices).copy()
        changed[hidden] += 5
        store.patterns[indices] = changed
        np.testing.assert_array_equal(hiding.amplitude(indices), before)
        assert (before[hidden] == -1).all()
        assert (hiding.n_px, hiding.detector_upsampling) == (store.n_px, store.detector_upsampling)


class Guess:
    """Stands for a network: it expects ``level`` times the true rate of every pixel."""

    terms = LossTerms("hidden")

    def __init__(self, rate: NDArray[Any], level: float) -> None:
        self.rate, self.level = rate, level

    def snapshot(self) -> float:
        return self.level

    def restore(self, level: float) -> None:
        self.level = level

    def compared(self, batch: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        expected = np.broadcast_to(np.sqrt(self.rate * self.level), batch["amplitude"].shape)
        return expected, batch["amplitude"]

    def loss(self, batch: dict[str, Any]) -> float:
        expected, measured = (values**2 for values in self.compared(batch))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(measured > 0, measured * np.log(measured / expected), 0)
        return float((expected - measured + ratio).sum() / measured.sum())

    plain_loss = loss


def judged(
    seed: int, *, patterns: int = 60, tiles: int = 1, best: int = 4
) -> tuple[TrainedEpoch | None, Guess, Told, UnseenPixels]:
    """What becomes of a training that begins 1 % above the truth and ends at it."""
    rate = np.full((8, 8), 5.0)
    counts = np.random.default_rng(seed).poisson(np.broadcast_to(rate, (patterns, 8, 8)))
    tile = {"amplitude": np.sqrt(counts.astype(np.float32))}
    model, told = Guess(rate, 1.01), Told()
    feed: Any = Feed([tile] * tiles, lambda _: range(tiles))  # type: ignore[arg-type]
    job: Any = type("Job", (), {"resume": None})()
    before = unseen_before(job, model, feed, dict)  # type: ignore[arg-type]
    assert before is not None
    model.level = 1.0
    trained = TrainedEpoch(best, "val_loss", model.loss(tile))
    chosen = never_worse(before, trained, model, feed, dict, told)  # type: ignore[arg-type]
    return chosen, model, told, before


def test_what_chance_can_do_leaves_the_network_that_was_begun_with() -> None:
    # 60 patterns of 64 pixels with 5 photons give the rate to 0.7 %: hardly a difference.
    chosen, model, told, before = judged(1)
    assert chosen == TrainedEpoch(0, "val_loss", pytest.approx(before.network))
    assert model.level == 1.01
    (line,) = told.lines
    assert line.startswith("hidden pixels: epoch 4 explains ")
    assert line.endswith("more of the unseen photons, which is chance; the network it began with stays")


def test_a_gain_beyond_chance_is_kept() -> None:
    chosen, model, told, _ = judged(1, patterns=4000)
    assert chosen is not None
    assert (chosen.number, model.level, told.lines) == (4, 1.0, [])


def test_the_error_of_the_gain_is_that_of_scans_drawn_anew() -> None:
    """The standard error of one scan against the spread over many."""
    rng, rate, gains, errors = np.random.default_rng(0), np.full((8, 8), 5.0), [], []
    for _ in range(300):
        counts = rng.poisson(np.broadcast_to(rate, (40, 8, 8)))
        tile = {"amplitude": np.sqrt(counts.astype(np.float64))}
        per_pattern = (rate * 0.02 - counts * np.log(1.02)).sum((1, 2)) / counts.sum()
        gains.append(Guess(rate, 1.02).loss(tile) - Guess(rate, 1.0).loss(tile))
        errors.append(np.sqrt(40) * per_pattern.std(ddof=1))
        assert gains[-1] == pytest.approx(per_pattern.sum(), rel=1e-6)
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.1)


def test_a_pattern_in_several_tiles_counts_once() -> None:
    # Were the same patterns of nine tiles independent, the error would be a third and this gain certain.
    once, _, told, _ = judged(1)
    again, _, told_again, _ = judged(1, tiles=9)
    assert told.lines == told_again.lines
    share, error = (float(word) for word in told.lines[0].split()[5:8:2])
    assert error < share < CHANCE * error
    assert once is not None
    assert again is not None
    assert once.number == again.number == 0


def test_the_network_that_was_begun_with_needs_no_proof() -> None:
    chosen, model, told, _ = judged(1, best=0)
    assert chosen is not None
    assert (chosen.number, model.level, told.lines) == (0, 1.0, [])


def test_patterns_of_the_rim_are_those_that_few_others_overlap() -> None:
    y, x = np.mgrid[:7, :9] * 4
    corners = np.stack([y.ravel(), x.ravel()], axis=1)
    probe = np.zeros((1, 16, 16), np.complex64)
    probe[0, 4:12, 4:12] = 1j
    inside = well_covered(corners, probe).reshape(y.shape)
    assert inside[1:-1, 1:-1].all()
    assert not inside[[0, -1]].any()
    assert not inside[:, [0, -1]].any()
    # Against the sum over all pairs of patches on a canvas.
    power, light = np.abs(probe[0]) ** 2, np.zeros((48, 56))
    for top, left in corners:
        light[top : top + 16, left : left + 16] += power
    shared = [(light[top : top + 16, left : left + 16] * power).sum() for top, left in corners]
    assert np.array_equal(inside.ravel(), np.array(shared) >= 0.9 * np.median(shared))
    assert well_covered(corners[:1], probe).all()
