"""Several scans as one: whose patterns, positions, beam and bad pixels they are, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import InferenceConfig, ModelConfig, TrainingConfig, build_config, default_settings
from ptycho.data.joined import Stacked, check_same_beam, check_same_kind, join_scans
from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.data.raw import RawData
from ptycho.data.scan import PatternStore, Scan
from ptycho.errors import DataError
from ptycho.process.progress import Progress

N, COUNT = 16, 9


def scan(name: str, count: int = COUNT, n_px: int = N, **changes: Any) -> Scan:
    rng = np.random.default_rng(ord(name[0]))
    axis = np.arange(n_px) - n_px / 2
    probe = 24 * np.exp(-(axis[:, None] ** 2 + axis**2) / 8).astype(np.complex64)
    patterns = rng.poisson(20.0, (count, n_px, n_px)).astype(np.uint16)
    given = {"xcoords": 2.0 * np.arange(count), "ycoords": np.arange(count) % 3.0, "diff3d": patterns}
    given |= {"probeGuess": probe} | changes
    raw = RawData(
        given.pop("xcoords"), given.pop("ycoords"), None, None, given.pop("diff3d"), given.pop("probeGuess"),
        None, source=name, **given,
    )  # fmt: skip
    return prepare_scan(raw, name=name, options=FileOptions(keep_frames=True, keep_pixels=True))


def test_stacked_rows_are_those_of_the_concatenation_and_share_its_memory() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 9, (count, 3, 3)).astype(np.uint16) for count in (4, 1, 7)]
    stacked, whole = Stacked(parts, np.uint16, 3), np.concatenate(parts)
    assert stacked.shape == whole.shape
    assert (len(stacked), stacked.ndim, stacked.dtype) == (12, 3, whole.dtype)
    for rows in (
        slice(None),
        slice(3, 9),
        slice(None, None, 5),
        [11, 0, 4, 4],
        np.array([[3, 4], [5, 11]]),
        7,
        -1,
    ):
        np.testing.assert_array_equal(stacked[rows], whole[rows])
    parts[1][:] = 99
    assert (stacked[4] == 99).all()
    with pytest.raises(IndexError):
        stacked[12]


def test_one_scan_stays_as_it_is() -> None:
    one = scan("a.npz")
    assert join_scans([one]) is one


def test_patterns_positions_and_numbers_of_scans_follow_each_other() -> None:
    scans = [scan("a.npz"), scan("b.npz", 5), scan("c.npz", 7)]
    joined = join_scans(scans, np.array([[0, 0], [1.5, -2], [0, 3]]), np.ones(3))
    assert joined.name == "a.npz, b.npz, c.npz"
    assert joined.n_patterns == 21
    assert joined.parts is not None
    assert joined.parts.index.tolist() == [0] * 9 + [1] * 5 + [2] * 7
    assert joined.parts.first_number.tolist() == [0, 9, 14]
    np.testing.assert_array_equal(joined.pattern_numbers, np.arange(21))
    np.testing.assert_array_equal(
        joined.positions_yx_px[9:14], scans[1].positions_yx_px + np.array([1.5, -2])
    )
    np.testing.assert_array_equal(joined.raw.positions_yx_px, joined.positions_yx_px)
    whole = np.concatenate([item.amplitude(slice(None)) for item in scans])
    np.testing.assert_array_equal(joined.amplitude(slice(None)), whole)
    with PatternStore(joined, Progress()) as store:
        np.testing.assert_array_equal(store.amplitude(np.array([20, 3, 9])), whole[[20, 3, 9]])
    assert joined.frame_gain is None
    np.testing.assert_array_equal(joined.probe, scans[0].probe)


def test_what_a_file_says_of_its_own_patterns_stays_theirs() -> None:
    bad = np.zeros((N, N), bool)
    bad[2, 3] = True
    each = np.zeros((5, N, N), bool)
    each[4, 0, 0] = True
    one, two, three = scan("a.npz"), scan("b.npz", bad_pixels=bad), scan("c.npz", 5, bad_pixels=each)
    numbered = scan("d.npz", 5, metadata={"pattern_indexes": [3, 4, 6, 7, 9]})
    assert join_scans([two, two]).raw.bad_pixels is two.raw.bad_pixels
    joined = join_scans([one, two, three, numbered])
    amplitude = joined.amplitude(slice(None))
    assert (amplitude < 0).sum() == COUNT + 1
    assert (amplitude[9:18, 2, 3] < 0).all()
    assert amplitude[18 + 4, 0, 0] < 0
    assert joined.pattern_numbers[-5:].tolist() == [23 + number for number in (3, 4, 6, 7, 9)]
    assert joined.parts is not None
    assert joined.parts.first_number.tolist() == [0, 9, 18, 23]


def test_patterns_that_take_no_part_are_known_by_their_new_places() -> None:
    import dataclasses

    two = dataclasses.replace(scan("b.npz"), left_out=np.array([0, 4]))
    joined = join_scans([scan("a.npz"), two])
    assert joined.left_out.tolist() == [9, 13]
    assert 9 not in joined.usable


def test_beams_are_as_strong_as_the_files_say_and_one_on_average() -> None:
    raw = scan("b.npz", 3).raw
    bright = scan("b.npz", 3, probeGuess=2 * raw.probeGuess, diff3d=4 * raw.diff3d)
    first = scan("a.npz")
    joined = join_scans([first, bright])
    assert joined.frame_gain is not None
    assert joined.frame_gain.mean() == pytest.approx(1.0)
    assert joined.frame_gain[-1] / joined.frame_gain[0] == pytest.approx(2.0, rel=1e-5)
    # The beam of every pattern is that of its own file.
    np.testing.assert_allclose(joined.probe * joined.frame_gain[0], first.probe, rtol=1e-5)
    np.testing.assert_allclose(joined.probe * joined.frame_gain[-1], 2 * first.probe, rtol=1e-5)
    mean = ((joined.amplitude(slice(None)) / joined.frame_gain[:, None, None]) ** 2).sum(axis=(1, 2)).mean()
    assert joined.record.mean_counts == pytest.approx(mean, rel=1e-5)
    assert (joined.record.input_scale * np.sqrt(mean)) == pytest.approx(N / 2, rel=1e-5)


def test_counts_beside_amplitudes_become_amplitudes() -> None:
    counts = scan("a.npz")
    amplitude = scan(
        "b.npz",
        diff3d=np.sqrt(scan("b.npz").raw.diff3d.astype(np.float32)),
        metadata={"measurement_domain": "amplitude"},
    )
    assert amplitude.record.domain == "amplitude"
    joined = join_scans([counts, amplitude])
    assert (joined.record.domain, joined.record.amplitude_gain) == ("amplitude", 1.0)
    whole = np.concatenate([item.amplitude(slice(None)) for item in (counts, amplitude)])
    np.testing.assert_allclose(joined.amplitude(slice(None)), whole, rtol=1e-6)


def geometry(**optics: Any) -> dict[str, Any]:
    return {"metadata": {"geometry": optics}}


ENERGY, NEAR = geometry(photon_energy_eV=8e3), geometry(propagation="near", fresnel_number=0.2)


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        ({}, {"n_px": 32}, "size of the patterns is not that of a.npz (got 32 px, expected 16 px)"),
        (ENERGY, geometry(photon_energy_eV=9e3), "(got 9000 eV, expected 8000 eV)"),
        (
            geometry(object_pixel_yx_m=[1e-8, 1e-8]), geometry(object_pixel_yx_m=[2e-8, 2e-8]),
            "height of an object pixel is not that of a.npz (got 2e-08 m, expected 1e-08 m)",
        ),
        ({}, NEAR, "(got near, expected far)"),
        (
            NEAR, geometry(propagation="near", fresnel_number=0.3),
            "Fresnel number is not that of a.npz (got 0.3, expected 0.2)",
        ),
    ],
)  # fmt: skip
def test_scans_of_another_beam_are_refused_and_both_files_named(
    first: dict[str, Any], other: dict[str, Any], said: str
) -> None:
    one, two = scan("a.npz", **first), scan("b.npz", **other)
    with pytest.raises(DataError) as caught:
        check_same_beam(one, two)
    assert str(caught.value).startswith("b.npz: the ")
    assert said in str(caught.value)
    with pytest.raises(DataError):
        join_scans([one, two])
    # One network sees any energy, but no patterns of two sizes or two kinds of field.
    if "px" in said or "near" in said:
        with pytest.raises(DataError):
            check_same_kind(one, two)
    else:
        check_same_kind(one, two)


def test_a_little_difference_of_the_energy_is_no_other_beam() -> None:
    one, two = scan("a.npz", **ENERGY), scan("b.npz", **geometry(photon_energy_eV=8.05e3))
    assert join_scans([one, two]).n_patterns == 2 * COUNT


def test_scans_too_far_apart_are_refused() -> None:
    with pytest.raises(DataError, match="does not fit in the memory"):
        join_scans([scan("a.npz"), scan("b.npz")], np.array([[0, 0], [1e7, 1e7]]))


@pytest.mark.parametrize(
    ("kind", "name"), [(TrainingConfig, "train_data_file"), (InferenceConfig, "test_data_file")]
)
def test_a_setting_of_several_files_parts_into_the_first_and_the_rest(kind: type, name: str) -> None:
    own = {"model_path": Path("m")} if kind is InferenceConfig else {}
    for given in (["a.npz", "b.npz", "c.npz"], (Path("a.npz"), Path("b.npz"), Path("c.npz"))):
        config = kind(ModelConfig(), **own, **{name: given})
        assert getattr(config, name) == Path("a.npz")
        assert config.further_scans == (Path("b.npz"), Path("c.npz"))
    one = kind(ModelConfig(), **own, **{name: Path("a.npz")})
    assert (getattr(one, name), one.further_scans) == (Path("a.npz"), ())
    # As stored with a run, and as an older run stored it.
    settings = {**default_settings(kind), **own, name: "a.npz", "further_scans": json.loads('["b.npz"]')}
    assert build_config(kind, settings).further_scans == (Path("b.npz"),)
    del settings["further_scans"]
    assert build_config(kind, settings).further_scans == ()
