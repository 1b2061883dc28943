"""The tokens that were steered can be listed, and the echo of a run be measured: held against what was captured."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import Ablate, Add, Arm, Intervention, LensError, Positions, ProjectOut, Request, SteeringVector
from tests.lens import tiny
from tests.lens.test_tokens import CONVERSATION, PLAIN, tokens

VECTOR = SteeringVector.of("v", np.random.default_rng(0).normal(size=64), 0)
IDS = list(tiny.IDS)


def add(positions: Positions | None = None, scale: float = 5.0, name: str = "a", layer: int = 0) -> Add:
    return Add(id=name, layer=layer, vector=VECTOR, scale=scale, positions=positions or Positions())


def forced(*ids: int) -> Any:
    """A sampler that chooses these tokens, whatever the model gives."""
    left = iter([*ids, *[5] * 3])
    return lambda logprobs: mx.array([next(left)] * logprobs.shape[0])


def thoughtful() -> LensModel:
    """A model whose template has roles and whose thinking stands between ``q`` and ``w``."""
    made = tokens(PLAIN)
    wrapped: Any = made.tokenizer
    wrapped._think_start_tokens, wrapped._think_end_tokens = made.encode("q")[-1:], made.encode("w")[-1:]
    wrapped._think_start, wrapped._think_end = "q", "w"
    return LensModel.from_model(tiny.llama(layers=2, vocab=8192), wrapped)


@pytest.mark.parametrize(
    "positions",
    [
        Positions(),
        Positions("prompt"),
        Positions("generated"),
        Positions("last"),
        Positions("not_bos"),
        Positions("indices", indices=(0, 3, -2)),
        Positions("slice", start=2, stop=-1),
        *(Positions("role", role=role) for role in ("system", "user", "assistant", "thinking")),
    ],
    ids=lambda positions: positions.role or positions.kind,
)
def test_what_is_listed_is_what_was_moved(positions: Positions) -> None:
    lens = thoughtful()
    start, end = (lens.tokens.encode(word)[-1] for word in "qw")
    script = [40, start, 41, 42, end, 43]
    with lens.capture(0) as captured:
        run = lens.stream(CONVERSATION, interventions=[add(positions)], sampler=forced(*script), max_tokens=6)
        assert not run.steered
        list(run)
    held = np.array(captured[0])[0]
    ids = [*run.prompt_ids, *script[:-1]]
    plain = np.array(lens.residuals(ids, 0))
    moved = np.flatnonzero(np.linalg.norm(held - plain, axis=-1) > 4.0)
    (found,) = run.steered
    assert (found.id, found.layer, found.site) == ("a", 0, "resid_post")
    assert list(found.positions) == moved.tolist() != []
    assert found.tokens == tuple(lens.tokens.display(ids[at]) for at in moved)
    # The echo of the run is that of absolute positions in the same text.
    same = lens.echo(ids, add(Positions("indices", indices=tuple(map(int, moved)))))
    for one, other in zip(run.echo(), same, strict=True):
        assert (one.moved, one.relative) == pytest.approx((other.moved, other.relative), rel=1e-5)
        assert one.along == pytest.approx(other.along, rel=1e-4, abs=1e-5)
    assert run.echo()[0].moved == pytest.approx(5.0 * len(moved) / len(ids), rel=1e-4)


def test_interventions_are_added_changed_and_removed_by_id_in_any_order() -> None:
    lens = LensModel.from_model(tiny.llama())
    run = lens.stream(IDS, max_tokens=10, interventions=[add(name="a"), add(name="b", layer=1)])
    scales = [next(run).scales]
    run.add(add(name="c", layer=2))
    run.remove("a")
    scales += [next(run).scales, next(run).scales]
    run.add(add(name="b", layer=1, scale=2.0))
    run.add(add(name="a", layer=3))
    assert [item.id for item in run.interventions] == ["b", "c", "a"]
    scales += [token.scales for token in run]
    old, middle = (("a", 5.0), ("b", 5.0)), (("b", 5.0), ("c", 5.0))
    assert scales == [old] * 2 + [middle] * 2 + [(("b", 2.0), ("c", 5.0), ("a", 5.0))] * 6
    n = len(IDS)
    found = {(item.id, item.layer): item.positions for item in run.steered}
    # The first two tokens were under way when it was turned: the prompt and one token went in as before.
    assert found == {
        ("a", 0): tuple(range(n + 1)),
        ("b", 1): tuple(range(n + 9)),
        ("c", 2): tuple(range(n + 1, n + 9)),
        ("a", 3): tuple(range(n + 3, n + 9)),
    }
    with pytest.raises(LensError, match="Nothing with the id 'z'"):
        run.remove("z")


def test_each_arm_lists_its_own_tokens_up_to_its_own_end() -> None:
    lens = LensModel.from_model(tiny.llama())
    arms = [
        Arm("baseline"),
        Arm("late", (add(Positions("generated")),)),
        Arm("two", (Ablate(id="z", layer=1, site="mlp_out"), add(Positions("indices", indices=(1,)), name="one"))),
        Arm("off", (add(scale=0.0),)),
    ]
    run = lens.compare(IDS, arms, max_tokens=5, seed=1, temp=1.0)
    next(run)
    run.add(3, add(Positions("not_bos"), name="new"))
    list(run)
    n = len(IDS)
    assert run.steered(0) == ()
    assert [item.positions for item in run.steered(1)] == [tuple(range(n - 1, n + 4))]
    two = run.steered(2)
    assert [(item.id, item.site, item.positions) for item in two] == [
        ("z", "mlp_out", tuple(range(n + 4))),
        ("one", "resid_post", (1,)),
    ]
    assert [(item.id, item.positions) for item in run.steered(3)] == [("new", tuple(range(n + 1, n + 4)))]
    assert [item.id for item in run.interventions(3)] == ["a", "new"]
    run_ids = [*IDS, *run.token_ids[1][:-1]]
    wanted = lens.echo(run_ids, add(Positions("slice", start=n - 1)))
    assert [echo.moved for echo in run.echo(1)] == pytest.approx([echo.moved for echo in wanted], rel=1e-5)
    for call in (run.steered, run.echo, run.interventions):
        with pytest.raises(LensError, match="no arm 4"):
            call(4)
    with pytest.raises(LensError, match="no arm 4"):
        run.remove(4, "a")


def test_what_is_reused_forked_or_given_in_chunks_is_listed_as_if_it_were_not() -> None:
    lens = LensModel.from_model(tiny.llama())
    prompt = [int(token) for token in np.random.default_rng(1).integers(1, 97, size=80)]
    for _ in range(2):  # the second time from the prefixes that were kept
        run = lens.compare(prompt, [Arm("x", (add(layer=2),))], max_tokens=3, prefill_step_size=16)
        list(run)
        assert [item.positions for item in run.steered(1)] == [tuple(range(82))]
    assert run.reused > 0
    cache: Any = []
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(lens.model)
    lens.forward(prompt[:50], cache)
    stream = lens.stream(prompt[50:], prompt_cache=cache, max_tokens=3)
    next(stream)
    stream.add(add(Positions("slice", start=60)))
    list(stream)
    (found,) = stream.steered
    assert found.positions == (81,)
    assert found.tokens == (lens.tokens.display(stream.token_ids[1]),)
    with pytest.raises(LensError, match="from a prompt cache"):
        stream.echo()


@pytest.mark.parametrize("way", ["together", "alone"])
def test_a_batchs_rows_list_their_tokens(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "alone":
        from mlx_lm.models.cache import KVCache

        monkeypatch.delattr(KVCache, "merge")
    lens = LensModel.from_model(tiny.llama())
    plans: list[tuple[Intervention, ...]] = [
        (add(Positions("last")),),
        (),
        (add(), ProjectOut(id="p", layer=2, vector=VECTOR, positions=Positions("generated"))),
    ]
    prompts = [tiny.IDS, (3, 4), (9, 8, 7, 6, 5)]
    requests = [Request(prompt, plan) for prompt, plan in zip(prompts, plans, strict=True)]
    batch = lens.stream_batch(requests, max_tokens=4, completion_batch_size=2, prefill_batch_size=2)
    list(batch)
    assert [[item.positions for item in batch.steered(index)] for index in range(3)] == [
        [(7,)],
        [],
        [tuple(range(8)), (4, 5, 6, 7)],
    ]
    ids = [*prompts[2], *batch.token_ids[2][:-1]]
    wanted = lens.echo(ids, add(), ProjectOut(id="p", layer=2, vector=VECTOR, positions=Positions("slice", start=4)))
    assert [echo.moved for echo in batch.echo(2)] == pytest.approx([echo.moved for echo in wanted], rel=1e-5)
    with pytest.raises(LensError, match="no prompt 3"):
        batch.steered(3)
