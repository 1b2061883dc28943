"""Send a prompt through the model for every row, computing what rows share once and nothing that is kept already.

Rows whose prompt is touched by the same interventions, or by none (steering that
begins with the first generated token), have one cache: it is filled as one row and
forked. Rows that begin alike and are steered from some position on share the plain
part before it. Every row's cache is the one it would have alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from .meter import Meter
from .prefix import PLAIN, PrefixCache, Sums, first_touched, join_rows, key_of, row_of
from .registry import Entry, Plan, Registry, Run
from .tokens import EncodedPrompt

WORTH = 0.67
"""Rows are filled one group after another if that is at most this share of filling all of them together."""


@dataclass(eq=False)
class Group:
    """Rows with one prefix: its key, how much of it is plain, and how far it is filled."""

    key: object
    entries: tuple[Entry, ...]
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
    step: int
    max_kv_size: int | None = None
    limit: int | None = None

    @property
    def total(self) -> int:
        """Tokens of a prefix: all but the last, whose forward gives the first logits, or up to ``limit``."""
        longest = len(self.prompt.ids) - 1
        return longest if self.limit is None else min(self.limit, longest)

    def groups(self, rows: Sequence[Sequence[Entry]]) -> list[Group] | None:
        """The rows by what their prefix depends on, least plain first.

        ``None`` if one depends on a user's function, or if one row's precision would be every row's.
        """
        precise = any(getattr(entry.item, "precision", "") == "float32" for entries in rows for entry in entries)
        if precise and len(rows) > 1:
            return None
        found: dict[object, Group] = {}
        for row, entries in enumerate(rows):
            key = key_of(entries, self.prompt, self.registry.bos, self.total)
            if key is None:
                return None
            first = first_touched(entries, self.prompt, self.registry.bos)
            group = found.setdefault(key, Group(key, tuple(entries), [], min(first, self.total)))
            group.rows.append(row)
        return sorted(found.values(), key=lambda group: group.plain)

    def fetch(self, group: Group) -> None:
        """Take the longest kept prefix: one under the group's own key, or the plain part before its steering."""
        ids = self.prompt.ids
        own = self.store.fetch(self.sized(group.key), ids[: self.total])
        plain = self.store.fetch(self.sized(PLAIN), ids[: group.plain])
        group.cache, group.done, group.sums = max(own, plain, key=lambda found: found[1])

    def fill(self, group: Group, report: Callable[[int], None]) -> None:
        """Compute the rest of a group's prefix on one row, plain part first, and keep both."""
        from mlx_lm.models.cache import make_prompt_cache

        if group.cache is None:
            group.cache = make_prompt_cache(self.registry.decoder.root, self.max_kv_size)
        if group.done < group.plain:
            self._run(group, (), group.plain, None, report)
            self.store.keep(self.sized(PLAIN), self.prompt.ids[: group.plain], group.cache)
        if group.done < self.total:
            meter = Meter()
            self._run(group, group.entries, self.total, meter, report)
            for key, sums in meter.sums().items():
                group.sums[key] = group.sums.get(key, 0.0) + sums[:, 0]
            self.store.keep(self.sized(group.key), self.prompt.ids[: self.total], group.cache, group.sums)

    def _run(
        self, group: Group, entries: Sequence[Entry], end: int, meter: Meter | None, report: Callable[[int], None]
    ) -> None:
        run = Run(self.registry, Plan((entries,)), len(self.prompt.ids), self.prompt.spans, meter)
        cache: Any = group.cache
        self.registry.caches.note(cache, group.done, run.plan.fingerprint())
        while group.done < end:
            size = min(self.step, end - group.done)
            ids = mx.array([self.prompt.ids[group.done : group.done + size]], dtype=mx.int32)
            with self.registry.running(run):
                self.registry.decoder.root(ids, cache=cache)
            mx.eval([item.state for item in cache], *([] if meter is None else meter.arrays()))
            group.done += size
            report(size)
            mx.clear_cache()

    def sized(self, key: object) -> object:
        """The store's key: windows of another size keep other tokens."""
        return (self.max_kv_size, key)


def prefill_rows(filler: Filler, run: Run, cache: list[Any], report: Callable[[int, int], None]) -> int:
    """Fill ``cache`` with every row's prefix if that saves work; how many tokens of a row were kept already.

    -1 if it was not worth it and nothing was done: then all rows are to be filled together.
    """
    plan, total = run.plan, filler.total
    stamp = plan.stamp
    groups = filler.groups(plan.rows)
    if groups is None or total < filler.store.min_tokens:
        return -1
    for group in groups:
        filler.fetch(group)
    if _work(groups, total) > WORTH * len(plan.rows) * total and len(plan.rows) > 1:
        return -1
    reused = min(group.done for group in groups)
    done = [sum(group.done for group in groups)]

    def count(size: int) -> None:
        done[0] += size
        report(done[0] * total // (len(groups) * total), total + 1)

    for group in groups:
        if not group.done:
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
    work, plain = 0, 0
    for group in groups:
        work += total - max(group.done, min(plain, group.plain))
        plain = max(plain, group.plain)
    return work
