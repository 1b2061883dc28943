"""The verbs that read a text: through an SAE (``features``), and layer by layer (``lens``)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.cells import set_cell_size

from lens_tui.records import Intervention, LensError, SAEInfo
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.cause_plan import read_token
from lens_tui.records.features import DENSE
from lens_tui.records.wording import dotted, many
from lens_tui.tui.format import bar, share_level

from .feature_verbs import dense_mark
from .output import note, print_json, say, say_row, say_shaded, sentences, terminal_width
from .sources import Json, Model, SAEName, Vectors, open_model, open_sae, read_text

if TYPE_CHECKING:
    import mlx.core as mx

    from lens_tui.lens.model import LensModel
    from lens_tui.records.measures import AttentionPattern, LogitAttribution, LogitLens
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


_CELL = 10
_PARTS_SHOWN = 12
_HEADS_SHOWN = 6
_SOURCES_SHOWN = 4


@verbs.command()
@sentences
def lens(
    text: Annotated[str, typer.Argument(help="The text to read; '-' reads standard input.")],
    model: Model = "demo",
    sae: SAEName = "",
    arm: Annotated[str, typer.Option("--arm", "-a", help="Read the steered model: SOURCE[@LAYER]*SCALE.")] = "",
    target: Annotated[
        str,
        typer.Option("--target", "-t", help="The token to follow: a text such as ' door', or id:17. Default: next."),
    ] = "",
    layers: Annotated[str, typer.Option("--layers", "-l", help="Layers, as 0,4,-1. Default: all.")] = "",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Tokens in each cell (with --json).")] = 5,
    attribute: Annotated[
        bool,
        typer.Option(
            "--attribute", help="Show what each attention, head and MLP adds to the logit of the token followed there."
        ),
    ] = False,
    heads: Annotated[
        bool, typer.Option("--heads", help="Show where the attention heads of --layers look from there.")
    ] = False,
    at: Annotated[
        int, typer.Option("--at", help="Which token --attribute and --heads are for, from 0. Default: the last.")
    ] = -1,
    json: Json = False,
) -> None:
    """Print what every layer would predict: the logit lens."""
    from lens_tui.lens.read.attention import patterns_or_reasons
    from lens_tui.lens.read.logits import attribute_logits, logit_lens

    words = read_text(text)
    wanted = whole_numbers(layers)
    spec = parse_arm(arm) if arm else None
    with open_model(model) as opened:
        steering = Vectors(opened, sae, model).arm(spec).interventions if spec else ()
        follow = read_token(target)
        found = logit_lens(opened, words, layers=wanted, target=follow, top_k=top_k, interventions=steering)
        place = _place(at, len(found.token_ids))
        parts = looks = None
        if attribute:
            followed = int(found.target_ids[place])
            parts = attribute_logits(opened, words, followed, positions=[place], interventions=steering, heads=True)
        if heads:
            looks = patterns_or_reasons(opened, words, found.layers, interventions=steering)
        result = record(found, steering, parts, looks, place)
    if json:
        print_json(result)
    else:
        _print_grid(result)
        if parts is not None:
            _print_parts(result["attribution"])
        if looks is not None:
            _print_attention(result["attention"], result["tokens"])


def record(
    found: LogitLens,
    steering: Sequence[Intervention],
    parts: LogitAttribution | None = None,
    looks: Sequence[AttentionPattern | LensError] | None = None,
    place: int = -1,
) -> dict[str, Any]:
    """The readout as plain data: the tokens, the tokens followed, a row of cells for each layer; and what was asked of
    one token: what adds to the logit there, and where the heads of each layer look from it.
    """
    return {
        "model": found.model,
        "site": found.site,
        "steering": [f"{item.mode} at layer {item.layer} {item.site}" for item in steering],
        "tokens": [
            {"position": i, "id": token, "text": found.texts[token], "target": _token(found.texts, found.target_ids[i])}
            for i, token in enumerate(found.token_ids)
        ],
        "layers": [
            {"layer": layer, "cells": [_cell(found, row, i) for i in range(len(found.token_ids))]}
            for row, layer in enumerate(found.layers)
        ],
        "attribution": None if parts is None else _attribution(parts),
        "attention": None if looks is None else [_look(*pair, place) for pair in zip(found.layers, looks, strict=True)],
    }


def _cell(found: LogitLens, row: int, at: int) -> dict[str, Any]:
    pairs = zip(found.top_ids[row, at], found.top_logprobs[row, at], strict=True)
    return {
        "top": [{**_token(found.texts, token), "logprob": float(value)} for token, value in pairs],
        "target_rank": int(found.target_ranks[row, at]),
        "target_logprob": float(found.target_logprobs[row, at]),
        "entropy": float(found.entropy[row, at]),
        "kl": float(found.kl[row, at]),
    }


def _attribution(parts: LogitAttribution) -> dict[str, Any]:
    return {
        "position": parts.positions[0],
        "target": _token(parts.texts, parts.target_ids[0]),
        "logit": float(parts.logits[0]),
        "model_logit": float(parts.model_logits[0]),
        "softcap": parts.softcap,
        "parts": [
            {"kind": part.kind, "layer": part.layer, "why": part.why, "value": float(value)}
            for part, value in zip(parts.parts, parts.values[:, 0], strict=True)
        ],
        "rest": float(parts.rest[0]),
        "constant": float(parts.constant[0]),
        "heads": [
            {
                "layer": item.layer,
                "why": item.why,
                "values": item.values[:, 0].tolist(),
                "bias": float(item.bias[0]),
                "rest": float(item.rest[0]),
            }
            for item in parts.heads
        ],
    }


def _look(layer: int, pattern: AttentionPattern | LensError, place: int) -> dict[str, Any]:
    """Where each head of a layer looks from one token: a weight for each token up to it."""
    if isinstance(pattern, LensError):
        return {"layer": layer, "position": place, "why": str(pattern), "error": None, "weights": []}
    rows = pattern.weights[:, place, : place + 1].tolist()
    return {"layer": layer, "position": place, "why": "", "error": pattern.error, "weights": rows}


def _place(at: int, count: int) -> int:
    """A token by its place, negative ones from the end, as a place from 0."""
    if not -count <= at < count:
        raise LensError(f"There is no token {at}: the text has {count}.", f"Choose 0 to {count - 1} for --at.")
    return at % count


def _token(texts: dict[int, str], token: Any) -> dict[str, Any]:
    return {"id": int(token), "text": texts[int(token)]}


def whole_numbers(text: str) -> list[int] | None:
    """Layers written as ``0,4,-1``; nothing means all."""
    if not text.strip():
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise LensError(f"The layers {text!r} cannot be read.", "Write whole numbers, such as 0,4,-1.") from None


def _print_grid(result: dict[str, Any]) -> None:
    """Layers from the last to the first, tokens from left to right, in as many blocks as the width needs.

    In a terminal the probabilities are shaded.
    """
    tokens, layers = result["tokens"], result["layers"][::-1]
    across = max(1, (shutil.get_terminal_size((120, 24)).columns - 5) // _CELL)
    for start in range(0, len(tokens), across):
        block = slice(start, start + across)
        _say_row("", [(dotted(token["text"]), 0) for token in tokens[block]])
        for layer in layers:
            _say_row(f"L{layer['layer']}", [(dotted(cell["top"][0]["text"]), 0) for cell in layer["cells"][block]])
        _say_row("", [(dotted(token["target"]["text"]), 0) for token in tokens[block]])
        for layer in layers:
            _say_row(f"L{layer['layer']}", [_rank(cell) for cell in layer["cells"][block]])
        say()
    steered = f", steered: {'; '.join(result['steering'])}" if result["steering"] else ""
    note(
        f"{result['model']} {result['site']}: most probable next token, then rank (0 is best) and probability{steered}"
    )


def _print_parts(parts: dict[str, Any]) -> None:
    cap = f", {parts['model_logit']:.3f} after soft-capping" if parts["softcap"] else ""
    say(f"logit of {parts['target']['text']!r} after token {parts['position']}: {parts['logit']:.3f}{cap}")
    shown = sorted(parts["parts"], key=lambda part: -abs(part["value"]))
    for part in shown[:_PARTS_SHOWN]:
        name = part["kind"] if part["layer"] < 0 else f"{part['kind']} L{part['layer']}"
        say(f"  {part['value']:+9.3f}  {name}")
    left = sum(part["value"] for part in shown[_PARTS_SHOWN:]) + parts["rest"] + parts["constant"]
    say(f"  {left:+9.3f}  everything else ({max(0, len(shown) - _PARTS_SHOWN)} parts, rounding, biases)")
    whole = [part for part in parts["parts"] if part["kind"] == "block"]
    if whole:
        note(f"{many(len(whole), 'layer')} shown as one block: {whole[0]['why']}")

    ranked = [
        (value, f"L{item['layer']} H{head}") for item in parts["heads"] for head, value in enumerate(item["values"])
    ]
    if ranked:
        say("the heads that add most")
    for value, name in sorted(ranked, key=lambda pair: -abs(pair[0]))[:_HEADS_SHOWN]:
        say(f"  {value:+9.3f}  {name}")


def _print_attention(layers: Sequence[dict[str, Any]], tokens: Sequence[dict[str, Any]]) -> None:
    """Of each head the tokens that it looks at most, with their weights."""
    place = layers[0]["position"]
    say(f"where heads look from token {place} {dotted(tokens[place]['text'])}")
    for item in layers:
        if item["why"]:
            note(item["why"])
        for head, weights in enumerate(item["weights"]):
            best = sorted(range(len(weights)), key=lambda source: -weights[source])[:_SOURCES_SHOWN]
            name = f"L{item['layer']} H{head}"
            pairs: list[tuple[str, int]] = [(f"  {name:<8}", 0)]
            for source in best:
                shown = f"{source} {dotted(tokens[source]['text'])} {weights[source]:.2f}"
                pairs += [(shown, share_level(weights[source], 1.0)), ("  ", 0)]
            say_shaded(pairs[:-1])


def _rank(cell: dict[str, Any]) -> tuple[str, int]:
    """Rank and probability of the token followed, and the level of the probability."""
    probability = exp(cell["target_logprob"])
    shown = f"{probability:.2f}".lstrip("0")
    return f"{cell['target_rank']} {shown}", share_level(probability, 1.0) if probability >= 0.01 else 0


def _say_row(name: str, cells: Sequence[tuple[str, int]]) -> None:
    *fitted, (last, level) = [(set_cell_size(text, _CELL - 1), level) for text, level in cells]
    between = [piece for cell in fitted for piece in (cell, (" ", 0))]
    say_shaded([(f"{name:<5}", 0), *between, (last.rstrip(), level)])
