"""Imports stand at the top of files; inside a function only what is heavy, where the file does not need it anyway."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import lens_tui

HEAVY = {
    "mlx": "the screens live without it, and 100 ms",
    "mlx_lm": "brings transformers: a second, which only a model that is loaded is worth",
    "transformers": "a second",
    "tokenizers": "a library in Rust for one way to read a text",
    "vllm_mlx": "an extra, which may not be there",
    "numpy": "90 ms: not on the first frame",
    "pydantic": "40 ms, for the tools of an agent alone",
    "sqlite3": "20 ms: not on the first frame",
    "huggingface_hub": "100 ms, and only what is fetched needs it",
    "safetensors": "a library in Rust, for files of arrays alone",
    "yaml": "20 ms, for SAEs that say what they are in it",
    "zstandard": "a library in C for one kind of vector file",
    "ray": "an extra, which may not be there",
    "fsspec": "an extra, which may not be there",
    "starlette": "an extra, for the server alone",
    "uvicorn": "an extra, for the server alone",
    "mcp": "an extra, for the tools of an agent alone",
    "aiohttp": "an extra, for the app in a browser alone",
    "textual_serve": "an extra, for the app in a browser alone",
    "textual": "200 ms, which verbs live without",
    "rich.console": "20 ms, which most verbs live without",
    "rich.table": "6 ms, for one verb",
    "rich.text": "comes with the console",
    "rich.style": "comes with the console",
    "rich.box": "comes with the table",
    "lens_tui.worker.thread": "40 ms of jobs and events, which verbs live without",
    "typer": "40 ms, which the usual starts of the app live without",
    "platformdirs": "not where a home is named",
    "importlib.metadata": "40 ms, for it brings the readers of e-mail",
    "hashlib": "brings OpenSSL: not on the first frame",
    "ctypes": "not on the first frame",
    "logging.handlers": "brings sockets and pickles: not on the first frame",
}
"""What may be imported where it is used, and why."""

FIRST = ("tui.app", "tui.start", "tui.screens.generate_screen", "tui.screens.load_screen", "worker.thread")
"""What the first frame needs. Other screens are imported as they are shown, so from what these need in functions."""

MODEL_THERE = {"mlx", "numpy", "sqlite3", "yaml", "hashlib", "ctypes", "importlib.metadata", "logging.handlers"}
"""What costs nothing any more where a model is read or steered: in ``lens``, ``sae``, ``tasks`` and the handlers."""
WITHOUT_MODEL = {
    *("lens", "lens.light_imports", "sae.kinds", "sae.index.tables"),
    *(f"tasks.{name}" for name in ("causes", "graphs", "knowledge", "made_with")),
    *(f"tasks.{name}" for name in ("models", "replay", "run_command", "run_export", "run_script")),
    *(f"tasks.{name}" for name in ("publish", "text_source", "cluster", "cluster_capture", "cluster_index")),
    *("tasks.capture", "tasks.index", "worker.handlers"),
}
"""Files there that a screen or a verb without a model imports, or a cluster's worker before its thread is there."""

SEAMS = {
    ("tui.screens.chat_pane", "lens_tui.tui.widgets.prompt_area"): "Textual's text area, 9 ms: first where one types",
    ("records.vector_formats.vllm_lens", "compression"): "only Python 3.14 has it",
    ("tui.start", "lens_tui.tui.app"): "imported with the terminal guarded and with rare collections",
    ("tui.start", "lens_tui.tui.driver"): "not where something of the start is asked for without the app",
    ("cli.config_verbs", "typer._completion_shared"): "private to Typer: if it goes, one verb goes with it",
}
"""What else is imported in a function, by file and module, and why."""


class Import(NamedTuple):
    """An import: what it is of, where, and whether it is inside a function."""

    module: str
    line: int
    inside: bool


ROOT = Path(lens_tui.__file__).parent
FILES = {
    ".".join(("lens_tui", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def modules_of(name: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that an import in the file ``name`` is of: of a package those below it that it names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    above = base[: len(base) - node.level + 1] if node.level else []
    module = ".".join([*above, *filter(None, [node.module])])
    return [below if (below := f"{module}.{alias.name}") in FILES else module for alias in node.names]


def _imports(name: str, node: ast.AST, inside: bool) -> Iterator[Import]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        for each in node.orelse:
            yield from _imports(name, each, inside)
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (Import(module, node.lineno, inside) for module in modules_of(name, node))
    else:
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(name, child, inside)


@cache
def imports(name: str) -> list[Import]:
    """What a file of the package imports when it runs."""
    return list(_imports(name, ast.parse(FILES[name].read_text(encoding="utf8")), False))


def _with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


@cache
def needed(module: str) -> frozenset[str]:
    """All that is imported with a module, at the tops of files, itself included."""
    found, left = set[str](), _with_parents(module)
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            tops = [each.module for each in imports(one) if not each.inside] if one in FILES else []
            left += [part for top in tops for part in _with_parents(top)]
    return frozenset(found)


@cache
def first_frame() -> frozenset[str]:
    """What is there at the first frame."""
    return frozenset[str]().union(*(needed(f"lens_tui.{name}") for name in FIRST))


def late(name: str, module: str) -> frozenset[str]:
    """What a module would bring to the top of a file that it should not."""
    short = name.removeprefix("lens_tui.")
    early = name in first_frame()
    there = needed(name) | (first_frame() if early else frozenset())
    if short.startswith(("lens", "sae", "tasks", "worker.handlers")) and short not in WITHOUT_MODEL:
        there |= MODEL_THERE
    brought = needed(module) - there
    screens = [each for each in brought if early and each.startswith("lens_tui.tui.screens.")]
    return (brought & HEAVY.keys()).union(screens)


def is_seam(name: str, module: str) -> bool:
    """Whether it may be imported inside a function of that file."""
    return (name.removeprefix("lens_tui").removeprefix("."), module) in SEAMS or bool(late(name, module))


def test_imports_stand_at_the_top_but_for_what_is_heavy() -> None:
    strays = [
        f"{name}:{each.line}: {each.module}"
        for name in FILES
        for each in imports(name)
        if each.inside and not is_seam(name, each.module)
    ]
    assert strays == []


def test_every_seam_is_one() -> None:
    """A seam that nothing crosses any more, or that the rule allows without it, goes from the list."""
    inside = {(name, each.module) for name in FILES for each in imports(name) if each.inside}
    there = {(".".join(filter(None, ("lens_tui", short))), module) for short, module in SEAMS}
    assert there - inside == set()
    assert {(name, module) for name, module in there if late(name, module)} == set()
    assert HEAVY.keys() - {part for _, module in inside for part in needed(module)} == set()
    assert {f"lens_tui.{name}" for name in WITHOUT_MODEL} - FILES.keys() == set()


def test_the_rule_tells_what_is_heavy_from_what_is_not() -> None:
    assert late("lens_tui.tui.app", "lens_tui.records.run_store") >= {"sqlite3"}
    assert late("lens_tui.lens.forward", "lens_tui.lens.room") == set()
    assert late("lens_tui.tui.app", "lens_tui.tui.screens.jump_screen") == {"lens_tui.tui.screens.jump_screen"}
    assert late("lens_tui.tui.app", "lens_tui.records.wording") == set()
