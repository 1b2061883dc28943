"""``mlx-lens-tui feature``: the page of one feature."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lens_tui.records.errors import LensError

from .output import note, print_json, say
from .sources import open_model, open_sae

if TYPE_CHECKING:
    from lens_tui.lens.unembed import Convention

_BAR = 40


def page(number: str, *, model: str, sae: str, convention: str, sizes: tuple[int, int, int], as_json: bool) -> None:
    """Print the page; ``sizes`` are how many tokens, examples and neighbours."""
    feature, how = feature_number(number), convention_of(convention)
    from lens_tui.worker.finding import feature_page
    from lens_tui.worker.handlers.knowledge import index_of

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
    print_json(result) if as_json else _print(result)


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


def _print(result: Mapping[str, Any]) -> None:
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
