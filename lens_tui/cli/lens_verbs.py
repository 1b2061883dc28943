"""The verb that reads a text layer by layer: ``lens``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import set_cell_size

from lens_tui.records import Intervention, LensError
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.cause_plan import read_token
from lens_tui.records.wording import many
from lens_tui.tui.format import share_level

from .output import note, print_json, say, say_shaded, sentences
from .sources import Json, Model, SAEName, Vectors, open_model, read_text

if TYPE_CHECKING:
    from lens_tui.records.measures import AttentionPattern, LogitAttribution, LogitLens

_CELL = 10
_PARTS_SHOWN = 12
_HEADS_SHOWN = 6
_SOURCES_SHOWN = 4

verbs = typer.Typer()


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
        _say_row("", [(_with_dots(token["text"]), 0) for token in tokens[block]])
        for layer in layers:
            _say_row(f"L{layer['layer']}", [(_with_dots(cell["top"][0]["text"]), 0) for cell in layer["cells"][block]])
        _say_row("", [(_with_dots(token["target"]["text"]), 0) for token in tokens[block]])
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
    say(f"where heads look from token {place} {_with_dots(tokens[place]['text'])}")
    for item in layers:
        if item["why"]:
            note(item["why"])
        for head, weights in enumerate(item["weights"]):
            best = sorted(range(len(weights)), key=lambda source: -weights[source])[:_SOURCES_SHOWN]
            name = f"L{item['layer']} H{head}"
            pairs: list[tuple[str, int]] = [(f"  {name:<8}", 0)]
            for source in best:
                shown = f"{source} {_with_dots(tokens[source]['text'])} {weights[source]:.2f}"
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


def _with_dots(text: str) -> str:
    return text.replace(" ", "·")
