"""The shade of each token of a lane by what is asked for, and what else a token could have been."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal

from lens_tui.records import Candidate, Token
from lens_tui.records.run import kl_level

from .format import surprisal_level
from .session import ArmText

Measure = Literal["surprise", "kl", "diff", "feature", "monitor"]
MEASURES: tuple[Measure, ...] = ("surprise", "kl", "diff")
MEASURE_NAMES = {
    "surprise": "own surprise, −logp from 3 nats",
    "kl": "KL to plain, 0.01 to 10 nats",
    "diff": "not in the baseline",
    "feature": "a feature, as a share of its largest",
    "monitor": "a monitor, above its threshold",
}


def token_levels(arm: ArmText, measure: Measure, baseline: ArmText, start: int = 0) -> list[int]:
    """The shade of each token of an arm from ``start`` on.

    ``diff`` marks (7) the tokens that the longest common run of tokens with the
    baseline leaves over; while text still comes, those that differ place by place.
    """
    tokens = arm.tokens[start:]
    if measure == "feature":
        return [*arm.shade[start:], *([0] * len(tokens))][: len(tokens)]
    if measure == "monitor":
        return [*arm.read[start:], *([0] * len(tokens))][: len(tokens)]
    if measure == "kl":
        return [kl_level(token.kl) for token in tokens]
    if measure == "surprise":
        return [surprisal_level(token.logprob) for token in tokens]
    if arm.reason and baseline.reason:
        return changed_levels(_ids(baseline), _ids(arm))[start:]
    other = _ids(baseline)
    return [0 if n < len(other) and t.token_id == other[n] else 7 for n, t in enumerate(tokens, start)]


def changed_levels(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """7 for each item of ``after`` that an alignment with ``before`` leaves over, else 0."""
    levels = [7] * len(after)
    for block in difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        levels[block.b : block.b + block.size] = [0] * block.size
    return levels


def _ids(arm: ArmText) -> list[int]:
    return [token.token_id for token in arm.tokens]


def candidates(arm: ArmText | None, index: int) -> tuple[Token | None, tuple[Candidate, ...]]:
    """The token an arm wrote at a step, and what else it could have written, likeliest first."""
    if arm is None or not 0 <= index < len(arm.tokens):
        return None, ()
    token = arm.tokens[index]
    return token, tuple(sorted(token.top, key=lambda candidate: -candidate.logprob))
