"""Compile the package and its tests, as a process that takes every n-th file: ``python tests/compile_all.py 0 2``.

In a fresh clone each process of ``pytest -n auto`` would compile all of them, at the same time: half a minute's work of
one core for nothing. What lies compiled already is left alone.
"""

from __future__ import annotations

import ast
import os
import sys
from compileall import compile_file
from pathlib import Path

from _pytest.assertion import rewrite

ROOT = Path(__file__).resolve().parents[1]


def rewritten(file: Path) -> Path:
    """Where pytest looks for a file of tests, whose assertions it writes anew; compiled, if it was not."""
    place = rewrite.get_cache_dir(file) / (file.stem + rewrite.PYC_TAIL)
    about = file.stat()
    if not place.exists() or place.stat().st_mtime < about.st_mtime:
        source = file.read_bytes()
        tree = ast.parse(source, filename=str(file))
        rewrite.rewrite_asserts(tree, source, str(file))
        place.parent.mkdir(exist_ok=True)
        beside = place.with_name(f"{place.name}.{os.getpid()}")  # another process may read it meanwhile
        with open(beside, "wb") as out:
            rewrite._write_pyc_fp(out, about, compile(tree, str(file), "exec", dont_inherit=True))
        os.replace(beside, place)
    return place


def main(part: int, parts: int) -> None:
    """Compile every ``parts``-th file, from the one with the number ``part``."""
    files = sorted(file for folder in ("lens_tui", "tests") for file in (ROOT / folder).rglob("*.py"))
    for file in files[part::parts]:
        if file.name.startswith("test_") or file.name == "conftest.py":
            rewritten(file)
        else:
            compile_file(file, quiet=2)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
