"""What is checked beforehand of what is done to heads and to patterns: heads, numbers, that there is a pattern."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from lens_tui.records import AblateHeads, EditPattern, LensError, Positions

from ..architecture.find import heads_of
from .points import SiteMap
from .registry import Plan, PlanEntry, Registry, Run


def checked_heads(record: AblateHeads, sites: SiteMap, width: int) -> AblateHeads:
    """The record with the number of heads that its layer has.

    Raises:
        LensError: For another site than ``attn_z``, an attention that does not say how many heads it has, a head that
            is not there or named twice, and a mean of another shape.
    """
    if record.site != "attn_z":
        raise LensError(f"{record.id!r} acts on heads, which are at attn_z, not at {record.site}.", "Leave site out.")
    count = heads_of(sites.point(record.layer, "attn_out").module)
    if not count or width % count:
        raise LensError(f"The attention of layer {record.layer} does not say how many heads it has.")
    heads = record.heads
    if not heads or len(set(heads)) != len(heads) or any(not 0 <= head < count for head in heads):
        raise LensError(
            f"{record.id!r} names the heads {list(heads)}; layer {record.layer} has 0 to {count - 1}.",
            "Name at least one of them, each once.",
        )
    wanted = (len(heads) * (width // count),)
    if record.mean is not None and record.mean.shape != wanted:
        raise LensError(
            f"The mean of {record.id!r} has shape {record.mean.shape}; {len(heads)} heads need {wanted}.",
            "Give their values one after the other.",
        )
    if record.mean is not None and not np.isfinite(record.mean).all():
        raise LensError(f"The mean of {record.id!r} holds NaN or infinity.", "Check how it was made.")
    return replace(record, count=count)


def checked_pattern(record: EditPattern, registry: Registry) -> EditPattern:
    """The record with the number of heads that its layer has.

    Raises:
        LensError: For another site than ``attn_z``, heads or weights that cannot be, sources that are none, a model
            that is shared by processes or goes through its layers several times, and an attention whose pattern,
            tried on a few tokens with and without a cache, is not what it computes.
    """
    if record.site != "attn_z":
        raise LensError(
            f"{record.id!r} edits a pattern, which acts at attn_z, not at {record.site}.", "Leave site out."
        )
    registry.decoder.check_whole("An edit of attention patterns")
    if registry.decoder.passes > 1:
        raise LensError("This model goes through its blocks several times, so its patterns cannot be edited.")
    count = heads_of(registry.sites.point(record.layer, "attn_out").module)
    if not count:
        raise LensError(f"The attention of layer {record.layer} does not say how many heads it has.")
    heads = record.heads
    if len(set(heads)) != len(heads) or any(not 0 <= head < count for head in heads):
        raise LensError(
            f"An edit of the attention names the heads {list(heads)}; layer {record.layer} has 0 to {count - 1}.",
            "Name each once, or none for all.",
        )
    _check_weights(record, count) if record.weights is not None else _check_sources(record)
    registry.once(_Tried(record.layer, count))
    return replace(record, count=count)


def _check_weights(record: EditPattern, count: int) -> None:
    assert record.weights is not None
    n_heads, n_rows, n_sources = record.shape
    wanted = len(record.heads) or count
    if n_heads != wanted:
        raise LensError(
            f"The weights of {record.id!r} are for {n_heads} heads, and it names {wanted}.",
            "Give (heads, tokens, sources).",
        )
    if record.sources != Positions():
        raise LensError(f"{record.id!r} has weights, which replace whole rows, and sources.", "Leave sources out.")
    if not np.isfinite(record.weights).all():
        raise LensError(f"The weights of {record.id!r} hold NaN or infinity.", "Check how they were made.")
    later = np.arange(n_sources) > np.arange(n_rows)[:, None]
    if n_rows > 1 and record.weights.reshape(record.shape)[:, later].any():
        raise LensError(
            f"{record.id!r} lets a token attend to one behind it, which this model never sees.",
            "Give weights on earlier tokens and itself alone.",
        )


def _check_sources(record: EditPattern) -> None:
    sources = record.sources
    if sources.kind in ("all", "not_bos"):
        raise LensError(
            f"The sources of {record.id!r} are {sources.kind!r}.",
            "Name some by their positions, or use AblateHeads to take away all that a head hands on.",
        )
    if sources.role == "thinking":
        raise LensError(
            f"The sources of {record.id!r} are the thinking, which is known of the prompt alone.",
            "Name them by their positions.",
        )
    if sources.kind == "indices" and not sources.indices:
        raise LensError(f"The sources of {record.id!r} are an empty list.", "Name at least one.")


@dataclass(frozen=True)
class _Tried:
    """One layer's pattern, read in a prompt, in a piece after it and in a step: raises where it cannot be."""

    layer: int
    count: int

    def __call__(self, registry: Registry) -> bool:
        from mlx_lm.models.cache import make_prompt_cache

        nothing = EditPattern(id="probe", layer=self.layer, sources=Positions("indices", (0,)), count=self.count)
        run = Run(registry, Plan(([PlanEntry(registry, nothing)],)), 9)
        ids = mx.array([[(7 * at + 3) % registry.decoder.vocab_size for at in range(9)]])
        registry.forward(run, ids)  # what is checked is computed meanwhile; what lies above, and the logits, never
        cache = make_prompt_cache(registry.decoder.root)
        for start, stop in ((0, 5), (5, 8), (8, 9)):
            registry.forward(run, ids[:, start:stop], cache, start=start)
        return True
