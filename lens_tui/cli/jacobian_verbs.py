"""The verbs of Jacobian lenses: ``jlens fit``, ``show``, ``vector`` and ``swap``."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui.records import LensError
from lens_tui.records.cause_plan import read_token
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tui.format import figure

from .output import Meter, interruptible, note, print_json, say, say_parts, sentences
from .read_verbs import whole_numbers
from .sources import Json, Model, TextKey, open_model, read_text

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records.jacobian_lens import JacobianLens

verbs = typer.Typer(no_args_is_help=True, help="Jacobian lenses: fit, compare, steer along one.")

Through = Annotated[
    str, typer.Option("--lens", "-j", help="The lens's file, ours or a published .pt. Default: the model's own.")
]
Layer = Annotated[int, typer.Option("--layer", "-l", help="The layer it acts at; negative counts from the end.")]


@verbs.command("fit")
@sentences
def fit(
    text: Annotated[Path, typer.Argument(help="A folder, a .txt or a .jsonl file.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The file; default: where the model's lens is found.")] = "",
    model: Model = "demo",
    texts: Annotated[int, typer.Option("--texts", "-n", min=1, help="Windows of the text to average over.")] = 100,
    layers: Annotated[str, typer.Option("--layers", "-l", help="Layers, as 0,4,-2. Default: all but the last.")] = "",
    context: Annotated[int, typer.Option(min=3, help="Tokens in a window.")] = 128,
    skip: Annotated[int, typer.Option(min=0, help="Positions left out at the start of each window.")] = 16,
    rows: Annotated[int, typer.Option(min=0, help="Rows of the matrices at once; 0: as memory is sensibly used.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Which windows are drawn.")] = 0,
    text_key: TextKey = "text",
    json: Json = False,
) -> None:
    """Fit one to a text: the average Jacobian of every layer.

    ctrl+c writes what was summed up, and the same command continues from there.
    """
    from lens_tui.tasks.jacobian_lenses import fit_on_corpus

    with open_model(model) as opened, interruptible() as asked, Meter() as meter:
        file, found = fit_on_corpus(
            opened, text, out or None, n_texts=texts, layers=whole_numbers(layers), context=context, skip=skip,
            rows=rows or None, seed=seed, text_key=text_key, should_stop=asked,
            progress=lambda step: meter.say("fit", _line(step), step.done / step.total),
        )  # fmt: skip
        facts = {"model": opened.info.name, "file": str(file), "stopped": found is None, "lens": _record(found)}
    if json:
        print_json(facts)
    elif found is not None:
        _print(found)
        say(f"written to {file}")
    if found is None:
        note("mlx-lens-tui: stopped. Run the same command to continue.")
        raise SystemExit(asked.status)


def _line(step: Any) -> str:
    error = "" if step.error is None else f" · error {step.error:.1%} of the least certain layer"
    return f"{step.done} of {step.total} texts{error}"


@verbs.command("show")
@sentences
def show(
    text: Annotated[str, typer.Argument(help="A text to compare the lenses on; '-' reads standard input.")] = "",
    through: Through = "",
    model: Model = "demo",
    json: Json = False,
) -> None:
    """Show what a lens was fitted to; with a text, beside the logit lens.

    That is by layer the share of tokens at which each says what the model says, and how far it is from it (KL).
    """
    from lens_tui.lens.read.logits import logit_lens

    with open_model(model) as opened:
        found = _opened(opened, through)
        readings: list[dict[str, Any]] = []
        if text:
            words = read_text(text)
            there = logit_lens(opened, words, through=found, top_k=1)
            plain = logit_lens(opened, words, layers=there.layers, top_k=1)
            for row, layer in enumerate(there.layers):
                pair = {
                    name: {"agreement": float(one.agreement[row]), "kl": float(one.kl[row].mean())}
                    for name, one in (("jacobian", there), ("logit", plain))
                }
                readings.append({"layer": layer, **pair})
        name = opened.info.name
    if json:
        print_json({"model": name, "lens": _record(found), "readings": readings})
        return
    _print(found)
    if readings:
        say(f"{'':<7}{'says what the model says':^26}{'KL from the model, nats':^26}")
        say(f"{'layer':<7}{'Jacobian':>12}{'logit':>12}  {'Jacobian':>12}{'logit':>12}")
    for item in readings:
        one, other = item["jacobian"], item["logit"]
        say(
            f"L{item['layer']:<6}{one['agreement']:>12.1%}{other['agreement']:>12.1%}"
            f"  {one['kl']:>12.2f}{other['kl']:>12.2f}"
        )


@verbs.command("vector")
@sentences
def vector(
    token: Annotated[str, typer.Argument(help="The token: ' door', or id:17.")],
    layer: Layer,
    through: Through = "",
    out: Annotated[str, typer.Option("--out", "-o", help="The file; default: the vectors folder.")] = "",
    name: Annotated[str, typer.Option("--name", "-n", help="What it is called.")] = "",
    model: Model = "demo",
    json: Json = False,
) -> None:
    """Save a token's direction at a layer, pulled back through a lens."""
    from lens_tui.lens.read.jacobian import jacobian_vector
    from lens_tui.records.vector_formats import save_vectors

    with open_model(model) as opened:
        made = jacobian_vector(opened, _opened(opened, through), _token(token), layer, name=name)
        promoted, suppressed = opened.promoted(made, 5)
        file = save_vectors(made, expanded(out) if out else None)
        model_name = opened.info.name
    if json:
        print_json(
            {
                "model": model_name,
                "name": made.name,
                "layer": made.layer,
                "norm": made.norm,
                "promoted": [{"id": one.token_id, "text": one.text, "value": one.value} for one in promoted],
                "suppressed": [{"id": one.token_id, "text": one.text, "value": one.value} for one in suppressed],
                "file": str(file),
            }
        )
        return
    say(f"{one_line(made.name, 60)} at layer {made.layer}, length {figure(made.norm, 3)}: {file}")
    say_parts("it promotes ", [repr(one.text) for one in promoted], " ")


@verbs.command("swap")
@sentences
def swap_tokens(
    prompt: Annotated[str, typer.Argument(help="The prompt, as it is; '-' reads standard input.")],
    token: Annotated[str, typer.Argument(help="What is taken out: ' cat', or id:17.")],
    other: Annotated[str, typer.Argument(help="What is put in its place.")],
    layer: Layer,
    through: Through = "",
    model: Model = "demo",
    json: Json = False,
) -> None:
    """Put one token's direction in the place of another's, and see.

    The next token's probabilities, plain and swapped.
    """
    from lens_tui.lens.read.jacobian import swap
    from lens_tui.lens.read.logits import logit_lens

    words = read_text(prompt)
    with open_model(model) as opened:
        record = swap(opened, _opened(opened, through), _token(token), _token(other), layer)
        views = [logit_lens(opened, words, layers=[-1], top_k=5, interventions=records) for records in ((), (record,))]
        name = opened.info.name
    tops: list[list[dict[str, Any]]] = [
        [
            {"id": int(one), "text": view.texts[int(one)], "logprob": float(value)}
            for one, value in zip(view.top_ids[0, -1], view.top_logprobs[0, -1], strict=True)
        ]
        for view in views
    ]
    if json:
        print_json({"model": name, "layer": record.layer, "plain": tops[0], "swapped": tops[1]})
        return
    for title, top in zip(("plain", "swapped"), tops, strict=True):
        say_parts(f"{title:<9}", [f"{item['text']!r} {exp(item['logprob']):.3f}" for item in top])


def _token(text: str) -> int | str:
    found = read_token(text)
    if found is None:
        raise LensError("The token is empty.", "Write it with its leading space, such as ' door', or id:17.")
    return found


def _opened(opened: LensModel, file: str) -> JacobianLens:
    from lens_tui.tasks.jacobian_lenses import lens_of, open_lens

    return open_lens(file, opened.info.name) if file else lens_of(opened.info)


def _record(found: JacobianLens | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "model": found.model,
        "layers": list(found.layers),
        "d_model": found.d_model,
        "n_texts": found.n_texts,
        "n_positions": found.n_positions,
        "errors": [found.errors.get(layer) for layer in found.layers],
        "facts": dict(found.facts),
    }


def _print(found: JacobianLens) -> None:
    if not found.layers:
        raise LensError("The Jacobian lens has no layer.")
    say(f"{one_line(found.model, 60) or 'a model'}: {many(len(found.layers), 'layer')}, {many(found.n_texts, 'text')}")
    if found.errors:
        say_parts("error   ", [f"L{layer} {found.errors[layer]:.1%}" for layer in found.layers])
