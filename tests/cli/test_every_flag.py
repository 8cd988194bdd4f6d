"""Every flag of every command reaches what the command builds, and a bad value is refused by its name.

Doors and flags are found in the code, so a flag added tomorrow is walked over without a change here. What a
setting does to an output is the matter of the walk over the settings.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
from flag_walk import (
    MADE_UP,
    MISSING,
    EntryPoint,
    Stage,
    constructed_in,
    entry_points,
    idle_pairs,
    walk,
    without,
    wrong_taken,
)

from ptycho.cli.console import with_flags

ENTRY_POINTS = entry_points()
PROCESS_ONLY = {
    "--quiet": "what is printed",
    "--debug": "tracebacks and debug messages",
    "--strict": "the exit status of a failed verdict",
}
"""Flags that change no setting -> what they change instead."""
ALWAYS_REFUSED = {
    ("inference", "--num-workers"): "the specification has the flag; one process reads the scan",
    ("evaluate", "--keep-probe-power"): "one of the flags of a data file; the reconstruction holds its probe",
}
"""Flags that nothing can use here -> why they are there."""
TAKEN = {
    **dict.fromkeys(
        [("--probe-key", MADE_UP), ("--run-id", MADE_UP)], "any word; what it names is looked up later"
    ),
    **dict.fromkeys(
        [("--phase-vmin", "-3"), ("--phase-vmax", "-3"), ("--probe-drift", "-3"), ("--probe-error", "-3")],
        "signed",
    ),
    ("--output-dir", MISSING): "made",
    ("--mlruns", MISSING): "MLflow is asked last; MLFLOW_TRACKING_URI may stand for it",
}
"""Words that are no values of most flags of their type -> why this flag takes them."""


NO_ARRAYS = ("--output", "--preview", "--no-compress", "--report-limit", "--quiet", "--debug")
"""Flags of a simulation that are not about the data."""


@pytest.fixture(scope="module")
def stage(require: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a place where commands run up to the reading of the first file."""
    require("torch")
    require("tensorflow")
    with Stage(tmp_path_factory.mktemp("stage")) as found:
        yield found


def _kind(entry_point: EntryPoint) -> str:
    return next(
        kind
        for kind in ("pretrain", "train", "inference", "evaluate", "simulate", "datasets")
        if kind in entry_point.name
    )


def test_every_parser_of_the_code_belongs_to_an_entry_point() -> None:
    assert {entry_point.parser_file for entry_point in ENTRY_POINTS} == constructed_in()
    assert len(ENTRY_POINTS) >= 10


@pytest.mark.parametrize("entry_point", ENTRY_POINTS, ids=lambda entry_point: entry_point.name)
def test_another_value_of_every_flag_reaches_what_the_command_builds(
    entry_point: EntryPoint, stage: Stage
) -> None:
    unheard, process_only, refused = [], set(), set()
    for action in entry_point.flags():
        found = walk(stage, entry_point, action)
        name = action.option_strings[0]
        if found.faults:
            unheard.append((name, found.faults))
        elif found.refused:
            refused.add((_kind(entry_point), name))
        elif found.process_only:
            process_only.add(name)
    assert unheard == []
    assert process_only == PROCESS_ONLY.keys() & entry_point.names()
    assert refused == {(kind, name) for kind, name in ALWAYS_REFUSED if kind == _kind(entry_point)}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS, ids=lambda entry_point: entry_point.name)
def test_a_wrong_value_of_every_flag_is_refused_by_name_before_a_file_is_read(
    entry_point: EntryPoint, stage: Stage
) -> None:
    wrong, taken = [], set()
    for action in entry_point.flags():
        fine, faults = wrong_taken(stage, entry_point, action)
        wrong += [(action.option_strings[0], fault) for fault in faults]
        taken |= {(action.option_strings[0], value) for value in fine}
    assert wrong == []
    assert taken == {(name, value) for name, value in TAKEN if name in entry_point.names()}
    assert not (stage.folder / "out").exists()


@pytest.mark.parametrize("kind", ["ptycho_evaluate", "pretrain"])
def test_every_flag_counts_beside_every_other_or_is_refused_by_name(kind: str, stage: Stage) -> None:
    entry_point = next(entry_point for entry_point in ENTRY_POINTS if kind in entry_point.name)
    assert idle_pairs(stage, entry_point) == []


def test_a_flag_that_nobody_reads_and_one_that_is_not_named_are_reported(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptycho.cli import console, simulate_command

    built = simulate_command.build_parser

    def planted() -> Any:
        parser = built()
        parser.add_argument("--planted", type=int)
        return parser

    monkeypatch.setattr(simulate_command, "build_parser", planted)
    monkeypatch.setattr(stage, "cache", {})
    entry_point = EntryPoint("ptycho_simulate", simulate_command.main, planted(), "")
    (action,) = (action for action in entry_point.flags() if action.option_strings[0] == "--planted")
    found = walk(stage, entry_point, action)
    assert found.faults == ["changes nothing in {'--output': '@out/scan.npz'}"]
    assert wrong_taken(stage, entry_point, action)[0] == ["-3"]
    (step,) = (action for action in entry_point.flags() if action.option_strings[0] == "--step")
    monkeypatch.setattr(console, "with_flags", lambda text, typed: text)
    stage.cache.clear()
    _, faults = wrong_taken(stage, entry_point, step)
    assert len(faults) == 3
    assert all(
        fault.startswith("does not name the flag: error: simulation: step_px is out") for fault in faults
    )


def test_a_message_names_the_flags_of_its_settings_and_files() -> None:
    typed = {
        "n_groups": (("--n-groups", "--n-images"), "-3"),
        "photon_energy_eV": (("--photon-energy",), "8"),
        "test_data_file": (("--test-data",), "data/scan.npz"),
    }
    for text, added in {
        "training: n_groups is -3. Change it.": " The flag is --n-groups.",
        "training: photon_energy_eV and n_groups.": " The flags are --photon-energy, --n-groups.",
        "data/scan.npz: no such file.": " The flag is --test-data.",
        "--n_images is -3, n_groups too": "",
        "data/scan.npz.bak: no such file.": "",
        "n_groups_of_others, my-n_groups": "",
    }.items():
        assert with_flags(text, typed) == text + added
    assert with_flags("mixed with --photon_energy_eV.", typed) == "mixed with --photon-energy."


def test_every_flag_of_a_simulation_counts_beside_every_other_or_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ptycho.simulation.simulate as home
    from ptycho.cli import simulate_command

    entry_point = next(entry_point for entry_point in ENTRY_POINTS if entry_point.name == "ptycho_simulate")
    given = {item.option_strings[0]: walk(stage, entry_point, item).flags for item in entry_point.flags()}
    given = {name: flags for name, flags in given.items() if flags and name not in NO_ARRAYS}
    given["--phase-picture"]["--phase-picture"] = "@picture2.png"
    given["--photons"]["--photons"] = "1e5"  # of three photons none shows how large a pixel is
    made: dict[str, Any] = {}
    stage.close()
    monkeypatch.setattr(home, "write_npz", lambda path, arrays, compressed: made.update(arrays))

    @functools.cache
    def answer(*words: str) -> dict[str, bytes] | str:
        made.clear()
        err = io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            simulate_command.main(words)
        return {name: item.tobytes() for name, item in made.items() if name != "simulation"} or err.getvalue()

    def simulated(flags: dict[str, str | None]) -> dict[str, bytes] | str:
        return answer(*stage.words({"--output": "@out/scan.npz", "--size": "32", "--grid": "2x3", **flags}))

    idle = []
    for one, flags in given.items():
        for other, beside in given.items():
            both, alone = simulated({**beside, **flags}), simulated(without({**beside, **flags}, one))
            refused = isinstance(both, str) and (one in both or other in both) and len(both.splitlines()) == 1
            if one != other and not refused and (isinstance(both, str) or both == alone):
                idle.append((one, other, both if isinstance(both, str) else "the same arrays"))
    assert idle == []
    assert len(given) >= 17
