"""The verb that reads a text through an SAE: ``features``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lens_tui.records import LensError, SAEInfo
from lens_tui.records.features import DENSE
from lens_tui.tui.format import bar

from .feature_verbs import dense_mark
from .output import note, print_json, say, say_row, sentences, terminal_width
from .sources import Json, Model, SAEName, open_model, open_sae, read_text

if TYPE_CHECKING:
    import mlx.core as mx

    from lens_tui.lens.model import LensModel
    from lens_tui.sae.base import Reconstruction
    from lens_tui.sae.index.index_reader import FeatureIndex
    from lens_tui.sae.load_sae import SAE
    from lens_tui.tasks.feature_page import Order

_METER = 8

verbs = typer.Typer()


@verbs.command()
@sentences
def features(
    text: Annotated[str, typer.Argument(help="The text to read; '-' reads standard input.")],
    model: Model = "demo",
    sae: SAEName = "",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Features per token.")] = 5,
    by: Annotated[
        str,
        typer.Option(
            help="activation; rank in the feature's own activations (needs an index); effect on the next token."
        ),
    ] = "activation",
    hide_dense: Annotated[
        bool, typer.Option("--hide-dense", help="Leave out features active on over 20 % of the index's tokens.")
    ] = False,
    json: Json = False,
) -> None:
    """Print the top SAE features of every token of a text."""
    words = read_text(text)

    with open_model(model) as lens:
        result = read(lens, open_sae(sae, model), words, top_k, order_of(by), hide_dense=hide_dense)
    print_json(result) if json else _print_features(result)


def order_of(text: str) -> Order:
    """Raises :class:`LensError` unless it is an order of features."""
    if text not in ("activation", "rank", "effect"):
        raise LensError(f"There is no order {text!r}.", "Choose activation, rank or effect.")
    return cast("Order", text)


def read(
    lens: LensModel, sae: SAE, text: str, top_k: int, by: Order = "activation", *, hide_dense: bool = False
) -> dict[str, Any]:
    """The text's tokens with their top features, and how well the SAE fits this text.

    ``by`` is the order, see :func:`~lens_tui.tasks.feature_page.rank_tokens`; each feature has its activation,
    its ``score`` in that order, its label or else what the index describes it by, and its density: the share of the
    index's tokens on which it is active. ``hide_dense`` leaves dense features out of the lists (those of an SAE
    without an index are not known, and refused); ``l0`` and ``fvu`` leave special tokens (such as BOS) out.

    Raises:
        LensError: the SAE is not of this model's width or does not say which layer and site it reads.
    """
    import numpy as np

    from lens_tui.tasks.feature_page import POOL, rank_tokens
    from lens_tui.tasks.knowledge import dense_features, index_of

    info = sae.info
    index = index_of(info)
    if hide_dense and index is None:
        raise LensError(f"Which features of {info.name} are dense is not known.", "Make an index of it first.")
    dense = list(dense_features(index)) if hide_dense else []
    ids = lens.tokens.encode(text)
    residual = _residual(lens, sae, ids)
    pool = (top_k if by == "activation" else max(POOL, top_k)) + len(dense)
    top = [np.array(part) for part in sae.top_k(residual, min(pool, sae.d_sae))]
    if dense:
        top[1][np.isin(top[0], dense)] = 0.0
    rows = rank_tokens(lens, sae, ids, top[0], top[1], by=by, k=top_k, index=index)
    known = _known(lens, info, index, sorted({feature for row in rows for feature, _, _ in row}))
    specials = lens.tokens.special_ids()
    special = [token in specials for token in ids]
    plain = np.flatnonzero(lens.tokens.content(ids)).tolist() if not all(special) else []
    whole = _reconstruction(lens, sae, ids, residual, plain) if plain else None
    return {
        "model": lens.info.name,
        "sae": info.name,
        "sae_id": info.id,
        "layer": info.layer,
        "site": info.site,
        "by": by,
        "hide_dense": hide_dense,
        "l0": float(np.array(whole.l0).mean()) if whole else None,
        "fvu": whole.fvu if whole else None,
        "tokens": [
            {
                "position": i,
                "id": token,
                "text": lens.tokens.display(token),
                "special": special[i],
                "features": [{"id": f, "activation": value, "score": score, **known[f]} for f, value, score in rows[i]],
            }
            for i, token in enumerate(ids)
        ],
    }


def _reconstruction(
    lens: LensModel, sae: SAE, ids: Sequence[int], residual: mx.array, rows: Sequence[int]
) -> Reconstruction:
    """What is made of these rows of what it reads; a transcoder is held against what it should give."""
    import mlx.core as mx

    which, place = mx.array(list(rows)), sae.info.target
    goal = None if place is None else lens.residuals(ids, place[0], site=place[1])
    return sae.reconstruct(residual[which], goal[which] if goal is not None and goal.shape[-1] == sae.d_out else None)


def _known(
    lens: LensModel, info: SAEInfo, index: FeatureIndex | None, features: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """Each feature's label; where it has none what the index describes it by; and its density in the index."""
    from lens_tui.sae.index.index_reader import describe
    from lens_tui.tasks.knowledge import label_texts

    names = label_texts(info, features)
    known: dict[int, dict[str, Any]] = {}
    for feature in features:
        label = names.get(feature)
        described = describe(index, feature, lens.tokens.display).text if index and label is None else None
        density = float(index.count[feature] / index.n_counted) if index and index.n_counted else None
        known[feature] = {"label": label, "description": described, "density": density}
    return known


def _residual(lens: LensModel, sae: SAE, ids: Sequence[int]) -> mx.array:
    """What the SAE reads at each token, ``(n, d)``, unsteered."""
    info = sae.info
    if info.layer < 0 or not info.site:
        raise LensError(f"The SAE {info.name!r} does not say which layer and site it reads.")
    residual = lens.residuals(ids, info.layer, site=info.site)
    if residual.shape[-1] != sae.d_model:
        raise LensError(
            f"The SAE {info.name!r} reads width {sae.d_model}; this model's {info.site} has {residual.shape[-1]}.",
            "Choose an SAE that was trained on this model.",
        )
    return residual


def _print_features(result: dict[str, Any]) -> None:
    """A line for each feature of a token, with its label; what is active nearly everywhere is marked as dense."""
    places = 2 if result["by"] == "activation" else 3
    scores = [item["score"] for token in result["tokens"] if not token["special"] for item in token["features"]]
    width, most = terminal_width(), max(scores, default=0.0)
    dense = False
    for token in result["tokens"]:
        before = f"{token['position']:>4}  {token['text']!r:<16} "
        if token["special"] or not token["features"]:
            say(before + ("(special)" if token["special"] else "(none)"))
            continue
        for item in token["features"]:
            mark = dense_mark(item["density"]) if (item["density"] or 0.0) > DENSE else ""
            dense = dense or bool(mark)
            name = item["label"] or item["description"] or ""
            # Only in a terminal: what is piped has every letter of a label, and no picture of a number.
            meter = f"{bar(item['score'] / most if most > 0 else 0.0, _METER):<{_METER}}  " if width else ""
            line = f"{before}{item['id']:>6} {item['score']:7.{places}f}  {meter}{mark:<6}  {name}".rstrip()
            say_row(line)
            before = " " * len(before)
    if result["hide_dense"]:
        note(f"dense features left out: those active on more than {DENSE:.0%} of the index's tokens")
    if dense:
        note(f"≋ dense: active on more than {DENSE:.0%} of the index's tokens, so it says little of one token")
    fits = "nothing to measure" if result["l0"] is None else f"L0 {result['l0']:.1f}"
    fits += "" if result["fvu"] is None else f", FVU {result['fvu']:.3f}"
    note(f"{result['sae']} at layer {result['layer']} {result['site']}: {fits} on this text, without special tokens")
