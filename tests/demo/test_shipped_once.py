"""Nothing of any size is shipped twice."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import lens_tui

EMPTY_ARRAY = 128
"""Bytes of a NumPy file that holds nothing: those of one shape are equal."""


def test_no_file_of_the_package_is_there_twice() -> None:
    root = Path(lens_tui.__file__).parent
    same = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.stat().st_size > EMPTY_ARRAY:
            same[hashlib.sha256(path.read_bytes()).hexdigest()].append(str(path.relative_to(root)))
    assert [paths for paths in same.values() if len(paths) > 1] == []
