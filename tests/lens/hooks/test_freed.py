"""What was computed goes when nobody holds it any more: in a cycle it stays, and its memory, until a collection."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import mlx.core as mx
import pytest
from mlx.core import array

from lens_tui import (
    Arm,
    LensModel,
    PromptPair,
    attention_patterns,
    causal_trace,
    delta_losses,
    dose_response,
    gradients,
    integrated_gradients,
    log_probability,
    logit_lens,
    patch,
)
from lens_tui.lens.hooks import capture_result

from ..tiny import add, llama, tokenizer

IDS = [5, 9, 3, 17, 8, 21]


def _forward(lens: LensModel) -> None:
    with lens.capture(range(lens.n_layers)) as captured:
        mx.eval(lens.forward(IDS), captured[0])


def _texts(lens: LensModel) -> None:
    with lens.capture(range(lens.n_layers)) as captured:
        mx.eval(lens.forward([IDS, IDS[:3]]), captured[0])


def _stream(lens: LensModel) -> None:
    with lens.capture(range(lens.n_layers)) as captured:
        list(lens.stream(IDS, max_tokens=4, interventions=[add(3.0)]))
        mx.eval(captured[0])


def _batch(lens: LensModel) -> None:
    with lens.capture(range(lens.n_layers)) as captured:
        list(lens.stream_batch([IDS, IDS[:3]], max_tokens=4))
        mx.eval(captured.row(0)[0])


def _compare(lens: LensModel) -> None:
    list(lens.compare(IDS, [Arm("steered", (add(3.0),))], max_tokens=4))


def _integrated(lens: LensModel) -> None:
    other = lens.residuals([5, 9, 4, 17, 8, 21], 1, site="resid_pre")  # from zeros two steps would be warned of
    integrated_gradients(lens, IDS, log_probability(7), 1, baseline=other, steps=2)


PAIR = PromptPair(clean=IDS, corrupted=[5, 9, 4, 17, 8, 21], answer=7, wrong=11)
WORKS: dict[str, Callable[[LensModel], object]] = {
    "a capture of a forward": _forward,
    "a capture of several texts": _texts,
    "a capture of a generation": _stream,
    "a capture of a batch": _batch,
    "a comparison": _compare,
    "losses": lambda lens: delta_losses(lens, [(add(3.0),)], texts=[IDS]),
    "a dose": lambda lens: dose_response(lens, IDS, [add(3.0)], [1.0, 2.0], texts=[IDS]),
    "residuals": lambda lens: lens.residuals([IDS, IDS[:3]], 1),
    "an echo": lambda lens: lens.echo(IDS, add(3.0)),
    "a logit lens": lambda lens: logit_lens(lens, IDS),
    "attention": lambda lens: attention_patterns(lens, IDS, 1),
    "patches": lambda lens: patch(lens, PAIR),
    "estimated patches": lambda lens: patch(lens, PAIR, method="attribution"),
    "a causal trace": lambda lens: causal_trace(lens, IDS, (2, 3), answer=7, samples=2),
    "gradients": lambda lens: gradients(lens, IDS, log_probability(7), [(1, "resid_post")]),
    "integrated gradients": _integrated,
}


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()
    gc.collect()


def arrays_left() -> int:
    """How many arrays only the collector could free."""
    gc.collect()
    found = sum(type(item) is array for item in gc.garbage)
    gc.garbage.clear()
    return found


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_no_array_waits_for_the_collector(work: Callable[[LensModel], object], collector_off: None) -> None:
    lens = LensModel.from_model(llama(), tokenizer())
    work(lens)
    assert arrays_left() == 0


def test_an_array_in_a_cycle_is_seen(collector_off: None) -> None:
    held: list[object] = [mx.zeros(3)]
    held.append(held)
    del held
    assert arrays_left() == 1


@pytest.mark.parametrize("most", [0, 1 << 26])
def test_parts_joined_one_by_one_or_together_are_the_same(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_result, "JOINED", most)
    lens = LensModel.from_model(llama(), tokenizer())
    with lens.capture(range(lens.n_layers)) as captured:
        ids = [token.token_id for token in lens.stream(IDS, max_tokens=5)]
    whole = [lens.residuals(IDS + ids[:-1], layer) for layer in range(lens.n_layers)]
    for layer in reversed(range(lens.n_layers)):
        assert captured[layer].shape[1] == len(IDS) + 4
        assert mx.allclose(captured[layer][0], whole[layer], atol=1e-5)


def test_who_reads_one_site_as_the_tokens_come_has_no_other_copied_for_each() -> None:
    lens = LensModel.from_model(llama(), tokenizer())
    with lens.capture(range(lens.n_layers)) as captured:
        for _ in lens.stream(IDS, max_tokens=5):
            mx.eval(captured[0])
        parts = {key: len(steps) for key, steps in captured._steps.items()}
    assert parts.pop((0, "resid_post")) == 1
    assert min(parts.values()) > 1
