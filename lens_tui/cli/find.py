"""``mlx-lens-tui search`` and ``contrast``: features by words and by example texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from lens_tui.records.errors import LensError

from .feature_page import convention_of, who
from .long_work import Meter
from .output import note, print_json, say
from .sources import open_model, open_sae


def search(words: str, *, model: str, sae: str, convention: str, k: int, as_json: bool) -> None:
    """Print features whose labels hold the words, and features that promote one of them."""
    convention_of(convention)
    from lens_tui.worker.finding import search_features
    from lens_tui.worker.handlers.knowledge import index_of

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
    from lens_tui.sae.index.contrast import Measure, Over
    from lens_tui.worker.contrasting import contrast_texts, read_texts
    from lens_tui.worker.known_labels import label_texts

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
