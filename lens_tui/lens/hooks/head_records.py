"""Interventions on single heads: their formula, and what is checked of them beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np

from lens_tui.records import AblateHeads, LensError

from ..architecture.find import heads_of
from .places import SiteMap


def ablate_heads(record: AblateHeads, width: int) -> Callable[[mx.array], mx.array]:
    """``mean - h``, or ``-h``, in the heads of the record; 0 in all others.

    Args:
        record: Checked, so that it knows how many heads there are.
        width: Of the site: heads times head size.
    """
    size = width // record.count
    chosen = np.repeat(np.isin(np.arange(record.count), record.heads), size)
    target = np.zeros(width, dtype=np.float32)
    if record.mean is not None:
        for head, values in zip(record.heads, record.mean.reshape(len(record.heads), size), strict=True):
            target[head * size : (head + 1) * size] = values
    inside, instead = mx.array(chosen), mx.array(target)
    mx.eval(inside, instead)
    return lambda h: mx.where(inside, instead - h, 0.0)


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
