"""``mlx-lens-tui dose``: the dose pane of the Steer screen without the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records import Intervention, LensError, SteeringVector
from lens_tui.records.measures import DEFINITIONS, MULTIPLES, OWN_KL, QUANTITIES, DoseResponse, ScaleSearch
from lens_tui.records.modes import positions_text, told
from lens_tui.records.sanitise import one_line

from .long_work import Meter
from .output import note, print_json, say
from .sources import ArmSpec, Vectors, open_model, parse_arm, read_text

if TYPE_CHECKING:
    from lens_tui.lens import FeatureProbe, LensModel
    from lens_tui.records.vectors import RankedLayer


_COLUMNS = (("x", 6), ("scale", 9), ("dloss", 8), ("95 %", 17), ("random", 8), ("KL", 7), ("random", 7), ("KL own", 7),
            ("ppl", 8), ("dist-2", 7), ("readback", 9), ("moved", 7))  # fmt: skip


def dose(
    prompt: str,
    arm: str,
    *,
    model: str,
    sae: str,
    scales: str,
    controls: int,
    max_tokens: int,
    texts: int,
    seed: int,
    raw: bool,
    as_json: bool,
) -> None:
    """Measure and print; a line on standard error says how far it is."""
    text, spec, factors = read_text(prompt), parse_arm(arm), _factors(scales)
    from lens_tui.tasks.dose import measure_dose

    meter = Meter()
    with open_model(model) as lens:
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
            heard=lambda _, done, total: meter.say("scales", f"{done} of {total}"),
        )
    meter.end()
    result = dose_record(text, lens.info.name, records, found)
    if as_json:
        print_json(result)
    else:
        _print_dose(result)


def _factors(text: str) -> Sequence[float]:
    if not text.strip():
        return MULTIPLES
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise LensError(f"The scales {text!r} cannot be read.", "Write numbers, such as 0,0.5,1,2.") from None


def _probe(spec: ArmSpec, vectors: Vectors) -> FeatureProbe | None:
    """The feature to read back, where the arm is one feature."""
    from lens_tui.lens import FeatureProbe

    if len(spec.terms) != 1 or spec.terms[0].kind != "feature":
        return None
    sae = vectors.sae
    if sae.info.layer < 0 or not sae.info.site or sae.info.is_transcoder:
        return None
    return FeatureProbe(sae, int(spec.terms[0].source), sae.info.layer, sae.info.site)


def dose_record(prompt: str, model: str, records: Sequence[Intervention], found: DoseResponse) -> dict[str, Any]:
    """The response as plain data; ``scale`` is absolute where one record is multiplied, else ``None``.

    ``kl`` is D(plain || steered) on the plain continuation, ``kl_own`` D(steered || plain) on each point's own: means
    over the first 20 tokens, in nats.
    """
    acting = told(records[0]) if len(records) == 1 else None
    return {
        "model": model,
        "prompt": prompt,
        "steering": [f"{item.mode} at layer {item.layer} {item.site}, {_where(item)}" for item in records],
        "baseline": {
            "text": found.baseline_text,
            "token_ids": list(found.baseline_ids),
            "ppl": found.baseline_ppl,
            "degeneration": asdict(found.baseline_degeneration),
            "read_back": None if found.baseline_read_back is None else asdict(found.baseline_read_back),
        },
        "points": [
            {
                "factor": point.scale,
                "scale": None if acting is None else point.scale * acting[1],
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


def _where(item: Intervention) -> str:
    return positions_text(item.positions)


def _print_dose(result: dict[str, Any]) -> None:
    say(" ".join(f"{name:>{width}}" for name, width in _COLUMNS))
    for point in result["points"]:
        loss = point["delta_loss"]
        cells = [
            f"{point['factor']:g}",
            _number(point["scale"], 2),
            _number(loss["delta"], 3),
            f"[{loss['low']:+.3f} {loss['high']:+.3f}]",
            _number(_mean(point["random_delta"]), 3),
            _number(point["kl"], 3),
            _number(_mean(point["random_kl"]), 3),
            _number(point["kl_own"], 3),
            _number(point["ppl_unsteered"], 1),
            _number(point["degeneration"]["distinct_2"], 2),
            _number(None if point["read_back"] is None else point["read_back"]["mean"], 2),
            _number(point["dose"], 3),
        ]
        say(" ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True)))
    for name, curve in result["curves"].items():
        words = [] if curve["knee"] is None else [f"knee at x{curve['knee']:g}"]
        words += [f"turns back from x{first:g} to x{second:g}" for first, second in curve["reversals"]]
        say(f"{DEFINITIONS[name][0]}: {', '.join(words) or 'no knee, does not turn back'}")
    base = result["baseline"]
    note(f"{OWN_KL} KL: the other way round, on the plain text.")
    note(f"plain: ppl {base['ppl']:.1f}, distinct-2 {_number(base['degeneration']['distinct_2'], 2)}")
    note(f"{result['model']}, {'; '.join(result['steering'])}; definitions: docs/steering.md")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def scale(arm: str, *, model: str, sae: str, quantity: str, target: float | None, as_json: bool) -> None:
    """Search and print; a line on standard error says what was tried."""
    spec = parse_arm(arm, scale=1.0)
    from lens_tui.tasks.dose import find

    meter = Meter()
    with open_model(model) as lens:
        records = Vectors(lens, sae, model).arm(spec).interventions
        found = find(lens, records, quantity, target, heard=lambda tried: meter.say("scales", f"{len(tried)} tried"))
    meter.end()
    result = scale_record(lens.info.name, records, found)
    if as_json:
        print_json(result)
    else:
        _print_scale(result)


def scale_record(model: str, records: Sequence[Intervention], found: ScaleSearch) -> dict[str, Any]:
    """The search as plain data; ``scale`` is absolute where one record is multiplied, ``factor`` what it is times."""
    acting = told(records[0]) if len(records) == 1 else None
    return {
        "model": model,
        **asdict(found),
        "factor": found.scale,
        "scale": None if acting is None else found.scale * acting[1],
    }


def _print_scale(result: dict[str, Any]) -> None:
    label, unit, _ = QUANTITIES[result["quantity"]]
    for at, value in zip(result["curve"]["scales"], result["curve"]["values"], strict=True):
        say(f"{at:12.4g}  {label} {value:+.4f} {unit}".rstrip())
    shown = result["scale"] if result["scale"] is not None else result["factor"]
    verdict = "reached" if result["reached"] else "not reached; the nearest is"
    held = "" if result["held_out"] is None else f", {result['held_out']:+.4f} on the texts held out"
    say(f"{label} {result['target']:+g} {unit} {verdict} at {shown:.4g}: {result['value']:+.4f}{held}")
    note(f"{result['model']}, {result['evaluations']} scales tried")


def contrast(
    name: str,
    pairs: str,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layer: str,
    method: str,
    over: str,
    raw: bool,
    model: str,
    out: str,
    as_json: bool,
) -> None:
    """From pairs of a file or the texts given; of all layers the best is saved."""
    from lens_tui.records.corpus import read_pairs

    if pairs and (positive or negative):
        raise LensError("Both a file of pairs and texts are given.", "Give one of the two.")
    at = _layer(layer)
    toward, away = read_pairs(pairs) if pairs else (positive, negative)
    from lens_tui.tasks.vectors import from_pairs

    with open_model(model) as lens:
        ranked = from_pairs(lens, name, toward, away, layer=at, method=method, over=over, raw=raw)
        _finish(lens, ranked[0].vector, out, as_json, ranked)


def token(token: str, *, layer: int, kind: str, name: str, model: str, out: str, as_json: bool) -> None:
    """From a token."""
    from lens_tui.tasks.vectors import from_token

    with open_model(model) as lens:
        _finish(lens, from_token(lens, token, layer, kind, name), out, as_json)


def chance(*, layer: int, seed: int, name: str, model: str, out: str, as_json: bool) -> None:
    """From a seed."""
    from lens_tui.lens.vectors import random_unit

    with open_model(model) as lens:
        _finish(lens, random_unit(lens, name or f"random {seed}", layer, seed=seed), out, as_json)


def feature(feature: int, *, name: str, model: str, sae: str, out: str, as_json: bool) -> None:
    """From a feature."""
    total(name, [f"f{feature}"], less=False, unit=True, model=model, sae=sae, out=out, as_json=as_json)


def total(
    name: str, terms: Sequence[str], *, less: bool, unit: bool, model: str, sae: str, out: str, as_json: bool
) -> None:
    """From others. One term alone is taken as it is."""
    specs = [spec for text in terms for spec in parse_arm(text, scale=1.0).terms]
    from dataclasses import replace

    from lens_tui.tasks.vectors import from_terms

    with open_model(model) as lens:
        vectors = Vectors(lens, sae, model)
        found = [(spec.scale, vectors.vector(spec)) for spec in specs]
        found = [
            (scale, vector if spec.layer is None else replace(vector, layer=lens.registry.decoder.index(spec.layer)))
            for spec, (scale, vector) in zip(specs, found, strict=True)
        ]
        if len(found) == 1 and found[0][0] == 1.0 and not less:
            made = replace(found[0][1], name=name or found[0][1].name)
        else:
            made = from_terms(lens, name, found, less=less, unit=unit)
        _finish(lens, made, out, as_json)


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
    from lens_tui.lens import residual_norm
    from lens_tui.records.vector_formats import save_vectors
    from lens_tui.records.vector_formats.own import save_vector

    result = {"model": lens.info.name, **vector_record(vector, ranked)}
    result["residual_norm"] = residual_norm(lens, vector.layer, site=vector.site)
    plain = vector.d_model == lens.d_model and vector.site not in ("attn_z", "mlp_in")
    sides = lens.promoted(vector, 10) if plain else ((), ())
    for side, tokens in zip(("promoted", "suppressed"), sides, strict=True):
        result[side] = [{"id": token.token_id, "text": token.text, "value": token.value} for token in tokens]
    file = save_vectors(vector, Path(out).expanduser()) if out else save_vector(vector)
    result["file"] = str(file)
    if as_json:
        print_json(result)
    else:
        _print_vector(result)


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
        say(f"layer {row['layer']:3d}{held}  gap {row['gap']:.3g} ({row['relative']:.3f} of |h|)")
    say(f"{one_line(result['name'], 60)}: {result['site']} of layer {result['layer']}, norm {result['norm']:.4g}")
    for side in ("promoted", "suppressed"):
        shown = "  ".join(f"{token['text'].replace(' ', '·')} {token['value']:+.2f}" for token in result[side])
        say(f"{side}: {shown}" if shown else f"{side}: not known")
    note(f"median |h| {result['residual_norm']:.4g}; saved to {result['file']}")
