"""``mlx-lens-tui features``: the top SAE features of every token of a text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from lens_tui.records import Intervention, LensError

from .long_work import Meter
from .output import note, print_json, say
from .sources import Vectors, open_model, open_sae, parse_arm, read_text

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.lens.architecture.unembed import Convention
    from lens_tui.records.readouts import LogitAttribution, LogitLens
    from lens_tui.sae import SAE
    from lens_tui.tasks.features import Order


def features(text: str, *, model: str, sae: str, top_k: int, by: str, as_json: bool) -> None:
    """Encode the text, unsteered, and print what fires on each token."""
    words = read_text(text)

    with open_model(model) as lens:
        result = read(lens, open_sae(sae, model), words, top_k, order_of(by))
    if as_json:
        print_json(result)
    else:
        _print_features(result)


def order_of(text: str) -> Order:
    """Raises :class:`LensError` unless it is an order of features."""
    if text not in ("activation", "rank", "effect"):
        raise LensError(f"There is no order {text!r}.", "Choose activation, rank or effect.")
    return cast("Order", text)


def read(lens: LensModel, sae: SAE, text: str, top_k: int, by: Order = "activation") -> dict[str, Any]:
    """The text's tokens with their top features, and how well the SAE fits this text.

    ``by`` is the order, see :func:`lens_tui.tasks.features.rank_tokens`; each feature has its activation, its ``score``
    in that order, and its label. ``l0`` and ``fvu`` leave special tokens (such as BOS) out. Raises ``LensError`` if
    the SAE is not of this model's width or does not say which layer and site it reads.
    """
    import mlx.core as mx

    from lens_tui.tasks.features import POOL, rank_tokens
    from lens_tui.tasks.knowledge import index_of, label_texts

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


def _print_features(result: dict[str, Any]) -> None:
    for token in result["tokens"]:
        places = 2 if result["by"] == "activation" else 3
        found = "  ".join(f"{item['id']:>6} {item['score']:7.{places}f}" for item in token["features"])
        say(f"{token['position']:>4}  {token['text']!r:<16} {'(special)' if token['special'] else found}")
    fit = f"L0 {result['l0']:.1f}, FVU {result['fvu']:.3f}" if result["fvu"] is not None else "no variance to explain"
    note(f"{result['sae']} at layer {result['layer']} {result['site']}: {fit} on this text, special tokens left out")


_BAR = 40


def page(number: str, *, model: str, sae: str, convention: str, sizes: tuple[int, int, int], as_json: bool) -> None:
    """Print the page; ``sizes`` are how many tokens, examples and neighbours."""
    feature, how = feature_number(number), convention_of(convention)
    from lens_tui.tasks.features import feature_page
    from lens_tui.tasks.knowledge import index_of

    tokens, examples, neighbours = sizes
    with open_model(model) as lens:
        opened = open_sae(sae, model)
        result = feature_page(
            lens,
            opened,
            feature,
            index_of(opened.info),
            convention=how,
            tokens=tokens,
            examples=examples,
            neighbours=neighbours,
        )
    print_json(result) if as_json else _print_page(result)


def feature_number(text: str) -> int:
    """``1288`` or ``f1288``. Raises :class:`LensError` for anything else."""
    match = re.fullmatch(r"[fF]?(\d{1,9})", text.strip())
    if match is None:
        raise LensError(f"{text!r} is no feature number.", "Write it as 1288 or f1288.")
    return int(match[1])


def convention_of(text: str) -> Convention:
    """Raises :class:`LensError` unless it is ``norm`` or ``raw``."""
    if text not in ("norm", "raw"):
        raise LensError(f"There is no convention {text!r}.", "Choose norm or raw.")
    return cast("Convention", text)


def _print_page(result: Mapping[str, Any]) -> None:
    say(f"feature {result['feature']} of {result['sae']} ({result['site']} of layer {result['layer']})")
    for label in result["labels"]:
        say(f"  {label['text']}  ({who(label)})")
    if not result["labels"]:
        say("  no label" + (f"; {result['description']}" if result["description"] else ""))
    if result["promoted"] is not None:
        say(f"promotes    ({result['convention']})  {_weights(result['promoted'])}")
        say(f"suppresses  ({result['convention']})  {_weights(result['suppressed'])}")
    index = result["index"]
    if index is not None:
        _print_index(index)
    for title, rows, measure in (("nearest decoder directions", result["neighbours"], "cosine"),
                                 ("active on the same tokens", result["co_active"] or (), "jaccard")):  # fmt: skip
        if rows:
            say(f"{title}  ({measure})")
        for row in rows:
            say(f"  {row['feature']:>7}  {row[measure]:6.3f}  {row['label'] or ''}".rstrip())
    if index is None:
        note("No index of this SAE is at hand: `mlx-lens-tui index TEXT` makes one, with examples and a histogram.")


def _print_index(index: Mapping[str, Any]) -> None:
    say(f"{index['corpus'] or 'the corpus'}: active on {index['count']} of {index['counted_tokens']} tokens "
        f"({index['density']:.4%}), max {index['max']:.3g}, mean {index['mean']:.3g} where active")  # fmt: skip
    filled = [place for place, n in enumerate(index["histogram"]) if n]
    most = max(index["histogram"], default=0)
    for place in range(filled[0], filled[-1] + 1) if filled else ():
        n = index["histogram"][place]
        say(f"  from {index['edges'][place]:>9.4g}  {n:>8}  {'█' * max(round(_BAR * n / most), int(n > 0))}".rstrip())
    if index["examples"]:
        say("top examples  (one a document)")
    for example in index["examples"]:
        say(f"  {example['value']:8.2f}  {_context(example['tokens'], example['peak'])}")


def _context(tokens: Sequence[str], peak: int) -> str:
    words = [f"«{token}»" if place == peak else token for place, token in enumerate(tokens)]
    return "".join(words).replace("\n", "⏎").replace("\t", "⇥")


def _weights(items: Sequence[Mapping[str, Any]]) -> str:
    return "  ".join(f"{item['text']!r} {item['value']:+.2f}" for item in items)


def who(label: Mapping[str, Any]) -> str:
    """Who says so: the source, the person or model, the score."""
    parts = [label["source"], label["author"], label["explainer"]]
    if label["score"] is not None:
        parts.append(f"{label['scorer']} {label['score']:.2f}")
    return ", ".join(part for part in parts if part)


def search(words: str, *, model: str, sae: str, convention: str, k: int, as_json: bool) -> None:
    """Print features whose labels hold the words, and features that promote one of them."""
    convention_of(convention)
    from lens_tui.tasks.features import search_features
    from lens_tui.tasks.knowledge import index_of

    with open_model(model) as lens:
        info = open_sae(sae, model).info
        result = search_features(words, info, lens, index_of(info), convention=convention, k=k)
    print_json(result) if as_json else _print_search(result)


def _print_search(result: Mapping[str, Any]) -> None:
    say(f"labels  ({len(result['labels'])})")
    for label in result["labels"]:
        say(f"  {label['feature']:>7}  {label['text']}  ({who(label)})")
    if result["promoting"] is None:
        note(f"No index of {result['sae']} is at hand: `mlx-lens-tui index TEXT` makes one; then promoted tokens are "
             "searched too.")  # fmt: skip
        return
    tokens = ", ".join(repr(item["text"]) for item in result["tokens"]) or "no single token"
    say(f"promote {tokens}  ({result['convention']})")
    for row in result["promoting"]:
        say(f"  {row['feature']:>7}  {row['value']:+6.2f}  {row['token']!r}  {row['label'] or ''}".rstrip())


def contrast(
    a: Path,
    b: Path,
    *,
    model: str,
    sae: str,
    measure: str,
    over: str,
    both_sides: bool,
    k: int,
    seed: int,
    text_key: str,
    as_json: bool,
) -> None:
    """Print the features that best tell texts A from texts B."""
    from lens_tui.sae.index.questions import Measure, Over
    from lens_tui.tasks.features import contrast_texts, read_texts
    from lens_tui.tasks.knowledge import label_texts

    for value, choice, name in ((measure, Measure, "measure"), (over, Over, "--over")):
        if value not in get_args(choice):
            raise LensError(f"There is no {name} {value!r}.", f"Choose {' or '.join(get_args(choice))}.")
    texts_a, texts_b = read_texts(a, text_key=text_key), read_texts(b, text_key=text_key)
    options: dict[str, Any] = {"measure": measure, "over": over, "both_sides": both_sides, "k": k, "seed": seed}
    meter = Meter()
    with open_model(model) as lens:
        opened = open_sae(sae, model)
        found = contrast_texts(
            lens, opened, texts_a, texts_b, **options,
            progress=lambda done, total: meter.say("read", f"{done} of {total} texts"),
        )  # fmt: skip
        meter.end()
    names = label_texts(opened.info, [row.feature for row in found])
    result = {
        "model": lens.info.name,
        "sae": opened.info.name,
        "sae_id": opened.info.id,
        "texts_a": len(texts_a),
        "texts_b": len(texts_b),
        **options,
        "features": [{**asdict(row), "label": names.get(row.feature)} for row in found],
    }
    print_json(result) if as_json else _print_contrast(result)


def _print_contrast(result: Mapping[str, Any]) -> None:
    say(f"{'feature':>9}{'held out':>10}{'chosen on':>11}{'active A':>10}{'active B':>10}  label")
    for row in result["features"]:
        numbers = f"{row['held_out']:>10.3f}{row['chosen']:>11.3f}{row['active_a']:>10.1%}{row['active_b']:>10.1%}"
        say(f"{row['feature']:>9}{numbers}  {row['label'] or ''}".rstrip())
    if result["measure"] == "auc" and result["features"]:
        chance = result["features"][0]["chance"]
        note(f"AUC: 0.5 is chance, ± {chance:.3f} (one standard deviation; {result['texts_a']} texts against "
             f"{result['texts_b']}, half of them held out)")  # fmt: skip


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
        if not re.fullmatch(r"[0-9]{1,18}", text[3:]):
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
