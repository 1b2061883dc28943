"""Loss by domain on whole documents, in nats per token and bits per character.

Bits per character compare models with different tokenizers: the document's total
negative log-likelihood in bits over its length in Unicode characters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from recipes.tokens import TokenSet

Forward = Callable[[mx.array], mx.array]


@dataclass(frozen=True, slots=True)
class Score:
    """What a model pays for a set of documents."""

    documents: int
    characters: int
    tokens: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy."""
        return self.nats / self.tokens

    @property
    def bits_per_character(self) -> float:
        """Total bits over the characters of the text."""
        return self.nats / math.log(2) / self.characters


@dataclass(frozen=True, slots=True)
class _Window:
    inputs: NDArray[np.uint16]
    targets: NDArray[np.uint16]
    skip: int
    """Leading targets that an earlier window has already scored."""


def windows_of(ids: NDArray[np.uint16], window: int, stride: int) -> list[_Window]:
    """Cut one document (marker first) into windows so that every token after the marker is scored once.

    With ``stride < window`` a later window begins earlier than what it scores, so that
    its first scored token has ``window - stride`` tokens of context.
    """
    cuts: list[_Window] = []
    begin, scored = 0, 0
    while scored < len(ids) - 1:
        end = min(begin + window, len(ids) - 1)
        cuts.append(_Window(ids[begin:end], ids[begin + 1 : end + 1], scored - begin))
        scored = end
        begin += stride
    return cuts


def score(
    forward: Forward, tokens: TokenSet, window: int = 512, stride: int | None = None, batch_tokens: int = 8192
) -> Score:
    """Total loss over documents, each on its own, beginning with its marker.

    Args:
        forward: token ids int32 (batch, seq) -> logits (batch, seq, vocabulary).
        tokens: the documents.
        window: tokens of context at most.
        stride: how far windows move on; the whole window unless given.
        batch_tokens: positions computed at once.
    """
    cuts = [cut for index in range(len(tokens)) for cut in windows_of(tokens.document(index), window, stride or window)]
    cuts.sort(key=lambda cut: len(cut.inputs))
    total, count = 0.0, 0
    while cuts:
        length = -(-len(cuts[-1].inputs) // 64) * 64
        rows = [cuts.pop() for _ in range(min(len(cuts), max(1, batch_tokens // length)))]
        nats, scored = _batch_loss(forward, rows, length)
        total, count = total + nats, count + scored
    return Score(len(tokens), int(tokens.characters.sum()), count, total)


def _batch_loss(forward: Forward, rows: list[_Window], length: int) -> tuple[float, int]:
    inputs = np.zeros((len(rows), length), np.int32)
    targets = np.zeros((len(rows), length), np.int32)
    scored = np.zeros((len(rows), length), np.float32)
    for index, row in enumerate(rows):
        inputs[index, : len(row.inputs)] = row.inputs
        targets[index, : len(row.targets)] = row.targets
        scored[index, row.skip : len(row.targets)] = 1.0
    logits = forward(mx.array(inputs)).astype(mx.float32)
    gold = mx.take_along_axis(logits, mx.array(targets)[..., None], axis=-1)[..., 0]
    losses = (mx.logsumexp(logits, axis=-1) - gold) * mx.array(scored)
    # Sum rows on the device in float32 and the rows in float64.
    return float(np.array(losses.sum(axis=-1)).astype(np.float64).sum()), int(scored.sum())


def score_domains(forward: Forward, sets: Mapping[str, TokenSet], window: int, stride: int) -> dict[str, Score]:
    """`score` for every domain, and under ``all`` for their union."""
    scores = {name: score(forward, tokens, window, stride) for name, tokens in sets.items()}
    scores["all"] = Score(
        sum(part.documents for part in scores.values()),
        sum(part.characters for part in scores.values()),
        sum(part.tokens for part in scores.values()),
        sum(part.nats for part in scores.values()),
    )
    return scores


def training_sample(sets: Mapping[str, TokenSet], every: int = 39) -> dict[str, TokenSet]:
    """A fixed part of the training documents, as large as the held-out part, for the gap between the two."""
    return {
        name: tokens.select(range(min(every // 2, len(tokens) - 1), len(tokens), every))
        for name, tokens in sets.items()
    }


def report(held_out: Mapping[str, Score], trained: Mapping[str, Score]) -> dict[str, Any]:
    """Plain figures per domain: bits per character, nats per token, and the gap held-out minus trained in nats."""
    rows: dict[str, Any] = {}
    for name, held in held_out.items():
        rows[name] = asdict(held) | {
            "bits_per_character": held.bits_per_character,
            "nats_per_token": held.nats_per_token,
        }
        if name in trained:
            rows[name] |= {
                "trained_bits_per_character": trained[name].bits_per_character,
                "trained_nats_per_token": trained[name].nats_per_token,
                "gap_nats_per_token": held.nats_per_token - trained[name].nats_per_token,
            }
    return rows


def table(figures: Mapping[str, Any], baseline: Mapping[str, Any] | None = None) -> str:
    """The report as aligned text, with the baseline's bits per character beside ours where one is given."""
    lines = [f"{'domain':14}{'bits/char':>10}{'baseline':>10}{'nats/token':>12}{'trained':>9}{'gap':>7}"]
    for name, row in figures.items():
        other = baseline[name]["bits_per_character"] if baseline and name in baseline else None
        lines.append(
            f"{name:14}{row['bits_per_character']:10.4f}"
            + (f"{other:10.4f}" if other is not None else f"{'':10}")
            + f"{row['nats_per_token']:12.3f}"
            + (
                f"{row['trained_nats_per_token']:9.3f}{row['gap_nats_per_token']:7.3f}"
                if "gap_nats_per_token" in row
                else ""
            )
        )
    return "\n".join(lines)


def read_report(path: Path) -> dict[str, Any]:
    """The ``domains`` of a report file written by ``evaluate``."""
    domains: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["domains"]
    return domains
