"""Positions in another unit are refused with it; numbers of an instrument that make no sense are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_makers import Instrument, cxi_tree, diffraction_tree, nexus_tree, product_tree, write_tree
from scan_makers import honest_options, honest_scan

from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.errors import DataError
from ptycho.files.reader import open_scan
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import simulate

PIXEL_M = {0: 12e-9, 1: 50e-9, 2: 110e-9, 5: 9e-9, 7: 31e-9}
"""Seed of a random scan -> its object pixel."""
DETECTOR, SOURCE = "entry_1/instrument_1/detector_1", "entry_1/instrument_1/source_1"


def with_positions(raw: RawData, factor: float, geometry: dict[str, Any] | None = None) -> RawData:
    """Return a scan whose positions are multiplied, and whose metadata hold an optics."""
    extra = {} if geometry is None else {"geometry": geometry}
    return RawData(
        factor * raw.xcoords, factor * raw.ycoords, None, None, raw.diff3d, raw.probeGuess, None,
        metadata={**(raw.metadata or {}), **extra}, nphotons=raw.nphotons, source=raw.source,
    )  # fmt: skip


@pytest.mark.parametrize("unit_m", [1.0, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("seed", sorted(PIXEL_M))
@pytest.mark.parametrize("known", [False, True])
def test_positions_in_a_length_are_refused_with_the_unit(seed: int, unit_m: float, known: bool) -> None:
    pixel = PIXEL_M[seed]
    factor = pixel / unit_m
    if 0.1 < factor < 10:
        factor = 0.04  # a pixel of about this unit: positions that are nearly right
    geometry = {"object_pixel_yx_m": [pixel, pixel]} if known else None
    raw = with_positions(honest_scan(seed), factor, geometry)
    with pytest.raises(DataError, match="positions are not in object pixels") as error:
        prepare_scan(raw, name="scan.npz")
    message = str(error.value)
    assert "\n" not in message
    if known and factor == pixel / unit_m:
        name = {1.0: "metres", 1e-3: "millimetres", 1e-6: "micrometres", 1e-9: "nanometres"}[unit_m]
        assert f"in {name}" in message
        assert f"by {pixel / unit_m:.4g}" in message


def test_positions_that_are_all_the_same_are_refused_or_doubted() -> None:
    raw = honest_scan(0)
    with pytest.raises(DataError, match="all positions the same"):
        prepare_scan(with_positions(raw, 0.0))
    again = raw.subset(np.zeros(12, dtype=np.int64))
    noise = np.random.default_rng(1)
    again.diff3d = noise.poisson(again.diff3d).astype(np.uint16)
    (finding,) = prepare_scan(again).findings
    assert "at one place" in finding.message


@pytest.mark.parametrize("share", [0.008, 0.02, 0.05])
def test_a_scan_in_very_small_steps_is_no_mistake_of_a_unit(share: float) -> None:
    """A fly scan moves by a hundredth of its beam, and its neighbours look alike."""
    from dataclasses import replace

    for seed in (0, 1, 7):
        options = replace(honest_options(seed), jitter_px=0.0, scan="raster", photons=1e6, n_x=24, n_y=3)
        options = replace(options, step_px=share * options.diameter_px)
        arrays = simulate(options)
        keys = ("xcoords", "ycoords", "diff3d", "probeGuess")
        raw = RawData.from_coords_without_pc(*(arrays[key] for key in keys), None)
        assert [item for item in prepare_scan(raw).findings if item.check == "units"] == []


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"photon_energy_eV": 8.8}, "8.8 keV would be 8800 eV"),
        ({"photon_energy_eV": 1.4e-15}, "J would be 8738 eV"),
        ({"photon_energy_eV": 8.8e6}, "photon energy is 8.8e+06 eV"),
        ({"detector_distance_m": 720.0}, "720 mm would be 0.72 m"),
        ({"detector_pixel_yx_m": [55.0, 55.0]}, "55 um would be 5.5e-05 m"),
        ({"detector_pixel_yx_m": [0.055, 0.055]}, "0.055 mm would be 5.5e-05 m"),
        ({"object_pixel_yx_m": [31.0, 31.0]}, "31 nm would be 3.1e-08 m"),
    ],
)
def test_numbers_that_make_no_sense_are_named_with_their_likely_unit(numbers: dict, words: str) -> None:
    (finding,) = prepare_scan(with_positions(honest_scan(0), 1.0, numbers)).findings
    assert words in finding.message
    assert finding.level == "warning"


@pytest.mark.parametrize("energy", [1.96, 92.0, 500.0, 8800.0, 1.2e5])
def test_energies_from_lasers_to_hard_x_rays_make_sense(energy: float) -> None:
    numbers = {
        "photon_energy_eV": energy, "detector_distance_m": 2.0, "detector_pixel_yx_m": [5.5e-5, 7.5e-5]
    }  # fmt: skip
    assert prepare_scan(with_positions(honest_scan(0), 1.0, numbers)).findings == ()


def cxi_of(seed: int, path: Path, changes: dict[str, Any], tree: Callable[..., Any] = cxi_tree) -> Path:
    """Write a random simulated scan as CXI or NeXus, with some numbers changed."""
    raw = honest_scan(seed)
    instrument = Instrument(raw.N, 8800.0, 2.0, (75e-6, 75e-6))
    metres = raw.positions_yx_px * instrument.object_pixel_yx_m
    translation = np.stack([metres[:, 1], metres[:, 0], np.zeros(len(metres))], axis=1)
    values = tree(instrument, raw.diff3d, translation)
    values[f"{SOURCE}/illumination"] = raw.probe_modes
    return write_tree(path, values | changes)


@pytest.mark.parametrize("tree", [cxi_tree, nexus_tree])
def test_an_honest_file_in_metres_passes(tree: Callable[..., Any], tmp_path: Path) -> None:
    for seed in (0, 5):
        assert open_scan(cxi_of(seed, tmp_path / f"{seed}.cxi", {}, tree)).findings == ()


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({f"{SOURCE}/energy": 8.8}, {}, "--photon-energy 8800"),
        ({}, {"photon_energy_eV": 8.8}, "--photon-energy 8800"),
        ({}, {"photon_energy_eV": 1.409915e-15}, "J would be 8800 eV"),
        ({f"{DETECTOR}/distance": 2000.0}, {}, "--detector-distance 2"),
        ({f"{DETECTOR}/distance": 200.0}, {}, "--detector-distance 2"),
        ({}, {"detector_pixel_m": 75.0}, "--detector-pixel 7.5e-05"),
        ({}, {"detector_pixel_m": 0.075}, "--detector-pixel 7.5e-05"),
        ({}, {"detector_distance_m": 2e-6}, "too many object pixels"),
        ({}, {"object_pixel_m": 75.0}, "--object-pixel 7.5e-08"),
    ],
)
@pytest.mark.parametrize("seed", [0, 5])
def test_a_number_in_another_unit_is_refused_with_its_flag(
    seed: int, changes: dict, options: dict, words: str, tmp_path: Path
) -> None:
    path = cxi_of(seed, tmp_path / "a.cxi", changes)
    with pytest.raises(DataError) as error:
        open_scan(path, options=FileOptions(**options))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1e3, "in millimetres"), (1e6, "in micrometres"), (1e9, "in nanometres"), (None, "in obj")],
)
def test_positions_of_a_file_in_metres_in_another_unit_are_refused(
    factor: float | None, words: str, tmp_path: Path
) -> None:
    raw = honest_scan(0)
    instrument = Instrument(raw.N, 8800.0, 2.0, (75e-6, 75e-6))
    scale = 1.0 / instrument.object_pixel_yx_m if factor is None else factor
    metres = raw.positions_yx_px * instrument.object_pixel_yx_m * scale
    translation = np.stack([metres[:, 1], metres[:, 0], np.zeros(len(metres))], axis=1)
    place = "entry_1/sample_1/geometry_1/translation"
    with pytest.raises(DataError, match=words):
        open_scan(cxi_of(0, tmp_path / "a.cxi", {place: translation}))


@pytest.mark.parametrize(
    ("factor", "words"), [(1e3, "in millimetres"), (1e6, "in micrometres"), (None, "in obj")]
)
def test_positions_of_a_product_in_another_unit_are_refused(
    factor: float | None, words: str, tmp_path: Path
) -> None:
    raw = honest_scan(0)
    instrument = Instrument(raw.N, 8800.0, 2.0, (75e-6, 75e-6))
    pixel = instrument.object_pixel_yx_m
    metres = (raw.positions_yx_px - (np.array(raw.objectGuess.shape) - 1) / 2) * pixel
    indexes = np.arange(raw.n_patterns)
    write_tree(tmp_path / "diffraction.h5", diffraction_tree(raw.diff3d, indexes, instrument.pixel_yx_m))
    for scale in (1.0, 1 / pixel[0] if factor is None else factor):
        tree = product_tree(instrument, metres * scale, indexes, raw.objectGuess, (0.0, 0.0), raw.probe_modes)
        write_tree(tmp_path / "product.h5", tree)
        if scale == 1.0:
            assert open_scan(tmp_path / "diffraction.h5").findings == ()
    with pytest.raises(DataError, match=words):
        open_scan(tmp_path / "diffraction.h5")


def test_the_command_refuses_metres_in_one_line(
    demo_scan: Path, infer_command: Callable[..., Any], tmp_path: Path
) -> None:
    arrays = read_npz(demo_scan)
    metadata = json.dumps({"geometry": {"object_pixel_yx_m": [5e-8, 5e-8]}})
    for key in ("xcoords", "ycoords"):
        arrays[key] = 5e-8 * arrays[key]
    write_npz(tmp_path / "metres.npz", {**arrays, "_metadata": metadata})
    done = infer_command("pretrained", tmp_path / "metres.npz", tmp_path / "out")
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert "in metres: divide xcoords and ycoords by 5e-08" in line
