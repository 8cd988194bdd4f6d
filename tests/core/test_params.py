"""The legacy dictionary: its defaults, computed sizes, rules and seal."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from ptycho import params
from ptycho.errors import ConfigError

EXPECTED = {
    "N": 128,
    "offset": 4,
    "gridsize": 2,
    "outer_offset_train": None,
    "outer_offset_test": None,
    "batch_size": 16,
    "nepochs": 60,
    "n_filters_scale": 2,
    "output_prefix": "outputs",
    "big_gridsize": 10,
    "max_position_jitter": 10,
    "sim_jitter_scale": 0.0,
    "default_probe_scale": 0.7,
    "mae_weight": 0.0,
    "nll_weight": 1.0,
    "tv_weight": 0.0,
    "realspace_mae_weight": 0.0,
    "realspace_weight": 0.0,
    "data_source": "generic",
    "positions.provided": False,
    "object.big": True,
    "probe.big": False,
    "probe_scale": 10.0,
    "set_phi": False,
    "probe.mask": True,
    "pad_object": True,
    "model_type": "pinn",
    "label": "",
    "size": 392,
    "amp_activation": "sigmoid",
    "h5_path": "wts.h5",
    "npseed": 42,
    "debug": True,
    "gaussian_smoothing_sigma": 0.0,
    "use_xla_translate": True,
    "nphotons": 1e9,
    "nimgs_train": 9,
    "nimgs_test": 3,
    "probe.trainable": False,
    "intensity_scale.trainable": False,
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Give every test the dictionary as it is at import, and put the caller's back."""
    saved = dict(params.cfg)
    params.unseal()
    params.cfg.clear()
    params.ensure_defaults()
    yield
    params.unseal()
    params.cfg.clear()
    params.cfg.update(saved)


def _same_table(expected: dict[str, object], actual: dict[str, object]) -> bool:
    """Equal keys, values and types: 1 is not True here."""
    return expected == actual and all(type(expected[key]) is type(actual[key]) for key in expected)


def test_the_table_comparison_catches_a_wrong_type_and_a_missing_key() -> None:
    assert not _same_table({"a": True}, {"a": 1})
    assert not _same_table({"a": 1}, {"a": 1, "b": 2})


def test_every_default_is_the_documented_one() -> None:
    assert _same_table(EXPECTED, dict(params.cfg))
    assert isinstance(params.cfg, dict)


@pytest.mark.parametrize("key", ["intensity_scale", "probe", "train_data_file_path", "timestamp"])
def test_runtime_keys_are_absent_and_reading_them_raises_key_error(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        params.get(key)
    assert params.get(key, None) is None
    assert params.get(key, 3.0) == 3.0


def test_computed_sizes_follow_gridsize_offset_and_jitter() -> None:
    params.set("N", 64)
    params.set("gridsize", 3)
    params.set("offset", 5)
    params.set("max_position_jitter", 7)
    assert params.get("bigN") == params.get_bigN() == params.params()["bigN"] == 64 + 2 * 5
    assert params.get_padding_size() == 2 * 5 + 7
    assert params.get_padded_size() == 64 + 2 * 5 + 7
    assert "bigN" not in params.cfg


def test_params_returns_a_copy() -> None:
    params.params()["N"] = 1
    assert params.get("N") == 128


@pytest.mark.parametrize("kind", [AssertionError, ConfigError, ValueError])
def test_a_broken_rule_is_an_assertion_error_and_a_config_error(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="got 'xppp'"):
        params.set("data_source", "xppp")


def test_real_space_mae_needs_the_real_space_weight() -> None:
    with pytest.raises(AssertionError, match="realspace_weight"):
        params.set("realspace_mae_weight", 0.5)
    params.cfg["realspace_weight"] = 1.0
    params.validate()


def test_ensure_defaults_restores_what_is_missing_and_keeps_the_rest() -> None:
    params.cfg["N"] = 32
    params.cfg["extra"] = 1
    del params.cfg["offset"]
    params.ensure_defaults()
    assert (params.get("N"), params.get("offset"), params.get("extra")) == (32, 4, 1)


def test_print_params_shows_arrays_by_shape_only() -> None:
    params.set("probe", np.zeros((3, 64, 64), np.complex64))
    stream = io.StringIO()
    params.print_params(stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(EXPECTED) + 2
    line = next(line for line in lines if line.startswith("probe "))
    assert "(3, 64, 64)" in line
    assert "complex64" in line
    assert max(map(len, lines)) < 110


def test_print_params_writes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    params.print_params()
    assert "nphotons" in capsys.readouterr().out


def test_a_sealed_dictionary_warns_and_still_writes() -> None:
    params.seal()
    with pytest.warns(UserWarning, match="gridsize"):
        params.set("gridsize", 1)
    assert params.get("gridsize") == 1
    with pytest.warns(UserWarning, match="N, nepochs"):
        params.cfg.update(nepochs=1, N=64)
    with pytest.warns(UserWarning, match="label"):
        params.cfg |= {"label": "x"}
    with pytest.warns(UserWarning, match="size"):
        params.cfg.pop("size")
    with pytest.warns(UserWarning, match="size"):
        params.cfg.setdefault("size", 2)
    with pytest.warns(UserWarning, match="offset"):
        del params.cfg["offset"]
    with pytest.warns(UserWarning, match="size"):
        params.cfg.popitem()
    with pytest.warns(UserWarning, match="nphotons"):
        params.cfg.clear()
    assert not params.cfg


def test_results_may_be_written_while_sealed_and_everything_after_unseal() -> None:
    params.seal()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params.set("intensity_scale", 2.0)
        params.set("probe", None)
        params.set("timestamp", "now")
        params.ensure_defaults()
        params.cfg.setdefault("N", 1)
        params.cfg.pop("absent", None)
        params.unseal()
        params.set("gridsize", 1)


def test_the_import_loads_only_the_standard_library() -> None:
    code = (
        "import sys, ptycho.params; "
        "print(sorted({'numpy', 'torch', 'tensorflow', 'lightning', 'yaml', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
