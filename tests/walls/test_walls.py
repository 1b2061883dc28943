"""The walls between the rooms, seen from a fresh process."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import lens_tui

LIGHT = {"mlx", "mlx_lm", "textual", "transformers", "huggingface_hub"}
SOURCES = {path: path.read_text(encoding="utf8") for path in sorted(Path(lens_tui.__file__).parent.rglob("*.py"))}


def modules_after(statement: str) -> set[str]:
    """The top-level packages in ``sys.modules`` after ``statement`` ran in a fresh process."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("lens_tui", LIGHT | {"numpy", "pydantic", "rich"}),
        ("lens_tui.cli", LIGHT | {"numpy", "pydantic"}),
        ("lens_tui.records", LIGHT | {"rich", "pydantic", "numpy"}),
        ("lens_tui.demo", LIGHT | {"rich", "numpy"}),
        ("lens_tui.worker", LIGHT | {"rich"}),
        ("lens_tui.tasks", LIGHT | {"rich"}),
        ("lens_tui.tasks.models", LIGHT | {"rich"}),
        ("lens_tui.worker.events", LIGHT | {"rich"}),
        ("lens_tui.worker.jobs", LIGHT | {"rich"}),
        ("lens_tui.tui", LIGHT - {"textual"}),
        ("lens_tui.lens", LIGHT | {"rich"}),
        ("lens_tui.lens.model", {"textual", "rich"}),
        ("lens_tui.sae.index.questions", LIGHT | {"rich"}),
        ("lens_tui.sae.load_sae", {"textual", "rich"}),
    ],
)
def test_what_a_room_brings_with_it(room: str, never: set[str]) -> None:
    assert modules_after(f"import {room}") & never == set()


def test_no_screen_or_widget_brings_mlx() -> None:
    import lens_tui.tui

    names = [item.name for item in pkgutil.walk_packages(lens_tui.tui.__path__, "lens_tui.tui.")]
    assert names
    assert modules_after("\n".join(f"import {name}" for name in names)) & {"mlx", "mlx_lm", "transformers"} == set()


@pytest.mark.parametrize("package", ["lens_tui", "lens_tui.records"])
def test_the_public_names_are_there_and_lazy(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", ["lens_tui", "lens_tui.records"])
def test_types_are_checked_of_the_names_that_are_there(package: str) -> None:
    """What a type checker reads and what runs are two lists: each name is in both, from the same module."""
    file = import_module(package).__file__
    assert file is not None
    (fork,) = (node for node in ast.parse(Path(file).read_text(encoding="utf8")).body if isinstance(node, ast.If))
    imports = [node for node in fork.body if isinstance(node, ast.ImportFrom)]
    checked = {(f".{node.module}", alias.name, alias.asname) for node in imports for alias in node.names}
    assert isinstance(fork.orelse[0], ast.Assign)
    assert isinstance(fork.orelse[0].value, ast.Call)
    homes: dict[str, str] = ast.literal_eval(fork.orelse[0].value.args[1])
    assert checked == {(module, name, name) for module, names in homes.items() for name in names.split()}


@pytest.mark.parametrize("package", ["lens", "sae", "sae.index", "sae.training", "tasks", "worker"])
def test_what_is_public_is_in_one_place(package: str) -> None:
    assert not hasattr(import_module(f"lens_tui.{package}"), "__all__")


def test_every_module_can_be_imported() -> None:
    for item in pkgutil.walk_packages(lens_tui.__path__, "lens_tui."):
        import_module(item.name)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lens_tui", "--version"], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == f"mlx-lens-tui {lens_tui.__version__}\n"


def internal_imports(name: str, path: Path) -> set[str]:
    """The modules of the package that one imports at its top or for its types alone."""
    base = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_file_imports_itself_by_way_of_others() -> None:
    root = Path(lens_tui.__file__).parent
    files = {
        ".".join(("lens_tui", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in root.rglob("*.py")
    }
    # A package's own file only names what is below it, each when it is first asked for.
    below = {name: path for name, path in files.items() if path.name != "__init__.py"}
    graph = {name: internal_imports(name, path) & below.keys() - {name} for name, path in below.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_a_file_is_one_subject_and_a_function_fits_on_a_screen() -> None:
    assert len(SOURCES) <= 304  # what probes, graphs, a server and several machines need: still to be found things in
    assert {path.name: n for path, text in SOURCES.items() if (n := len(text.splitlines())) > 600} == {}
    functions = [
        node
        for text in SOURCES.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = [(node.name, _lines(node)) for node in functions]
    assert [item for item in lengths if item[1] > 60] == []


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How long a function is, with its decorators and its docstring."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    return (function.end_lineno or first) - first + 1


def test_a_file_is_found_by_its_name_alone() -> None:
    """Two files of one name in different rooms are told apart by more than their folder."""
    names = Counter(path.name for path in SOURCES if path.name != "__init__.py")
    assert {name: n for name, n in names.items() if n > 1} == {}


def test_a_class_has_its_name_alone() -> None:
    """Private classes too; and no message inside a widget is called as a class of another file is."""
    places: dict[str, set[str]] = {}
    inside: dict[str, set[str]] = {}
    for path, text in SOURCES.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, set()).add(path.name)
                for inner in (one for one in node.body if isinstance(one, ast.ClassDef)):
                    inside.setdefault(inner.name, set()).add(path.name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
    assert {name: files | places[name] for name, files in inside.items() if name in places} == {}


def test_the_contracts_between_rooms_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
