"""Prompts through the chat template, roles, display forms, and what ids are refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import AutoTokenizer

from lens_tui import LensModel, demo
from lens_tui.lens.read.activations import encode_batch
from lens_tui.lens.tokens import Tokens, id_table
from lens_tui.records import Add, LensError, Positions, SteeringVector

from . import tiny

PLAIN = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Gemma's way: no system turn, it goes into the user's; alone it is refused.
FOLDED = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% if messages|length == 1 %}{{ raise_exception('a user turn must follow') }}{% endif %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<{{ m['role'] }}>{{ first if loop.first else '' }}{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokens(template: str | None = None) -> Tokens:
    plain: Any = AutoTokenizer.from_pretrained(str(demo.model_path()))
    plain.chat_template = template
    return Tokens(TokenizerWrapper(plain, type(tiny.tokenizer().detokenizer), eos_token_ids=[0]), 8192)


def test_a_text_goes_through_the_template_unless_raw() -> None:
    with_template = tokens(PLAIN)
    bos = with_template.bos
    chat = with_template.prompt("Hi there")
    assert with_template.decode(chat.ids[1:]) == "<user>Hi there\n<assistant>"
    assert (chat.ids[0], chat.ids.count(bos)) == (bos, 1)
    raw = with_template.prompt("Hi there", raw=True)
    assert with_template.decode(raw.ids).endswith("Hi there")
    assert raw.spans is None
    assert tokens().prompt("Hi there").ids == tokens().encode("Hi there")


def test_bos_is_never_there_twice() -> None:
    plain = tokens()
    tokenizer: Any = plain.tokenizer
    name = tokenizer.bos_token
    assert plain.encode(name + "Hi") == plain.encode("Hi")
    assert plain.encode("Hi")[0] == plain.bos
    assert plain.prompt([0, 0, 5]).ids == (0, 0, 5)  # ids are taken as they are


CONVERSATION = [
    {"role": "system", "content": "Be kind and short."},
    {"role": "user", "content": "What is money?"},
    {"role": "assistant", "content": "A promise."},
    {"role": "user", "content": "Whose?"},
]


@pytest.mark.parametrize("template", [PLAIN, FOLDED], ids=["plain", "folded"])
def test_the_spans_of_a_conversation_are_its_messages_in_order(template: str) -> None:
    made = tokens(template)
    prompt = made.prompt(CONVERSATION)
    assert prompt.spans is not None
    turns = [span for span in prompt.spans if span[0] != "template"]
    assert [span[0] for span in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[0][1] == 0
    assert turns[-1][2] == len(prompt.ids)
    for before, after in pairwise(turns):
        assert before[2] == after[1]
    texts = [made.decode(prompt.ids[start:stop]) for _, start, stop in turns]
    for text, message in zip(texts, CONVERSATION, strict=False):
        assert message["content"].split()[-1] in text
    assert "money" not in texts[0] + texts[2]
    assert texts[-1] == "<assistant>"


@pytest.mark.parametrize("role", ["system", "user", "assistant", "template"])
def test_a_role_is_steered_where_its_tokens_are(role: str) -> None:
    made = tokens(PLAIN)
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), made.tokenizer)
    vector = SteeringVector.of("v", np.random.default_rng(0).normal(size=64), 0)
    add = Add(id="a", layer=0, vector=vector, scale=5.0, positions=Positions("role", role=role))
    plain, steered = [_residuals(lens, records) for records in ((), (add,))]
    spans = lens.tokens.prompt(CONVERSATION).spans
    assert spans is not None
    n = len(lens.tokens.prompt(CONVERSATION).ids)
    wanted = np.zeros(n, dtype=bool)
    for name, start, stop in spans:
        wanted[start:stop] |= name == role
    moved = np.linalg.norm(steered[:n] - plain[:n], axis=-1)
    np.testing.assert_allclose(moved, 5.0 * wanted, atol=1e-3)
    # Generated tokens are the assistant's.
    with lens.capture(0) as captured:
        run = lens.stream(CONVERSATION, max_tokens=3, interventions=[add], logits_processors=[_always(11)])
        list(run)
    tail = np.array(captured[0])[0, n:]
    with lens.capture(0) as captured:
        list(lens.stream(CONVERSATION, max_tokens=3, logits_processors=[_always(11)]))
    drift = np.linalg.norm(tail - np.array(captured[0])[0, n:], axis=-1)
    assert (drift > 1.0).all() == (role == "assistant")


def test_thinking_is_followed_token_by_token() -> None:
    made = tokens(PLAIN)
    start, end = made.encode("q")[-1], made.encode("w")[-1]
    tokenizer: Any = made.tokenizer
    tokenizer._think_start_tokens, tokenizer._think_end_tokens = (start,), (end,)
    tokenizer._think_start, tokenizer._think_end = "q", "w"
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), made.tokenizer)
    vector = SteeringVector.of("v", np.random.default_rng(0).normal(size=64), 0)
    add = Add(id="a", layer=0, vector=vector, scale=5.0, positions=Positions("role", role="thinking"))
    script = [40, start, 41, 42, end, 43, 44]
    n = len(lens.tokens.prompt("Hi").ids)
    residuals = []
    for records in ((), (add,)):
        with lens.capture(0) as captured:
            list(lens.stream("Hi", max_tokens=7, interventions=records, sampler=_script(script)))
        residuals.append(np.array(captured[0])[0, n:])
    moved = np.linalg.norm(residuals[1] - residuals[0], axis=-1) > 4.0
    # 41 and 42 are thought; what comes after attends to them but is not pushed itself.
    assert moved.tolist() == [False, False, True, True, False, False]


def test_a_role_needs_a_template_and_a_part_of_that_name() -> None:
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), tokens(PLAIN).tokenizer)
    vector = SteeringVector.of("v", np.ones(64), 0)
    add = Add(id="a", layer=0, vector=vector, scale=5.0, positions=Positions("role", role="tool"))
    with pytest.raises(LensError, match="no 'tool' part"):
        list(lens.stream("Hi", interventions=[add], max_tokens=1))
    with pytest.raises(LensError, match="not made from chat messages"):
        list(lens.stream("Hi", raw=True, interventions=[add], max_tokens=1))
    with pytest.raises(LensError, match="no chat template"):
        tokens().prompt([{"role": "user", "content": "Hi"}])


def test_display_forms_show_spaces_and_bytes_and_hide_nothing() -> None:
    made = tokens()
    ids = made.encode("Hello there 🙂\x1b[31m\n")
    shown = [made.display(token) for token in ids]
    assert "".join(shown[1:3]).startswith("Hello")
    assert " there" in shown
    assert not any("\x1b" in text or "\n" in text for text in shown)
    assert any(text.startswith("⟨f0") or text == " 🙂" for text in shown)
    assert made.display(10**6) == "⟨1000000⟩"


def test_ids_are_checked_and_empty_prompts_refused() -> None:
    made = tokens()
    for bad in ([], [8192], [-1]):
        with pytest.raises(LensError):
            made.prompt(bad)
    nothing: tuple[Any, ...] = ([], [[]], np.zeros((1, 0), int))
    assert [id_table(empty).shape for empty in nothing] == [(0,), (1, 0), (1, 0)]
    with pytest.raises(LensError, match="without a tokenizer"):
        Tokens(None, 10).encode("text")
    assert Tokens(None, 10).display(3) == "⟨3⟩"


def _residuals(lens: LensModel, records: Any) -> Any:
    with lens.capture(0) as captured:
        list(lens.stream(CONVERSATION, max_tokens=1, interventions=records))
    return np.array(captured[0])[0]


def _always(token: int) -> Any:
    return lambda ids, row: mx.where(mx.arange(row.shape[-1]) == token, 1e4, row)


def _script(ids: list[int]) -> Any:
    left = iter([*ids, 5, 5])
    return lambda logprobs: mx.array([next(left)])


@pytest.mark.parametrize("chat", [True, False])
def test_a_lone_surrogate_is_one_sentence(chat: bool) -> None:
    text = "caf\udce9 the"
    plain: Any = AutoTokenizer.from_pretrained(str(demo.model_path()))
    if chat:
        plain.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokens = Tokens(TokenizerWrapper(plain), 8192)
    lens = LensModel("demo")
    asked: list[Callable[[], object]] = [
        lambda: tokens.prompt(text),
        lambda: tokens.encode(text),
        lambda: list(encode_batch(tokens, [text])),
        lambda: lens.loss(text),
        lambda: lens.generate(text, max_tokens=1),
    ]
    for ask in asked:
        with pytest.raises(LensError, match=r"character 3 is a lone surrogate, U\+DCE9"):
            ask()


def test_content_is_neither_special_nor_the_first_token_unless_there_is_nothing_else() -> None:
    some = tokens()
    assert some.bos is not None
    assert some.content([some.bos, 40, 50, 0]).tolist() == [False, True, True, False]
    assert some.content([40, 50, 60]).tolist() == [False, True, True]
    assert some.content([40]).tolist() == [True]
    assert some.content([some.bos]).tolist() == [True]
