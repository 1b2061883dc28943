"""Sparse probes on an SAE's features: the model and the SAE, which do not know each other, together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui.records import LensError

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records.probe import SparseProbe
    from lens_tui.sae.base import SAE


def probe_features(
    lens: LensModel,
    sae: SAE,
    texts: Sequence[Any],
    labels: Sequence[Any],
    k: int,
    *,
    over: str = "mean",
    **options: Any,
) -> SparseProbe:
    """A probe on the ``k`` features of an SAE that tell the texts' labels apart best.

    Args:
        lens: The model.
        sae: An SAE whose layer and site are known.
        texts: Texts or token ids, read as they are.
        labels: 0 and 1, one for each.
        k: How many features.
        over: ``"last"``: the features of a text's last token; ``"mean"``: their mean over tokens that are not special.
        options: The others of :func:`lens_tui.sparse_probe`.

    Raises:
        LensError: For an SAE whose place is not known, and what ``sparse_probe`` refuses.
    """
    import mlx.core as mx

    from lens_tui.lens.probes.probe_texts import sparse_probe

    if sae.info.layer < 0 or not sae.info.site:
        raise LensError(f"The SAE {sae.info.name!r} does not say which layer it reads.", "Name it with @LAYER:SITE.")
    if over == "every":
        raise LensError("A sparse probe reads one row of features a text.", "Use 'last' or 'mean'.")
    special = lens.tokens.special_ids()
    rows = []
    for text in texts:
        ids = lens.rows([text])[0] if isinstance(text, str) else tuple(text)
        keep = np.array([token not in special for token in ids])
        active = np.array(sae.encode(lens.residuals(ids, sae.info.layer, site=sae.info.site)).astype(mx.float32))
        rows.append(active[-1] if over == "last" else active[keep if keep.any() else ...].mean(axis=0))
    return sparse_probe(np.stack(rows), labels, k, **options)
