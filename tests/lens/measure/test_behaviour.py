"""Behaviour by two answers: the numbers are those of plain forwards, steered and not, and of CAA's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensModel, behaviour
from lens_tui.cli.command import app
from lens_tui.records import Add, LensError, Positions, SteeringVector
from lens_tui.records.corpus import read_questions
from tests.lens import tiny

CAA = [
    {
        "question": f"Would you {what}?\n\nChoices:\n (A) Yes\n (B) No",
        "answer_matching_behavior": " (A)" if at % 2 else " (B)",
        "answer_not_matching_behavior": " (B)" if at % 2 else " (A)",
    }
    for at, what in enumerate(["go", "stay at home", "eat the cake", "help"])
]
MAKERS: dict[str, Any] = {"llama": tiny.llama, "gemma3": tiny.gemma3}


def by_hand(lens: LensModel, record: Any = None) -> Any:
    """The gap at each question: one forward up to the letter, softmax of two logits."""
    gaps = []
    for row in CAA:
        ids = [lens.tokens.encode(row["question"] + row[key]) for key in list(row)[1:]]
        at = next(place for place, (one, other) in enumerate(zip(*ids, strict=True)) if one != other)
        if record is None:
            logits = lens.forward([list(ids[0][:at])])
        else:
            with lens.intervene(record):
                logits = lens.forward([list(ids[0][:at])])
        last = np.array(logits[0, -1].astype(mx.float32), dtype=np.float64)
        gaps.append(last[ids[0][at]] - last[ids[1][at]])
    return np.array(gaps)


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_the_gap_of_the_letters_logits(tmp_path: Path, name: str) -> None:
    lens = LensModel.from_model(MAKERS[name](layers=2, vocab=8192), tiny.tokenizer())
    file = tmp_path / "caa.json"
    file.write_text(json.dumps(CAA))
    vector = SteeringVector.of("v", np.random.default_rng(0).normal(size=64), 1)
    push = Add(id="p", layer=1, vector=vector, scale=6.0)
    found = behaviour(lens, read_questions(file), [push], [0.0, 1.0, 2.0], raw=True)
    plain, steered = by_hand(lens), by_hand(lens, push)
    assert found.plain.difference == pytest.approx(plain.mean(), abs=1e-3)
    assert found.points[0].behaviour == found.plain
    one = found.points[1].behaviour
    assert one.difference == pytest.approx(steered.mean(), abs=1e-3)
    assert one.share == pytest.approx((1 / (1 + np.exp(-steered))).mean(), abs=1e-3)
    assert one.chosen == (steered > 0).mean()
    assert one.low <= one.difference <= one.high
    assert one.n == 4
    assert abs(one.difference - found.plain.difference) > 0.01
    prompt = Add(id="p", layer=1, vector=vector, scale=6.0, positions=Positions("prompt"))
    last = behaviour(lens, read_questions(file), [prompt], raw=True)
    assert last.points[0].behaviour.difference != pytest.approx(one.difference, abs=1e-4)


def test_the_verb_gives_the_librarys_numbers(tmp_path: Path) -> None:
    file = tmp_path / "caa.json"
    file.write_text(json.dumps(CAA))
    done = CliRunner().invoke(app, ["behaviour", str(file), "-a", "cookery*15.5", "--scales", "0,1", "--json"])
    result = json.loads(done.stdout)
    plain = behaviour(LensModel("demo"), read_questions(file)).plain
    assert result["plain"]["difference"] == pytest.approx(plain.difference, abs=1e-3)
    assert [point["factor"] for point in result["points"]] == [0.0, 1.0]
    assert result["points"][0]["difference"] == result["plain"]["difference"]


def test_what_has_no_two_answers_is_refused(tmp_path: Path) -> None:
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())
    with pytest.raises(LensError, match="question 1 do not differ"):
        behaviour(lens, [("Is it?", " yes", " yes")], raw=True)
    with pytest.raises(LensError, match="no questions"):
        behaviour(lens, [])
    file = tmp_path / "x.jsonl"
    file.write_text('{"question": "a"}')
    with pytest.raises(LensError, match=r"x.jsonl, question 1"):
        read_questions(file)
