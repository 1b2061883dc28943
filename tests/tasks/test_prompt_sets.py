"""Sets of prompts: each cell is what its prompt, arm and seed give alone, with the numbers of ``compare``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import FeatureProbe, LensModel, compare_prompts, read_back
from lens_tui.records import Add, Arm, LensError, ProjectOut, Sampling, Token
from lens_tui.records.prompt_set import COLUMNS, SetCell, column_of
from lens_tui.tasks.prompt_sets import PromptIds, SetComparison, SetToken, bundled_prompts, sweep
from tests.lens import tiny
from tests.lens.tiny import add

TEXTS = ("Once upon a time", "The old man opened the door and", "def f(x):")
ARMS = (
    Arm("add", (add(6.0),)),
    Arm("two", (add(4.0, 3, 2), ProjectOut(id="p", layer=1, vector=add(1.0, 5).vector))),
)


def gemma3(dtype: mx.Dtype = mx.float32) -> Any:
    """As ``tiny.gemma3``, with the vocabulary of a tokenizer."""
    model = tiny._model(
        "gemma3_text",
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        vocab_size=8192,
        sliding_window=4,
        sliding_window_pattern=2,
    )
    model.sanitize({})
    return tiny.finished(tiny.settle(model, 1), dtype, 0)


MAKERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny.llama(vocab=8192),
    "gemma3": gemma3,
    "llama bf16": lambda: tiny.llama(vocab=8192, dtype=mx.bfloat16),
    "llama 8-bit": lambda: tiny.llama(vocab=8192, bits=8),
}


def lens_of(name: str) -> LensModel:
    return LensModel.from_model(MAKERS[name](), tiny.tokenizer())


def finished(run: SetComparison) -> dict[tuple[int, int, int], SetCell]:
    for _ in run:
        pass
    return run.cells


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("sampling", [Sampling(max_tokens=6), Sampling(max_tokens=6, temp=1.2, seed=5)])
def test_each_cell_is_what_compare_gives_for_its_prompt_alone(name: str, sampling: Sampling) -> None:
    lens = lens_of(name)
    cells = finished(compare_prompts(lens, TEXTS, ARMS, sampling))
    assert len(cells) == 9
    for prompt, text in enumerate(TEXTS):
        run = lens.compare(text, ARMS, sampling)
        alone: list[list[Token]] = [[] for _ in run.arms]
        for event in run:
            if isinstance(event, Token):
                alone[event.arm].append(event)
        for arm, tokens in enumerate(alone):
            cell = cells[prompt, arm, 0]
            assert [token.token_id for token in cell.tokens] == [token.token_id for token in tokens]
            assert cell.text == run.texts[arm]
            for part in ("logprob", "plain_logprob", "kl", "reverse_kl"):
                got, wanted = ([getattr(token, part) for token in found] for found in (cell.tokens, tokens))
                np.testing.assert_allclose(got, wanted, atol=5e-4, rtol=1e-3)
    assert len({cells[0, arm, 0].text for arm in range(3)}) > 1
    assert lens.registry.installed == ()


@pytest.mark.parametrize("name", MAKERS)
def test_its_numbers_are_those_of_numpy_on_the_logits_of_both_models(name: str) -> None:
    lens = lens_of(name)
    cells = finished(compare_prompts(lens, TEXTS[:2], ARMS, Sampling(max_tokens=5)))
    precise = name in ("llama", "gemma3")
    atol, rtol = (1e-3, 1e-3) if precise else (0.03, 0.05)
    for (prompt, arm, _), cell in cells.items():
        ids = list(lens.tokens.prompt(TEXTS[prompt]).ids)
        after = [token.token_id for token in cell.tokens]
        whole = mx.array([[*ids, *after[:-1]]])
        plain = logprobs(lens.forward(whole), len(ids))
        steered = plain
        if arm:
            with lens.intervene(*ARMS[arm - 1].interventions):
                steered = logprobs(lens.forward(whole), len(ids))
        rows = np.arange(len(after))
        kl = (np.exp(steered) * (steered - plain)).sum(axis=-1)
        reverse = (np.exp(plain) * (plain - steered)).sum(axis=-1)
        of_plain, of_own = plain[rows, after].mean(), steered[rows, after].mean()
        wanted = [kl.mean(), reverse.mean(), of_own, of_plain, np.log(cell.plain_perplexity or 0)]
        got: list[Any] = [cell.mean_kl, cell.mean_reverse_kl, cell.mean_logprob, cell.mean_plain_logprob, -of_plain]
        np.testing.assert_allclose(got, wanted, atol=atol, rtol=rtol)
        pairs = list(pairwise(after))
        assert cell.distinct_2 == len(set(pairs)) / len(pairs)
        assert (cell.mean_kl == 0.0) == (arm == 0)
        assert (cell.dose is None) == (arm == 0)


def logprobs(logits: mx.array, start: int) -> Any:
    values = np.array(logits[0].astype(mx.float32), dtype=np.float64)[start - 1 :]
    values -= values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def test_a_feature_is_read_back_from_what_was_written_by_the_plain_model() -> None:
    lens = lens_of("llama")
    probe = FeatureProbe(tiny_sae(), 3, 2)
    cells = finished(compare_prompts(lens, TEXTS[:2], ARMS, Sampling(max_tokens=4), probe=probe))
    for (prompt, _, _), cell in cells.items():
        ids = [token.token_id for token in cell.tokens]
        alone = read_back(lens, TEXTS[prompt], ids, probe.sae, 3, 2)
        assert cell.read_back == pytest.approx(alone.mean, rel=1e-3, abs=1e-4)
    assert max(cell.read_back or 0.0 for cell in cells.values()) > 0


def tiny_sae() -> Any:
    weights = mx.array(np.random.default_rng(3).normal(size=(64, 8)).astype(np.float32))

    class Encoder:
        d_model = 64

        def encode(self, residual: mx.array) -> mx.array:
            return mx.maximum(residual.astype(mx.float32) @ weights, 0)

    return Encoder()


def test_groups_change_nothing_and_a_group_is_measured_before_the_next_begins() -> None:
    lens = lens_of("llama")
    together = finished(compare_prompts(lens, TEXTS, ARMS, Sampling(max_tokens=4)))
    run = compare_prompts(lens, TEXTS, ARMS, Sampling(max_tokens=4), rows=1)
    seen: list[tuple[str, int]] = []
    for event in run:
        kind = {PromptIds: "ids", SetToken: "token", SetCell: "cell"}[type(event)]
        seen += [(kind, event.prompt)] if (kind, event.prompt) not in seen else []
    assert seen == [(kind, prompt) for prompt in range(3) for kind in ("ids", "token", "cell")]
    for place, cell in run.cells.items():
        assert cell.text == together[place].text
        assert cell.mean_kl == pytest.approx(together[place].mean_kl, abs=1e-4)


def test_a_run_that_is_stopped_keeps_its_cells_and_the_text_of_the_others() -> None:
    lens = lens_of("llama")
    run = compare_prompts(lens, TEXTS, ARMS, Sampling(max_tokens=5), rows=3)
    tokens = 0
    for event in run:
        tokens += isinstance(event, SetToken) and event.prompt == 1
        if tokens == 4:
            break
    run.close()
    assert {place[0] for place in run.cells} == {0}
    rest = run.rest()
    assert {cell.prompt for cell in rest} == {1}
    assert sum(len(cell.tokens) for cell in rest) == 4
    assert all((cell.reason, cell.mean_kl) == ("stopped", None) for cell in rest)
    assert lens.registry.installed == ()
    assert next(run, None) is None


def test_several_seeds_are_cells_of_their_own_and_need_a_temperature() -> None:
    lens = lens_of("llama")
    warm = Sampling(max_tokens=6, temp=1.5, seed=9)
    cells = finished(compare_prompts(lens, TEXTS[:1], ARMS[:1], warm, seeds=(3, 4)))
    assert sorted(cells) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    assert cells[0, 0, 0].text != cells[0, 0, 1].text
    (same,) = list(finished(compare_prompts(lens, TEXTS[:1], [], warm, seeds=(4,))).values())
    assert same.text == cells[0, 0, 1].text
    for seeds, says in (((1, 1), "twice"), ((1, 2), "temperature 0")):
        with pytest.raises(LensError, match=says):
            compare_prompts(lens, TEXTS, ARMS, seeds=seeds)


def test_what_cannot_be_is_refused_in_a_sentence_that_names_arm_and_prompt() -> None:
    lens = lens_of("llama bf16")
    with pytest.raises(LensError, match="no prompts"):
        compare_prompts(lens, [], ARMS)
    with pytest.raises(LensError, match="Prompt 2 is empty"):
        compare_prompts(lens, ["a", " "], ARMS)
    with pytest.raises(LensError, match="the arm 'weak' on prompt '1' "):
        finished(compare_prompts(lens, TEXTS, [Arm("weak", (add(1e-9),))], Sampling(max_tokens=3)))
    assert lens.registry.installed == ()


def test_a_sweep_is_an_arm_for_each_scale() -> None:
    arms = sweep(Arm("dogs", (add(3.0),)), (0.5, 4.0))
    assert [arm.name for arm in arms] == ["dogs 0.5", "dogs 4"]
    records = [arm.interventions[0] for arm in arms]
    assert [record.scale for record in records if isinstance(record, Add)] == [0.5, 4.0]
    for arm, scales in ((ARMS[1], (1.0,)), (ARMS[0], (1.0, 1.0)), (ARMS[0], ()), (Arm("baseline"), (1.0,))):
        with pytest.raises(LensError, match="scale"):
            sweep(arm, scales)


def test_the_mean_of_a_perplexity_is_geometric_and_what_is_unknown_does_not_count() -> None:
    def cell(*plain: float) -> SetCell:
        return SetCell(0, 0, 0, tuple(Token(at, 1, "a", "a", -1.0, plain_logprob=p) for at, p in enumerate(plain)))

    cells = [cell(-1.0, -3.0), cell(-4.0), SetCell(1, 0, 0)]
    assert column_of("plain_perplexity").over(cells) == pytest.approx(float(np.exp(3.0)))
    assert column_of("mean_kl").over(cells) is None
    assert len({column.id for column in COLUMNS}) == len(COLUMNS)
    with pytest.raises(LensError, match="no column"):
        column_of("x")


def test_the_bundled_set_has_names_and_texts_of_its_own() -> None:
    items = bundled_prompts().items
    assert len({item.id for item in items}) == len({item.text for item in items}) == len(items) >= 8
