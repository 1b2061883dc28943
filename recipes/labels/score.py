"""Scores of labels: how well each tells windows where its feature is active from windows where it is silent.

Detection scoring as in Paulo et al. 2024, "Automatically Interpreting Millions of Features in Large Language
Models" (arXiv 2410.13928): a judge reads a label and some windows of text, and says in which of them the feature is
active. The score is the judge's balanced accuracy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

KEEP = 0.7


@dataclass(frozen=True, slots=True)
class Score:
    """What a judge made of a label: ``hits`` of ``active`` windows and ``alarms`` of ``silent`` ones, called active."""

    hits: int
    active: int
    alarms: int
    silent: int

    @property
    def balanced(self) -> float:
        """Balanced accuracy: the mean of the shares of active and of silent windows that were told right."""
        return (self.hits / self.active + 1 - self.alarms / self.silent) / 2


def detection(key: Mapping[int, bool], judged: Iterable[int]) -> Score:
    """The score of a judgement: ``key`` says of every window whether it is active, ``judged`` which were called so.

    Raises :class:`ValueError` for a window that is not in the key, and for a key with windows of one kind only.
    """
    called = set(judged)
    if strange := called - key.keys():
        raise ValueError(f"there is no window {min(strange)}")
    active = {window for window, on in key.items() if on}
    silent = key.keys() - active
    if not active or not silent:
        raise ValueError("a quiz needs active and silent windows")
    return Score(len(called & active), len(active), len(called & silent), len(silent))


def by_chance(active: int, silent: int, keep: float) -> float:
    """The probability that a judge who tosses a coin for every window reaches a balanced accuracy of ``keep``."""
    good = sum(
        comb(active, hits) * comb(silent, alarms)
        for hits in range(active + 1)
        for alarms in range(silent + 1)
        if Score(hits, active, alarms, silent).balanced >= keep - 1e-9
    )
    return float(good / 2 ** (active + silent))


@dataclass(frozen=True, slots=True)
class Verdict:
    """All scores, and the features without an answer or without a label."""

    scores: dict[int, Score]
    kept: dict[int, Score]
    unanswered: tuple[int, ...]
    unlabelled: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean balanced accuracy of all labels that were judged."""
        return sum(score.balanced for score in self.scores.values()) / max(len(self.scores), 1)


def judge(
    labels: Mapping[int, str], answers: Mapping[int, Iterable[int]], key: Mapping[int, Mapping[int, bool]], keep: float
) -> Verdict:
    """Score every label that was judged; those with a balanced accuracy of ``keep`` or more are kept."""
    scores = {
        feature: _of_feature(feature, key[feature], answers[feature])
        for feature in sorted(labels)
        if feature in answers and feature in key
    }
    kept = {feature: score for feature, score in scores.items() if score.balanced >= keep - 1e-9}
    return Verdict(
        scores,
        kept,
        tuple(sorted(feature for feature in labels if feature in key and feature not in answers)),
        tuple(sorted(feature for feature in key if feature not in labels)),
    )


def _of_feature(feature: int, key: Mapping[int, bool], judged: Iterable[int]) -> Score:
    try:
        return detection(key, judged)
    except ValueError as error:
        raise ValueError(f"feature {feature}: {error}") from error


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip()]


def read_labels(file: Path) -> dict[int, str]:
    """Labels by feature; raises :class:`ValueError` for two of one feature and for an empty one."""
    found: dict[int, str] = {}
    for row in read_rows(file):
        feature, text = int(row["feature"]), " ".join(str(row["label"]).split())
        if feature in found or not text:
            raise ValueError(f"feature {feature} has {'two labels' if text else 'an empty label'}")
        found[feature] = text
    return found


def read_answers(file: Path) -> dict[int, list[int]]:
    """The windows that were judged active, by feature."""
    return {int(row["feature"]): [int(window) for window in row["active"]] for row in read_rows(file)}


def read_key(file: Path) -> dict[int, dict[int, bool]]:
    """Whether each window is active, by feature and window."""
    key: dict[int, dict[int, bool]] = {}
    for row in read_rows(file):
        key.setdefault(int(row["feature"]), {})[int(row["window"])] = bool(row["active"])
    return key


def write_labels(verdict: Verdict, labels: Mapping[int, str], sae: str, method: str, scorer: str, out: Path) -> None:
    """The kept labels as they ship: one object a line, in order of features. ``sae`` is the SAE's folder."""
    rows = [
        {
            "feature": feature,
            "sae": sae,
            "text": labels[feature],
            "score": round(score.balanced, 3),
            "method": method,
            "scorer": scorer,
        }
        for feature, score in sorted(verdict.kept.items())
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
