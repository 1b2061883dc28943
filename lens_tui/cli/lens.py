"""``mlx-lens-tui lens``: what every layer would predict at every token, and which parts make a logit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lens_tui.records import Intervention, LensError

from .arms import parse_arm
from .output import note, print_json, say
from .sources import Vectors, open_model, read_text

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.records.readouts import LogitAttribution, LogitLens

_CELL = 10
_PARTS_SHOWN = 12


def lens(
    text: str,
    *,
    model: str,
    sae: str,
    arm: str,
    target: str,
    layers: str,
    top_k: int,
    attribute: bool,
    as_json: bool,
) -> None:
    """Read the text, under ``arm`` if one is given, and print the grid; with ``attribute`` the last logit's parts."""
    words = read_text(text)
    wanted = _layers(layers)
    spec = parse_arm(arm) if arm else None
    from lens_tui.lens import attribute_logits, logit_lens

    with open_model(model) as opened:
        steering = Vectors(opened, sae, model).arm(spec).interventions if spec else ()
        follow = _target(target)
        found = logit_lens(opened, words, layers=wanted, target=follow, top_k=top_k, interventions=steering)
        parts = attribute_logits(opened, words, follow, interventions=steering) if attribute else None
        result = record(opened, found, parts, steering)
    if as_json:
        print_json(result)
    else:
        _print_grid(result)
        if parts is not None:
            _print_parts(result["attribution"])


def record(
    opened: LensModel, found: LogitLens, parts: LogitAttribution | None, steering: Sequence[Intervention]
) -> dict[str, Any]:
    """The readout as plain data: the tokens, the tokens followed, and a row of cells for each layer."""
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
    }


def _token(texts: dict[int, str], token: Any) -> dict[str, Any]:
    return {"id": int(token), "text": texts[int(token)]}


def _layers(text: str) -> list[int] | None:
    """Layers written as ``0,4,-1``; nothing means all."""
    if not text.strip():
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise LensError(f"The layers {text!r} cannot be read.", "Write whole numbers, such as 0,4,-1.") from None


def _target(text: str) -> int | str | None:
    """A target as written: ``id:17`` or a text of one token; nothing means the token that comes next."""
    if not text:
        return None
    if text.startswith("id:"):
        if not text[3:].isdigit():
            raise LensError(f"The target {text!r} names no token.", "Write id: and a number, such as id:17.")
        return int(text[3:])
    return text


def _print_grid(result: dict[str, Any]) -> None:
    """Layers from the last to the first, tokens from left to right, in as many blocks as the width needs."""
    tokens, layers = result["tokens"], result["layers"][::-1]
    across = max(1, (shutil.get_terminal_size((120, 24)).columns - 5) // _CELL)
    for start in range(0, len(tokens), across):
        block = slice(start, start + across)
        say(_line("", [_shown(token["text"]) for token in tokens[block]]))
        for layer in layers:
            say(_line(f"L{layer['layer']}", [_shown(cell["top"][0]["text"]) for cell in layer["cells"][block]]))
        say(_line("", [_shown(token["target"]["text"]) for token in tokens[block]]))
        for layer in layers:
            cells = layer["cells"][block]
            say(_line(f"L{layer['layer']}", [f"{cell['target_rank']} {_p(cell)}" for cell in cells]))
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
        note(f"{len(whole)} layers stand as one block: {whole[0]['why']}")


def _p(cell: dict[str, Any]) -> str:
    from math import exp

    return f"{exp(cell['target_logprob']):.2f}".lstrip("0")


def _line(name: str, cells: Sequence[str]) -> str:
    from rich.cells import set_cell_size

    return f"{name:<5}" + " ".join(set_cell_size(cell, _CELL - 1) for cell in cells).rstrip()


def _shown(text: str) -> str:
    return text.replace(" ", "·")
