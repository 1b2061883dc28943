"""What the prompts of a batch begin with: computed once, kept, and continued by each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .batch_model import RowPlan
from .prefill import Filler
from .tokens import EncodedPrompt


def share(plans: Sequence[RowPlan], filler: Callable[[EncodedPrompt, int], Filler]) -> None:
    """Compute once, and keep, what all these prompts begin with, for each set of interventions there."""
    ids = [plan.prompt.ids for plan in plans]
    common = min(len(row) for row in ids) - 1
    common = next((at for at in range(common) if len({row[at] for row in ids}) > 1), common)
    if len(plans) < 2:
        return
    for plan in plans:
        here = filler(plan.prompt, common)
        if not here.store.enabled or common < here.store.min_tokens:
            return
        for group in here.groups([plan.entries]) or ():
            here.fetch(group)
            here.fill(group, lambda size: None)


def begin(plan: RowPlan, filler: Callable[[EncodedPrompt], Filler]) -> tuple[list[Any], int]:
    """A row's caches to begin with, and how many of its prompt's tokens they hold; the dose of these is counted."""
    from mlx_lm.models.cache import make_prompt_cache

    here = filler(plan.prompt)
    for group in here.groups([plan.entries]) or ():
        here.fetch(group)
        if group.cache is not None:
            here.store.hits += group.done
            plan.meter.add(group.sums, [0], 1)
            return group.cache, group.done
    return make_prompt_cache(here.registry.decoder.root, here.max_kv_size), 0
