"""What a network that is trained on several scans sees: batches of one scan each, with its own beam."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from several_scans import whole_scan, written

from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.scan import Scan
from ptycho.data.selection import training_groups
from ptycho.files.reader import open_scan
from ptycho.physics.losses import LossTerms
from ptycho.run.feeds import Feed, opened_feeds
from ptycho.run.job import TrainingJob, TrainingPart


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Scan]:
    """Return two scans of two objects: 35 patterns of one mode, 40 weaker ones of two."""
    made = {
        "a": whole_scan(n_y=5, n_x=7),
        "b": whole_scan(n_y=5, n_x=8, photons=2e5, n_modes=2, scene="dead_leaves", seed=4),
    }
    return [open_scan(path) for path in written(tmp_path_factory.mktemp("scans"), **made)]


def feeds(
    stack: ExitStack, scans: list[Scan], architecture: str, **settings: Any
) -> tuple[Feed, Feed | None]:
    model = ModelConfig(N=32, architecture=architecture, gridsize=1 if architecture == "unrolled" else 2)
    config = TrainingConfig(model, n_groups=30, batch_size=4, neighbor_count=6, **settings)
    first, *further = (TrainingPart(scan, *training_groups(scan, config, validate=True)) for scan in scans)
    job = TrainingJob(config, PyTorchExecutionConfig(), *first, further=tuple(further))
    stub: Any = SimpleNamespace(whole_canvas=architecture == "unrolled", terms=LossTerms())
    return opened_feeds(stack, job, stub, stub)


@pytest.mark.parametrize("architecture", ["unrolled", "cnn"])
def test_every_batch_is_of_one_scan_and_brings_its_beam_and_scale(
    architecture: str, scans: list[Scan]
) -> None:
    whole = [scan.amplitude(slice(None)).sum(axis=(1, 2)) for scan in scans]
    with ExitStack() as stack:
        for feed in feeds(stack, scans, architecture):
            assert feed is not None
            met = set()
            for epoch in range(3):
                for item in feed.order(epoch):
                    batch = feed.source[item]
                    assert batch.keys() == feed.source.signature.keys() or "seen" in batch
                    sums = batch["amplitude"].sum(axis=(-1, -2)).ravel()
                    (number,) = (index for index in (0, 1) if np.isin(sums, whole[index]).all())
                    own = scans[number]
                    np.testing.assert_array_equal(batch["probe"][: len(own.probe)], own.probe)
                    assert not batch["probe"][len(own.probe) :].any()
                    assert batch["probe"].shape == (2, 32, 32)
                    assert float(batch["input_scale"]) == np.float32(own.record.input_scale)
                    met.add(number)
            assert met == {0, 1}


def test_an_epoch_goes_through_all_groups_of_all_scans_in_an_order_of_its_own(scans: list[Scan]) -> None:
    with ExitStack() as stack:
        train, check = feeds(stack, scans, "cnn")
        assert check is not None
        orders = [[list(rows) for rows in train.order(epoch)] for epoch in (0, 1, 0)]
        for order in orders:
            assert sorted(np.concatenate(order)) == list(range(len(train.source)))
        assert orders[0] == orders[2] != orders[1]
        starts = [rows[0] for rows in orders[0]]
        assert starts != sorted(starts)
        # What validates comes in order.
        assert np.concatenate(check.order(1)).tolist() == list(range(len(check.source)))


def test_one_scan_has_no_beam_of_its_own_in_its_batches(scans: list[Scan]) -> None:
    with ExitStack() as stack:
        train, check = feeds(stack, scans[:1], "cnn")
        assert check is not None
        for feed in (train, check):
            assert not {"probe", "input_scale"} & feed.source.signature.keys()


def test_files_of_a_flag_are_kept_apart_by_the_command(tmp_path: Path) -> None:
    from ptycho.cli.console import with_dashes
    from ptycho.cli.flags import inference_parser, training_parser

    for parser, flag, name in (
        (training_parser("t"), "--train_data_file", "train_data_file"),
        (inference_parser("i"), "--test_data", "test_data_file"),
    ):
        for words, expected in ((["a"], Path("a")), (["a", "b"], [Path("a"), Path("b")])):
            values = vars(parser.parse_args(with_dashes([flag, *words, "--output_dir", "o"])))
            assert values[name] == expected
            assert values["output_dir"] == Path("o")
