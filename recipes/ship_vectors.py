"""The vectors that ship: chosen from what was measured, with their figures in each file and in a list beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lens_tui import save_vectors
from lens_tui.records import Origin, SteeringVector
from recipes.candidates import Candidate, file_stem

SHIPPED = ("verse", "python", "dialogue", "grown-up", "cookery")
LIST = "vectors.json"


def best(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Of a vector's reports at several layers: where it works most often, and of equals the least push for its norm.

    How often is taken from the openings that the scale was chosen on, so that the figures measured on the others are
    not chosen among.

    Raises:
        ValueError: it works at no layer.
    """
    working = [row for row in rows if row["name"] == name and row["scale"] is not None and row["works"]]
    if not working:
        raise ValueError(f"{name} works at no layer; ship another")
    return min(working, key=lambda row: (-_chosen_on(row), row["measured"]["multiple"]))


def _chosen_on(row: Mapping[str, Any]) -> float:
    """The share of the target at the chosen scale, on the openings that the choice was made on."""
    share: float = next(point["steered"]["share"] for point in row["curve"] if point["scale"] == row["scale"])
    return share


def entry(row: Mapping[str, Any], candidate: Candidate) -> dict[str, Any]:
    """What the list says of a vector: where it is, what it does, the scale, and what was measured there."""
    held = row["measured"]
    target = f"not {candidate.domain}" if candidate.away else candidate.domain
    return {
        "name": candidate.name,
        "file": f"{file_stem(candidate.name)}.safetensors",
        "layer": row["layer"],
        "scale": row["scale"],
        "says": candidate.says,
        "target": target,
        **{name: round(held[name]["share"], 3) for name in ("steered", "baseline", "random")},
        "distinct": round(held["distinct_ratio"], 3),
    }


def ship(
    reports: Mapping[str, Any],
    vectors: Sequence[tuple[Candidate, SteeringVector]],
    out: Path,
    names: Sequence[str] = SHIPPED,
) -> list[dict[str, Any]]:
    """Write the named vectors and the list of them to ``out``; returns the list."""
    entries = []
    for name in names:
        row = best(reports["vectors"], name)
        candidate, vector = next(pair for pair in vectors if (pair[1].name, pair[1].layer) == (name, row["layer"]))
        made = entry(row, candidate)
        measured = {key: made[key] for key in ("scale", "target", "steered", "baseline", "random", "distinct")}
        measured |= {"continuations": reports["count"], "tokens": reports["tokens"]}
        facts = {**vector.origin.facts, "measured": measured}
        save_vectors(replace(vector, origin=Origin(vector.origin.kind, facts)), out / made["file"])
        entries.append(made)
    (out / LIST).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return entries


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The list as the model card's table."""
    lines = ["| vector | layer | scale | target | steered | baseline | random | distinct-2 |", f"|{'---|' * 8}"]
    for row in entries:
        shares = " | ".join(f"{row[name]:.0%}" for name in ("steered", "baseline", "random"))
        place = f"{row['layer']} | {row['scale']:g} | {row['target']}"
        lines.append(f"| {row['name']} | {place} | {shares} | {row['distinct']:.2f} |")
    return "\n".join(lines)
