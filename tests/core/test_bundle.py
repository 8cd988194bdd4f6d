"""Bundles: what is written comes back, whole or refused, and nothing in one is ever run."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import ModelConfig
from ptycho.data.scaling import ScaleRecord
from ptycho.errors import BundleError
from ptycho.networks.architectures import CORRECTION_FACTOR, architecture_table, initial_weights
from ptycho.networks.bundle import FORMAT_VERSION, MANIFEST, WEIGHTS, Bundle, read_bundle, write_bundle

RECORD = ScaleRecord("counts", "integers", 1e5, 900.0, 1.0, 0.05, 20.0, 1.0)
SETTINGS = (
    ModelConfig(N=64, gridsize=2, architecture="cnn", n_filters_scale=1, amp_activation="softplus"),
    ModelConfig(N=32, architecture="unrolled", unrolled_steps=4, unrolled_width=8),
)


def make_bundle(model: ModelConfig = SETTINGS[1]) -> Bundle:
    """Return a bundle with seeded weights and a probe of two modes."""
    rng = np.random.default_rng(3)
    shape = (2, model.N, model.N)
    probe = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    weights = initial_weights(architecture_table(model), seed=8)
    return Bundle("pytorch", model, weights, probe, log_gain=0.125, probe_refined=True, scale_record=RECORD)


def rewrite(
    path: Path, edit: Callable[[dict[str, Any], dict[str, np.ndarray]], None], *, sign: bool = True
) -> Path:
    """Change the manifest and the arrays of a bundle; with ``sign`` the check sum is made to fit."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read(MANIFEST))
        with np.load(io.BytesIO(archive.read(WEIGHTS))) as stored:
            arrays = {name: stored[name] for name in stored.files}
    edit(manifest, arrays)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    if sign:
        manifest["sha256"] = hashlib.sha256(stream.getvalue()).hexdigest()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, json.dumps(manifest))
        archive.writestr(WEIGHTS, stream.getvalue())
    return path


@pytest.mark.parametrize("model", SETTINGS, ids=["cnn", "unrolled"])
def test_a_bundle_comes_back_as_it_was(model: ModelConfig, tmp_path: Path) -> None:
    bundle = make_bundle(model)
    path = write_bundle(tmp_path / "run" / "wts.h5.zip", bundle)
    for place in (path, path.parent):
        again = read_bundle(place)
        assert again.model == model
        assert (again.backend, again.log_gain, again.probe_refined) == ("pytorch", 0.125, True)
        assert again.scale_record == RECORD
        assert again.where == str(path)
        np.testing.assert_array_equal(again.probe, bundle.probe)
        assert again.weights.keys() == bundle.weights.keys()
        for name, values in bundle.weights.items():
            assert again.weights[name].dtype == np.float32
            np.testing.assert_array_equal(again.weights[name], values)


def test_an_unpacked_bundle_is_read_from_its_folder(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "model.zip", make_bundle())
    with zipfile.ZipFile(path) as archive:
        (tmp_path / "unpacked").mkdir()
        for name in (MANIFEST, WEIGHTS):
            (tmp_path / "unpacked" / name).write_bytes(archive.read(name))
    assert read_bundle(tmp_path / "unpacked").model == SETTINGS[1]


def test_a_bundle_without_a_scale_comes_back_without_one(tmp_path: Path) -> None:
    bundle = make_bundle()
    bundle.scale_record = None
    assert read_bundle(write_bundle(tmp_path / "model.zip", bundle)).scale_record is None


def test_every_flipped_byte_of_the_content_is_noticed(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "model.zip", make_bundle())
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        starts = {info.filename: info.header_offset + 30 + len(info.filename) for info in archive.infolist()}
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    for name, share in ((MANIFEST, 0.3), (MANIFEST, 0.9), (WEIGHTS, 0.1), (WEIGHTS, 0.5), (WEIGHTS, 0.99)):
        damaged = bytearray(content)
        damaged[starts[name] + int(share * sizes[name])] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"model\.zip"):
            read_bundle(path)
    path.write_bytes(content)
    assert read_bundle(path).backend == "pytorch"


def _more_weights(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    arrays["novelty/kernel"] = np.zeros(3, dtype=np.float32)


def _fewer_weights(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    del arrays[sorted(name for name in arrays if name.endswith("/kernel"))[0]]


def _other_shape(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    name = sorted(name for name in arrays if name.endswith("/kernel"))[0]
    arrays[name] = arrays[name][:-1]


def _no_probe(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    del arrays["probe"]


def _other_version(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    manifest["format_version"] = FORMAT_VERSION + 1


def _unknown_setting(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    manifest["model"]["novelty"] = 1


def _unknown_architecture(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    manifest["model"]["architecture"] = "novelty"


def _no_settings(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    del manifest["model"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_more_weights, "novelty/kernel"),
        (_fewer_weights, "expected"),
        (_other_shape, "expected"),
        (_no_probe, "probe"),
        (_other_version, f"got version {FORMAT_VERSION + 1}, expected {FORMAT_VERSION}"),
        (_unknown_setting, "novelty"),
        (_unknown_architecture, "novelty"),
        (_no_settings, "model"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(
    edit: Callable[[dict[str, Any], dict[str, np.ndarray]], None], words: str, tmp_path: Path
) -> None:
    path = rewrite(write_bundle(tmp_path / "model.zip", make_bundle()), edit)
    with pytest.raises(ValueError, match=words):
        read_bundle(path)


def test_a_bundle_of_a_former_version_has_corrections_of_full_size(tmp_path: Path) -> None:
    def former(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        del arrays[CORRECTION_FACTOR]

    path = write_bundle(tmp_path / "model.zip", make_bundle())
    found, now = read_bundle(rewrite(path, former)), read_bundle(path)
    np.testing.assert_array_equal(found.weights[CORRECTION_FACTOR], np.ones(2, np.float32))
    assert found.weights.keys() == now.weights.keys()


def test_weights_under_another_check_sum_are_refused(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "model.zip", make_bundle())
    assert read_bundle(rewrite(path, lambda manifest, arrays: None)).backend == "pytorch"

    def nudge(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["probe"] = arrays["probe"] * 2

    with pytest.raises(BundleError, match="SHA-256"):
        read_bundle(rewrite(path, nudge, sign=False))


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.zip: not a model bundle of this toolkit, or damaged"):
        read_bundle(tmp_path / "model.zip")


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.zip", tmp_path):
        with pytest.raises(BundleError, match="not a model bundle"):
            read_bundle(path)


def test_pickled_weights_are_refused_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    def set_trap(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["probe"] = np.array([Trap()], dtype=object)

    path = rewrite(write_bundle(tmp_path / "model.zip", make_bundle()), set_trap)
    with pytest.raises(BundleError, match="allow_pickle"):
        read_bundle(path)
    assert not (tmp_path / "sprung").exists()


def test_a_bundle_that_cannot_be_written_whole_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / "model.zip", make_bundle())
    before = path.read_bytes()

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(path, make_bundle(SETTINGS[0]))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["model.zip"]
