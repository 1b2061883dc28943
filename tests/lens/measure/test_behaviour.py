"""Behaviour by two answers: the numbers are those of plain forwards, steered and not, and of CAA's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensModel, behaviour, dose_response, find_scale
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


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_a_column_of_dose_response_and_a_target_of_the_search(tmp_path: Path, name: str) -> None:
    lens = LensModel.from_model(MAKERS[name](layers=2, vocab=8192), tiny.tokenizer())
    file = tmp_path / "caa.json"
    file.write_text(json.dumps(CAA))
    questions = read_questions(file)
    vector = SteeringVector.of("v", np.random.default_rng(0).normal(size=64), 1)

    def pushed(scale: float) -> Add:
        return Add(id="p", layer=1, vector=vector, scale=scale)

    plain = by_hand(lens)
    found = dose_response(
        lens, "a b", [pushed(1.0)], [2.0, 6.0], texts=["a b c d"], raw=True, max_tokens=2, questions=questions
    )
    moved = [by_hand(lens, pushed(scale)).mean() for scale in (2.0, 6.0)]
    assert [point.behaviour and point.behaviour.difference for point in found.points] == pytest.approx(moved, abs=1e-3)
    assert found.baseline_behaviour is not None
    assert found.baseline_behaviour.difference == pytest.approx(plain.mean(), abs=1e-3)
    assert found.curve("behaviour").values == pytest.approx(moved, abs=1e-3)
    none = dose_response(lens, "a b", [pushed(1.0)], [2.0], texts=["a b c d"], raw=True, max_tokens=2)
    assert none.points[0].behaviour is None
    assert "behaviour" not in [curve.name for curve in none.curves]
    sign = float(np.sign((by_hand(lens, pushed(0.5)) - plain)[::2].mean()))
    goal = 0.8 * float((by_hand(lens, pushed(sign)) - plain)[::2].mean())
    push = pushed(sign)
    search = find_scale(lens, push, quantity="behaviour", target=goal, questions=questions, start=0.25, limit=8.0)
    assert search.reached
    grown = by_hand(lens, pushed(sign * search.scale)) - plain
    assert search.value == pytest.approx(grown[::2].mean(), abs=1e-3)
    assert search.value == pytest.approx(goal, rel=0.05)
    assert search.held_out == pytest.approx(grown[1::2].mean(), abs=1e-3)
    with pytest.raises(LensError, match="searched for by questions"):
        find_scale(lens, push, quantity="behaviour")


def test_a_behaviour_is_lowered_by_a_target_below_0_and_a_push_the_other_way_is_given_up_soon() -> None:
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())
    questions = [tuple(row.values()) for row in CAA]
    vector = SteeringVector.of("v", np.random.default_rng(0).normal(size=64), 1)

    def grown(scale: float) -> float:
        push = Add(id="p", layer=1, vector=vector, scale=scale)
        return float((by_hand(lens, push) - by_hand(lens))[::2].mean())

    sign = float(np.sign(grown(0.5)))
    up, down = (Add(id="p", layer=1, vector=vector, scale=turn * sign) for turn in (1.0, -1.0))
    how: dict[str, Any] = {"quantity": "behaviour", "questions": questions, "start": 0.02}
    goal = 0.8 * grown(-sign)
    lowered = find_scale(lens, down, target=goal, **how)
    assert lowered.reached
    assert lowered.target == goal < 0
    assert lowered.value == pytest.approx(grown(-sign * lowered.scale), abs=1e-3)
    assert lowered.value == pytest.approx(goal, rel=0.05)
    assert lowered.curve.values == pytest.approx([grown(-sign * at) for at in lowered.curve.scales], abs=1e-3)
    assert lowered.curve.monotone
    low, high = lowered.bracket
    assert grown(-sign * high) <= goal < grown(-sign * low)
    for push, target, verb in ((down, 1e-3, "lowers"), (up, -1e-3, "raises")):
        wrong = find_scale(lens, push, target=target, **how)
        assert not wrong.reached
        assert wrong.evaluations in (6, 8)  # two or four at a time
        assert wrong.scale == min(wrong.curve.scales)  # the nearest
        assert verb in wrong.notes[0]
    far = find_scale(lens, up, target=1e3, **how)
    assert not far.reached
    assert max(far.curve.scales) == pytest.approx(200 * 0.02)  # ten residual norms from one twentieth of one
    assert far.value == max(far.curve.values)
    with pytest.raises(LensError, match="may be below 0"):
        find_scale(lens, up, target=0.0, **how)


def test_the_verb_gives_the_librarys_numbers(tmp_path: Path) -> None:
    file = tmp_path / "caa.json"
    file.write_text(json.dumps(CAA))
    done = CliRunner().invoke(app, ["behaviour", str(file), "-a", "cookery*15.5", "--scales", "0,1", "--json"])
    result = json.loads(done.stdout)
    plain = behaviour(LensModel("demo"), read_questions(file)).plain
    assert result["plain"]["difference"] == pytest.approx(plain.difference, abs=1e-3)
    assert [point["factor"] for point in result["points"]] == [0.0, 1.0]
    assert result["points"][0]["difference"] == result["plain"]["difference"]
    said = CliRunner().invoke(app, ["behaviour", str(file)]).output
    assert "share: mean of p(matching) / (p(matching) + p(other)); chosen: questions whose matching" in said


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
