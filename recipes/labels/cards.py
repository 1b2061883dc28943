"""A card for each chosen feature, to write its label from; and the quiz that the label has to pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.sae.index.index_reader import Example
from recipes.labels.choose import Candidate, domain_profile
from recipes.labels.material import AFTER, BEFORE, Material
from recipes.labels.windows import LENGTH, LEVEL, pick

TokenText = Callable[[int], str]

PER_FILE = 35
N_TOP = 12
BANDS = ((0.75, 0.95), (0.5, 0.75), (0.25, 0.5))
"""Two random examples of each: shares of the feature's active tokens that are weaker."""

PER_BAND = 2


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of a feature over the sample of training text; strings are safe to show.

    ``domains`` are shares of its active tokens as if all domains were of one size, largest first. Examples are
    ``(value, domain, text)`` with the peak token in double brackets.
    """

    feature: int
    density: float
    maximum: float
    score: float
    domains: tuple[tuple[str, float], ...]
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    top: tuple[tuple[float, str, str], ...]
    middle: tuple[tuple[float, str, str], ...]


def card(material: Material, candidate: Candidate, text: TokenText, seed: int) -> Card:
    """The card of a feature."""
    index, feature = material.index, candidate.feature
    table = index.table()
    profile = domain_profile(material, feature)
    shares = sorted(zip(material.domains, profile.tolist(), strict=True), key=lambda pair: -pair[1])
    examples = index.examples(feature, N_TOP)
    used = {example.document for example in examples}
    return Card(
        feature,
        float(index.density[feature]),
        float(index.max[feature]),
        round(candidate.score, 3),
        tuple((name, round(share, 3)) for name, share in shares if share >= 0.02),
        tuple(text(int(token)) for token in table.promoted_ids[feature]),
        tuple(text(int(token)) for token in table.suppressed_ids[feature]),
        tuple(_shown(material, example, text) for example in examples),
        tuple(_middle(material, feature, used, text, np.random.default_rng([seed, feature]))),
    )


def _shown(material: Material, example: Example, text: TokenText) -> tuple[float, str, str]:
    tokens = [text(int(token)) for token in example.token_ids]
    return round(example.value, 2), material.places[example.document].domain, marked(tokens, example.peak)


def marked(tokens: Sequence[str], peak: int) -> str:
    """Tokens as one line, that at ``peak`` in double brackets."""
    return "".join(tokens[:peak]) + f"[[{tokens[peak]}]]" + "".join(tokens[peak + 1 :])


def _middle(
    material: Material, feature: int, used: set[int], text: TokenText, rng: np.random.Generator
) -> list[tuple[float, str, str]]:
    """Random examples of weaker activation, of documents that no other example is from where there are enough."""
    tokens, values = material.index.everywhere(feature)
    rows = []
    for low, high in BANDS:  # values fall, so weaker ones are further on
        first, last = int(len(tokens) * (1 - high)), int(len(tokens) * (1 - low))
        places = first + rng.permutation(max(last - first, 0))
        documents = material.documents[material.sequences(tokens[places].astype(np.int64))]
        fresh = [place for place, document in zip(places, documents, strict=True) if int(document) not in used]
        for place in (fresh or places.tolist())[:PER_BAND]:
            token = int(tokens[place])
            used.add(int(material.documents[material.sequences(np.array([token]))[0]]))
            shown, peak = _window(material, token, text)
            rows.append((round(float(values[place]), 2), material.place(token).domain, marked(shown, peak)))
    return rows


def _window(material: Material, token: int, text: TokenText) -> tuple[list[str], int]:
    sequence = int(material.sequences(np.array([token]))[0])
    low = max(token - BEFORE, int(material.starts[sequence]))
    high = min(token + AFTER + 1, int(material.starts[sequence + 1]))
    return [text(int(number)) for number in material.index.tokens[low:high]], token - low


def card_text(one: Card) -> str:
    """A card to be read."""
    lines = [
        f"## feature {one.feature}",
        f"density {one.density:.5f}  max {one.maximum:.1f}",
        "domains: " + ", ".join(f"{name} {share:.0%}" for name, share in one.domains),
        "promotes: " + " ".join(f"‘{token}’" for token in one.promoted),
        "suppresses: " + " ".join(f"‘{token}’" for token in one.suppressed),
        "top:",
    ]
    lines += [f"  {value:6.1f} {domain:<12} {shown}" for value, domain, shown in one.top]
    lines += ["middle:"]
    lines += [f"  {value:6.1f} {domain:<12} {shown}" for value, domain, shown in one.middle]
    return "\n".join(lines) + "\n"


def write_cards(cards: Sequence[Card], out: Path) -> None:
    """``cards/00.txt`` and so on with 35 features each, and ``cards.jsonl`` with all of them."""
    (out / "cards").mkdir(parents=True, exist_ok=True)
    for number, some in enumerate(_filed(cards)):
        (out / "cards" / f"{number:02}.txt").write_text("\n".join(map(card_text, some)), encoding="utf-8")
    lines = [json.dumps(asdict(one), ensure_ascii=False) for one in cards]
    (out / "cards.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read_cards(file: Path) -> list[dict[str, Any]]:
    """The rows of ``cards.jsonl``."""
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def write_quiz(
    cards: Sequence[dict[str, Any]], material: Material, text: TokenText, out: Path, seed: int
) -> tuple[int, list[int]]:
    """``quiz/00.txt`` beside each file of cards, and the answers in ``quiz_key.jsonl``.

    Returns how many features have a quiz, and those for which the held-out text has too few windows.
    """
    (out / "quiz").mkdir(parents=True, exist_ok=True)
    key: list[dict[str, Any]] = []
    missing: list[int] = []
    for number, some in enumerate(_filed(cards)):
        pages = []
        for one in some:
            rows = _quiz(one, material, text, seed)
            if rows is None:
                missing.append(one["feature"])
                continue
            pages.append(quiz_text(one["feature"], [shown for shown, _ in rows]))
            key += [facts for _, facts in rows]
        (out / "quiz" / f"{number:02}.txt").write_text("\n".join(pages), encoding="utf-8")
    (out / "quiz_key.jsonl").write_text("".join(json.dumps(row) + "\n" for row in key), encoding="utf-8")
    return len(cards) - len(missing), missing


def quiz_text(feature: int, windows: Sequence[str]) -> str:
    """The page of a feature: its windows by number, from 1, without a word on which are active."""
    lines = [f"## feature {feature}", *(f"{number:2}. {shown}" for number, shown in enumerate(windows, 1))]
    return "\n".join(lines) + "\n"


def _quiz(
    one: dict[str, Any], material: Material, text: TokenText, seed: int
) -> list[tuple[str, dict[str, Any]]] | None:
    windows = pick(material, one["feature"], one["maximum"], seed)
    if windows is None:
        return None
    rows = []
    for number, window in enumerate(windows, 1):
        tokens: NDArray[Any] = material.index.tokens[window.low : window.high]
        place = material.place(window.low)
        facts = {
            "feature": one["feature"],
            "window": number,
            "active": window.kind == "active",
            "kind": window.kind,
            "domain": place.domain,
            "document": place.number,
            "token": window.low,
            "tokens": LENGTH,
            "value": round(window.value, 3),
            "level": LEVEL,
        }
        rows.append(("".join(text(int(token)) for token in tokens), facts))
    return rows


def _filed(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + PER_FILE] for start in range(0, len(items), PER_FILE)]
