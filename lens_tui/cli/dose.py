"""``mlx-lens-tui dose``: the dose pane of the Steer screen without the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lens_tui.records import Intervention, LensError
from lens_tui.records.measure_words import DEFINITIONS, MULTIPLES, OWN_KL
from lens_tui.records.measures import DoseResponse
from lens_tui.records.modes import positions_text, told

from .arms import ArmSpec, parse_arm
from .long_work import Meter
from .output import note, print_json, say
from .sources import Vectors, open_model, read_text

if TYPE_CHECKING:
    from lens_tui.lens import FeatureProbe

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
    from lens_tui.worker.dosing import measure_dose

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
    result = record(text, lens.info.name, records, found)
    if as_json:
        print_json(result)
    else:
        _print(result)


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


def record(prompt: str, model: str, records: Sequence[Intervention], found: DoseResponse) -> dict[str, Any]:
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


def _print(result: dict[str, Any]) -> None:
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
