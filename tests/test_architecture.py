"""The rooms: who may import whom, and what importing costs.

``ROOMS`` lists them from the ground up. A room sees those below it; what counts is every import, those inside
functions and for type checkers too. Modules at paths that outside callers fix stand on top, and nothing below
sees them.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest

ROOT = Path(__file__).resolve().parents[1]
Python = Callable[..., CompletedProcess[str]]
FRAMEWORKS = {"torch", "lightning", "pytorch_lightning", "tensordict", "tensorflow", "keras", "mlflow"}
OWN_FRAMEWORKS = {
    "ptycho_torch": {"torch", "lightning", "tensordict"},
    "ptycho.tf": {"tensorflow", "keras"},
}
ROOMS = (
    "ptycho.errors",
    "ptycho.config",
    "ptycho.params",
    "ptycho.process",
    "ptycho.solver",
    "ptycho.physics",
    "ptycho.geometry",
    "ptycho.data",
    "ptycho.files",
    "ptycho.networks",
    "ptycho.simulation",
    "ptycho.evaluation",
    "ptycho.run",
    "ptycho.tf",
    "ptycho.cli",
    "ptycho_torch",
)
"""From the ground up."""
ARRAY_LIBRARIES = FRAMEWORKS | {"numpy", "scipy", "skimage"}
"""What the solver does not know: a backend supplies its arithmetic."""
WITHOUT_NUMPY = (
    "ptycho.errors",
    "ptycho.config",
    "ptycho.params",
    "ptycho.process.progress",
    "ptycho.process.interrupts",
)
ENTRY_POINTS = (
    "ptycho.train",
    "ptycho.inference",
    "ptycho.simulate",
    "ptycho_torch.train",
    "ptycho_torch.inference",
    "ptycho_torch.pretrain",
)
FACADES = (
    "ptycho.raw_data",
    "ptycho.loader",
    "ptycho.probe",
    "ptycho.tf_helper",
    "ptycho.model_manager",
    "ptycho.workflows",
    "ptycho_torch.lightning_utils",
    "ptycho_torch.api",
)
OPEN_TO_BACKENDS = (
    "ptycho.run.feeds",
    "ptycho.run.job",
    "ptycho.run.mlflow_store",
    "ptycho.run.reconstruction",
)
"""What a backend sees of the runs that call it."""


def _within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def room(module: str) -> str:
    """Return the room of a module: one of ``ROOMS``, ``entry point`` or ``facade``."""
    if _within(module, FACADES):
        return "facade"
    if _within(module, ENTRY_POINTS):
        return "entry point"
    return next((name for name in ROOMS if _within(module, (name,))), "none")


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imports(tree: ast.Module) -> Iterator[tuple[str, bool, int]]:
    """Yield the name, whether it is imported on import of the module, and the line, of every import."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if _is_main_guard(child):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_import, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                source = child.module or ""
                yield (source if child.level == 0 else f"relative:{source}"), at_import, child.lineno
                if source in ("ptycho", "ptycho_torch", "ptycho.tf"):
                    yield from ((f"{source}.{alias.name}", at_import, child.lineno) for alias in child.names)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from walk(child, at_import and not inner and not typing_only)

    yield from walk(tree, True)


def _across(own: str, name: str) -> str | None:
    """Say what is wrong with an import from a room, or None."""
    other = room(name)
    if own == "entry point":
        return f"{own} may not import {other}" if other in ("facade", "none") else None
    if own == "none":
        return f"none may not import {other}"
    if other not in ROOMS or ROOMS.index(other) > ROOMS.index(own):
        return f"{own} may not import {other}"
    backend = own in OWN_FRAMEWORKS
    if backend and other in OWN_FRAMEWORKS and other != own:
        return f"{own} may not import {other}"
    if backend and other == "ptycho.run" and not _within(name, OPEN_TO_BACKENDS):
        return f"{own} may not import {other}"
    if backend and other == "ptycho.cli":
        return f"{own} may not import {other}"
    return None


def violations(module: str, source: str) -> list[str]:
    """Return one line for every import that the rooms forbid."""
    own = room(module)
    if own == "facade":
        return []
    home = next((name for name in OWN_FRAMEWORKS if _within(module, (name,))), None)
    allowed = OWN_FRAMEWORKS[home] if home else set()
    found = []
    for name, at_import, line in imports(ast.parse(source)):
        top = name.partition(".")[0]
        problem = None
        if name.startswith("relative:"):
            problem = "relative import"
        elif top in ("ptycho", "ptycho_torch"):
            problem = None if name in ("ptycho", "ptycho_torch") else _across(own, name)
        elif top == "mlflow" and not at_import:
            problem = None
        elif own == "ptycho.solver" and top in ARRAY_LIBRARIES:
            problem = "array library in the solver"
        elif top in FRAMEWORKS and top not in allowed:
            problem = "framework outside its home"
        elif at_import and not home and top not in {*sys.stdlib_module_names, "numpy"}:
            problem = "heavy import at the top"
        elif at_import and _within(module, WITHOUT_NUMPY) and top == "numpy":
            problem = "NumPy in the settings"
        elif own == "solver" and top not in {*sys.stdlib_module_names, "ptycho"}:
            problem = "array library in the solver"
        if problem:
            found.append(f"{module}:{line}: {problem}: {name}")
    return found


def modules() -> dict[str, Path]:
    """Return every module of the two packages and its file."""
    found = {}
    for package in ("ptycho", "ptycho_torch"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


NAMES = modules()


def arrows(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which modules each module imports, at the top, in a function, or for type checkers."""
    found: dict[str, set[str]] = {}
    for module, source in sources.items():
        found[module] = set()
        for name, _, _ in imports(ast.parse(source)):
            while name and name not in sources:
                name = name.rpartition(".")[0]
            # A package that only hands names on is passed through.
            if name and name != module and not module.startswith(f"{name}."):
                found[module].add(name)
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return modules that import each other, however long the way round."""
    left = {module: set(names) for module, names in graph.items()}
    while ends := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in ends}
    # What is left is on a circle or above one.
    while tops := left.keys() - {name for names in left.values() for name in names}:
        left = {module: names for module, names in left.items() if module not in tops}
    return [sorted(left)] if left else []


def test_no_modules_import_each_other() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in NAMES.items()}
    graph = arrows(sources)
    assert sum(map(len, graph.values())) > 300
    assert circles(graph) == []


@pytest.mark.parametrize(
    "back",
    ["from b import x", "def f():\n    from b import x", "if TYPE_CHECKING:\n    import b"],
    ids=["at the top", "in a function", "for type checkers"],
)
def test_a_planted_circle_is_found(back: str) -> None:
    planted = {"a": back, "b": "import c", "c": "import a", "d": "import a"}
    assert circles(arrows(planted)) == [["a", "b", "c"]]
    assert circles(arrows(planted | {"c": "import json"})) == []


def test_every_module_is_in_a_room() -> None:
    packages = {"ptycho", "ptycho_torch"}
    assert [name for name in NAMES if name not in packages and room(name) == "none"] == []


MODULE_LINES, FUNCTION_LINES = 400, 60
LARGER: dict[str, str] = {}
"""Module, or module.function, that may be larger -> why. At most five."""


def too_large(module: str, source: str) -> list[str]:
    """Return one line for a module, and for each function without its docstring, above its limit."""
    found = []
    if (lines := len(source.splitlines())) > MODULE_LINES and module not in LARGER:
        found.append(f"{module}: {lines} lines, at most {MODULE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
        own = node.end_lineno - node.lineno + 1 - (text.end_lineno - text.lineno + 1 if text else 0)
        if own > FUNCTION_LINES and f"{module}.{node.name}" not in LARGER:
            found.append(f"{module}.{node.name}: {own} lines, at most {FUNCTION_LINES}")
    return found


def test_modules_and_functions_stay_small() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in NAMES.items()}
    assert len(LARGER) <= 5
    assert [line for name, source in sources.items() for line in too_large(name, source)] == []


def test_planted_giants_are_found() -> None:
    body = "    x = 1\n"
    assert too_large("m", "x = 1\n" * 400) == []
    assert too_large("m", "x = 1\n" * 401) == ["m: 401 lines, at most 400"]
    text = '    """Say it.' + "\n" * 70 + '    """\n'
    assert too_large("m", "def f():\n" + text + body * 59) == []
    method = "class A:\n    def f(self):\n" + ("    " + body) * 60
    assert too_large("m", method) == ["m.f: 61 lines, at most 60"]


def exits(source: str) -> list[int]:
    """Return the lines that end the process, outside the guard of a script."""

    def walk(node: ast.AST) -> Iterator[int]:
        for child in ast.iter_child_nodes(node):
            if _is_main_guard(child):
                continue
            called = ast.unparse(child.func) if isinstance(child, ast.Call) else ""
            raised = ast.unparse(child) if isinstance(child, ast.Raise) else ""
            if called in ("sys.exit", "os._exit", "os.abort", "exit", "quit") or "SystemExit" in raised:
                yield child.lineno
            yield from walk(child)

    return list(walk(ast.parse(source)))


def test_nothing_but_a_script_ends_the_process() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in NAMES.items()}
    assert {name: exits(source) for name, source in sources.items() if exits(source)} == {}
    assert exits("import sys\ndef f():\n    sys.exit(1)\n") == [3]
    assert exits("def f():\n    raise SystemExit('no')\n") == [2]
    assert exits("if __name__ == '__main__':\n    sys.exit(main())\n") == []


CALLER = re.compile(r"Ptychodus|scripts|modules of this kind call it|``ptycho[\w.]+`` (calls|uses|exports)")


def without_caller(module: str, source: str) -> list[str]:
    """Return the public functions and classes of a facade whose text does not say who calls them."""
    found = []
    for node in ast.parse(source).body:
        named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        lead = (ast.get_docstring(node) or "").partition("\n\nParameters\n")[0] if named else ""
        if named and not CALLER.search(lead):
            found.append(f"{module}.{node.name}")
    return found


def test_every_public_name_of_a_facade_says_who_calls_it() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in NAMES.items()}
    facades = [name for name in sources if room(name) == "facade"]
    assert len(facades) >= len(FACADES)
    assert [line for name in facades for line in without_caller(name, sources[name])] == []
    planted = 'def f(x):\n    """Return it.\n\n    Parameters\n    ----------\n    x : Ptychodus\n    """'
    assert without_caller("ptycho.loader", planted) == ["ptycho.loader.f"]


def test_no_module_breaks_its_layer() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in NAMES.items()}
    found = [line for name, source in sources.items() for line in violations(name, source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("ptycho.errors", "import numpy as np", "NumPy in the settings"),
        (
            "ptycho.config.config",
            "import ptycho.data.raw",
            "ptycho.config may not import ptycho.data",
        ),
        ("ptycho.solver.loop", "import numpy as np", "array library in the solver"),
        ("ptycho.solver.loop", "def f():\n    import scipy.fft", "array library in the solver"),
        ("ptycho.solver.loop", "import ptycho.geometry", "ptycho.solver may not import ptycho.geometry"),
        ("ptycho.physics.forward", "import torch", "framework outside its home"),
        ("ptycho.physics.forward", "def f():\n    import tensorflow as tf", "framework outside its home"),
        ("ptycho.physics.forward", "import scipy.ndimage", "heavy import at the top"),
        (
            "ptycho.data.raw",
            "def f():\n    import ptycho.files",
            "ptycho.data may not import ptycho.files",
        ),
        (
            "ptycho.data.raw",
            "if TYPE_CHECKING:\n    import ptycho.run.job",
            "ptycho.data may not import ptycho.run",
        ),
        ("ptycho.physics.forward", "from . import filling", "relative import"),
        ("ptycho.run.mlflow_store", "import mlflow", "framework outside its home"),
        ("ptycho.run.pipeline", "from ptycho_torch import engine", "ptycho.run may not import ptycho_torch"),
        ("ptycho.tf.engine", "from ptycho_torch.physics import fft", "ptycho.tf may not import ptycho_torch"),
        ("ptycho_torch.engine", "from ptycho.tf import physics", "ptycho_torch may not import ptycho.tf"),
        ("ptycho_torch.engine", "import keras", "framework outside its home"),
        (
            "ptycho_torch.engine",
            "from ptycho.run.pipeline import train",
            "ptycho_torch may not import ptycho.run",
        ),
        ("ptycho_torch.engine", "from ptycho.cli import flags", "ptycho_torch may not import ptycho.cli"),
        (
            "ptycho_torch.model",
            "from ptycho_torch.train import main",
            "ptycho_torch may not import entry point",
        ),
        ("ptycho.cli.flags", "import ptycho_torch.engine", "ptycho.cli may not import ptycho_torch"),
        ("ptycho.run.outputs", "from ptycho import loader", "ptycho.run may not import facade"),
        ("ptycho.newcomer", "import json\nfrom ptycho import errors", "none may not import ptycho.errors"),
    ],
)
def test_a_planted_import_across_the_layers_is_found(module: str, source: str, problem: str) -> None:
    found = violations(module, source)
    assert found
    assert all(f": {problem}: " in line for line in found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ptycho.physics.forward", "def f():\n    from scipy import ndimage"),
        ("ptycho.train", "if __name__ == '__main__':\n    from ptycho import loader"),
        ("ptycho_torch.engine", "import torch\nfrom ptycho.geometry.canvas import plan_canvas"),
        ("ptycho_torch.train", "def cli_main():\n    from ptycho.cli import train_command"),
        ("ptycho.loader", "import tensorflow"),
    ],
)
def test_what_the_layers_allow_is_not_reported(module: str, source: str) -> None:
    assert violations(module, source) == []


def _importing(names: list[str]) -> str:
    """Return a program that imports modules and ends with status 3 where a heavy one came along."""
    heavy = sorted(FRAMEWORKS | {"matplotlib", "scipy", "skimage", "h5py", "yaml", "tqdm"})
    return (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        f"loaded = sorted(set({heavy!r}) & set(sys.modules))\n"
        "sys.exit(3 if loaded else 0)"
    )


def _heavy(module: str) -> bool:
    return _within(module, tuple(OWN_FRAMEWORKS))


def _light_modules() -> list[str]:
    light = [
        name for name in NAMES if room(name) == "entry point" or (room(name) in ROOMS and not _heavy(name))
    ]
    return [*light, "ptycho_torch", "ptycho_torch.config_params", "ptycho_torch.config_bridge"]


def test_importing_core_commands_and_entry_points_prints_nothing_and_loads_no_framework(
    require: Callable[[str], None], run_python: Python
) -> None:
    # The import of ptycho_torch.train fails without Lightning, as it should.
    require("torch")
    assert {"ptycho_torch.train", "ptycho_torch.inference", "ptycho.run.pipeline"} <= set(_light_modules())
    done = run_python("-W", "error", "-c", _importing(_light_modules()))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_heavy_import_is_caught_in_the_clean_process(run_python: Python) -> None:
    assert run_python("-c", _importing(["ptycho.errors", "scipy"])).returncode == 3


def test_a_missing_backend_skips_unless_it_is_required(
    require: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("PTYCHO_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="backend torch is not installed"):
        require("torch")
    monkeypatch.setenv("PTYCHO_REQUIRE", "tensorflow, torch")
    with pytest.raises(pytest.fail.Exception, match="PTYCHO_REQUIRE=tensorflow, torch"):
        require("torch")


@pytest.mark.parametrize("words", [("check",), ("format", "--check")], ids=["rules", "format"])
def test_the_code_keeps_its_own_style(words: tuple[str, ...], run_python: Python) -> None:
    done = run_python("-m", "ruff", *words, "--no-cache", str(ROOT))
    assert done.returncode == 0, done.stdout
