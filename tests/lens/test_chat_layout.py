"""Whose tokens are whose in a conversation, against tokenisations made by hand; templates that rewrite and refuse."""

from __future__ import annotations

from typing import Any

import pytest

from lens_tui import LensModel, demo
from lens_tui.lens.tokens import Tokens
from lens_tui.records import LensError, Sampling

from . import tiny
from .test_tokens import CONVERSATION, FOLDED, PLAIN, tokens

Messages = list[dict[str, str]]

TRIMMED = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] | trim }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
# As templates of thinking models do: what was thought is left out of every turn but the last.
FORGETFUL = (
    "{% for m in messages %}{% set said = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in said and not loop.last %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<{{ m['role'] }}>{{ said }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
LOOKS_INSIDE = (
    "{% for m in messages %}{% if m['content'].startswith('W') %}<W>{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
)


def own(made: Tokens, prompt: Any) -> set[int]:
    """The positions that are said to be the template's."""
    return {at for role, start, stop in prompt.spans or () if role == "template" for at in range(start, stop)}


def by_hand(made: Tokens, ids: tuple[int, ...], text: str, contents: list[str]) -> set[int]:
    """The positions of tokens that share no character with a content, counting the characters of each token's bytes."""
    ranges, start = [], 0
    for content in contents:
        start = text.index(content, start)
        ranges.append((start, start + len(content)))
        start += len(content)
    found, at = set(), 0
    for place, token in enumerate(ids):
        end = at + len(made.decode([token]))
        if not any(at < stop and end > begin for begin, stop in ranges):
            found.add(place)
        at = end
    assert at == len(text)
    return found


@pytest.mark.parametrize(
    ("template", "shown"), [(PLAIN, 4), (TRIMMED, 4), (FOLDED, 4)], ids=["plain", "trim", "folded"]
)
def test_the_template_s_tokens_are_those_that_hold_nothing_of_a_content(template: str, shown: int) -> None:
    made = tokens(template)
    spaced = [{**turn, "content": f"{turn['content']}"} for turn in CONVERSATION]
    prompt = made.prompt(spaced)
    text = made.decode(prompt.ids)
    contents = [turn["content"] for turn in CONVERSATION][:shown]
    assert own(made, prompt) == by_hand(made, prompt.ids, text, contents)
    assert own(made, prompt)


def test_white_space_that_is_trimmed_is_nobody_s_and_characters_of_many_tokens_stay_whole() -> None:
    made = tokens(TRIMMED)
    prompt = made.prompt([{"role": "user", "content": "  \n🦉 owls\n"}])
    said = [at for at in range(len(prompt.ids)) if at not in own(made, prompt)]
    assert made.decode([prompt.ids[at] for at in said]).strip() == "🦉 owls"
    assert said == list(range(said[0], said[-1] + 1))
    assert len(said) > 3  # the owl is several tokens


def test_a_content_that_repeats_the_template_is_still_the_content() -> None:
    made = tokens(PLAIN)
    prompt = made.prompt([{"role": "user", "content": "<user><assistant>"}])
    head, tail = made.encode("<user>"), "<assistant>"
    inner = [token for at, token in enumerate(prompt.ids) if at not in own(made, prompt)]
    assert "<assistant>" in made.decode(inner)
    assert len(prompt.ids) - len(inner) >= len(head)
    assert made.decode(prompt.ids).endswith(tail)


def test_thinking_that_a_template_drops_moves_no_content() -> None:
    made = tokens(FORGETFUL)
    talk = [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "<think>\nIt is four.\n</think>\n\nFour."},
        {"role": "user", "content": "And three?"},
    ]
    prompt = made.prompt(talk)
    text = made.decode(prompt.ids)
    assert "It is four" not in text
    assert own(made, prompt) == by_hand(made, prompt.ids, text, ["Two and two?", "Four.", "And three?"])


def test_after_a_rewritten_turn_a_kept_prefix_goes_only_as_far_as_it_is_the_same() -> None:
    made = tokens(FORGETFUL)
    model = tiny.llama(layers=2, vocab=8192)
    talk = [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "<think>\nIt is four.\n</think>\n\nFour."},
    ]
    after = [*talk, {"role": "user", "content": "And three?"}]
    lens = LensModel.from_model(model, made.tokenizer)
    list(lens.stream(talk, max_tokens=4))
    used = lens.stream(after, max_tokens=8, top=3)
    fresh = LensModel.from_model(model, made.tokenizer).stream(after, max_tokens=8, top=3)
    seen, wanted = list(used), list(fresh)
    assert used.prompt_ids == fresh.prompt_ids
    assert [token.token_id for token in seen] == [token.token_id for token in wanted]
    for mine, theirs in zip(seen, wanted, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_where_a_template_looks_into_contents_nothing_is_claimed() -> None:
    made = tokens(LOOKS_INSIDE)
    prompt = made.prompt([{"role": "user", "content": "What is money?"}])
    assert own(made, prompt) == set()
    assert {span[0] for span in prompt.spans or ()} == {"user"}
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), made.tokenizer)
    from lens_tui.records import Add, Positions, SteeringVector

    add = Add(
        id="a",
        layer=0,
        vector=SteeringVector.of("v", [1.0] * 64, 0),
        scale=1,
        positions=Positions("role", role="template"),
    )
    with pytest.raises(LensError, match="no 'template' part"):
        list(lens.stream([{"role": "user", "content": "What?"}], interventions=[add], max_tokens=1))


def test_a_template_that_refuses_is_one_sentence() -> None:
    with pytest.raises(LensError, match=r"does not take this prompt \(a user turn must follow\)"):
        tokens(FOLDED).prompt(CONVERSATION[:1])


# -- the bundled model's dialogues ------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> LensModel:
    return LensModel(str(demo.model_path()))


TALK: Messages = [
    {"role": "user", "content": "I want to book a table for two."},
    {"role": "assistant", "content": " What time?"},
    {"role": "user", "content": "At seven."},
]


def test_the_bundled_model_takes_texts_as_they_are_and_conversations_in_the_form_of_its_training(
    bundled: LensModel,
) -> None:
    assert bundled.info.takes_chat
    assert not bundled.info.has_chat_template
    assert bundled.tokens.prompt("The old man").ids == bundled.tokens.encode("The old man")
    prompt = bundled.tokens.prompt(TALK)
    said = "User: I want to book a table for two.\nAssistant: What time?\nUser: At seven.\nAssistant:"
    assert prompt.ids == bundled.tokens.encode(said)
    assert own(bundled.tokens, prompt) == {
        at
        for at, token in enumerate(prompt.ids)
        if bundled.tokens.decode([token]) in ("<|endoftext|>", "User", "Assistant", ":", "\n")
    }
    with pytest.raises(LensError, match="user and assistant only"):
        bundled.tokens.prompt([{"role": "system", "content": "Be kind."}])


def test_an_answer_ends_where_the_user_would_speak_and_goes_on_as_the_same_tokens(bundled: LensModel) -> None:
    assert bundled.tokens.chat_stop == ("\nUser:",)
    run = bundled.stream(TALK[:1], max_tokens=60)
    list(run)
    assert run.text
    assert "User:" not in run.text
    batch = bundled.stream_batch([TALK[:1]], sampling=Sampling(max_tokens=60))
    list(batch)
    assert batch.texts == (run.text,)
    # What was written, given back as a turn, is the tokens that were written.
    answer = {"role": "assistant", "content": run.text}
    again = bundled.tokens.prompt([TALK[0], answer, TALK[2]]).ids
    before = bundled.tokens.prompt(TALK[:1]).ids
    wrote = run.token_ids
    assert len(wrote) > 3
    assert again[: len(before) + len(wrote)] == (*before, *wrote)
    own_stop = bundled.stream(TALK[:1], max_tokens=60, stop=" ")
    list(own_stop)
    assert own_stop.text == ""


def test_turns_that_special_tokens_end_need_no_other_stop() -> None:
    made = tokens("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|endoftext|>{% endfor %}")
    assert made.prompt(CONVERSATION).stop == ()
    assert tokens(PLAIN).prompt(CONVERSATION).stop == ("\n<user>",)
    assert tokens(PLAIN).prompt("a text").stop == ("\n<user>",)  # which is a conversation of one turn
    assert tokens(PLAIN).prompt("a text", raw=True).stop == ()
