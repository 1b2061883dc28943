"""The verbs of the steering bench: ``dose``, ``scale``, ``behaviour`` and ``vector``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui.records import Intervention, LensError, SteeringVector
from lens_tui.records.arm_syntax import ArmSpec, parse_arm
from lens_tui.records.info import in_residual
from lens_tui.records.interventions import amount_of, positions_text
from lens_tui.records.measures import DEFINITIONS, MULTIPLES, OWN_KL, QUANTITIES, DoseResponse, ScaleSearch
from lens_tui.records.paths import expanded
from lens_tui.records.run import mean
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tui.format import BARS, figure, share_level

from .output import Meter, note, print_json, say, say_parts, sentences, terminal_width
from .sources import Json, Model, SAEName, Vectors, open_model, read_text, within

if TYPE_CHECKING:
    from lens_tui.lens.measure.dose import FeatureProbe
    from lens_tui.lens.model import LensModel
    from lens_tui.records.steering_vector import RankedLayer

verbs = typer.Typer()
vector_verbs = typer.Typer(no_args_is_help=True, help="Make a steering vector and save it.")
verbs.add_typer(vector_verbs, name="vector")

_ARM = "SOURCE[@LAYER]*SCALE[:MODE][:POSITIONS], e.g. f2666*22; terms joined by '+'."
Out = Annotated[str, typer.Option("--out", "-o", help="The file; default: the vectors folder, named after it.")]
Layer = Annotated[int, typer.Option("--layer", "-l", help="The layer it acts at; negative counts from the end.")]
Asked = Annotated[
    str, typer.Option("--questions", "-q", help="Questions with two answers, a file as the verb behaviour reads it.")
]

_COLUMNS = (("x", 6), ("scale", 9), ("dloss", 8), ("95 %", 17), ("random", 8), ("KL", 7), ("random", 7), ("KL own", 7),
            ("ppl", 8), ("dist-2", 7), ("readback", 9), ("moved", 7))  # fmt: skip
_ASKED = ("behaviour", 9)
"""The last column, where questions were asked."""
_HEADS = [name for name, _ in _COLUMNS]
_LEAST_NEEDED = {3: "95 %", 6: "KL of random", 4: "loss of random", 7: "KL own", 11: "moved", 9: "dist-2"}
"""The columns that go first where there is no room for all, and what they are called when it is said."""


@verbs.command()
@sentences
def dose(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.")],
    arm: Annotated[str, typer.Option("--arm", "-a", help=_ARM)],
    model: Model = "demo",
    sae: SAEName = "",
    scales: Annotated[
        str, typer.Option("--scales", help="Multiples of the arm's scale, such as 0,0.5,1. Default: 0 to 4 both ways.")
    ] = "",
    controls: Annotated[int, typer.Option(min=0, help="Random directions beside each scale.")] = 1,
    max_tokens: Annotated[int, within("max_tokens", "Tokens written at each scale.")] = 60,
    texts: Annotated[int, typer.Option(min=0, max=64, help="Texts to measure the loss on (0: 16).")] = 0,
    questions: Asked = "",
    seed: Annotated[int, typer.Option(help="The seed of the random directions and the bootstrap.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    json: Json = False,
) -> None:
    """Measure what a steering does and costs at many scales.

    Loss, KL, repetition and read-back of a feature, with random directions as controls; behaviour by questions.
    """
    from lens_tui.records.corpus import read_questions
    from lens_tui.tasks.make_vectors import measure_dose

    text, spec, factors = read_text(prompt), parse_arm(arm), _factors(scales)
    asked = read_questions(questions) if questions else ()
    with open_model(model) as lens, Meter() as meter:
        vectors = Vectors(lens, sae, model)
        records = vectors.arm(spec).interventions
        found = measure_dose(
            lens,
            text,
            records,
            factors,
            controls=controls,
            probe=_probe(spec, vectors),
            max_tokens=max_tokens,
            n_texts=texts or None,
            raw=raw,
            seed=seed,
            questions=asked,
            progress=lambda _, done, total: meter.say("scales", f"{done} of {total}", done / total),
        )
    result = dose_record(text, lens.info.name, records, found)
    print_json(result) if json else _print_dose(result)


def _factors(text: str) -> Sequence[float]:
    if not text.strip():
        return MULTIPLES
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise LensError(f"The scales {text!r} cannot be read.", "Write numbers, such as 0,0.5,1,2.") from None


def _probe(spec: ArmSpec, vectors: Vectors) -> FeatureProbe | None:
    """The feature to read back, where the arm is one feature."""
    from lens_tui.lens.measure.dose import FeatureProbe

    if len(spec.terms) != 1 or spec.terms[0].kind != "feature":
        return None
    sae = vectors.sae
    if sae.info.layer < 0 or not sae.info.site or sae.info.is_transcoder:
        return None
    return FeatureProbe(sae, spec.terms[0].feature, sae.info.layer, sae.info.site)


def dose_record(prompt: str, model: str, records: Sequence[Intervention], found: DoseResponse) -> dict[str, Any]:
    """The response as plain data; ``scale`` is absolute where one record is multiplied, else ``None``.

    ``kl`` is D(plain || steered) on the plain continuation, ``kl_own`` D(steered || plain) on each point's own: means
    over the first 20 tokens, in nats.
    """
    amount = amount_of(records[0]) if len(records) == 1 else None
    return {
        "model": model,
        "prompt": prompt,
        "steering": [
            f"{item.mode} at layer {item.layer} {item.site}, {positions_text(item.positions)}" for item in records
        ],
        "baseline": {
            "text": found.baseline_text,
            "token_ids": list(found.baseline_ids),
            "ppl": found.baseline_ppl,
            "degeneration": asdict(found.baseline_degeneration),
            "read_back": None if found.baseline_read_back is None else asdict(found.baseline_read_back),
            "behaviour": None if found.baseline_behaviour is None else asdict(found.baseline_behaviour),
        },
        "points": [
            {
                "factor": point.scale,
                "scale": None if amount is None else point.scale * amount,
                **{name: value for name, value in asdict(point).items() if name != "scale"},
                "kl": point.on_baseline.mean_forward,
                "kl_own": point.on_own.mean_reverse,
            }
            for point in found.points
        ],
        "curves": {
            curve.name: {
                "knee": curve.knee,
                "monotone": curve.monotone,
                "reversals": [list(r) for r in curve.reversals],
            }
            for curve in found.curves
        },
    }


def _dose_cells(point: dict[str, Any]) -> list[str]:
    """A point as the cells of ``_COLUMNS``, and of ``_ASKED`` where questions were asked."""
    loss, answered = point["delta_loss"], point["behaviour"]
    return [
        f"{point['factor']:g}",
        figure(point["scale"], 2),
        figure(loss["delta"], 3),
        f"[{loss['low']:+.3f} {loss['high']:+.3f}]",
        figure(mean(point["random_delta"]), 3),
        figure(point["kl"], 3),
        figure(mean(point["random_kl"]), 3),
        figure(point["kl_own"], 3),
        figure(point["ppl_unsteered"], 1),
        figure(point["degeneration"]["distinct_2"], 2),
        figure(None if point["read_back"] is None else point["read_back"]["mean"], 2),
        figure(point["dose"], 3),
        *([] if answered is None else [f"{answered['difference']:+.3f}"]),
    ]


def _columns_that_fit(
    rows: Sequence[Sequence[str]], width: int, heads: Sequence[str] = _HEADS
) -> tuple[list[int], list[str]]:
    """The columns that ``width`` cells have room for, and the names of those left out, the least needed first."""
    kept, gone = list(range(len(heads))), []
    for at in _LEAST_NEEDED:
        if sum(max(len(row[column]) for row in [heads, *rows]) + 1 for column in kept) - 1 <= width:
            break
        kept.remove(at)
        gone.append(_LEAST_NEEDED[at])
    return kept, gone


_CURVES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "delta_loss": lambda point: point["delta_loss"]["delta"],
    "kl": lambda point: point["kl"],
    "ppl_unsteered": lambda point: point["ppl_unsteered"],
    "distinct_2": lambda point: point["degeneration"]["distinct_2"],
    "read_back": lambda point: None if point["read_back"] is None else point["read_back"]["mean"],
    "behaviour": lambda point: None if point["behaviour"] is None else point["behaviour"]["difference"],
}
"""What a curve is of, by its name."""


def _heights(name: str, points: Sequence[dict[str, Any]]) -> list[float | None]:
    """The values of a curve as they are drawn: a behaviour, which has no zero to start from, above its least."""
    values = [_CURVES[name](point) for point in points]
    least = min((value for value in values if value is not None), default=0.0) if name == "behaviour" else 0.0
    return [None if value is None else value - least for value in values]


def _drawn(values: Sequence[float | None]) -> str:
    """A curve over the scales, a cell for each, as high as the chart of Steer draws it."""
    known = [abs(value) for value in values if value is not None and math.isfinite(value)]
    top = max(known, default=0.0)
    return "".join(
        "·" if value is None else BARS[share_level(abs(value), top)] if math.isfinite(value) else "×"
        for value in values
    )


def _print_dose(result: dict[str, Any]) -> None:
    rows = [_dose_cells(point) for point in result["points"]]
    base, width = result["baseline"], terminal_width()
    shown = _COLUMNS if base["behaviour"] is None else (*_COLUMNS, _ASKED)
    heads = [name for name, _ in shown]
    columns, left_out = _columns_that_fit(rows, width, heads) if width else (list(range(len(shown))), [])
    widths = [max(len(row[at]) for row in [heads, *rows]) if width else shown[at][1] for at in range(len(shown))]
    for row in [heads, *rows]:
        say(" ".join(f"{row[at]:>{widths[at]}}" for at in columns))
    for name, curve in result["curves"].items():
        words = [] if curve["knee"] is None else [f"knee at x{curve['knee']:g}"]
        words += [f"turns back from x{first:g} to x{second:g}" for first, second in curve["reversals"]]
        drawn = f"{_drawn(_heights(name, result['points']))}  " if width else ""
        label = f"{DEFINITIONS[name][0]}: "
        say(f"{label:<{12 if width else 0}}{drawn}{', '.join(words) or 'no knee, does not turn back'}")
    if left_out:
        note(f"Left out at {width} columns: {', '.join(left_out)}; a wider terminal, a pipe and --json have them.")
    note(f"{OWN_KL} KL: the other way round, on the plain text.")
    note(f"plain: ppl {base['ppl']:.1f}, distinct-2 {figure(base['degeneration']['distinct_2'], 2)}")
    if base["behaviour"] is not None:
        note(f"plain: behaviour {base['behaviour']['difference']:+.3f}; {_answers(base['behaviour']['n'])}")
    note(f"{result['model']}, {'; '.join(result['steering'])}; definitions: docs/steering.md")


@verbs.command()
@sentences
def scale(
    arm: Annotated[str, typer.Option("--arm", "-a", help=f"{_ARM} Without a scale it is 1 (absolute).")],
    model: Model = "demo",
    sae: SAEName = "",
    quantity: Annotated[
        str,
        typer.Option(
            "--by",
            help="delta_loss (nats a token), kl (nats), relative_norm (share of ‖h‖) or behaviour (nats). "
            "Default: behaviour with --questions, else delta_loss.",
        ),
    ] = "",
    target: Annotated[
        float | None,
        typer.Option(
            "--target",
            "-t",
            help="Default: 0.3 nat of loss, 1 nat of KL, 0.1 ‖h‖, 1 nat of behaviour (below 0 lowers it).",
        ),
    ] = None,
    questions: Asked = "",
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template to the questions.")] = False,
    json: Json = False,
) -> None:
    """Find the scale at which a steering reaches a target.

    It is found on half of the texts, or questions, and measured on the other half.
    """
    from lens_tui.records.corpus import read_questions
    from lens_tui.tasks.make_vectors import find

    spec, quantity = parse_arm(arm, scale=1.0), _searched(quantity, questions)
    asked = read_questions(questions) if questions else ()
    with open_model(model) as lens, Meter() as meter:
        records = Vectors(lens, sae, model).arm(spec).interventions
        found = find(
            lens,
            records,
            quantity,
            target,
            questions=asked,
            raw=raw,
            progress=lambda tried: meter.say("scales", f"{len(tried)} tried"),
        )
    result = scale_record(lens.info.name, records, found)
    print_json(result) if json else _print_scale(result)


def _searched(quantity: str, questions: str) -> str:
    """What is searched for. Raises :class:`LensError` where that and the questions do not go together."""
    if not questions and quantity == "behaviour":
        raise LensError("A behaviour is searched for by questions.", "Give --questions and a file.")
    if questions and quantity not in ("", "behaviour"):
        raise LensError(f"No questions are asked by {quantity}.", "Leave --questions out, or write --by behaviour.")
    return quantity or ("behaviour" if questions else "delta_loss")


def scale_record(model: str, records: Sequence[Intervention], found: ScaleSearch) -> dict[str, Any]:
    """The search as plain data; ``scale`` is absolute where one record is multiplied, ``factor`` what it is times."""
    amount = amount_of(records[0]) if len(records) == 1 else None
    return {
        "model": model,
        **asdict(found),
        "factor": found.scale,
        "scale": None if amount is None else found.scale * amount,
    }


def _print_scale(result: dict[str, Any]) -> None:
    label, unit, _ = QUANTITIES[result["quantity"]]
    for at, value in zip(result["curve"]["scales"], result["curve"]["values"], strict=True):
        say(f"{at:12.4g}  {label} {value:+.4f} {unit}".rstrip())
    shown = result["scale"] if result["scale"] is not None else result["factor"]
    verdict = "reached" if result["reached"] else "not reached; the nearest is"
    over = "questions" if result["quantity"] == "behaviour" else "texts"
    held = "" if result["held_out"] is None else f", {result['held_out']:+.4f} on the {over} held out"
    say(f"{label} {result['target']:+g} {unit} {verdict} at {shown:.4g}: {result['value']:+.4f}{held}")
    if over == "questions":
        note("behaviour: how much log p(matching) - log p(other) has grown over the plain model's")
    for sentence in result["notes"]:
        note(sentence)
    note(f"{result['model']}, {many(result['evaluations'], 'scale')} tried")


@verbs.command()
@sentences
def behaviour(
    questions: Annotated[str, typer.Argument(help="JSON or JSONL as CAA has it: question and two answers.")],
    arm: Annotated[str, typer.Option("--arm", "-a", help="Steer: SOURCE[@LAYER]*SCALE.")] = "",
    scales: Annotated[str, typer.Option("--scales", help="Multiples of the arm's scale, as -1,0,1.")] = "1",
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    seed: Annotated[int, typer.Option(help="Of the intervals.")] = 0,
    model: Model = "demo",
    sae: SAEName = "",
    json: Json = False,
) -> None:
    """How likely answers that show a behaviour are, by scale."""
    from lens_tui.lens.measure.dose import behaviour as measure
    from lens_tui.records.corpus import read_questions

    factors = _factors(scales)
    given = read_questions(questions)
    with open_model(model) as lens:
        acting = Vectors(lens, sae, model).arm(parse_arm(arm)).interventions if arm else ()
        found = measure(lens, given, acting, factors, raw=raw, seed=seed)
        points = [{"factor": point.scale, **asdict(point.behaviour)} for point in found.points]
        result: dict[str, Any] = {"model": lens.info.name, "plain": asdict(found.plain), "points": points}
    if json:
        print_json(result)
        return
    for name, row in [("plain", result["plain"]), *((f"x{row['factor']:g}", row) for row in points)]:
        say(f"{name:>6}  {row['difference']:+.3f} nat [{row['low']:+.3f} {row['high']:+.3f}]  share "
            f"{figure(row['share'], 3)}  chosen {figure(row['chosen'], 2)}")  # fmt: skip
    note(_answers(result["plain"]["n"], " and 95 % interval"))
    note("share: mean of p(matching) / (p(matching) + p(other)); chosen: questions whose matching answer is likelier")


def _answers(number: int, interval: str = "") -> str:
    """What a behaviour is, and over how many questions."""
    return f"log p(matching) - log p(other), mean{interval} over {many(number, 'question')}"


@vector_verbs.command("contrast")
@sentences
def contrast(
    name: Annotated[str, typer.Argument(help="What the direction stands for.")],
    pairs: Annotated[
        str,
        typer.Option(
            "--pairs", help="A file of pairs: JSONL (positive, negative) or two texts per line, separated by a tab."
        ),
    ] = "",
    positive: Annotated[
        list[str] | None, typer.Option("--positive", "-p", help="A text that has it; may be repeated.")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option("--negative", "-n", help="A text that does not have it; may be repeated.")
    ] = None,
    layer: Annotated[str, typer.Option("--layer", "-l", help="A layer, or 'all': the best on held-out pairs.")] = "all",
    method: Annotated[str, typer.Option(help="mean_difference, pca_diff, pca_center or logistic.")] = "mean_difference",
    over: Annotated[str, typer.Option(help="Activations of the 'last' token or of 'all' but special ones.")] = "all",
    chat: Annotated[bool, typer.Option("--chat", help="Put the texts through the chat template.")] = False,
    model: Model = "demo",
    out: Out = "",
    json: Json = False,
) -> None:
    """A direction from contrasting texts.

    With all layers, they are ranked on held-out pairs and the best is saved.
    """
    from lens_tui.records.corpus import read_pairs
    from lens_tui.tasks.make_vectors import from_pairs

    if pairs and (positive or negative):
        raise LensError("Both a file of pairs and texts are given.", "Give one of the two.")
    at = _layer(layer)
    toward, away = read_pairs(pairs) if pairs else (tuple(positive or ()), tuple(negative or ()))
    with open_model(model) as lens:
        ranked = from_pairs(lens, name, toward, away, layer=at, method=method, over=over, raw=not chat)
        _finish(lens, ranked[0].vector, out, json, ranked)


@vector_verbs.command("token")
@sentences
def token(
    token: Annotated[str, typer.Argument(help="A text that is one token, with its leading space: ' door'; or id:17.")],
    layer: Layer,
    kind: Annotated[str, typer.Option(help="unembedding or embedding.")] = "unembedding",
    name: Annotated[str, typer.Option(help="What it is called.")] = "",
    model: Model = "demo",
    out: Out = "",
    json: Json = False,
) -> None:
    """A direction from a token, unembedded or embedded.

    Its row of the unembedding, or its embedding.
    """
    from lens_tui.tasks.make_vectors import from_token

    with open_model(model) as lens:
        _finish(lens, from_token(lens, token, layer, kind, name), out, json)


@vector_verbs.command("feature")
@sentences
def feature(
    feature: Annotated[int, typer.Argument(help="The feature's number.", min=0)],
    name: Annotated[str, typer.Option(help="What it is called.")] = "",
    model: Model = "demo",
    sae: SAEName = "",
    out: Out = "",
    json: Json = False,
) -> None:
    """A direction from an SAE feature: its row of the decoder."""
    total(name, [f"f{feature}"], model=model, sae=sae, out=out, json=json)


@vector_verbs.command("random")
@sentences
def random(
    layer: Layer,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same direction again.")] = 0,
    name: Annotated[str, typer.Option(help="What it is called.")] = "",
    model: Model = "demo",
    out: Out = "",
    json: Json = False,
) -> None:
    """A random direction: the control for an effect."""
    from lens_tui.lens.vectors import random_unit

    with open_model(model) as lens:
        _finish(lens, random_unit(lens, name or f"random {seed}", layer, seed=seed), out, json)


@vector_verbs.command("sum")
@sentences
def total(
    name: Annotated[str, typer.Argument(help="What the direction stands for.")],
    terms: Annotated[
        list[str], typer.Argument(help="SOURCE[@LAYER][*FACTOR], each a feature, random:SEED or a vector file.")
    ],
    without: Annotated[
        bool, typer.Option("--without", help="The first vector, its components along the others removed.")
    ] = False,
    own_length: Annotated[
        bool, typer.Option("--own-length", help="Each vector at the length it was made with, not at length 1.")
    ] = False,
    model: Model = "demo",
    sae: SAEName = "",
    out: Out = "",
    json: Json = False,
) -> None:
    """A weighted sum of others, or one without the others."""
    from lens_tui.tasks.make_vectors import from_terms

    specs = [spec for text in terms for spec in parse_arm(text, scale=1.0).terms]
    with open_model(model) as lens:
        vectors = Vectors(lens, sae, model)
        found = [(spec.scale, vectors.vector(spec)) for spec in specs]
        found = [
            (scale, vector if spec.layer is None else replace(vector, layer=lens.registry.decoder.index(spec.layer)))
            for spec, (scale, vector) in zip(specs, found, strict=True)
        ]
        if len(found) == 1 and found[0][0] == 1.0 and not without:
            made = replace(found[0][1], name=name or found[0][1].name)
        else:
            made = from_terms(lens, name, found, less=without, unit=not own_length)
        _finish(lens, made, out, json)


def _layer(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise LensError(f"The layer {text!r} cannot be read.", "Write a number, or all.") from None


def _finish(
    lens: LensModel, vector: SteeringVector, out: str, as_json: bool, ranked: Sequence[RankedLayer] = ()
) -> None:
    """Save the vector and say what it is."""
    from lens_tui.lens.vectors import residual_norm
    from lens_tui.records.vector_formats import save_vectors

    result = {"model": lens.info.name, **vector_record(vector, ranked)}
    result["residual_norm"] = residual_norm(lens, vector.layer, site=vector.site)
    plain = vector.d_model == lens.d_model and in_residual(vector.site)
    sides = lens.promoted(vector, 10) if plain else ((), ())
    for side, tokens in zip(("promoted", "suppressed"), sides, strict=True):
        result[side] = [{"id": token.token_id, "text": token.text, "value": token.value} for token in tokens]
    file = save_vectors(vector, expanded(out) if out else None)
    result["file"] = str(file)
    print_json(result) if as_json else _print_vector(result)


def vector_record(vector: SteeringVector, ranked: Sequence[RankedLayer] = ()) -> dict[str, Any]:
    """The vector as plain data without its numbers, and the layers it was chosen from."""
    return {
        "name": vector.name,
        "layer": vector.layer,
        "site": vector.site,
        "made_with": vector.model,
        "norm": vector.norm,
        "max_activation": vector.max_activation,
        "origin": {"kind": vector.origin.kind, **vector.origin.facts},
        "layers": [
            {
                "layer": row.vector.layer,
                "auc": row.auc,
                "d_prime": row.d_prime,
                "accuracy": row.accuracy,
                "pairs": row.pairs,
                "gap": row.gap,
                "relative": row.relative,
            }
            for row in ranked
        ],
    }


def _print_vector(result: dict[str, Any]) -> None:
    for row in result["layers"] if len(result["layers"]) > 1 else ():
        held = "" if row["auc"] is None else f"  AUC {row['auc']:.3f}  d' {row['d_prime']:.2f}"
        say(f"layer {row['layer']:3d}{held}  gap {row['gap']:.3g} ({row['relative']:.3f} of ‖h‖)")
    say(f"{one_line(result['name'], 60)}: {result['site']} of layer {result['layer']}, norm {result['norm']:.4g}")
    for side in ("promoted", "suppressed"):
        shown = [f"{token['text'].replace(' ', '·')} {token['value']:+.2f}" for token in result[side]]
        say_parts(f"{side}: ", shown or ["not known"])
    note(f"median ‖h‖ {result['residual_norm']:.4g}; saved to {result['file']}")
