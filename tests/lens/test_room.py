"""What does not fit into memory is refused before it starts, with what to lower: by the caches a model really makes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from lens_tui import LensModel
from lens_tui.lens import room
from lens_tui.records import Arm, LensError
from tests.lens import tiny
from tests.lens.tiny import IDS, add

MAKERS = {
    "llama": tiny.llama,
    "bf16": lambda: tiny.llama(dtype=mx.bfloat16),
    "gemma3": tiny.gemma3,
    "rwkv7": tiny.rwkv7,
}


def of(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """A machine where everything is asked about, and this much is left, whoever gives."""
    monkeypatch.setattr(room, "SMALL", 1)
    monkeypatch.setattr(room, "memory_left", lambda: left)
    monkeypatch.setattr(room, "memory_at_most", lambda: left)


def bytes_of(model: Any, tokens: int) -> int:
    """What caches hold after that many tokens, by their own arrays cut to what was fed."""
    cache: Any = make_prompt_cache(model)
    model(mx.ones((1, tokens), mx.int32), cache=cache)
    total = 0
    for item in cache:
        if getattr(item, "keys", None) is None:
            total += item.nbytes
            continue
        held = min(tokens, getattr(item, "max_size", tokens))
        total += sum(part[:, :, :1].nbytes * held for part in (item.keys, item.values))
    return total


@pytest.mark.parametrize("name", MAKERS)
def test_a_comparison_fits_or_is_refused_by_what_its_caches_take(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MAKERS[name]()
    lens = LensModel.from_model(model)
    arms = [Arm("baseline"), Arm("one", (add(3.0),)), Arm("two", (add(4.0, 2),))]
    logits = 5 * tiny.VOCAB * 4 * 4
    need = 5 * bytes_of(model, len(IDS) + 20) + logits  # three arms, and two companions
    of(monkeypatch, need)
    list(lens.compare(IDS, arms, max_tokens=20))
    of(monkeypatch, need - 1)
    with pytest.raises(LensError, match=r"3 arms and 2 companions over 8 tokens .* up to 20 more .*Lower max_tokens"):
        lens.compare(IDS, arms, max_tokens=20)
    if name != "rwkv7":  # a recurrent state is of one size, however much is written
        list(lens.compare(IDS, arms, max_tokens=4))
    list(lens.compare(IDS, arms, max_tokens=20, kl=False))


def test_only_the_prompts_must_fit_into_what_is_free_now(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    arms = [Arm("baseline"), Arm("one", (add(3.0),))]
    logits = 3 * tiny.VOCAB * 4 * 4
    of(monkeypatch, 1 << 40)  # of the whole machine
    need = 3 * bytes_of(model, len(IDS)) + logits
    monkeypatch.setattr(room, "memory_left", lambda: need)
    list(lens.compare(IDS, arms, max_tokens=40))
    monkeypatch.setattr(room, "memory_left", lambda: need - 1)
    with pytest.raises(LensError, match=r"0\.0 GB can be had.*Lower max_tokens"):
        lens.compare(IDS, arms, max_tokens=40)
    monkeypatch.setattr(room, "memory_left", lambda: bytes_of(model, len(IDS)) + 3 * tiny.VOCAB * 16)
    list(lens.stream_batch([IDS] * 3, max_tokens=40))  # rows that come and go: one prompt alone is certain


def test_what_a_prompt_cache_holds_already_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    cache = make_prompt_cache(model)
    lens.forward([*IDS, *IDS, *IDS], cache)
    of(monkeypatch, bytes_of(model, len(IDS) + 4) + tiny.VOCAB * 16)
    list(lens.stream(IDS, prompt_cache=cache, max_tokens=4))
    with pytest.raises(LensError, match="One row over 8 tokens of prompt and up to 5 more"):
        lens.stream(IDS, max_tokens=5)


def test_a_batch_counts_the_rows_that_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    need = 2 * (bytes_of(model, len(IDS) + 6) + tiny.VOCAB * 16)
    of(monkeypatch, need)
    options: dict[str, Any] = {"max_tokens": 6, "prefill_batch_size": 2}
    prompts = [IDS] * 5
    with pytest.raises(LensError, match=r"The 5 longest prompts .*completion_batch_size"):
        lens.stream_batch(prompts, **options)
    run = lens.stream_batch(prompts, completion_batch_size=2, **options)
    assert len([row for row in run if type(row).__name__ == "ArmEnd"]) == 5


def test_a_forward_counts_its_captures_or_else_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = LensModel.from_model(tiny.llama())
    every = len(IDS) * 4 * 64 * 4  # tokens, layers, width, bytes
    of(monkeypatch, every)
    with lens.capture(range(4)) as got:
        lens.forward(IDS)
    assert got[3].shape == (1, len(IDS), 64)
    of(monkeypatch, every - 1)
    with lens.capture(range(4)), pytest.raises(LensError, match=r"with 4 captured places, .*fewer layers"):
        lens.forward(IDS)
    of(monkeypatch, len(IDS) * tiny.VOCAB * 4 - 1)
    with pytest.raises(LensError, match="a vocabulary of 97"):
        lens.forward(IDS)
    assert lens.residuals(IDS, 2).shape == (len(IDS), 64)


def test_this_machine_has_some_memory_left_and_small_runs_ask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < room.memory_left() <= room.memory_at_most()
    monkeypatch.setattr(room, "memory_left", lambda: pytest.fail("asked"))
    lens = LensModel.from_model(tiny.llama())
    list(lens.compare(IDS, [Arm("one", (add(3.0),))], max_tokens=4))
