"""The pages: their commands and Python run; their links, flags, fields and messages exist.

``python tests/docs/test_docs.py`` writes the generated parts of the pages again.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "specs").glob("*.md")),
]
RUNNABLE = [page for page in PAGES if "```bash" in page.read_text(encoding="utf-8")]
HELP_WIDTH = 100
"""Columns of a printed help."""
CHEAPER = (
    (r"(-m ptycho(?:_torch)?\.train (?!.*(--max_epochs|--config)).*)", r"\1 --max_epochs 9"),
    (r"--max_epochs \d+", "--max_epochs 1 --unrolled_steps 4 --unrolled_width 8 --no-probe-trainable"),
    (r"nepochs: \d+", "nepochs: 1"),
    (r"unrolled_steps: \d+", "unrolled_steps: 4\n  unrolled_width: 8"),
    (r"--grid \d+x\d+", "--grid 7x7"),
    (r"(ptycho_simulate(?!.*--grid).*)", r"\1 --grid 7x7"),
    (r"(architecture cnn.*)", r"\1 --n_images 16 --n_filters_scale 1"),
    (r"(architecture cnn.*)--unrolled_steps 4 --unrolled_width 8", r"\1"),
    (r"--unrolled_steps 4 --unrolled_width 8(.*architecture cnn)", r"\1"),
    (r"(--resume \S+) --max_epochs 1 ", r"\1 --max_epochs 2 "),
    (r"(epochs=)\d+", r"\g<1>1"),
    (r"(-m ptycho(?:_torch)?\.train (?!.*(--logger|--disable_mlflow)).*)", r"\1 --logger none"),
)
"""What a command of a page becomes here, in this order: the same flags with less work.

MLflow is slow to start; only the Python calls of the page about PyTorch use it.
"""
ENTRY_POINTS = {
    "python -m ptycho_torch.train": ("ptycho_torch.train", "cli_main"),
    "python -m ptycho_torch.inference": ("ptycho_torch.inference", "cli_main"),
    "python -m ptycho.train": ("ptycho.train", "cli_main"),
    "python -m ptycho.inference": ("ptycho.inference", "cli_main"),
    "ptycho_evaluate": ("ptycho.cli.evaluate_command", "main"),
    "ptycho_simulate": ("ptycho.cli.simulate_command", "main"),
}
"""Commands that run in this process, which saves importing a framework every time."""
FENCE = re.compile(r"(<!-- not run -->\n+)?```(bash|python)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
GENERATED = re.compile(r"(<!-- generated: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SUBSTITUTE = "…"


def _parsers() -> dict[str, Any]:
    from ptycho.cli import evaluate_command, pretrain_command, simulate_command
    from ptycho.cli.flags import inference_parser, training_parser

    return {
        "train": training_parser("python -m ptycho_torch.train"),
        "inference": inference_parser("python -m ptycho_torch.inference"),
        "evaluate": evaluate_command.build_parser(),
        "simulate": simulate_command.build_parser(),
        "pretrain": pretrain_command.build_parser(),
    }


def _flags(*, hidden: bool) -> set[str]:
    """Every flag of every command; ``hidden`` also takes those that the help does not show."""
    return {
        name
        for parser in _parsers().values()
        for action in parser._actions
        if hidden or action.help != argparse.SUPPRESS
        for name in action.option_strings
        if name.startswith("--")
    }


def _help(name: str) -> str:
    parser = _parsers()[name]
    parser.formatter_class = functools.partial(argparse.HelpFormatter, width=HELP_WIDTH)
    return f"```text\n{parser.format_help()}```\n"


def _shown(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    return f"`{value}`" if isinstance(value, Path) else f"`{value!r}`"


def _fields(module: str, *names: str) -> str:
    """Tables of fields and defaults, with the rule of the validators where there is one."""
    from ptycho.config import architectures, validation

    known_architecture = f"one of {', '.join(architectures.ARCHITECTURES)}"
    rules = {
        "ModelConfig": {**validation.MODEL_RULES, "architecture": (known_architecture,)},
        "TrainingConfig": validation.TRAINING_RULES,
        "InferenceConfig": validation.INFERENCE_RULES,
        "PyTorchExecutionConfig": validation.EXECUTION_RULES,
    }
    text = ""
    for name in names:
        known = rules[name] if module == "ptycho.config.config" else {}
        head = "| field | default | rule |\n|---|---|---|\n" if known else "| field | default |\n|---|---|\n"
        text += f"\n**{name}**\n\n{head}"
        for item in dataclasses.fields(getattr(importlib.import_module(module), name)):
            made = item.default_factory is not dataclasses.MISSING
            default = item.default_factory() if made else item.default
            rule = f" {known[item.name][0]} |" if item.name in known else " |" if known else ""
            text += f"| `{item.name}` | {_shown(default)} |{rule}\n"
    return text + "\n"


def _defaults(which: str) -> str:
    from ptycho.config.choices import COMMAND_DEFAULTS, HIDDEN_DEFAULTS

    table = {"train": COMMAND_DEFAULTS, "hidden": HIDDEN_DEFAULTS}[which]
    given = {name: value for name, value in table.items() if value is not None}
    rows = "".join(f"| `{name}` | {_shown(value)} |\n" for name, value in given.items())
    return f"\n| setting | default of the command |\n|---|---|\n{rows}\n"


def _made(recipe: str) -> str:
    kind, *words = recipe.split()
    makers: dict[str, Callable[..., str]] = {"help": _help, "fields": _fields, "defaults": _defaults}
    return makers[kind](*words)


def _outdated(text: str) -> list[str]:
    """Recipes whose generated part is not what the code says; blanks do not count."""
    return [found[2] for found in GENERATED.finditer(text) if found[3].split() != _made(found[2]).split()]


def write_generated() -> list[Path]:
    """Write the generated parts of every page again; return the pages."""
    changed = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = GENERATED.sub(lambda found: found[1] + _made(found[2]) + found[4], text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            changed.append(page)
    return changed


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks that are to be run, in order."""
    return [(found[2], found[3]) for found in FENCE.finditer(text) if found[1] is None]


def _commands(block: str) -> Iterator[str]:
    """Commands of a block: one a line, but a here-document or a continued line is one command."""
    lines = iter(block.splitlines())
    for line in lines:
        command = line
        while command.endswith("\\"):
            command = command[:-1] + next(lines)
        here = re.search(r"<<'?(\w+)'?", command)
        if here:
            for body in lines:
                command += "\n" + body
                if body == here[1]:
                    break
        if command.strip() and not command.startswith("#"):
            yield command


def _cheaper(text: str) -> str:
    for pattern, replacement in CHEAPER:
        text = re.sub(pattern, replacement, text)
    return text


def _run(command: str) -> int:
    """Run a command of a page: ours in this process, any other in a shell."""
    for entry_point, (module, name) in ENTRY_POINTS.items():
        if command.startswith(entry_point + " "):
            argv = shlex.split(command.removeprefix(entry_point))
            return getattr(importlib.import_module(module), name)([*argv, "--quiet"])
    return subprocess.run(["bash", "-ec", command], check=False, timeout=60).returncode


def _anchors(page: Path) -> set[str]:
    """Anchors of the headings, and those set by hand."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = [line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#")]
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


def _broken_links(page: Path, text: str) -> list[str]:
    """Targets of links that are not there."""
    broken = []
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            broken.append(target)
    return broken


def _constants() -> list[str]:
    """Every literal text of the packages; the parts of a formatted text come one by one."""
    found = []
    for package in ("ptycho", "ptycho_torch"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [value for value in found if isinstance(value, str)]


def _unknown_messages(text: str, known: list[str]) -> list[str]:
    """Fixed parts of quoted messages that no program text holds."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    parts = [
        part.strip()
        for row in rows
        for message in re.findall(r"`([^`]*)`", row)
        if SUBSTITUTE in message or len(message) > 60
        for part in message.split(SUBSTITUTE)
        if len(part.strip()) > 3
    ]
    return [part for part in parts if not any(part in literal for literal in known)]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_every_command_of_a_page_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    require: Callable[[str], None],
) -> None:
    require("tensorflow" if page.name == "tensorflow.md" else "torch")
    monkeypatch.chdir(tmp_path)
    for language, block in _blocks(page.read_text(encoding="utf-8")):
        if language == "python":
            (tmp_path / "block.py").write_text(_cheaper(block), encoding="utf-8")
            runpy.run_path("block.py")
            continue
        for command in _commands(_cheaper(block)):
            assert _run(command) == 0, f"{page.name}: {command}\n{capsys.readouterr().err}"


def test_a_command_that_fails_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = "# a remark\nptycho_simulate --output a.npz \\\n  --grid 0x4\n"
    block += "cat > b.txt <<'END'\nx y\nEND\ntest -f a.npz\n"
    commands = list(_commands(block))
    assert commands[0] == "ptycho_simulate --output a.npz   --grid 0x4"
    assert [_run(command) for command in commands] == [2, 0, 1]
    assert (tmp_path / "b.txt").read_text(encoding="utf-8") == "x y\n"


def test_a_block_that_is_marked_is_left_out() -> None:
    text = "```bash\none\n```\n<!-- not run -->\n```bash\ntwo\n```\n```python\nthree\n```\n"
    assert _blocks(text) == [("bash", "one\n"), ("python", "three\n")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert _broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_or_anchor_is_caught() -> None:
    text = "[a](docs/cli.md) [b](docs/none.md) [c](docs/cli.md#recipes) [d](docs/cli.md#nowhere) [e](https://x.org/y)"
    assert _broken_links(ROOT / "README.md", text) == ["docs/none.md", "docs/cli.md#nowhere"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_page_exists(page: Path) -> None:
    named = {flag.replace("_", "-") for flag in FLAG.findall(page.read_text(encoding="utf-8"))}
    scripts = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")]
    of_scripts = {flag for text in scripts for flag in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', text)}
    assert sorted(named - _flags(hidden=True) - of_scripts) == []


def test_a_made_up_flag_is_caught() -> None:
    named = set(FLAG.findall("pass `--max-epochs` or `--max-epoch`; a --- rule and x--y are none"))
    assert named - _flags(hidden=True) == {"--max-epoch"}


def test_every_flag_is_on_the_page_of_commands() -> None:
    named = set(FLAG.findall((ROOT / "docs" / "cli.md").read_text(encoding="utf-8")))
    assert sorted(_flags(hidden=False) - named) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_say_what_the_code_says(page: Path) -> None:
    faults = _outdated(page.read_text(encoding="utf-8"))
    assert faults == [], "run: python tests/docs/test_docs.py"


def test_an_outdated_part_is_caught() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert _outdated(text.replace("else 100)", "else 99)", 1)) == ["help train"]


@pytest.mark.parametrize("page", ["troubleshooting.md", "ptychodus.md"])
def test_messages_on_the_pages_of_troubles_are_those_of_the_program(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert _unknown_messages(text, _constants()) == []


def test_a_message_nobody_prints_is_caught() -> None:
    text = "| `…: no such file (expected an NPZ file). …` | a |\n| `…: the file is bad (got …` | b |"
    assert _unknown_messages(text, _constants()) == [": the file is bad (got"]


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()}
    assert sizes
    assert all(size < 200_000 for size in sizes.values()), sizes


if __name__ == "__main__":
    sys.stdout.writelines(f"{page}\n" for page in write_generated())
