"""Pictures: orientation, size and colour checked on the pixels that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.evaluation import figures

pytestmark = pytest.mark.pictures

GREY = 0.85


def _panel(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    """Return one RGB colour for each object pixel of a map picture, read at the centre of its block."""
    picture = imread(path)[..., :3]
    zoom = 720 // max(shape)
    height, width = zoom * shape[0], zoom * shape[1]
    assert picture.shape[:2] == (height + 166, width + 315)
    block = picture[68 : 68 + height, 120 : 120 + width]
    return block[zoom // 2 :: zoom, zoom // 2 :: zoom]


def _rank(panel: NDArray[Any]) -> NDArray[Any]:
    return panel.sum(axis=-1)


@pytest.fixture
def obj() -> NDArray[np.complex128]:
    rng = np.random.default_rng(0)
    amplitude = rng.uniform(0.2, 0.8, (40, 60))
    amplitude[:10, :8] = 1.0
    return amplitude * np.exp(1j * rng.uniform(-1, 1, (40, 60)))


def test_each_object_pixel_is_one_block_and_the_bright_corner_stays_top_left(obj, tmp_path):
    amplitude_png, phase_png = figures.save_reconstruction_pngs(obj, tmp_path / "run")
    assert amplitude_png == tmp_path / "run" / "reconstructed_amplitude.png"
    assert phase_png == tmp_path / "run" / "reconstructed_phase.png"
    shades = _panel(amplitude_png, obj.shape)
    low, high = np.percentile(np.abs(obj), (0.5, 99.5))
    expected = np.clip((np.abs(obj) - low) / (high - low), 0, 1)[..., None]
    inner = np.s_[1:-1, 1:-1]  # the frame is drawn over the outermost blocks
    assert np.abs(shades - expected)[inner].max() < 0.01
    assert np.abs(shades[::-1] - expected)[inner].max() > 0.1  # a flipped picture fails the same test
    phases = _rank(_panel(phase_png, obj.shape))[inner]
    assert np.corrcoef(phases.ravel(), np.angle(obj)[inner].ravel())[0, 1] > 0.95


def test_pictures_have_150_dpi_and_substance(obj, tmp_path):
    from PIL import Image

    for path in figures.save_reconstruction_pngs(obj, tmp_path):
        assert path.stat().st_size > 1000
        with Image.open(path) as picture:
            assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "reconstructed_amplitude.png",
        "reconstructed_phase.png",
    ]


def test_only_the_covered_box_is_shown_and_holes_are_grey(obj, tmp_path):
    coverage = np.zeros(obj.shape)
    coverage[5:30, 10:50] = 1
    coverage[15, 20] = 0
    obj[~coverage.astype(bool)] = 1e9
    amplitude_png, _ = figures.save_reconstruction_pngs(obj, tmp_path, coverage=coverage)
    shades = _panel(amplitude_png, (25, 40))
    np.testing.assert_allclose(shades[10, 10], GREY, atol=0.01)
    others = np.delete(shades[1:-1, 1:-1].reshape(-1, 3), 9 * 38 + 9, axis=0)
    assert np.ptp(others[:, 0]) > 0.9


def test_a_noisy_rim_does_not_set_the_colours(obj, tmp_path):
    coverage = np.ones(obj.shape)
    coverage[:, 40:] = 0.01
    obj[:, 40:] *= 100
    shades = _panel(figures.save_reconstruction_pngs(obj, tmp_path, coverage=coverage)[0], obj.shape)
    assert np.std(shades[1:-1, 1:39, 0]) > 0.2


def test_the_global_phase_does_not_change_the_phase_picture(obj, tmp_path):
    first = imread(figures.save_reconstruction_pngs(obj, tmp_path / "a")[1])
    second = imread(figures.save_reconstruction_pngs(obj * np.exp(3.1j), tmp_path / "b")[1])
    wrapped = np.angle(obj * np.exp(3.1j))
    third = imread(figures.save_individual_images(np.abs(obj), wrapped, tmp_path / "c")[1])
    assert np.abs(first - second).max() < 0.02
    assert np.abs(first - third).max() > 0.3  # real maps are drawn as given: there the wrap shows


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
@pytest.mark.filterwarnings("error")
def test_a_flat_map_gives_an_even_picture(value, tmp_path):
    noise = 1e-9 * np.random.default_rng(0).standard_normal((48, 48))
    paths = figures.save_reconstruction_pngs(value * (1 + noise).astype(complex), tmp_path)
    for path in paths:
        assert path.stat().st_size > 1000
        assert np.ptp(_panel(path, (48, 48))[1:-1, 1:-1], axis=(0, 1)).max() < 0.01


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (700, 5), (2500, 40)])
def test_any_shape_makes_a_picture(shape, tmp_path):
    for path in figures.save_reconstruction_pngs(np.ones(shape, dtype=np.complex64), tmp_path):
        assert max(imread(path).shape) < 2800


def test_comparison_shows_the_difference(obj, tmp_path):
    mask = np.zeros(obj.shape, dtype=bool)
    mask[4:-4, 4:-4] = True
    same = figures.save_comparison_png(obj, obj, tmp_path / "same.png", {"complex_nrmse": 0.0}, mask)
    wrong = obj.copy()
    wrong[15:18, 20:23] *= -2
    damaged = figures.save_comparison_png(wrong, obj, tmp_path / "damaged.png", {"complex_nrmse": 0.0}, mask)
    a, b = imread(same)[..., :3], imread(damaged)[..., :3]

    def colourful(picture: NDArray[Any]) -> int:
        height, width = picture.shape[:2]
        upper_right = picture[: height // 2, int(0.69 * width) : int(0.9 * width)]
        return int(np.count_nonzero(np.ptp(upper_right, axis=-1) > 0.2))

    assert a.shape[1] == b.shape[1] == 1890
    assert colourful(a) == 0
    assert colourful(b) > 50


@pytest.mark.filterwarnings("error")
def test_loss_and_probe_pictures_are_written(tmp_path):
    values = np.exp(-np.arange(30) / 5)
    curves = {"train": list(values), "validation": [1.0, float("nan")]}
    loss = figures.save_loss_png(curves, tmp_path / "l.png")
    negative = figures.save_loss_png({"train": [-3.0, -4.0]}, tmp_path / "n.png")
    y, x = np.indices((32, 32)) - 16
    modes = np.exp(-(y**2 + x**2) / 60) * np.array([np.ones((32, 32)), 1j * x])
    one, two = (figures.save_probe_png(p, tmp_path / f"p{p.ndim}.png") for p in (modes[0], modes))
    assert imread(loss).shape[:2] == imread(negative).shape[:2] == (630, 960)
    assert imread(one).shape[:2] == (840, 510)
    assert imread(two).shape[:2] == (840, 1020)


@pytest.mark.parametrize("n_px", [64, 128, 256])
@pytest.mark.parametrize("n_modes", [1, 2, 8])
def test_no_label_of_a_probe_is_cut_at_the_rim(n_px, n_modes, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        figures, "new_figure", lambda *size, new=figures.new_figure: drawn.append(new(*size)) or drawn[-1]
    )
    y, x = np.indices((n_px, n_px)) - n_px // 2
    mode = np.exp(-(y**2 + x**2) / n_px**2 * 20) * np.exp(1j * x)
    written = figures.save_probe_png(np.stack([mode * k for k in range(1, n_modes + 1)]), tmp_path / "p.png")
    height, width = imread(written).shape[:2]
    for axes in drawn[0].axes:
        box = axes.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_a_loss_that_falls_is_drawn_falling(tmp_path):
    rising, falling = ({"train": list(v)} for v in (np.logspace(0, 3, 20), np.logspace(3, 0, 20)))
    lines = [imread(figures.save_loss_png(h, tmp_path / "l.png"))[:, 150:900] for h in (rising, falling)]
    slopes = []
    for picture in lines:
        blue = (picture[..., 2] > 0.6) & (picture[..., 0] < 0.2)
        slopes.append(np.polyfit(*np.nonzero(blue)[::-1], 1)[0])
    assert slopes[0] < -0.3  # rows count downwards
    assert slopes[1] > 0.3


def test_bad_input_is_named_and_leaves_no_file(obj, tmp_path):
    with pytest.raises(DataError, match=r"coverage: .*got \(3, 3\), expected \(40, 60\)"):
        figures.save_reconstruction_pngs(obj, tmp_path, coverage=np.ones((3, 3)))
    with pytest.raises(DataError, match="got 0 of 2400 pixels covered"):
        figures.save_reconstruction_pngs(obj, tmp_path, coverage=np.zeros(obj.shape))
    with pytest.raises(DataError, match=r"expected \(H, W\)"):
        figures.save_individual_images(np.ones(3), np.ones(3), tmp_path)
    with pytest.raises(DataError, match=r"got curves \['train'\]"):
        figures.save_loss_png({"train": []}, tmp_path / "l.png")
    with pytest.raises(DataError, match=r"got shape \(3,\)"):
        figures.save_probe_png(np.ones(3), tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []
