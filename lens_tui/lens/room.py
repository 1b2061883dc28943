"""How much goes through the model at once: whether it fits into memory, and how many tokens between two stops.

It is asked before it starts, of KV caches, logits and captures. Nothing is asked where even a generous estimate is
small, so that the usual run pays nothing. The KV cache of a token is measured once for a model, on the caches of a tiny
forward: so it holds for shared keys, latent attention, sliding windows and recurrent layers alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from lens_tui import blas
from lens_tui.lens.architecture.ranks import agreed_memory, memory_now
from lens_tui.lens.architecture.taps import named
from lens_tui.lens.hooks.program import has_effect
from lens_tui.lens.hooks.registry import Plan, Registry, Run
from lens_tui.records import LensError
from lens_tui.records.machine import SMALL, machine_memory

_COPIES = 4
"""Arrays of the size of the logits that a step has at once: they, their log-softmax, the sampler's working copies."""
_PROBE = 4

Kept = tuple[tuple[float, int | None], ...]
"""For each cache the bytes of a token, and how many tokens it keeps at most (``None``: all)."""


def memory_left() -> int:
    """Bytes that MLX can have on its device now: on a GPU up to its own limit, else what is free on the machine."""
    agreed = agreed_memory()  # what differs from process to process cannot decide what all do
    return memory_now() if agreed is None else agreed


def memory_at_most() -> int:
    """Bytes that it could have if all others gave theirs: the bound that Load judges a model's fit by."""
    if mx.default_device().type == mx.DeviceType.cpu and agreed_memory() is None:
        return max(memory_left(), machine_memory() - mx.get_active_memory())
    return memory_left()


def check_run(
    registry: Registry,
    rows: Sequence[tuple[int, int]],
    what: str,
    hint: str,
    *,
    together: bool = True,
    captured: int = 0,
    window: int | None = None,
    bits: int | None = None,
) -> None:
    """Raise :class:`LensError` if decoding rows side by side does not fit into memory.

    Prompts that are held at once have to fit into what is free now. A row may end before it has written all that it
    may: what that would take is refused where the whole machine could not give it.

    Args:
        registry: What is hooked.
        rows: Tokens of each row's prompt, and how many it may write.
        what: The rows, for the sentence: ``"8 arms ... "``.
        hint: What to lower.
        together: All prompts are held at once; else rows come and go, and a single one is all that is certain.
        captured: Numbers that a capture keeps of each token of each row.
        window: Tokens that a cache keeps, at most.
        bits: Of the KV cache, where it is quantised.
    """
    decoder = registry.decoder
    size, logits = decoder.dtype.size, len(rows) * decoder.vocab_size * 4 * _COPIES
    prompts, totals = [prompt for prompt, _ in rows], [prompt + most for prompt, most in rows]
    # Keys and values of full heads, twice as wide as the stream, as some are: more than nearly every model keeps.
    per_token = decoder.n_layers * 4 * decoder.d_model + captured
    if logits + sum(totals) * per_token * size < SMALL:
        return
    share = 1 if bits is None else bits / (8 * size)

    def need(lengths: Sequence[int]) -> int:
        kept = sum(
            each * min(length, window or length, most or length)
            for each, most in registry.once(_kept)
            for length in lengths
        )
        return int(kept * share) + sum(lengths) * captured * size + logits

    refuse_above(memory_left, need(prompts if together else [max(prompts)]), what, hint)
    refuse_above(memory_at_most, need(totals), what, hint)


def check_arms(
    registry: Registry,
    plan: Plan,
    n_rows: int,
    texts: tuple[int, int],
    *,
    kl: bool,
    window: int | None,
    bits: int | None,
) -> None:
    """As :func:`check_run` for the arms of one prompt, should each write all that it may, and their companions.

    Args:
        registry: What is hooked.
        plan: What acts on each arm, and what is captured.
        n_rows: How many arms there are.
        texts: Tokens of the prompt that are not in a cache yet, and of what may be written.
        kl: Arms that something acts on have companions.
        window: Tokens that a cache keeps, at most.
        bits: Of the KV cache, where it is quantised.
    """
    (n_prompt, most), steered = texts, sum(any(has_effect(entry.item) for entry in row) for row in plan.rows)
    companions = steered if kl else 0
    widths = (registry.sites.point(*place).width for recorder in plan.recorders for place in recorder.places)
    rows = f"{n_rows} arms{f' and {companions} companions' if companions else ''}" if n_rows > 1 else "One row"
    check_run(
        registry,
        [(n_prompt, most)] * (n_rows + companions),
        f"{rows} over {n_prompt:,} tokens of prompt and up to {most:,} more",
        "Lower max_tokens, or give " + ("fewer arms or " if n_rows > 1 else "") + "a shorter prompt.",
        captured=sum(widths),
        window=window,
        bits=bits,
    )


def check_forward(registry: Registry, run: Run, rows: int, tokens: int) -> None:
    """Raise :class:`LensError` if what one forward leaves, its captures or else its logits, does not fit into memory.

    Args:
        registry: What is hooked.
        run: What is recorded.
        rows: Of the forward.
        tokens: Of each row.
    """
    decoder, places = registry.decoder, [place for recorder in run.plan.recorders for place in recorder.places]
    widths = sum(registry.sites.point(*place).width for place in places) or decoder.vocab_size
    need = rows * tokens * widths * decoder.dtype.size
    if need >= SMALL:
        of = f"{len(places)} captured places" if places else f"a vocabulary of {decoder.vocab_size:,}"
        text = f"{rows} texts of {tokens:,} tokens" if rows > 1 else f"{tokens:,} tokens"
        fewer = "capture fewer layers and sites" if places else "give fewer at once"
        refuse_above(memory_left, need, f"One forward over {text}, with {of},", f"Give shorter texts, or {fewer}.")


def refuse_above(limit: Callable[[], int], need: int, what: str, hint: str) -> None:
    """Raise :class:`LensError` if ``need`` bytes are more than the limit, which is asked for if they are many."""
    if need >= SMALL and need > (most := limit()):
        raise LensError(f"{what} would take {need / 1e9:,.1f} GB, and {most / 1e9:,.1f} GB can be had.", hint)


def _kept(registry: Registry) -> Kept:
    from mlx_lm.models.cache import make_prompt_cache

    root: Any = registry.decoder.root
    cache = make_prompt_cache(root)
    registry.forward(Run(registry, Plan()), mx.zeros((1, _PROBE), mx.int32), cache)
    mx.eval([item.state for item in cache])
    return tuple(found for item in cache for found in _of(item))


def _of(cache: Any) -> Kept:
    inner = getattr(cache, "caches", None)
    if inner is not None:
        return tuple(found for item in inner for found in _of(item))
    arrays = [part for name in ("keys", "values") if isinstance(part := getattr(cache, name, None), mx.array)]
    if not arrays:
        return ((float(getattr(cache, "nbytes", 0)), 1),)  # a state of one size, however long the text
    most = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
    return ((sum(array.nbytes / array.shape[2] for array in arrays), most if isinstance(most, int) else None),)


MOST = 2048
"""Tokens of a prompt in one piece, at most: mlx-lm's own number."""
FEWEST = 16
SPEED = {"cpu": 2e9, "openblas": 2e10, "metal": 2e12, "gpu": 2e13}
"""Floating-point operations in a piece: well under a second's on a small machine of each kind."""


def piece_of(registry: Registry, n_rows: int, before: int = 0) -> int:
    """Tokens a row of one piece of a prompt, so that a stop between two pieces does not have to be waited for.

    By the model's size and the kind of device alone, never by a clock: the same prompt is cut in the same places each
    time, and rounds the same.

    Args:
        registry: Of the model.
        n_rows: Rows of the piece.
        before: Tokens of each row that the attention of the piece looks back at.
    """
    attention = 4 * registry.decoder.n_layers * registry.decoder.d_model * before
    most = SPEED[_kind(registry)] / max(1, (2 * work_of(registry) + attention) * n_rows)
    return min(MOST, max(FEWEST, 1 << int(most).bit_length() - 1)) if most >= 1 else FEWEST


def _kind(registry: Registry) -> str:
    if mx.default_device().type != mx.DeviceType.cpu:
        return "metal" if mx.metal.is_available() else "gpu"
    weights = [module["weight"] for _, module in named(registry.decoder.layers[0]) if "weight" in module]
    plain = all(weight.dtype == mx.float32 for weight in weights)
    return "openblas" if plain and blas.state().fast else "cpu"


def work_of(registry: Registry) -> int:
    """About how many weights of the blocks a token is multiplied with; of a mixture those of eight experts."""
    if registry.weights_per_token is None:
        blocks = registry.decoder.layers
        registry.weights_per_token = sum(_weights(module) for block in blocks for _, module in named(block))
    return registry.weights_per_token


def _weights(module: Module) -> int:
    weight = module.get("weight")
    if not isinstance(weight, mx.array):
        return 0
    packed = 32 // int(module.bits) if "scales" in module and weight.dtype == mx.uint32 else 1
    experts = weight.shape[0] if weight.ndim == 3 else 1
    return weight.size * packed * min(experts, 8) // experts
