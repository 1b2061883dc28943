"""Generation: the same tokens as mlx-lm, steered and plain, chunked or not, with the right numbers beside them."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

import lens_tui.lens.decode.generation
from lens_tui import LensModel
from lens_tui.records import Add, LensError, Positions, Sampling, SteeringVector
from tests.lens import tiny
from tests.lens.tiny import unit

IDS = list(tiny.IDS)
MAKERS = {
    "llama": tiny.llama,
    "gemma3": tiny.gemma3,
    "gemma4": tiny.gemma4,
    "rwkv7": tiny.rwkv7,
    "lfm2": tiny.lfm2,
    "qwen3_moe": tiny.qwen3_moe,
}


def add(scale: float = 5.0, positions: Positions | None = None, layer: int = 1, **extra: Any) -> Add:
    where = positions or Positions()
    return Add(id="a", layer=layer, vector=SteeringVector.of("v", unit(), layer), scale=scale, positions=where, **extra)


def replay(lens: LensModel, count: int, edit: Any) -> list[int]:
    """Greedy decoding without any cache: the whole sequence again for every token, edited by absolute position."""
    ids = list(IDS)
    for _ in range(count):
        with lens.hook(1, lambda ctx, h: edit(h, ids)):
            ids.append(int(np.argmax(np.array(lens.forward(ids)[0, -1]))))
    return ids[len(IDS) :]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("step", [1, 3, 2048])
def test_greedy_tokens_are_mlx_lms_in_any_chunks(name: str, step: int) -> None:
    model = MAKERS[name]()
    lens = LensModel.from_model(model)
    theirs = [token for token, _ in generate_step(mx.array(IDS), model, max_tokens=6)]
    generation = lens.stream(IDS, max_tokens=6, prefill_step_size=step)
    assert [token.token_id for token in generation] == theirs
    assert generation.reason == "length"


@pytest.mark.parametrize("name", ["llama", "gemma3", "rwkv7", "lfm2"])
@pytest.mark.parametrize(
    "positions",
    [
        Positions(),
        Positions("prompt"),
        Positions("generated"),
        Positions("last"),
        Positions("indices", indices=(1, 9)),
        Positions("slice", start=4, stop=10),
    ],
    ids=lambda positions: positions.kind,
)
@pytest.mark.parametrize("step", [3, 2048])
def test_positions_are_absolute_in_chunked_prefill_and_decoding(name: str, positions: Positions, step: int) -> None:
    lens = LensModel.from_model(MAKERS[name]())
    masks = {
        "all": lambda at: at >= 0,
        "prompt": lambda at: at < 7,
        "generated": lambda at: at >= 7,
        "last": lambda at: at == 7,
        "indices": lambda at: (at == 1) | (at == 9),
        "slice": lambda at: (at >= 4) & (at < 10),
    }

    def edit(h: mx.array, ids: list[int]) -> mx.array:
        mask = mx.array(masks[positions.kind](np.arange(len(ids))))[None, :, None]
        return mx.where(mask, h + 8.0 * mx.array(unit().astype(np.float32)), h)

    generation = lens.stream(IDS, max_tokens=5, interventions=[add(8.0, positions)], prefill_step_size=step)
    with lens.capture(1) as captured:
        generation = lens.stream(IDS, max_tokens=5, interventions=[add(8.0, positions)], prefill_step_size=step)
        ids = [token.token_id for token in generation]
    assert ids == replay(lens, 5, edit)
    # The residuals as well, token by token: nothing was touched too early or too late.
    whole = IDS + ids[:-1]
    with lens.hook(1, lambda ctx, h: edit(h, whole)), lens.capture(1) as expected:
        lens.forward(whole)
    np.testing.assert_allclose(np.array(captured[1]), np.array(expected[1]), atol=2e-3)


def test_positions_that_no_token_has_are_refused_before_anything_runs() -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match="touches no position"):
        lens.stream(IDS, max_tokens=3, interventions=[add(5.0, Positions("indices", indices=(40,)))])
    with (
        lens.steer(1, unit(), 3.0, positions=Positions("indices", indices=(9,))),
        pytest.raises(LensError, match="no token"),
    ):
        lens.forward(IDS)


def test_positions_that_need_the_prompts_end_are_refused_where_nobody_says_it() -> None:
    lens = LensModel.from_model(tiny.llama())
    with lens.steer(1, unit(), 3.0, positions=Positions("generated")), pytest.raises(LensError, match="prompt ends"):
        list(generate_step(mx.array(IDS), lens.model, max_tokens=2))


def test_rows_of_a_left_padded_batch_have_their_own_positions() -> None:
    lens = LensModel.from_model(tiny.llama())
    rows = [IDS[:5], IDS]
    padded = mx.array([[0] * 3 + rows[0], rows[1]])
    expected = []
    positions = Positions("indices", indices=(2,))
    for row in rows:
        with lens.steer(1, unit(), 6.0, positions=positions):
            expected.append(np.array(lens.forward(row)[0, -1]))
    cache = [BatchKVCache([3, 0]) for _ in range(4)]
    with lens.steer(1, unit(), 6.0, positions=positions):
        out = lens.model(padded, cache=cache)
    np.testing.assert_allclose(np.array(out[:, -1]), np.stack(expected), atol=2e-4)


def test_mlx_lms_batch_generator_is_steered_row_by_row_like_single_runs() -> None:
    lens = LensModel.from_model(tiny.llama())
    prompts = [IDS[:3], IDS, IDS[2:7]]
    with lens.steer(1, unit(), 6.0):
        alone = [[token.token_id for token in lens.stream(prompt, max_tokens=4)] for prompt in prompts]
        engine: Any = BatchGenerator(lens.model, max_tokens=4)
        uids = engine.insert(prompts)
        made: dict[int, list[int]] = {uid: [] for uid in uids}
        while responses := engine.next_generated():
            for response in responses:
                made[response.uid].append(response.token)
        engine.close()
    assert [made[uid] for uid in uids] == alone


def test_log_probabilities_and_candidates_are_the_models_in_float32() -> None:
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    tokens = list(lens.stream(IDS, max_tokens=4, top=5))
    ids = list(IDS)
    for token in tokens:
        cache = make_prompt_cache(lens.model)
        if len(ids) > 1:
            lens.model(mx.array([ids[:7]]), cache=cache)
            for extra in ids[7:-1]:
                lens.model(mx.array([[extra]]), cache=cache)
        row = np.array(lens.model(mx.array([[ids[-1]]]), cache=cache).astype(mx.float32), dtype=np.float64)[0, -1]
        logprobs = row - np.log(np.exp(row).sum())
        assert token.logprob == pytest.approx(logprobs[token.token_id], abs=1e-4)
        np.testing.assert_allclose([c.logprob for c in token.top], np.sort(logprobs)[::-1][:5], atol=1e-4)
        assert token.top[0].token_id == token.token_id
        ids.append(token.token_id)


def test_a_seed_gives_the_same_text_again_and_another_seed_another() -> None:
    lens = LensModel.from_model(tiny.llama())
    runs = [[t.token_id for t in lens.stream(IDS, max_tokens=12, temp=1.5, seed=seed)] for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_filters_that_leave_one_token_are_greedy(options: dict[str, Any]) -> None:
    lens = LensModel.from_model(tiny.llama())
    greedy = [token.token_id for token in lens.stream(IDS, max_tokens=5)]
    assert [token.token_id for token in lens.stream(IDS, max_tokens=5, temp=2.0, **options)] == greedy


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"min_p": 0.9}, [0.5, 0, 0, 0]),
        ({"min_p": 0.9, "min_tokens_to_keep": 2}, [0.5, 0.3, 0, 0]),
        ({"xtc_probability": 1.0}, [0, 0, 0.15, 0.05]),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.2}, [0, 0.3, 0.15, 0.05]),
        ({"xtc_probability": 1.0, "xtc_special_tokens": (0,)}, [0.5, 0, 0.15, 0.05]),
        ({"xtc_probability": 1.0, "top_k": 1}, [0, 0, 1, 0]),
        ({"xtc_probability": 0.4}, [0.3, 0.18, 0.6 * 0.15 + 0.4 * 0.75, 0.6 * 0.05 + 0.4 * 0.25]),
    ],
)
def test_sampling_follows_the_distribution(options: dict[str, Any], left: list[float]) -> None:
    from lens_tui.lens.decode.sampling import make_sampler

    p = np.array([0.5, 0.3, 0.15, 0.05])
    sample = make_sampler(Sampling(temp=1.0, seed=1, **options), 4)
    logprobs = mx.array(np.log(p).astype(np.float32))[None]
    drawn = [np.array(mx.concatenate([sample(logprobs) for _ in range(100)])) for _ in range(30)]
    counts = np.bincount(np.concatenate(drawn), minlength=4) / 3000
    np.testing.assert_allclose(counts, np.array(left) / np.sum(left), atol=0.03)


def test_every_sampling_option_of_mlx_lm_is_one_here() -> None:
    from dataclasses import fields
    from inspect import signature

    from lens_tui.lens.decode.sampling import PENALTIES

    names = {field.name for field in fields(Sampling)} | set(PENALTIES)
    theirs = {**signature(make_sampler).parameters, **signature(make_logits_processors).parameters}
    assert set(theirs) <= names
    kept = {field.name: field.default for field in fields(Sampling)}
    same = ("temp", "top_p", "min_p", "min_tokens_to_keep", "top_k", "xtc_probability", "xtc_threshold")
    assert {name: kept[name] for name in same} == {name: theirs[name].default for name in same}


def test_a_repetition_penalty_is_mlx_lms() -> None:
    lens = LensModel.from_model(tiny.llama())
    processors = make_logits_processors(repetition_penalty=1.8, repetition_context_size=20)
    theirs = [
        token for token, _ in generate_step(mx.array(IDS), lens.model, max_tokens=8, logits_processors=processors)
    ]
    ours = [token.token_id for token in lens.stream(IDS, max_tokens=8, repetition_penalty=1.8)]
    assert ours == theirs
    assert ours != [token.token_id for token in lens.stream(IDS, max_tokens=8)]


def test_the_other_penalties_are_mlx_lms() -> None:
    lens = LensModel.from_model(tiny.llama())
    options: dict[str, Any] = {"logit_bias": {3: 50.0}, "frequency_penalty": 40.0}
    penalty = make_logits_processors(**options)
    theirs = [token for token, _ in generate_step(mx.array(IDS), lens.model, max_tokens=6, logits_processors=penalty)]
    assert [token.token_id for token in lens.stream(IDS, max_tokens=6, **options)] == theirs
    assert 3 in theirs


def test_a_quantised_kv_cache_is_mlx_lms() -> None:
    lens = LensModel.from_model(tiny.llama(heads=2))
    options: dict[str, Any] = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 4}
    theirs = list(generate_step(mx.array(IDS), lens.model, max_tokens=5, **options))
    ours = list(lens.stream(IDS, max_tokens=5, **options))
    assert [token.token_id for token in ours] == [token for token, _ in theirs]
    exact = list(lens.stream(IDS, max_tokens=5))
    differs = [abs(a.logprob - b.logprob) for a, b in zip(ours, exact, strict=True)]
    assert max(differs) > 1e-3
    np.testing.assert_allclose([t.logprob for t in ours], [float(np.array(row).max()) for _, row in theirs], atol=1e-4)


def test_the_first_token_does_not_wait_for_the_second_where_a_step_is_computed_as_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lens, sent = LensModel.from_model(tiny.llama()), list[int]()
    send = lens_tui.lens.decode.generation.LaunchedStep.send

    def counted(step: lens_tui.lens.decode.generation.LaunchedStep) -> None:
        sent.extend([1] * bool(step.unsent))
        send(step)

    monkeypatch.setattr(lens_tui.lens.decode.generation.LaunchedStep, "send", counted)
    seen = [len(sent) for _ in lens.stream(IDS, max_tokens=4)]
    ahead = mx.default_device().type != mx.DeviceType.cpu
    assert seen == [1 + ahead, 3, 4, 4]  # else one step ahead


def test_who_reads_one_token_leaves_a_cache_that_another_thread_may_go_on_from() -> None:
    lens, cache = LensModel.from_model(tiny.llama()), make_prompt_cache(tiny.llama())
    stream = lens.stream(IDS, max_tokens=9, prompt_cache=cache)
    next(stream)
    stream.close()
    with ThreadPoolExecutor(1) as other:
        kept = other.submit(lambda: [np.array(item.state[0]) for item in cache]).result()
    assert all(np.isfinite(keys).all() for keys in kept)


def test_a_short_run_lays_out_no_more_of_its_cache_than_it_can_fill() -> None:
    lens = LensModel.from_model(tiny.llama())
    run = lens_tui.lens.decode.generation.fresh_cache(lens._registry, None, len(IDS) + 9)
    keys = mx.zeros((1, 2, len(IDS), 4))
    assert run[0].update_and_fetch(keys, keys)[0].shape[2] == len(IDS)
    assert run[0].keys.shape[2] == 64
    long = lens_tui.lens.decode.generation.fresh_cache(lens._registry, None, 4096)
    long[0].update_and_fetch(keys, keys)
    assert long[0].keys.shape[2] == 256  # mlx-lm's own


def test_generations_may_be_read_in_turns() -> None:
    lens = LensModel.from_model(tiny.llama())
    plans: list[list[Add]] = [[], [add(25.0)], [add(-30.0, layer=2)]]
    alone = [[token.token_id for token in lens.stream(IDS, max_tokens=5, interventions=plan)] for plan in plans]
    runs = [lens.stream(IDS, max_tokens=5, interventions=plan) for plan in plans]
    turns = [[next(run).token_id for run in runs] for _ in range(5)]
    assert [list(row) for row in zip(*turns, strict=True)] == alone
    assert len({tuple(row) for row in alone}) == 3


def test_the_dial_changes_the_tokens_to_come_and_each_token_says_what_it_was_made_under() -> None:
    lens = LensModel.from_model(tiny.llama())
    generation = lens.stream(IDS, max_tokens=8, interventions=[add(2.0)])
    tokens = [next(generation) for _ in range(3)]
    generation.dial(add(9.0), add(1.0, layer=2))
    tokens += list(generation)
    assert [token.version for token in tokens] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert tokens[3].scales == (("a", 2.0),)
    assert tokens[4].scales == (("a", 9.0), ("a", 1.0))
    assert lens.registry.installed == ()


def test_a_steer_handle_is_a_dial_too() -> None:
    lens = LensModel.from_model(tiny.llama())
    with lens.steer(1, unit() * 2, 2.0, id="mine") as handle:
        generation = lens.stream(IDS, max_tokens=6)
        tokens = [next(generation) for _ in range(2)]
        assert handle.scale == pytest.approx(2.0)
        handle.update(scale=5.0)
        tokens += list(generation)
        with lens.capture(1) as captured:
            lens.forward(IDS)
    with lens.capture(1) as plain:
        lens.forward(IDS)
    assert [round(token.scales[0][1], 4) for token in tokens] == [4.0] * 3 + [10.0] * 3
    np.testing.assert_allclose(np.array(captured[1] - plain[1])[0], np.tile(10 * unit(), (8, 1)), atol=1e-4)


@pytest.mark.parametrize("made", [tiny.llama, tiny.gemma3])
def test_the_dose_is_what_was_asked_in_float32_and_what_survives_in_bf16(made: Any) -> None:
    exact = LensModel.from_model(made())
    generation = exact.stream(IDS, max_tokens=3, interventions=[add(4.0)])
    list(generation)
    (dose,) = generation.dose
    assert dose.asked == pytest.approx(4.0, rel=1e-5)
    assert dose.delivered == pytest.approx(4.0, rel=1e-4)
    rough = LensModel.from_model(made(dtype=mx.bfloat16))
    with rough.capture(1) as plain:
        rough.forward(IDS)
    with rough.capture(1) as steered:
        generation = rough.stream(IDS, max_tokens=1, interventions=[add(0.05)])
        list(generation)
    h = np.array(plain[1].astype(mx.float32))[0]
    moved = np.array(steered[1].astype(mx.float32))[0]
    assert moved.shape == h.shape
    (dose,) = generation.dose
    assert dose.asked == pytest.approx(0.05, rel=1e-3)
    assert dose.delivered == pytest.approx(np.linalg.norm(moved - h, axis=-1).mean(), rel=1e-3)
    relative = (np.linalg.norm(moved - h, axis=-1) / np.linalg.norm(h, axis=-1)).mean()
    assert dose.relative == pytest.approx(relative, rel=1e-3)


def test_steering_that_rounding_swallows_is_an_error() -> None:
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    with pytest.raises(LensError, match="moves nothing"):
        list(lens.stream(IDS, max_tokens=2, interventions=[add(1e-9)]))
    with lens.steer(1, unit(), 1e-9), pytest.raises(LensError, match="moves nothing"):
        lens.forward(IDS)
    assert lens.registry.installed == ()
    list(lens.stream(IDS, max_tokens=2, interventions=[add(1e-4, precision="float32")]))


def test_float32_precision_keeps_the_whole_dose_from_there_on() -> None:
    lens = LensModel.from_model(tiny.llama(dtype=mx.bfloat16))
    with lens.capture(range(4)) as plain:
        lens.forward(IDS)
    with lens.steer(1, unit(), 0.01, precision="float32"), lens.capture(range(4)) as captured:
        lens.forward(IDS)
    assert [captured[layer].dtype for layer in captured] == [mx.bfloat16, mx.float32, mx.float32, mx.float32]
    moved = np.array(captured[1]) - np.array(plain[1].astype(mx.float32))
    np.testing.assert_allclose(moved[0], np.tile(0.01 * unit(), (8, 1)), atol=1e-6)


def test_text_pieces_join_to_the_decoded_text_and_the_end_token_adds_none() -> None:
    lens = LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())
    generation = lens.stream("Once upon", max_tokens=12, temp=1.0, seed=5)
    tokens = list(generation)
    assert "".join(token.text for token in tokens) == generation.text
    assert generation.text == lens.tokens.decode(generation.token_ids)
    eos = next(iter(lens.tokens.stops))
    forced = lens.stream(
        "Once", max_tokens=9, logits_processors=[lambda ids, row: mx.where(mx.arange(8192) == eos, 1e4, row)]
    )
    assert [token.token_id for token in forced] == [eos]
    assert (forced.text, forced.reason) == ("", "stop")


def test_a_closed_or_dropped_generation_leaves_nothing_and_its_capture_ends_at_the_last_token() -> None:
    lens = LensModel.from_model(tiny.llama())
    with lens.capture(1) as captured:
        generation = lens.stream(IDS, max_tokens=50, interventions=[add()])
        for _ in range(3):
            next(generation)
        generation.close()
    assert generation.reason == "stopped"
    assert captured[1].shape[1] == len(IDS) + 2
    dropped = lens.stream(IDS, max_tokens=50, interventions=[add()])
    next(dropped)
    del dropped
    assert lens.registry.installed == ()


def test_progress_is_told_and_what_it_raises_ends_the_run() -> None:
    lens = LensModel.from_model(tiny.llama())
    told: list[tuple[int, int]] = []
    list(lens.stream(IDS, max_tokens=1, prefill_step_size=3, progress=lambda done, total: told.append((done, total))))
    assert told == [(0, 8), (3, 8), (6, 8), (7, 8)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(lens.stream(IDS, max_tokens=1, interventions=[add()], progress=stop))
    assert lens.registry.installed == ()


def test_a_hook_sees_and_changes_and_its_exception_names_it() -> None:
    lens = LensModel.from_model(tiny.llama())
    seen: list[Any] = []

    def fn(ctx: Any, h: mx.array) -> mx.array:
        seen.append((ctx.layer, ctx.site, ctx.where.offset, h.shape))
        return h + mx.array(unit().astype(np.float32)) * 5.0

    with lens.hook(1, fn):
        hooked = [token.token_id for token in lens.stream(IDS, max_tokens=4)]
    assert hooked == [token.token_id for token in lens.stream(IDS, max_tokens=4, interventions=[add(5.0)])]
    assert seen[:2] == [(1, "resid_post", 0, (1, 7, 64)), (1, "resid_post", 7, (1, 1, 64))]

    def bad(ctx: Any, h: mx.array) -> mx.array:
        raise ZeroDivisionError("mine")

    with lens.hook(2, bad, site="mlp_out"), pytest.raises(LensError, match=r"hook-\d+.*layer 2 mlp_out.*mine"):
        lens.forward(IDS)
    with lens.hook(2, lambda ctx, h: h[:, :1]), pytest.raises(LensError, match="gave"):
        lens.forward(IDS)
    assert lens.registry.installed == ()


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temp": -1.0},
        {"top_p": 1.5},
        {"seed": -1},
        {"min_p": 2.0},
        {"xtc_threshold": 0.6},
        {"min_tokens_to_keep": 0},
        {"xtc_special_tokens": [97], "xtc_probability": 0.1, "temp": 1.0},
    ],
)
def test_sampling_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match=next(iter(options))):
        lens.stream(IDS, **options)


def operations(monkeypatch: pytest.MonkeyPatch, run: Any) -> int:
    """How many operations the fifth step of a run sends to the device."""
    sent = []

    def spy(*arrays: mx.array) -> None:
        graph = io.StringIO()
        mx.export_to_dot(graph, *arrays)
        sent.append(graph.getvalue().count("shape=rectangle"))
        mx.eval(*arrays)

    with monkeypatch.context() as patch:
        patch.setattr(lens_tui.lens.decode.generation, "async_eval", spy)
        list(run)
    assert len(sent) == 6
    return sent[4]


def test_a_step_costs_what_a_plain_one_does_with_every_layer_captured_and_three_operations_more_steered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lens = LensModel.from_model(tiny.gemma3(dtype=mx.bfloat16))
    plain = operations(monkeypatch, lens.stream(IDS, max_tokens=6))
    assert plain > 50
    with lens.capture(range(lens.n_layers)):
        assert operations(monkeypatch, lens.stream(IDS, max_tokens=6)) == plain
    # To float32, the sum, and back: what was delivered is measured with the first step, and of all others together.
    assert operations(monkeypatch, lens.stream(IDS, max_tokens=6, interventions=[add(4.0)])) == plain + 3


@pytest.mark.parametrize("asked", [(), (1,), (2, 3, 9), range(24)])
def test_a_dose_is_the_same_whenever_it_was_asked_for_before(asked: Any) -> None:
    lens = LensModel.from_model(tiny.gemma3(dtype=mx.bfloat16))
    run = lens.stream(IDS, max_tokens=24, temp=0.0, interventions=[add(4.0)])
    for at, _ in enumerate(run):
        if at in asked:
            assert run.dose[0].tokens == len(IDS) + min(at, 15)
    ids = [*IDS, *run.token_ids[:-1]]
    with lens.capture(1) as plain:
        lens.forward(ids)
    with lens.steer(1, unit(), 4.0), lens.capture(1) as steered:
        lens.forward(ids)
    (dose,) = run.dose
    assert dose.tokens == len(IDS) + 15  # the prompt, and sixteen steps from its last token on
    before, after = (np.array(found[1].astype(mx.float32))[0, : dose.tokens] for found in (plain, steered))
    moved = np.linalg.norm(after - before, axis=-1)
    assert dose.asked == pytest.approx(4.0, rel=1e-3)
    assert dose.delivered == pytest.approx(moved.mean(), rel=2e-3)
    assert dose.relative == pytest.approx((moved / np.linalg.norm(before, axis=-1)).mean(), rel=2e-2)
