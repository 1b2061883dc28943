"""What comes of an order, as the model's thread hands it over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lens_tui.records import LensError


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token with its log-probability in nats, and the likeliest ones at its place."""

    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token adds to one of an order's answers. ``scored`` where log-probabilities were asked for."""

    answer: int
    text: str
    scored: ScoredToken | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer has ended, for a ``reason`` of OpenAI's, after so many tokens; ``readings`` were asked for."""

    answer: int
    reason: str
    n_tokens: int
    readings: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """An order is right and has its place: how long its prompts are together, and what there is to say about it."""

    n_prompt: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The order has ended with an error."""

    error: LensError


Delivery = Begun | Piece | Ended | Failed
