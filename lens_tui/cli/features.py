"""``mlx-lens-tui features``: the top SAE features of every token of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lens_tui.records import LensError

from .output import note, print_json, say
from .sources import open_model, open_sae, read_text

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.sae import SAE
    from lens_tui.worker.ranking import Order


def features(text: str, *, model: str, sae: str, top_k: int, by: str, as_json: bool) -> None:
    """Encode the text, unsteered, and print what fires on each token."""
    words = read_text(text)

    with open_model(model) as lens:
        result = read(lens, open_sae(sae, model), words, top_k, order_of(by))
    if as_json:
        print_json(result)
    else:
        _print(result)


def order_of(text: str) -> Order:
    """Raises :class:`LensError` unless it is an order of features."""
    if text not in ("activation", "rank", "effect"):
        raise LensError(f"There is no order {text!r}.", "Choose activation, rank or effect.")
    return cast("Order", text)


def read(lens: LensModel, sae: SAE, text: str, top_k: int, by: Order = "activation") -> dict[str, Any]:
    """The text's tokens with their top features, and how well the SAE fits this text.

    ``by`` is the order, see :func:`lens_tui.worker.ranking.rank_tokens`; each feature has its activation, its ``score``
    in that order, and its label. ``l0`` and ``fvu`` leave special tokens (such as BOS) out. Raises ``LensError`` if
    the SAE is not of this model's width or does not say which layer and site it reads.
    """
    import mlx.core as mx

    from lens_tui.worker.handlers.knowledge import index_of
    from lens_tui.worker.known_labels import label_texts
    from lens_tui.worker.ranking import POOL, rank_tokens

    info = sae.info
    if info.layer < 0 or not info.site:
        raise LensError(f"The SAE {info.name!r} does not say which layer and site it reads.")
    ids = lens.tokens.encode(text)
    with lens.capture([info.layer], site=info.site) as captured:
        lens.forward(list(ids))
    residual = captured[info.layer][0]
    if residual.shape[-1] != sae.d_model:
        raise LensError(
            f"The SAE {info.name!r} reads width {sae.d_model}; this model's {info.site} has {residual.shape[-1]}.",
            "Choose an SAE that was trained on this model.",
        )
    pool = top_k if by == "activation" else max(POOL, top_k)
    top = [np.array(part) for part in sae.top_k(residual, min(pool, sae.d_sae))]
    index = index_of(info) if by == "rank" else None
    rows = rank_tokens(lens, sae, ids, top[0], top[1], by=by, k=top_k, index=index)
    names = label_texts(info, sorted({f for row in rows for f, _, _ in row}))
    specials = lens.tokens.special_ids()
    special = [token in specials for token in ids]
    plain = [i for i, is_special in enumerate(special) if not is_special]
    whole = sae.reconstruct(residual[mx.array(plain)]) if plain else None
    return {
        "model": lens.info.name,
        "sae": info.name,
        "sae_id": info.id,
        "layer": info.layer,
        "site": info.site,
        "by": by,
        "l0": float(np.array(whole.l0).mean()) if whole else None,
        "fvu": whole.fvu if whole else None,
        "tokens": [
            {
                "position": i,
                "id": token,
                "text": lens.tokens.display(token),
                "special": special[i],
                "features": [
                    {"id": feature, "activation": value, "score": score, "label": names.get(feature)}
                    for feature, value, score in rows[i]
                ],
            }
            for i, token in enumerate(ids)
        ],
    }


def _print(result: dict[str, Any]) -> None:
    for token in result["tokens"]:
        places = 2 if result["by"] == "activation" else 3
        found = "  ".join(f"{item['id']:>6} {item['score']:7.{places}f}" for item in token["features"])
        say(f"{token['position']:>4}  {token['text']!r:<16} {'(special)' if token['special'] else found}")
    fit = f"L0 {result['l0']:.1f}, FVU {result['fvu']:.3f}" if result["fvu"] is not None else "no variance to explain"
    note(f"{result['sae']} at layer {result['layer']} {result['site']}: {fit} on this text, special tokens left out")
