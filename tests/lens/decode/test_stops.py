"""Stop texts and stop ids: the same in a stream, in a comparison and in a batch, however a text is cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import Add, Arm, ArmEnd, LensError, Request, Sampling, SteeringVector, Token
from tests.lens import tiny

SAID = " the old man opened the door and found a letter on the table."
OTHER = " she wept, and the king rode home through the forest in the rain."


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())


def forced(lens: LensModel, *texts: str) -> dict[str, Any]:
    """Options under which each row says its text, whatever the model gives."""
    wrapped: Any = lens.tokenizer
    said = [list(wrapped.encode(text, add_special_tokens=False)) for text in texts]
    step = [0]

    def sampler(logprobs: mx.array) -> mx.array:
        at, step[0] = step[0], step[0] + 1
        return mx.array([ids[min(at, len(ids) - 1)] for ids in said])

    return {"sampler": sampler, "max_tokens": len(said[0]), "raw": True}


def pieces(lens: LensModel, text: str) -> list[str]:
    """A text's tokens as texts, in its own spelling."""
    wrapped: Any = lens.tokenizer
    return [wrapped.decode([token]) for token in wrapped.encode(text, add_special_tokens=False)]


def test_a_stop_text_is_found_across_the_borders_of_tokens(lens: LensModel) -> None:
    parts = pieces(lens, SAID)
    assert "".join(parts) == SAID
    # Begins inside one token, ends inside another, with a whole one in between where there is one.
    for stop in ("n opened t", "r and fo", "\u2603", "ound a let", SAID[-1]):
        assert stop not in parts or len(stop) == 1
        run = lens.stream("Once", stop=stop, **forced(lens, SAID))
        tokens = list(run)
        expected = SAID.split(stop)[0]
        assert run.text == "".join(token.text for token in tokens) == expected
        assert run.reason == ("stop" if stop in SAID else "length")
        written = "".join(parts[: len(tokens)])
        assert written.startswith(expected + stop) or stop not in SAID
        assert stop not in "".join(parts[: len(tokens) - 1])
        assert run.sampling.stop == (stop,)
        assert lens.generate("Once", stop=[stop, "never this"], **forced(lens, SAID)) == expected


def test_what_may_be_the_beginning_of_a_stop_is_not_shown_before_it_is_known(lens: LensModel) -> None:
    shown: list[str] = []
    for token in lens.stream("Once", stop="the door but", **forced(lens, SAID)):
        shown.append(token.text)
        assert not "".join(shown).endswith(("the", "the door", "the door "))
    assert "".join(shown) == SAID


def test_the_earliest_of_several_stops_counts(lens: LensModel) -> None:
    assert lens.generate("Once", stop=("letter", "man opened", "opened"), **forced(lens, SAID)) == " the old "


def test_a_stop_ends_its_own_arm_and_the_others_go_on(lens: LensModel) -> None:
    vector = SteeringVector.of("v", np.ones(64), 1)
    arms = [Arm("baseline"), Arm("steered", (Add(id="a", layer=1, vector=vector, scale=2.0),))]
    run = lens.compare("Once", arms, stop="king r", **forced(lens, SAID, OTHER))
    events = list(run)
    ends = {event.arm: event for event in events if isinstance(event, ArmEnd)}
    assert run.texts == (SAID, OTHER.split("king r")[0])
    assert (ends[0].reason, ends[1].reason) == ("length", "stop")
    for arm, text in enumerate(run.texts):
        assert ends[arm].text == text
        assert "".join(event.text for event in events if isinstance(event, Token) and event.arm == arm) == text
    assert len(run.token_ids[1]) == ends[1].n_tokens < len(run.token_ids[0])


def test_stops_of_the_settings_are_stops_everywhere(lens: LensModel) -> None:
    prompts = ["The cat", "A dog sat on"]
    whole = lens.generate_batch(prompts, max_tokens=12, raw=True)
    stop = whole[0][10:13]
    sampling = Sampling(max_tokens=12, stop=("never this", stop))
    wanted = whole[0][: whole[0].index(stop)]
    assert lens.generate(prompts[0], sampling=sampling, raw=True) == wanted
    run = lens.compare(prompts[0], [], sampling, raw=True)
    list(run)
    assert run.texts == (wanted,)
    batch = lens.stream_batch([Request(prompts[0], sampling=sampling), prompts[1]], max_tokens=12, raw=True)
    list(batch)
    assert batch.texts == (wanted, whole[1])
    assert [row.sampling.stop for row in batch.records] == [("never this", stop), ()]
    # The batch's stops hold for settings that name none, and an empty tuple means none.
    plain = Sampling(max_tokens=12)
    requests = [Request(prompts[0], sampling=plain), Request(prompts[0], sampling=plain, stop=())]
    assert lens.generate_batch(requests, stop=stop, raw=True) == [wanted, whole[0]]


def test_stop_ids_end_a_row_beside_the_tokenizers_own() -> None:
    lens = LensModel.from_model(tiny.llama())
    ids = [token.token_id for token in lens.stream(tiny.IDS, max_tokens=8)]
    upto: Sequence[int] = ids[: ids.index(ids[3]) + 1]
    run = lens.stream(tiny.IDS, max_tokens=8, stop_ids=[ids[3]])
    assert [token.token_id for token in run] == upto
    assert run.reason == "stop"
    compared = lens.compare(tiny.IDS, [], max_tokens=8, stop_ids=(ids[3],))
    list(compared)
    assert compared.token_ids == (tuple(upto),)


def test_stops_that_cannot_be_are_refused(lens: LensModel) -> None:
    bare = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match="stop_ids"):
        bare.stream(tiny.IDS, stop="x")
    for stop in ("", ["good", ""], [3]):
        with pytest.raises(LensError, match="stop text"):
            lens.stream("Once", stop=stop)
    with pytest.raises(LensError, match="no token"):
        lens.compare("Once", [], stop_ids=[10_000])
