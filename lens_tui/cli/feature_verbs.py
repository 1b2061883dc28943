"""The verbs on features: ``feature`` (one page), ``search`` (by words), ``contrast`` (by two kinds of texts)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from lens_tui.records import LensError
from lens_tui.records.wording import many
from lens_tui.tui.format import share_level

from .output import Meter, note, print_json, say, say_parts, say_row, say_shaded, sentences
from .sources import Convention, Json, Model, SAEName, TextKey, open_model, open_sae

if TYPE_CHECKING:
    from lens_tui.lens.architecture.unembed import Convention as How

_BAR = 40

verbs = typer.Typer()


@verbs.command()
@sentences
def feature(
    number: Annotated[str, typer.Argument(metavar="ID", help="The feature's number, as 1288 or f1288.")],
    model: Model = "demo",
    sae: SAEName = "",
    convention: Convention = "norm",
    examples: Annotated[int, typer.Option("--examples", "-k", min=0, help="Top examples to print.")] = 10,
    tokens: Annotated[int, typer.Option(min=1, max=1000, help="Promoted and suppressed tokens to print.")] = 10,
    neighbours: Annotated[int, typer.Option(min=0, help="Neighbours and co-active features to print.")] = 10,
    json: Json = False,
) -> None:
    """Print all that is known of one feature."""
    from lens_tui.tasks.feature_page import feature_facts
    from lens_tui.tasks.knowledge import dense_features, index_of

    which, how = feature_number(number), convention_of(convention)
    with open_model(model) as lens:
        opened = open_sae(sae, model)
        index = index_of(opened.info)
        facts = feature_facts(
            lens,
            opened,
            which,
            index,
            convention=how,
            tokens=tokens,
            examples=examples,
            neighbours=neighbours,
        )
    result = facts.plain()
    print_json(result) if json else _print_page(result, dense_features(index))


def feature_number(text: str) -> int:
    """``1288`` or ``f1288``. Raises :class:`LensError` for anything else."""
    match = re.fullmatch(r"[fF]?(\d{1,9})", text.strip())
    if match is None:
        raise LensError(f"{text!r} is not a feature number.", "Write it as 1288 or f1288.")
    return int(match[1])


def convention_of(text: str) -> How:
    """Raises :class:`LensError` unless it is ``norm`` or ``raw``."""
    if text not in ("norm", "raw"):
        raise LensError(f"There is no convention {text!r}.", "Choose norm or raw.")
    return cast("How", text)


def _print_page(result: Mapping[str, Any], dense: Mapping[int, float]) -> None:
    say(f"feature {result['feature']} of {result['sae']} ({result['site']} of layer {result['layer']})")
    for label in result["labels"]:
        say(f"  {label['text']}  ({who(label)})")
    if not result["labels"]:
        say("  no label" + (f"; {result['description']}" if result["description"] else ""))
    if result["promoted"] is not None:
        for verb, items in (("promotes", result["promoted"]), ("suppresses", result["suppressed"])):
            say_parts(f"{verb:<10}  ({result['convention']})  ", _weights(items))
    index = result["index"]
    if index is not None:
        _print_index(index)
    for title, rows, measure in (("nearest decoder directions", result["neighbours"], "cosine"),
                                 ("active on the same tokens", result["co_active"] or (), "jaccard")):  # fmt: skip
        if rows:
            say(f"{title}  ({measure})")
        for row in rows:
            say_row(f"  {row['feature']:>7}  {row[measure]:6.3f}  {_named(row, dense)}".rstrip())
    if index is None:
        note("This SAE has no index yet: `mlx-lens-tui index TEXT` makes one, with examples and a histogram.")


def _print_index(index: Mapping[str, Any]) -> None:
    say(f"{index['corpus'] or 'the corpus'}: active on {index['count']} of {many(index['counted_tokens'], 'token')} "
        f"({index['density']:.4%}), max {index['max']:.3g}, mean {index['mean']:.3g} where active")  # fmt: skip
    filled = [place for place, n in enumerate(index["histogram"]) if n]
    most = max(index["histogram"], default=0)
    for place in range(filled[0], filled[-1] + 1) if filled else ():
        n = index["histogram"][place]
        say(f"  from {index['edges'][place]:>9.4g}  {n:>8}  {'█' * max(round(_BAR * n / most), int(n > 0))}".rstrip())
    if index["examples"]:
        say("top examples  (one a document)")
    for example in index["examples"]:
        say_shaded([(f"  {example['value']:8.2f}  ", 0), *_context(example, index["max"])])


def _context(example: Mapping[str, Any], most: float) -> Iterator[tuple[str, int]]:
    """The tokens of an example, its peak between marks, each with the level of its activation."""
    for place, (token, value) in enumerate(zip(example["tokens"], example["values"], strict=True)):
        word = f"«{token}»" if place == example["peak"] else token
        yield word.replace("\n", "⏎").replace("\t", "⇥"), share_level(value, most)


def _weights(items: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{item['text']!r} {item['value']:+.2f}" for item in items]


def dense_mark(share: float) -> str:
    """What is put before the label of a feature that is active on so large a share of all tokens."""
    return f"≋ {share:.0%}"


def _named(row: Mapping[str, Any], dense: Mapping[int, float]) -> str:
    """A feature's label behind the mark of a dense one."""
    mark = dense_mark(dense[row["feature"]]) if row["feature"] in dense else ""
    return "  ".join(part for part in (mark, row["label"] or "") if part)


def say_label(before: str, text: str, whose: str) -> None:
    """A label behind its feature, and whose it is; on a terminal in as many lines as it needs."""
    say_parts(f"{before}  ", [*text.split(" "), f" ({whose})"], " ")


def who(label: Mapping[str, Any]) -> str:
    """Who says so: the source, the person or model, the score."""
    parts = [label["source"], label["author"], label["explainer"]]
    if label["score"] is not None:
        parts.append(f"{label['scorer']} {label['score']:.2f}")
    return ", ".join(part for part in parts if part)


@verbs.command()
@sentences
def search(
    words: Annotated[list[str], typer.Argument(help="Words to look for in labels and among promoted tokens.")],
    model: Model = "demo",
    sae: SAEName = "",
    convention: Convention = "norm",
    k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Features of each kind to print.")] = 20,
    json: Json = False,
) -> None:
    """Find features by words, in labels and promoted tokens."""
    from lens_tui.tasks.feature_page import search_features
    from lens_tui.tasks.knowledge import dense_features, index_of

    convention_of(convention)
    with open_model(model) as lens:
        info = open_sae(sae, model).info
        index = index_of(info)
        result = search_features(" ".join(words), info, lens, index, convention=convention, k=k).plain()
    print_json(result) if json else _print_search(result, dense_features(index))


def _print_search(result: Mapping[str, Any], dense: Mapping[int, float]) -> None:
    say(f"labels  ({len(result['labels'])})")
    for label in result["labels"]:
        say_label(f"  {label['feature']:>7}", label["text"], who(label))
    if result["promoting"] is None:
        note(f"{result['sae']} has no index yet: `mlx-lens-tui index TEXT` makes one; then promoted tokens are "
             "searched too.")  # fmt: skip
        return
    if not result["tokens"]:
        say("promoted: not searched, as none of the words is one token")
        return
    tokens = ", ".join(repr(item["text"]) for item in result["tokens"])
    say(f"promote {tokens}  ({result['convention']})")
    for row in result["promoting"]:
        say_row(f"  {row['feature']:>7}  {row['value']:+6.2f}  {row['token']!r}  {_named(row, dense)}".rstrip())


@verbs.command()
@sentences
def contrast(
    a: Annotated[Path, typer.Argument(help="Texts A: one per line, or JSONL, or documents split by <|endoftext|>.")],
    b: Annotated[Path, typer.Argument(help="Texts B, likewise.")],
    model: Model = "demo",
    sae: SAEName = "",
    measure: Annotated[str, typer.Option(help="auc, or difference (of means, in standard deviations).")] = "auc",
    over: Annotated[str, typer.Option(help="A text's value of a feature: its max or mean over tokens.")] = "max",
    both_sides: Annotated[bool, typer.Option("--both-sides", help="Find features that are stronger in B too.")] = False,
    k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Features to print.")] = 20,
    seed: Annotated[int, typer.Option(help="Which half of the texts features are chosen on.")] = 0,
    text_key: TextKey = "text",
    json: Json = False,
) -> None:
    """Find the features that tell texts A from texts B."""
    from lens_tui.sae.index.questions import Measure, Over
    from lens_tui.tasks.feature_page import contrast_texts, read_texts
    from lens_tui.tasks.knowledge import dense_features, index_of

    for value, choice, name in ((measure, Measure, "measure"), (over, Over, "--over")):
        if value not in get_args(choice):
            raise LensError(f"There is no {name} {value!r}.", f"Choose {' or '.join(get_args(choice))}.")
    texts_a, texts_b = read_texts(a, text_key=text_key), read_texts(b, text_key=text_key)
    options: dict[str, Any] = {"measure": measure, "over": over, "both_sides": both_sides, "k": k, "seed": seed}
    with open_model(model) as lens, Meter() as meter:
        opened = open_sae(sae, model)
        found = contrast_texts(
            lens, opened, texts_a, texts_b, **options,
            progress=lambda done, total: meter.say("read", f"{done} of {many(total, 'text')}", done / total),
        )  # fmt: skip
    result = {
        "model": lens.info.name,
        "sae": opened.info.name,
        "sae_id": opened.info.id,
        "texts_a": len(texts_a),
        "texts_b": len(texts_b),
        **options,
        "features": [asdict(row) for row in found],
    }
    print_json(result) if json else _print_contrast(result, dense_features(index_of(opened.info)))


def _print_contrast(result: Mapping[str, Any], dense: Mapping[int, float]) -> None:
    say(f"{'feature':>9}{'AUC':>8}{'d':>8}{'p':>8}{'chosen on':>11}{'active A':>10}{'active B':>10}  label")
    for row in result["features"]:
        scores = f"{row['auc']:>8.3f}{row['effect']:>+8.2f}{row['p']:>8.3f}{row['chosen']:>11.3f}"
        numbers = f"{scores}{row['active_a']:>10.1%}{row['active_b']:>10.1%}"
        say_row(f"{row['feature']:>9}{numbers}  {_named(row, dense)}".rstrip())
    if result["features"]:
        best = result["features"][0]
        note(f"held-out AUC (0.5 is chance, ± {best['chance']:.3f}) and difference d in standard deviations; "
             f"{result['texts_a']} texts against {result['texts_b']}, half of them held out")  # fmt: skip
        note(f"p: how often the best of these does as well where the held-out texts are dealt at random; "
             f"it reaches {best['null']:.3f} in one deal of twenty")  # fmt: skip
