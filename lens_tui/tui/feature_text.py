"""Texts that can be read with an SAE, and what is asked of one that has been. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lens_tui.records import FloatArray
from lens_tui.worker.events import Encoded

from .session import Session
from .widgets.ramps import share_level


@dataclass(frozen=True, slots=True)
class Source:
    """A text to look at: the prompt as written, or prompt and output of an arm as the model saw it."""

    name: str
    text: str = ""
    token_ids: tuple[int, ...] = ()

    @property
    def blank(self) -> bool:
        """Whether there is nothing to read."""
        return not self.text and not self.token_ids


def sources(session: Session) -> tuple[Source, ...]:
    """The texts of a session: the prompt, then what each arm of the last run wrote."""
    return (
        Source("prompt", text=session.prompt),
        *(Source(item.name, token_ids=item.token_ids) for item in session.written),
    )


def features_at(encoded: Encoded, token: int) -> list[tuple[int, float]]:
    """The features of one token, strongest first, as ``(id, activation)``."""
    if not 0 <= token < len(encoded.tokens):
        return []
    pairs = zip(encoded.ids[token].tolist(), encoded.values[token].tolist(), strict=True)
    return [(feature, value) for feature, value in pairs if feature >= 0 and value > 0]


def rough_activations(encoded: Encoded, feature: int) -> FloatArray:
    """A feature on every token as far as the top features tell: 0 where it is not among them."""
    found: FloatArray = np.where(encoded.ids == feature, encoded.values, 0).max(axis=1, initial=0.0).astype(np.float32)
    return found


def strongest_token(encoded: Encoded) -> int | None:
    """The token with the largest activation that is not special; ``None`` in a text of special tokens."""
    strength = np.where(np.asarray(encoded.special, bool), -1.0, encoded.values.max(axis=1, initial=0.0))
    if strength.size == 0 or strength.max() < 0:
        return None
    return int(strength.argmax())


def shades(values: FloatArray) -> list[int]:
    """Levels of activations as shares of the largest in the text."""
    top = float(values.max(initial=0.0))
    return [share_level(value, top) for value in values.tolist()]


def next_active(values: FloatArray, start: int, step: int) -> int | None:
    """The next token (``step`` 1), or the one before (-1), where a feature is active, going round."""
    count = len(values)
    for offset in range(1, count + 1):
        place = (start + step * offset) % count
        if values[place] > 0:
            return place
    return None
