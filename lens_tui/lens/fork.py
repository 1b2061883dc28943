"""Send a prompt through the layers before the first steered site once, and through the others for every row.

What an intervention changes lies behind its site, so up to there the rows of one
prompt are the same row. The forward begins with one row and becomes as many as
there are arms where the first of them is touched. Models whose blocks share more
than the residual stream (keys and values of earlier layers, say) may not take
that; so it is proved once, by a tiny forward, before it is used.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import Add, SteeringVector

from .batch_tolerance import tolerance
from .program import Hook
from .proxy import first_of
from .registry import Entry, Plan, Registry, Run, acts
from .steps import kl

_known: weakref.WeakKeyDictionary[Registry, bool] = weakref.WeakKeyDictionary()


def can_fork(registry: Registry, plan: Plan) -> bool:
    """Whether a prefill under this plan may begin with one row, and whether that saves anything."""
    items = [entry.item for row in plan.rows for entry in row if acts(entry.item)]
    if len(plan.rows) < 2 or plan.recorders or any(isinstance(item, Hook) for item in items):
        return False
    if min((item.layer for item in items), default=0) == 0 or registry.decoder.passes > 1:
        return False
    if registry not in _known:
        _known[registry] = _proved(registry)
    return _known[registry]


def spread(cache: Sequence[Any], n_rows: int) -> None:
    """Give caches that hold one row as many as the others have."""
    for item in cache:
        item.state = _spread(item.state, n_rows)


def add_rows(cache: Sequence[Any], n_rows: int, sources: Sequence[int]) -> None:
    """Give caches of ``n_rows`` rows copies of some of these rows, at the end."""
    index = mx.array([*range(n_rows), *sources])
    for item in cache:
        item.state = _picked(item.state, n_rows, index)


def _picked(state: Any, n_rows: int, index: mx.array) -> Any:
    if isinstance(state, (list, tuple)):
        return type(state)(_picked(part, n_rows, index) for part in state)
    if isinstance(state, mx.array) and state.ndim and state.shape[0] == n_rows:
        return state[index]
    return state


def _spread(state: Any, n_rows: int) -> Any:
    if isinstance(state, (list, tuple)):
        return type(state)(_spread(part, n_rows) for part in state)
    if isinstance(state, mx.array) and state.ndim and state.shape[0] == 1:
        return mx.repeat(state, n_rows, axis=0)
    return state


def _proved(registry: Registry) -> bool:
    """Two rows, one of them steered half way up, both ways: the next tokens' distributions agree."""
    decoder = registry.decoder
    layer = decoder.n_layers // 2
    vector = SteeringVector.of("probe", np.ones(decoder.d_model), layer)
    entry = Entry(registry, Add(id="probe", layer=layer, vector=vector, scale=1.0))
    run = Run(registry, Plan(((), (entry,))), 7)
    ids = mx.array([[(7 * at + 3) % decoder.vocab_size for at in range(7)]] * 2)
    registry.need([entry.key])
    try:
        forked, together = (_logprobs(run, ids, fork) for fork in (2, 0))
    except Exception:  # whatever a model raises whose layers do not take another number of rows
        return False
    finally:
        registry.release([entry.key])
    return bool((kl(together, forked) < tolerance(decoder.dtype)).all())


def _logprobs(run: Run, ids: mx.array, fork: int) -> mx.array:
    from mlx_lm.models.cache import make_prompt_cache

    root = run.registry.decoder.root
    cache = make_prompt_cache(root)
    with run.registry.running(run):
        run.fork = fork
        root(ids[:1, :-1] if fork else ids[:, :-1], cache=cache)
        run.fork = 0
        if fork:
            spread(cache, fork)
        logits = first_of(root(ids[:, -1:], cache=cache))[:, -1].astype(mx.float32)
    found: mx.array = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(found)
    return found
