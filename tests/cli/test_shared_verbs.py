"""Verbs in several processes that share a model: rank 0 speaks and writes, and an error ends all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui.cli.command import app
from tests.lens.sharing.ring import run_ring

COMPARE = ["compare", "The cat sat", "--arm", "random:0@4*22", "--max-tokens", "6", "--json"]


def alone(*arguments: str) -> str:
    """What a verb prints in one process: in this one."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def check_alike(one: str, other: str) -> None:
    """Two printed comparisons have the same tokens, and the same divergence but for rounding."""
    arms, others = (json.loads(printed)["arms"] for printed in (one, other))
    assert [arm["token_ids"] for arm in arms] == [arm["token_ids"] for arm in others]
    np.testing.assert_allclose([arm["kl"] for arm in arms], [arm["kl"] for arm in others], rtol=1e-2, atol=1e-4)
    assert max(arms[1]["kl"]) > 0.1


@pytest.mark.parametrize("mode", ["tensor", "pipeline"])
def test_rank_0_prints_what_one_process_prints(tmp_path: Path, mode: str) -> None:
    first, second = run_ring(tmp_path, 2, ["-m", "lens_tui", "--shard", mode, *COMPARE])
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert second[1:] == ("", "")
    check_alike(first[1], alone(*COMPARE))


def test_a_capture_is_written_once_and_is_the_one_of_one_process(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat.\n\nA dog ran to the park and barked.\n")
    ask = ["capture", str(text), "--layers", "2,5", "--site", "resid_post", "--out"]
    one, both = tmp_path / "one", tmp_path / "both"
    alone(*ask, str(one))
    found = run_ring(tmp_path, 2, ["-m", "lens_tui", "--shard", "tensor", *ask, str(both)])
    assert [status for status, *_ in found] == [0, 0], found
    assert found[1][1] == ""
    wanted, got = (_shard(folder) for folder in (one, both))
    assert wanted.keys() == got.keys()
    for name in wanted:
        np.testing.assert_allclose(np.array(got[name]), np.array(wanted[name]), rtol=1e-3, atol=1e-3)


def _shard(folder: Path) -> dict[str, Any]:
    loaded: Any = mx.load(str(next(folder.glob("shard-*.safetensors"))))
    return {name: np.asarray(value) for name, value in loaded.items()}


def test_an_error_ends_all_and_is_said_once(tmp_path: Path) -> None:
    first, second = run_ring(tmp_path, 2, ["-m", "lens_tui", "--shard", "tensor", "compare", "x", "--model", "/none"])
    assert first[0] == second[0] == 2
    assert "There is no folder '/none'" in first[2]
    assert second[1:] == ("", "")
