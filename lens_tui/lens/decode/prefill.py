"""Prefixes kept for reuse: KV caches of prompts, known by their tokens and by the interventions they were filled under.

The store is mlx-lm's. Its key is what acted on the tokens kept, so a plain cache is
never continued under steering that would have touched it, nor a steered one without:
equal keys and equal tokens mean equal caches. Caches that cannot be rewound
(recurrent layers, full sliding windows) are kept as snapshots and continued from there.

Rows whose prefixes are alike are filled as one; and where nothing is kept, a prompt may begin
with one row, which becomes as many as there are at the first layer that differs (a fork).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from lens_tui.records import Add, Intervention, Positions, SteeringVector

from ..forward import tolerance
from ..hooks.program import DoseMeter, Hook, Key, has_effect
from ..hooks.registry import Plan, PlanEntry, Registry, Run
from ..hooks.steering import entries_of
from ..room import piece_of
from ..tokens import EncodedPrompt
from .sampling import kl, log_softmax

PLAIN: tuple[object, ...] = ()
Sums = dict[Key, NDArray[np.float64]]
"""A row's dose by site: sums over touched tokens (4,), as ``DoseMeter`` keeps them."""


class PrefixDoses:
    """The dose that a kept prefix was given: rides behind its caches, in mlx-lm's cache protocol."""

    def __init__(self, sums: Sums) -> None:
        self.sums = sums

    def is_trimmable(self) -> bool:
        """It does not hinder."""
        return True

    def trim(self, count: int) -> int:
        """Doses are means, which a part of the prefix has too."""
        return count

    @property
    def nbytes(self) -> int:
        """No memory of note."""
        return 0


class PrefixCache:
    """Prefixes of one model, the least recently made leave first.

    ``max_bytes`` and ``max_entries`` bound it, prefixes of fewer than ``min_tokens``
    are not kept; ``enabled`` switches it off. ``hits`` counts the tokens that did not
    have to be computed again.
    """

    def __init__(self, *, max_bytes: int = 1 << 29, max_entries: int = 32, min_tokens: int = 32) -> None:
        self.max_bytes, self.max_entries, self.min_tokens = max_bytes, max_entries, min_tokens
        self.enabled = True
        self.hits = 0
        self._weights: tuple[int, ...] = ()
        self.clear()

    def clear(self) -> None:
        """Forget every prefix."""
        from mlx_lm.models.cache import LRUPromptCache

        self._store = LRUPromptCache(self.max_entries, self.max_bytes)

    def follow(self, model: Any) -> None:
        """Forget everything if the model's weights are others than before."""
        flat: Any = tree_flatten(model.parameters())
        weights = tuple(id(value) for _, value in flat)
        if weights != self._weights:
            self.clear()
            self._weights = weights

    def __len__(self) -> int:
        return len(self._store)

    @property
    def nbytes(self) -> int:
        """Bytes of KV kept."""
        return int(self._store.nbytes)

    def fetch(self, key: object, ids: Sequence[int]) -> tuple[list[Any] | None, int, Sums]:
        """A copy of the longest prefix of ``ids`` kept under ``key``: caches (or ``None``), its length, its doses."""
        if not self.enabled or len(ids) < self.min_tokens:
            return None, 0, {}
        found, rest = self._store.fetch_nearest_cache(key, list(ids))
        done = len(ids) - len(rest)
        if found is None or done < self.min_tokens or not _reaches(found[:-1], done):
            return None, 0, {}
        return found[:-1], done, found[-1].sums

    def keep(self, key: object, ids: Sequence[int], cache: Sequence[Any], sums: Sums | None = None) -> None:
        """Keep the caches of a prefix of one row; they are copied, what is done to ``cache`` later changes nothing.

        Args:
            key: What the caches depend on beside the tokens.
            ids: The tokens that they hold.
            cache: One for each layer.
            sums: The dose that they were given.
        """
        if not self.enabled or len(ids) < self.min_tokens:
            return
        self._store.insert_cache(key, list(ids), [*_compact(cache), PrefixDoses(dict(sums or {}))])
        # mlx-lm forgets the tokens of what leaves, but not its key: a dial that is turned makes a new one each time.
        tries = self._store._trie._trie
        for stale in [known for known, held in tries.items() if not held]:
            del tries[stale]


def _compact(caches: Sequence[Any]) -> list[Any]:
    """Copies of caches without what they hold beyond their tokens: room for the next ones, other rows of a batch."""
    from mlx_lm.models.cache import KVCache, RotatingKVCache

    copies = deepcopy(list(caches))
    plain = [item for item in copies if type(item) in (KVCache, RotatingKVCache) and not item.empty()]
    for item in plain:
        # A window that has gone round holds its tokens in another order, and has no room left.
        end = item.offset if getattr(item, "_idx", item.offset) == item.offset else item.keys.shape[2]
        item.keys, item.values = (mx.contiguous(part[..., :end, :]) for part in (item.keys, item.values))
    mx.eval([(item.keys, item.values) for item in plain])
    return copies


def _reaches(caches: Sequence[Any], done: int) -> bool:
    """Whether caches that were cut to ``done`` tokens hold what the next token reads.

    A chunked cache (Llama 4) has dropped its front: cut, it may hold other tokens than asked for,
    or lack the beginning of the chunk that follows.
    """
    for cache in caches:
        inner = getattr(cache, "caches", None)
        if inner is not None and not _reaches(inner, done):
            return False
        offset, first = getattr(cache, "offset", None), getattr(cache, "start_position", None)
        if isinstance(offset, int) and inner is None and offset != done:
            return False
        if isinstance(first, int) and first > done - done % cache.chunk_size:
            return False
    return True


def first_touched(entries: Sequence[PlanEntry], prompt: EncodedPrompt, bos: int | None) -> int:
    """The first position of the prompt that any of these acts on; its length where none does."""
    length = len(prompt.ids)
    return min((_first(entry, prompt, bos) for entry in entries if has_effect(entry.item)), default=length)


def key_of(entries: Sequence[PlanEntry], prompt: EncodedPrompt, bos: int | None, length: int) -> object:
    """What the cache of a prompt's first tokens depends on beside the tokens; ``None``: on things that have no name.

    Args:
        entries: What acts on the row.
        prompt: The prompt. Positions that are counted from its end, or by role, put its length and roles into the
            key.
        bos: The id of the BOS token.
        length: How many tokens the cache is to hold; what acts behind them is left out.
    """
    parts = []
    for entry in entries:
        item = entry.item
        if not has_effect(item) or _first(entry, prompt, bos) >= length:
            continue
        if not isinstance(item, Intervention):
            return None  # a user's function may do anything
        positions = item.positions
        relative = positions.kind in ("last", "generated", "role") or _from_end(positions)
        parts.append((entry.fingerprint, (len(prompt.ids), prompt.spans) if relative else None))
    return tuple(parts)


def _first(entry: PlanEntry, prompt: EncodedPrompt, bos: int | None) -> int:
    positions: Positions | None = getattr(entry.item, "positions", None)
    length = len(prompt.ids)
    if positions is None or positions.kind in ("all", "prompt"):
        return 0
    if positions.kind == "not_bos":
        return next((at for at, token in enumerate(prompt.ids) if token != bos), length)
    if positions.kind == "indices":
        places = [index if index >= 0 else length + index for index in positions.indices]
        return min((at for at in places if at >= 0), default=length)
    if positions.kind == "slice":
        return max(0, positions.start if positions.start >= 0 else length + positions.start)
    if positions.kind == "role":
        return min((start for name, start, _ in prompt.spans or () if name == positions.role), default=length)
    return length - 1


def _from_end(positions: Positions) -> bool:
    if positions.kind == "indices":
        return any(index < 0 for index in positions.indices)
    return positions.kind == "slice" and (positions.start < 0 or (positions.stop or 0) < 0)


def join_rows(caches: Sequence[Sequence[Any]]) -> list[Any] | None:
    """Caches of one row each and of equal length, as caches of one batch; ``None`` where their arrays do not fit."""
    rows = [_compact(row) for row in caches]  # one that was kept has no room for tokens to come, a new one has
    joined = rows[0]
    for layer, cache in enumerate(joined):
        states = [row[layer].state for row in rows]
        merged = _joined(states)
        if merged is _MISFIT:
            return None
        cache.state = merged
    return joined


def row_of(cache: Sequence[Any], row: int, n_rows: int) -> list[Any]:
    """One row of a batch's caches."""
    taken = deepcopy(list(cache))
    if n_rows > 1:
        for item in taken:
            item.state = _row(item.state, row)
        mx.eval([item.state for item in taken])
    return taken


_MISFIT = object()


def _joined(states: Sequence[Any]) -> Any:
    first = states[0]
    if isinstance(first, (list, tuple)):
        parts = [_joined(part) for part in zip(*states, strict=True)]
        return _MISFIT if any(part is _MISFIT for part in parts) else type(first)(parts)
    if isinstance(first, mx.array):
        if any(state.shape[1:] != first.shape[1:] for state in states):
            return _MISFIT
        return mx.concatenate(list(states), axis=0)
    return first if all(state == first for state in states) else _MISFIT


def _row(state: Any, row: int) -> Any:
    if isinstance(state, (list, tuple)):
        return type(state)(_row(part, row) for part in state)
    # A slice alone would keep every row's memory.
    return mx.contiguous(state[row : row + 1]) if isinstance(state, mx.array) else state


WORTH = 0.67
"""Rows are filled one group after another if that is at most this share of filling all of them together."""


@dataclass(eq=False)
class Group:
    """Rows with one prefix: its key, how much of it is plain, and how far it is filled."""

    key: object
    entries: tuple[PlanEntry, ...]
    rows: list[int]
    plain: int
    cache: list[Any] | None = None
    done: int = 0
    sums: Sums = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Filler:
    """Fills prefixes of one prompt in a model."""

    registry: Registry
    store: PrefixCache
    prompt: EncodedPrompt
    step: int | None
    max_kv_size: int | None = None
    limit: int | None = None

    @property
    def total(self) -> int:
        """Tokens of a prefix: all but the last, whose forward gives the first logits, or up to ``limit``."""
        longest = len(self.prompt.ids) - 1
        return longest if self.limit is None else min(self.limit, longest)

    def groups(self, rows: Sequence[Sequence[PlanEntry]]) -> list[Group] | None:
        """The rows by what their prefix depends on, least plain first.

        ``None`` if one depends on a user's function, or if one row's precision would be every row's.
        """
        # A record in float32 lifts the whole tensor, all rows of it: filled apart, the others would be rounded.
        precise = any(getattr(entry.item, "precision", "") == "float32" for entries in rows for entry in entries)
        if precise and len(rows) > 1:
            return None
        found: dict[object, Group] = {}
        for row, entries in enumerate(rows):
            key = key_of(entries, self.prompt, self.registry.bos, self.total)
            if key is None:
                return None
            # Up to the first token that anything acts on, the cache is the plain model's, whatever comes behind: that
            # part is shared by all groups. Least plain first, so that each group finds what those before it have kept.
            first = first_touched(entries, self.prompt, self.registry.bos)
            group = found.setdefault(key, Group(key, tuple(entries), [], min(first, self.total)))
            group.rows.append(row)
        return sorted(found.values(), key=lambda group: group.plain)

    def fetch(self, group: Group) -> None:
        """Take the longest kept prefix: one under the group's own key, or the plain part before its steering."""
        ids = self.prompt.ids
        # Under its own key the whole prefix may be there, or that of a text that begins alike; plain, only what comes
        # before the steering may be used. The longer one saves more.
        own = self.store.fetch(self.sized(group.key), ids[: self.total])
        plain = self.store.fetch(self.sized(PLAIN), ids[: group.plain])
        group.cache, group.done, group.sums = max(own, plain, key=lambda found: found[1])

    def fill(self, group: Group, report: Callable[[int], None]) -> None:
        """Compute the rest of a group's prefix on one row, plain part first, and keep both."""
        from mlx_lm.models.cache import make_prompt_cache

        if group.cache is None:
            group.cache = make_prompt_cache(self.registry.decoder.root, self.max_kv_size)
        # Cut at the first steered token, even where nothing is kept yet: the plain part then serves other steerings
        # of this prompt.
        if group.done < group.plain:
            self._compute(group, (), group.plain, None, report)
            self.store.keep(self.sized(PLAIN), self.prompt.ids[: group.plain], group.cache)
        if group.done < self.total:
            meter = DoseMeter()
            self._compute(group, group.entries, self.total, meter, report)
            for key, sums in meter.sums().items():
                group.sums[key] = group.sums.get(key, 0.0) + sums[:, 0]
            self.store.keep(self.sized(group.key), self.prompt.ids[: self.total], group.cache, group.sums)

    def _compute(
        self,
        group: Group,
        entries: Sequence[PlanEntry],
        end: int,
        meter: DoseMeter | None,
        report: Callable[[int], None],
    ) -> None:
        run = Run(self.registry, Plan((entries,)), len(self.prompt.ids), self.prompt.spans, meter)
        cache: Any = group.cache
        # It may have been filled plain, and continues steered. The ledger is told that this is right: nothing that it
        # holds would have been touched.
        self.registry.caches.note(cache, group.done, run.plan.fingerprint())
        while group.done < end:
            size = min(self.step or piece_of(self.registry, 1), end - group.done)
            ids = mx.array([self.prompt.ids[group.done : group.done + size]], dtype=mx.int32)
            self.registry.forward(run, ids, cache, start=group.done)
            # Evaluated piece by piece: the graph of a long prompt would hold every layer's activations at once.
            mx.eval([item.state for item in cache], *([] if meter is None else meter.arrays()))
            group.done += size
            report(size)
            mx.clear_cache()

    def sized(self, key: object) -> object:
        """The store's key: windows of another size keep other tokens."""
        return (self.max_kv_size, key)


def prefill_rows(filler: Filler, run: Run, cache: list[Any], report: Callable[[int, int], None]) -> int:
    """Fill a cache with every row's prefix, if that saves work.

    Args:
        filler: What fills prefixes of the prompt.
        run: Whose rows are filled; its meter is given what was measured.
        cache: One for each layer, replaced by those of all rows.
        report: ``report(done, total)`` in tokens of one row.

    Returns:
        How many tokens of a row were kept already; -1 if it was not worth it, or the plan has changed meanwhile: then
        nothing was done, and all rows are to be filled together.
    """
    plan, total = run.plan, filler.total
    stamp = plan.stamp
    groups = filler.groups(plan.rows)
    if groups is None or total < filler.store.min_tokens:
        return -1
    for group in groups:
        filler.fetch(group)
    # One row after another is slower a token than all rows at once: it pays only where enough is kept or shared.
    if _work(groups, total) > WORTH * len(plan.rows) * total and len(plan.rows) > 1:
        return -1
    reused = min(group.done for group in groups)
    done = [sum(group.done for group in groups)]

    def count(size: int) -> None:
        done[0] += size
        report(done[0] * total // (len(groups) * total), total + 1)

    for group in groups:
        if not group.done:  # a group before may just have kept the plain part that this one begins with
            filler.fetch(group)
        filler.fill(group, count)
    caches: list[Any] = [group.cache for row in range(len(plan.rows)) for group in groups if row in group.rows]
    joined = caches[0] if len(caches) == 1 else join_rows(caches)
    if joined is None or plan.stamp != stamp:  # or somebody has turned a dial meanwhile
        return -1
    cache[:] = joined
    filler.store.hits += sum(len(group.rows) for group in groups) * reused
    filler.registry.caches.note(cache, total, plan.fingerprint())
    if run.meter is not None:
        for group in groups:
            run.meter.add(group.sums, group.rows, len(plan.rows))
    return reused


def keep_rows(filler: Filler, run: Run, cache: list[Any]) -> None:
    """Keep what rows that were filled together have, each group's once."""
    groups = filler.groups(run.plan.rows)
    if groups is None or filler.total < filler.store.min_tokens:
        return
    n_rows = len(run.plan.rows)
    sums = run.meter.sums() if run.meter is not None else {}
    for group in groups:
        row = group.rows[0]
        mine = {key: value[:, row] for key, value in sums.items() if value[3, row]}
        filler.store.keep(filler.sized(group.key), filler.prompt.ids[: filler.total], row_of(cache, row, n_rows), mine)


def _work(groups: Sequence[Group], total: int) -> int:
    """Tokens to compute if each group is filled as one row, each plain part once."""
    # Groups come least plain first, so that ``plain`` is how far those before have filled the plain prefix.
    work, plain = 0, 0
    for group in groups:
        work += total - max(group.done, min(plain, group.plain))
        plain = max(plain, group.plain)
    return work


def can_fork(registry: Registry, plan: Plan) -> bool:
    """Whether a prefill under this plan may begin with one row, and whether that saves anything."""
    # Below the first layer that anything acts on, rows of one prompt are one row: it is computed once, and made into
    # as many at that layer (``Run.fork``). Caches below hold one row until :func:`spread`. A user's function may count
    # its calls or look at the batch, and a capture must see every row; looped models pass the layer more than once.
    items = [entry.item for row in plan.rows for entry in row if has_effect(entry.item)]
    seen = any(recorder.whole for recorder in plan.recorders)
    if len(plan.rows) < 2 or seen or any(isinstance(item, Hook) for item in items):
        return False
    if min((item.layer for item in items), default=0) == 0 or registry.decoder.passes > 1:
        return False
    return registry.once(_forks)


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


def _forks(registry: Registry) -> bool:
    """Two rows, one of them steered half way up, both ways: the next tokens' distributions agree."""
    # Found out by trying, not by the architecture's name: blocks may carry a state of a fixed number of rows, or read
    # what a block further down has left. KL and not equality, for a batch of another size rounds otherwise.
    decoder = registry.decoder
    layer = decoder.n_layers // 2
    vector = SteeringVector.of("probe", np.ones(decoder.d_model), layer)
    (entry,) = entries_of(Add(id="probe", layer=layer, vector=vector, scale=1.0), registry)
    run = Run(registry, Plan(((), (entry,))), 7)
    ids = mx.array([[(7 * at + 3) % decoder.vocab_size for at in range(7)]] * 2)
    try:
        forked, together = (_logprobs(run, ids, fork) for fork in (2, 0))
    except Exception:  # whatever a model raises whose layers do not take another number of rows
        return False
    return bool((kl(together, forked) < tolerance(decoder.dtype)).all())


def _logprobs(run: Run, ids: mx.array, fork: int) -> mx.array:
    from mlx_lm.models.cache import make_prompt_cache

    registry = run.registry
    cache = make_prompt_cache(registry.decoder.root)
    start = ids.shape[1] - 1
    run.fork = fork
    registry.forward(run, ids[:1, :start] if fork else ids[:, :start], cache)
    run.fork = 0
    if fork:
        spread(cache, fork)
    found = log_softmax(registry.forward(run, ids[:, start:], cache, start=start)[:, -1])
    mx.eval(found)
    return found
