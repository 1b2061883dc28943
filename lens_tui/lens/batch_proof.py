"""Whether a model computes rows of different length together as it does alone: proved once, by a tiny batch.

Models that read positions or recurrent state their own way can be wrong with
padding, silently. So two short prompts are generated both ways and compared; what
fails is run without padding, and what fails then, row by row.
"""

from __future__ import annotations

import weakref
from typing import Any, Literal

import mlx.core as mx

from .batch_model import BatchModel, RowLabels, RowPlan
from .batch_tolerance import tolerance
from .generation import mlx_lm_generate
from .registry import Plan, Registry, Run
from .steps import kl
from .tokens import EncodedPrompt

Way = Literal["padded", "joined", "alone"]
"""Prompts padded to one length and prefilled together; prefilled one by one and decoded together; one by one."""

_known: weakref.WeakKeyDictionary[Registry, Way] = weakref.WeakKeyDictionary()
_STEPS = 3


def way_of(registry: Registry) -> Way:
    """The best way that is right for this model."""
    if registry not in _known:
        ways: tuple[Way, ...] = ("padded", "joined")
        _known[registry] = next((way for way in ways if _agrees(registry, way)), "alone")
    return _known[registry]


def _agrees(registry: Registry, way: Way) -> bool:
    """Whether both rows' distributions are those of the rows alone, to the dtype's accuracy (KL in nats)."""
    vocab = registry.decoder.vocab_size
    prompts = [[(7 * at + 3) % vocab for at in range(6)], [(5 * at + 1) % vocab for at in range(2)]]
    try:
        made = _batch(registry, prompts, way)
    except Exception:  # whatever a model raises that does not know batches; row by row is always right
        return False
    limit = tolerance(registry.decoder.dtype)
    for prompt, (ids, rows) in zip(prompts, made, strict=True):
        with registry.running(Run(registry, Plan())):
            logits = registry.decoder.forward(mx.array([prompt + ids[:-1]]))[0, -_STEPS:].astype(mx.float32)
        alone = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if not float(kl(alone, mx.stack(rows)).max()) < limit:
            return False
    return True


def _batch(registry: Registry, prompts: list[list[int]], way: Way) -> list[tuple[list[int], list[mx.array]]]:
    from mlx_lm.models.cache import make_prompt_cache

    plans = {row: RowPlan(EncodedPrompt(tuple(prompt)), ()) for row, prompt in enumerate(prompts)}
    model: Any = BatchModel(registry, plans)
    generator = mlx_lm_generate().BatchGenerator(model, prefill_batch_size=2 if way == "padded" else 1)
    caches = [[*make_prompt_cache(registry.decoder.root), RowLabels([row], [0])] for row in plans]
    try:
        uids = generator.insert(prompts, [_STEPS] * len(prompts), caches=caches)
        found: dict[int, tuple[list[int], list[mx.array]]] = {uid: ([], []) for uid in uids}
        while any(len(ids) < _STEPS for ids, _ in found.values()):
            for response in generator.next_generated():
                found[response.uid][0].append(response.token)
                found[response.uid][1].append(response.logprobs)
    finally:
        generator.close()
    return [found[uid] for uid in uids]
