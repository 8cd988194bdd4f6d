"""Bad HDF5 files: each is refused in one line that names the file and the dataset and says what to do."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from file_makers import (
    Instrument,
    counts,
    cxi_tree,
    diffraction_tree,
    gaussian_probe,
    nexus_tree,
    product_tree,
    write_tree,
)

from ptycho.errors import DataError, PtychoError
from ptycho.raw_data import RawData, peek_pattern_size

INSTRUMENT = Instrument()
TRANSLATION = np.array([[0, 0, 0], [1e-6, 0, 0], [0, 2e-6, 0], [1e-6, 2e-6, 0]])
DETECTOR, SOURCE = "entry_1/instrument_1/detector_1", "entry_1/instrument_1/source_1"
PLACE = "entry_1/sample_1/geometry_1/translation"


def refusal(path: Path, **options: Any) -> str:
    """Return the line that a file is refused with, after a look at its form."""
    with pytest.raises(PtychoError) as error:
        RawData.from_file(path, **options)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert message.endswith((".", "?"))
    assert "(got " in message or "(expected " in message or "expected" in message
    return message


def write_cxi(path: Path, changes: dict[str, Any] | None = None, tree: Any = cxi_tree) -> Path:
    values = tree(INSTRUMENT, counts(4, INSTRUMENT.n_px), TRANSLATION) | (changes or {})
    return write_tree(path, {key: value for key, value in values.items() if value is not None})


def test_the_good_file_is_good(tmp_path: Path) -> None:
    assert RawData.from_file(write_cxi(tmp_path / "a.cxi")).n_patterns == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{DETECTOR}/data": None, f"{DETECTOR}/data@axes": None}, ("patterns", "'entry_1/data_1/data'")),
        ({PLACE: None}, ("positions", "'entry_1/data_1/translation'")),
        ({f"{DETECTOR}/data": np.ones((16, 16), np.uint16)}, ("(16, 16)", "(M, N, N)")),
        ({f"{DETECTOR}/data": np.ones((4, 16, 16), complex)}, ("complex128", "integers or floats")),
        ({f"{DETECTOR}/data": np.array([b"a", b"b"])}, ("detector_1/data", "|S1")),
        ({f"{DETECTOR}/data": np.ones((4, 16, 20), np.uint16)}, ("16 x 20", "Crop")),
        ({f"{DETECTOR}/data": np.ones((0, 16, 16), np.uint16)}, ("(0, 16, 16)",)),
        ({f"{DETECTOR}/data": np.full((4, 16, 16), -1.0)}, ("nothing but negative numbers",)),
        ({PLACE: TRANSLATION[:3]}, (PLACE, "(3, 3)", "(4, 3)")),
        ({PLACE: TRANSLATION[0]}, (PLACE, "(3,)")),
        ({PLACE: np.where(TRANSLATION == 1e-6, np.nan, TRANSLATION)}, ("not finite", "row 1")),
        ({PLACE: TRANSLATION * 1e6}, ("too many object pixels", "in micrometres")),
        ({f"{PLACE}@units": "furlong"}, (PLACE, "'furlong'", "um")),
        ({f"{SOURCE}/energy": 3e9}, ("'/entry_1/instrument_1/source_1/energy'", "--photon-energy")),
        ({f"{SOURCE}/energy": [1.2e-15, 2.4e-15]}, ("source_1/energy", "one finite number")),
        ({f"{SOURCE}/energy": "high"}, ("source_1/energy", "object")),
        ({f"{DETECTOR}/x_pixel_size": 0.0}, ("x_pixel_size", "> 0")),
        ({f"{DETECTOR}/distance": np.nan}, ("distance", "finite")),
        ({f"{DETECTOR}/basis_vectors": np.ones((2, 3))}, ("basis_vectors", "right angles")),
        ({f"{DETECTOR}/basis_vectors": np.ones((4, 4))}, ("basis_vectors", "(2, 3)")),
        ({f"{DETECTOR}/mask": np.zeros((8, 8), np.uint32)}, ("mask", "(8, 8)", "(16, 16)")),
        ({f"{SOURCE}/illumination": gaussian_probe(8)}, ("(1, 8, 8)", "16")),
        ({f"{SOURCE}/illumination": np.zeros(16, complex)}, ("illumination", "(16,)")),
        ({"entry_1/data_1/data": h5py.SoftLink("/entry_1/data_1/data")}, ("do not end",)),
    ],
)  # fmt: skip
def test_a_broken_cxi_file_is_refused(
    changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    message = refusal(write_cxi(tmp_path / "bad.cxi", changes))
    for word in words:
        assert word in message, message


def test_the_energy_of_the_machine_is_not_taken_for_that_of_the_photons(tmp_path: Path) -> None:
    bare = {"entry_1/instrument_1/beam_1/incident_beam_energy": None,
            "entry_1/instrument_1/beam_1/incident_beam_energy@units": None}  # fmt: skip
    path = write_cxi(tmp_path / "bad.nxs", bare, tree=nexus_tree)
    message = refusal(path)
    assert "source_1/energy" in message
    assert "'GeV'" in message


def cut(path: Path, share: float) -> Path:
    """Cut a file short."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    path = cut(write_cxi(tmp_path / "short.cxi"), share)
    assert "Copy it again" in refusal(path)
    with pytest.raises(DataError, match="Copy it again"):
        peek_pattern_size(path)


def test_damaged_bytes_never_end_in_anything_but_a_refusal(tmp_path: Path) -> None:
    """Bytes of the headers are overwritten at random: what is still read is a scan, the rest is refused."""
    good = write_cxi(tmp_path / "good.cxi").read_bytes()
    random = np.random.default_rng(11)
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        for at in random.integers(8, len(data), size=6):
            data[at] = random.integers(256)
        (tmp_path / "bad.cxi").write_bytes(data)
        with contextlib.suppress(PtychoError):
            refused += 1
            RawData.from_file(tmp_path / "bad.cxi")
            refused -= 1
    assert refused > 10


def damaged_chunk(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file[f"{DETECTOR}/data"]
        data = file.create_dataset(
            f"{DETECTOR}/data", data=counts(4, 16), chunks=(1, 16, 16), compression="gzip"
        )
        offset = data.id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"x" * 40
    path.write_bytes(content)


def unknown_filter(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file[f"{DETECTOR}/data"]
        chunks = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        chunks.set_chunk((1, 16, 16))
        chunks.set_filter(60000, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((4, 16, 16))
        made = h5py.h5d.create(file[DETECTOR].id, b"data", h5py.h5t.NATIVE_UINT16, space, chunks)
        made.write_direct_chunk((0, 0, 0), b"0" * 100)


@pytest.mark.parametrize("damage", [damaged_chunk, unknown_filter])
def test_frames_that_cannot_be_unpacked_are_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = write_cxi(tmp_path / "bad.cxi")
    damage(path)
    assert "detector_1/data'" in refusal(path)


def secret(folder: Path) -> Path:
    """Write frames that a scan has no business with."""
    return write_tree(folder / "secret.h5", {"data": counts(4, 16), "positions": TRANSLATION})


def virtual(source: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        layout = h5py.VirtualLayout((4, 16, 16), np.uint16)
        layout[:] = h5py.VirtualSource(source, "data", (4, 16, 16))
        with h5py.File(path, "r+") as file:
            del file[f"{DETECTOR}/data"]
            file[DETECTOR].create_virtual_dataset("data", layout)

    return link


def outside(source: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[f"{DETECTOR}/data"]
            file[DETECTOR].create_dataset("data", (4, 16, 16), np.uint16, external=[(source, 0, 2048)])

    return link


def external(source: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file["entry_1/data_1/data"]
            file["entry_1/data_1/data"] = h5py.ExternalLink(source, "/data")

    return link


@pytest.mark.parametrize("way", [virtual, outside, external])
@pytest.mark.parametrize("name", ["../secret.h5", "{folder}/secret.h5", "sub/../../secret.h5"])
def test_a_link_out_of_the_folder_is_not_followed(way: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    secret(tmp_path)
    path = write_cxi(tmp_path / "scan" / "bad.cxi")
    way(name.format(folder=tmp_path))(path)
    message = refusal(path)
    assert "leads out of the folder" in message
    assert "secret.h5" in message


@pytest.mark.parametrize("way", [virtual, external])
def test_a_link_to_a_neighbour_is_followed_while_it_is_there(way: Any, tmp_path: Path) -> None:
    path = write_cxi(tmp_path / "master.cxi")
    way(secret(tmp_path).name)(path)
    np.testing.assert_array_equal(RawData.from_file(path).diff3d, counts(4, 16))
    (tmp_path / "secret.h5").unlink()
    assert "secret.h5" in refusal(path)


def test_a_neighbour_that_links_on_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    secret(tmp_path)
    path = write_cxi(tmp_path / "scan" / "bad.cxi")
    with h5py.File(tmp_path / "scan" / "middle.h5", "w") as file:
        file["data"] = h5py.ExternalLink("../secret.h5", "/data")
    external("middle.h5")(path)
    with pytest.raises(DataError, match=r"middle\.h5: '/data' leads out of the folder"):
        RawData.from_file(path)


def test_other_hdf5_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    unknown = write_tree(tmp_path / "a.h5", {"measurement/frames": counts(4, 16)})
    assert "unknown HDF5 layout (found: measurement" in refusal(unknown)
    assert "found: nothing" in refusal(write_tree(tmp_path / "b.h5", {}))
    product = write_tree(tmp_path / "c.h5", a_product())
    assert "--product" in refusal(product)
    assert "--pattern-axis" in refusal(write_cxi(tmp_path / "d.cxi"), pattern_axis=2)
    assert "Correct --probe-key" in refusal(tmp_path / "d.cxi", probe_key="entry_1/nothing")


def a_product() -> dict[str, Any]:
    obj = np.ones((40, 40), complex)
    return product_tree(INSTRUMENT, TRANSLATION[:, 1::-1], np.arange(4), obj, (0, 0), gaussian_probe(16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"probe_position_x_m": None}, ("'probe_position_x_m'",)),
        ({"probe_position_x_m": np.zeros(3)}, ("do not match", "(3,)")),
        ({"@photon_energy_eV": None}, ("photon_energy_eV",)),
        ({"object@pixel_width_m": None}, ("object@pixel_width_m",)),
        ({"object@pixel_width_m": 0.0}, ("no size",)),
        ({"probe": np.ones((2, 2, 2, 2, 2), complex)}, ("'probe'", "(2, 2, 2, 2, 2)")),
        ({"object": np.ones(5, complex)}, ("'object'", "(5,)")),
        ({"probe_position_indexes": np.arange(4) + 100}, ("no pattern has a position", "100")),
    ],
)  # fmt: skip
def test_a_broken_product_is_refused(changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path) -> None:
    values = a_product() | changes
    gone = [key for key, value in values.items() if value is None]
    kept = {
        k: v
        for k, v in values.items()
        if k not in gone and k.partition("@")[0] not in [g for g in gone if "@" not in g]
    }
    write_tree(tmp_path / "product.h5", kept)
    path = write_tree(
        tmp_path / "diffraction.h5", diffraction_tree(counts(4, 16), np.arange(4), INSTRUMENT.pixel_yx_m)
    )
    with pytest.raises(DataError) as error:
        RawData.from_file(path)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"indexes": None}, ("index of each pattern", "'indexes'")),
        ({"indexes": np.arange(3)}, ("'/indexes'", "(4,)")),
        ({"patterns": np.ones((4, 16, 20), np.uint16)}, ("(4, 16, 20)", "squares")),
        ({"bad_pixels": np.zeros((3, 3), bool)}, ("bad_pixels", "(3, 3)")),
    ],
)
def test_a_broken_diffraction_file_is_refused(
    changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    write_tree(tmp_path / "product.h5", a_product())
    values = diffraction_tree(counts(4, 16), np.arange(4), INSTRUMENT.pixel_yx_m) | changes
    path = write_tree(tmp_path / "diffraction.h5", {k: v for k, v in values.items() if v is not None})
    message = refusal(path)
    for word in words:
        assert word in message


def test_a_product_cut_short_names_the_product(tmp_path: Path) -> None:
    cut(write_tree(tmp_path / "product.h5", a_product()), 0.5)
    path = write_tree(
        tmp_path / "diffraction.h5", diffraction_tree(counts(4, 16), np.arange(4), INSTRUMENT.pixel_yx_m)
    )
    with pytest.raises(DataError, match=r"product\.h5: cannot be read"):
        RawData.from_file(path)


def test_a_missing_file_is_missing_whatever_its_ending(tmp_path: Path) -> None:
    shutil.copy(write_cxi(tmp_path / "scan_01.cxi"), tmp_path / "scan_02.cxi")
    assert "no such file" in refusal(tmp_path / "scan_1.cxi")
