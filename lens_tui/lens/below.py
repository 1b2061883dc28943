"""What lies below the first steered site: the same under every steering, so computed once for all of them.

A forward resumes at that site: it is built as ever, but takes there what was read
without steering. MLX computes what is asked for, so the layers below are not computed
again; whatever else a model uses of them higher up (keys and values that layers
share, say) still comes from them. That the two ways agree is proved once for
each model by a tiny forward, and where they do not, forwards are run whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from lens_tui.records import Intervention

from .batch_tolerance import tolerance
from .capture import CaptureResult
from .program import Key
from .registry import Plan, Registry, Resume, Run, acts
from .steps import kl

if TYPE_CHECKING:
    from .layers import Decoder

Ids = tuple[int, ...]
MAX_BYTES = 1 << 29
"""Residuals kept between forwards, at most: those of more text are computed again in each batch."""

_known: weakref.WeakKeyDictionary[Registry, bool] = weakref.WeakKeyDictionary()


def first_site(registry: Registry, plans: Iterable[Sequence[Intervention]]) -> Key | None:
    """The last point of the residual stream that none of these plans reaches back behind.

    ``None`` where nothing acts, where no layer lies below, or where the model cannot resume there.
    """
    places = [(registry.decoder.index(record.layer), record.site) for plan in plans for record in plan if acts(record)]
    if not places:
        return None
    layer = min(layer for layer, _ in places)
    sites = {site for at, site in places if at == layer}
    if sites != {"resid_post"} and layer == 0:
        return None
    if not can_resume(registry):
        return None
    return (layer, "resid_post" if sites == {"resid_post"} else "resid_pre")


def reaches_behind(registry: Registry, plans: Iterable[Sequence[Intervention]], key: Key) -> bool:
    """Whether any of these plans changes what is at a point of the residual stream before it is touched there."""
    layer, site = key
    acting = [record for plan in plans for record in plan if acts(record)]
    places = [(registry.decoder.index(record.layer), record.site) for record in acting]
    return any(at < layer or (at == layer and site == "resid_post" != other) for at, other in places)


def can_resume(registry: Registry) -> bool:
    """Whether a forward that resumes half way up gives what a whole one gives; found out once."""
    if registry not in _known:
        _known[registry] = _proved(registry)
    return _known[registry]


@dataclass(frozen=True, eq=False)
class Below:
    """Residuals of texts at a site, ``(tokens, width)`` each, by the texts' token ids."""

    key: Key
    residuals: Mapping[Ids, mx.array]

    def resume(self, rows: Sequence[Ids]) -> Resume:
        """Where a forward of these rows, padded at their end, resumes."""
        longest = max(len(row) for row in rows)
        padded = {row: _padded(self.residuals[row], longest) for row in set(rows)}
        return Resume(self.key, mx.stack([padded[row] for row in rows]))


def spread_over(key: Key, hidden: mx.array, distinct: Sequence[Ids], rows: Sequence[Ids]) -> Resume:
    """Where a forward of rows resumes whose ``distinct`` texts were read side by side, ``(texts, longest, width)``."""
    place = {row: at for at, row in enumerate(distinct)}
    return Resume(key, hidden[mx.array(np.asarray([place[row] for row in rows], np.int32))])


def fits(decoder: Decoder, rows: Iterable[Ids]) -> bool:
    """Whether the residuals of these texts may be kept."""
    return sum(map(len, rows)) * decoder.d_model * decoder.dtype.size <= MAX_BYTES


def _padded(residual: mx.array, length: int) -> mx.array:
    """The last token's residual once more for each place of padding: nothing reads it, and it is no odd number."""
    missing = length - residual.shape[0]
    return residual if not missing else mx.pad(residual, [(0, missing), (0, 0)], mode="edge")


def _proved(registry: Registry) -> bool:
    """Two rows of a text, resumed half way up and whole: every next token's distribution agrees.

    Blocks that are handed the residual normed as well round it their own way where it is put in: not the same bits.
    Blocks that read other layers' keys need those layers run.
    """
    decoder = registry.decoder
    if decoder.view is not None or decoder.shares_keys:
        return False
    key = (decoder.n_layers // 2, "resid_post")
    row = tuple((7 * at + 3) % decoder.vocab_size for at in range(7))
    read = CaptureResult(registry, (key,), by_site=False)
    registry.need([key])
    try:
        with registry.running(Run(registry, Plan(recorders=(read,)), len(row))):
            decoder.forward(mx.array([row]))
        resumed, whole = (
            _logprobs(Run(registry, Plan(), len(row), resume=resume), [row, row])
            for resume in (spread_over(key, read[key[0]], [row], [row, row]), None)
        )
    except Exception:  # whatever a model raises that does not take it; whole forwards are always right
        return False
    finally:
        registry.release([key])
    return bool((kl(whole, resumed) < tolerance(decoder.dtype)).all())


def _logprobs(run: Run, rows: Sequence[Ids]) -> mx.array:
    with run.registry.running(run):
        logits = run.registry.decoder.forward(mx.array(np.asarray(rows, np.int32))).astype(mx.float32)
    found: mx.array = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(found)
    return found
