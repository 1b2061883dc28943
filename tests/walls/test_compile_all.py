"""What is compiled before the tests is what pytest would compile, and it finds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

from tests import compile_all


def test_pytest_takes_what_was_compiled_and_a_change_is_compiled_again(tmp_path: Path) -> None:
    file = tmp_path / "test_of_it.py"
    for found in ("one", "others"):
        file.write_text(f"def test_it():\n    found = {found!r}\n    assert found == 'two'\n")
        os.utime(file, (2_000_000_000 + len(found),) * 2)  # later than what was compiled before
        code = rewrite._read_pyc(file, compile_all.rewritten(file))
        assert code is not None
        names: dict[str, object] = {}
        exec(code, names)
        test = names["test_it"]
        assert callable(test)
        with pytest.raises(AssertionError, match=f"'{found}' == 'two'"):
            test()
