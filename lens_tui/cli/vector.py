"""``mlx-lens-tui vector``: make one steering vector and save it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError, SteeringVector
from lens_tui.records.sanitise import one_line

from .arms import parse_arm
from .output import note, print_json, say
from .sources import Vectors, open_model

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.worker.making import RankedLayer


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
    from lens_tui.records.pairs import read_pairs

    if pairs and (positive or negative):
        raise LensError("Both a file of pairs and texts are given.", "Give one of the two.")
    at = _layer(layer)
    toward, away = read_pairs(pairs) if pairs else (positive, negative)
    from lens_tui.worker.making import from_pairs

    with open_model(model) as lens:
        ranked = from_pairs(lens, name, toward, away, layer=at, method=method, over=over, raw=raw)
        _finish(lens, ranked[0].vector, out, as_json, ranked)


def token(token: str, *, layer: int, kind: str, name: str, model: str, out: str, as_json: bool) -> None:
    """From a token."""
    from lens_tui.worker.making import from_token

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

    from lens_tui.worker.making import from_terms

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
    from lens_tui.records.vectors_io import save_vector

    result = {"model": lens.info.name, **record(vector, ranked)}
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
        _print(result)


def record(vector: SteeringVector, ranked: Sequence[RankedLayer] = ()) -> dict[str, Any]:
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


def _print(result: dict[str, Any]) -> None:
    for row in result["layers"] if len(result["layers"]) > 1 else ():
        held = "" if row["auc"] is None else f"  AUC {row['auc']:.3f}  d' {row['d_prime']:.2f}"
        say(f"layer {row['layer']:3d}{held}  gap {row['gap']:.3g} ({row['relative']:.3f} of |h|)")
    say(f"{one_line(result['name'], 60)}: {result['site']} of layer {result['layer']}, norm {result['norm']:.4g}")
    for side in ("promoted", "suppressed"):
        shown = "  ".join(f"{token['text'].replace(' ', '·')} {token['value']:+.2f}" for token in result[side])
        say(f"{side}: {shown}" if shown else f"{side}: not known")
    note(f"median |h| {result['residual_norm']:.4g}; saved to {result['file']}")
