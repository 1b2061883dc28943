"""Generation and capture: plain mlx-lm, one vector, every layer captured, arms in lock step with their companions.

The limit for capture is measured beside it: a bare subclass of the block's class that appends its output to a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm import stream_generate
from mlx_lm.generate import generate_step

from lens_tui import Arm, LensModel
from lens_tui.records import Add, SteeringVector

from .machine import Options, device, fresh
from .report import Row, at_least, at_most, of_speeds, of_times
from .turns import Contender, medians, paired, take_turns, timed

PROMPT = "The old man opened the door and"
ARMS = 8


def rows(options: Options) -> Iterator[Row]:
    """On the bundled model."""
    yield from rows_of(LensModel("demo"), options, tokens=32 if options.quick else 64)


def rows_of(lens: LensModel, options: Options, tokens: int) -> Iterator[Row]:
    """The rows of one model."""
    for part in (
        of_steering(lens, options, tokens),
        of_arms(lens, options, tokens // 2),
        of_capture(lens, options, tokens),
    ):
        yield from part
        fresh()


def on_device(work: Callable[[], object]) -> Contender:
    """A contender that starts with nothing going on and ends when the device has.

    Memory that MLX keeps for the next allocation stays, as it does where a program runs on.
    """
    return timed(work, before=mx.synchronize, after=mx.synchronize)


def often(lens: LensModel, options: Options, usual: int) -> int:
    """Turns, a third as many of a model that takes seconds for each: a host's jitter is little beside its time."""
    return options.repeats(usual if lens.d_model < 4096 else usual // 3)


def adds(lens: LensModel, count: int) -> list[Add]:
    """Random unit directions at the middle layer, one record each."""
    rng, layer = np.random.default_rng(0), lens.n_layers // 2
    vectors = [SteeringVector.of(f"random {i}", rng.standard_normal(lens.d_model), layer) for i in range(count)]
    return [Add(id=f"s{i}", layer=layer, vector=vector, scale=8.0) for i, vector in enumerate(vectors)]


def prompt_of(lens: LensModel) -> list[int]:
    """The prompt's ids; 64 of them for a model without a tokenizer."""
    return list(range(1, 65)) if lens.tokenizer is None else list(lens.tokens.prompt(PROMPT).ids)


def _plain(lens: LensModel, ids: list[int], tokens: int) -> None:
    if lens.tokenizer is None:
        _all(generate_step(mx.array(ids), lens.model, max_tokens=tokens))
    else:
        _all(stream_generate(lens.model, lens.tokenizer, ids, max_tokens=tokens))


def of_steering(lens: LensModel, options: Options, tokens: int) -> Iterator[Row]:
    """One steered stream against mlx-lm's own loop."""
    ids, record = prompt_of(lens), adds(lens, 1)[0]
    turns = take_turns(
        {
            "mlx-lm": on_device(partial(_plain, lens, ids, tokens)),
            "unhooked": on_device(lambda: _all(lens.stream(ids, max_tokens=tokens))),
            "steered": on_device(lambda: _all(lens.stream(ids, max_tokens=tokens, interventions=[record]))),
        },
        often(lens, options, 15),
        unmeasured=2,
    )
    rate = {name: tokens / median(seconds) for name, seconds in turns.items()}
    what, plain = f"generation of {tokens} tokens", rate["mlx-lm"]
    ratio = {name: 1 / paired(turns, name, "mlx-lm") for name in rate}
    yield of_speeds(f"{what}, nothing hooked", rate["unhooked"], plain, "mlx-lm", ratio=ratio["unhooked"])
    yield of_speeds(f"{what}, one vector", rate["steered"], plain, "mlx-lm", at_least(0.98), ratio=ratio["steered"])


def of_arms(lens: LensModel, options: Options, tokens: int) -> Iterator[Row]:
    """Eight arms in lock step, without and with companions, and one after the other."""
    ids, records = prompt_of(lens), adds(lens, ARMS)
    arms = [Arm(record.id, (record,)) for record in records]

    def one_by_one() -> None:
        for record in records:
            _all(lens.stream(ids, max_tokens=tokens, interventions=[record]))

    found = medians(
        {
            "one by one": on_device(one_by_one),
            "lock step": on_device(lambda: _all(lens.compare(ids, arms, max_tokens=tokens, kl=False))),
            "companions": on_device(lambda: _all(lens.compare(ids, arms, max_tokens=tokens, kl=True))),
        },
        options.repeats(5),
    )
    rate = {name: ARMS * tokens / seconds for name, seconds in found.items()}
    what, gpu = f"{ARMS} arms x {tokens} tokens", device() == "gpu"
    yield of_speeds(
        f"{what} in lock step", rate["lock step"], rate["one by one"], "one by one", at_least(5 if gpu else 4)
    )
    yield of_times(
        f"{what}, with companions",
        found["companions"],
        found["lock step"],
        "the arms alone",
        at_most(1.35) if gpu else None,
    )


def of_capture(lens: LensModel, options: Options, tokens: int) -> Iterator[Row]:
    """Every layer's output held: in a forward of several lengths, and in decoding."""
    most = getattr(getattr(lens.model, "args", None), "max_position_embeddings", 2048) or 2048
    for length in (n for n in ((32, 512) if options.quick else (32, 512, 2048)) if n <= most):
        turns = take_turns(forwards(lens, length), often(lens, options, 30 if length <= 512 else 9), unmeasured=2)
        bound = at_most(1.04) if length == 512 else None
        what, plain = f"forward of {length} tokens, every layer captured", median(turns["plain"])
        for name, added, limit in (("ours", "", bound), ("bare proxy", " by a bare proxy", None)):
            ratio = paired(turns, name, "plain")
            yield of_times(f"{what}{added}", median(turns[name]), plain, "plain", limit, ratio=ratio)
        fresh()
    turns = take_turns(decodings(lens, tokens), often(lens, options, 9), unmeasured=2)
    rate = {name: tokens / median(seconds) for name, seconds in turns.items()}
    what = f"decoding {tokens} tokens, every layer captured"
    for name, added, limit in (("ours", "", at_least(0.95)), ("bare proxy", " by a bare proxy", None)):
        ratio = 1 / paired(turns, name, "plain")
        yield of_speeds(f"{what}{added}", rate[name], rate["plain"], "plain mlx-lm", limit, ratio=ratio)


@contextmanager
def bare_proxy(blocks: Any) -> Iterator[list[mx.array]]:
    """Every block's output in a list, by a subclass of the block's own class."""
    held: list[mx.array] = []
    original = type(blocks[0])

    class Proxy(original):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = original.__call__(self, *args, **kwargs)
            held.append(output[0] if isinstance(output, tuple) else output)
            return output

    for block in blocks:
        block.__class__ = Proxy
    try:
        yield held
    finally:
        for block in blocks:
            block.__class__ = original
        # A class is in a cycle with itself: what its method holds would stay until a collection, whoever's turn it is.
        held = []


def forwards(lens: LensModel, length: int) -> dict[str, Contender]:
    """One forward of ``length`` tokens each; all that is held is evaluated with it."""
    ids = mx.array(np.random.default_rng(1).integers(1, lens.info.vocab_size, (1, length)))
    layers = range(lens.n_layers)

    def bare() -> None:
        with bare_proxy(lens.model.layers) as held:
            mx.eval(lens.model(ids), held)

    def ours() -> None:
        with lens.capture(layers) as captured:
            mx.eval(lens.forward(ids), [captured[layer] for layer in layers])

    works = {"plain": lambda: mx.eval(lens.model(ids)), "bare proxy": bare, "ours": ours}
    return {name: timed(work, before=mx.synchronize, after=mx.synchronize) for name, work in works.items()}


def decodings(lens: LensModel, tokens: int) -> dict[str, Contender]:
    """``tokens`` tokens each; the newest outputs are evaluated beside each token."""
    ids = list(range(1, 65))

    def bare() -> None:
        steps: list[list[mx.array]] = []
        with bare_proxy(lens.model.layers) as held:
            for _ in generate_step(mx.array(ids), lens.model, max_tokens=tokens):
                steps.append(held[: lens.n_layers])
                del held[: lens.n_layers]
                mx.async_eval(steps[-1])

    def ours() -> None:
        with lens.capture(range(lens.n_layers)) as captured:
            _all(lens.stream(ids, max_tokens=tokens))
            mx.eval([captured[layer] for layer in range(lens.n_layers)])

    def plain() -> None:
        _all(generate_step(mx.array(ids), lens.model, max_tokens=tokens))

    return {name: on_device(work) for name, work in (("plain", plain), ("bare proxy", bare), ("ours", ours))}


def _all(steps: Any) -> None:
    for _ in steps:
        pass
