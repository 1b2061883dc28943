"""Which features people meet first: those that stand among the strongest of a token of some texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lens_tui import SAE, FeatureIndex, LensModel, demo, load_sae
from lens_tui.records import Arm, Intervention
from lens_tui.records.arm_syntax import Term
from lens_tui.records.vector_formats import load_one


@dataclass(frozen=True, slots=True)
class Seen:
    """On how many tokens a feature is among the strongest, and its activations there in all."""

    feature: int
    tokens: int
    total: float


def opening_texts(model: LensModel) -> tuple[str, ...]:
    """The prompt that the app opens with and, behind it, what each arm of the opening run writes."""
    starter = demo.starter()
    arms = [Arm(term.name, (_steering(term),)) for term in starter.steers]
    run = model.compare(starter.prompt, arms, starter.sampling)
    for _ in run:
        pass
    return (starter.prompt, *(starter.prompt + text for text in run.texts))


def _steering(term: Term) -> Intervention:
    if term.kind == "file":
        vector = load_one(Path(term.source))
    else:
        vector = load_sae(str(demo.sae_paths()[term.sae])).vector(term.feature)
    return term.row(term.name, vector).intervention()


def strongest(model: LensModel, sae: SAE, texts: Iterable[str], k: int) -> list[Seen]:
    """The features among the ``k`` strongest of any token of the texts, those of most tokens first.

    Special tokens are left out. A text that repeats another's beginning counts again: people see it again.
    """
    found: dict[int, Seen] = {}
    special = model.tokens.special_ids()
    for text in texts:
        ids = model.tokens.encode(text)
        shown = np.array([token not in special for token in ids], bool)
        top = sae.top_k(model.residuals(list(ids), sae.info.layer, site=sae.info.site), k)
        features, values = (np.array(part)[shown].ravel().tolist() for part in top)
        for feature, value in zip(features, values, strict=True):
            if value > 0:
                so_far = found.get(feature, Seen(feature, 0, 0.0))
                found[feature] = replace(so_far, tokens=so_far.tokens + 1, total=so_far.total + value)
    return sorted(found.values(), key=lambda one: (-one.tokens, -one.total, one.feature))


def index_of(sae: SAE, folder: Path) -> FeatureIndex:
    """The index of an SAE among those of a folder; raises :class:`ValueError` if there is none."""
    for manifest in sorted(folder.glob("*/manifest.json")):
        index = FeatureIndex(manifest.parent)
        if index.identity.sae == sae.info.id:
            return index
    raise ValueError(f"{folder.name} has no index of {sae.info.name}")


def features_of(files: Iterable[Path], sae: str) -> set[int]:
    """The features that the rows of JSONL files are about, without the rows that name another SAE's folder."""
    lines = [line for file in files for line in file.read_text("utf-8").split("\n") if line.strip()]
    return {int(row["feature"]) for row in map(json.loads, lines) if row.get("sae", sae) == sae}


def missing(found: Sequence[Seen], known: set[int], may: Callable[[int], bool], n: int) -> list[int]:
    """The first ``n`` features that are not ``known`` and for which ``may`` holds, in their order."""
    return [one.feature for one in found if one.feature not in known and may(one.feature)][:n]


def share(found: Sequence[Seen], known: set[int]) -> float:
    """The share of places among the strongest of a token that ``known`` features have."""
    return sum(one.tokens for one in found if one.feature in known) / max(sum(one.tokens for one in found), 1)
