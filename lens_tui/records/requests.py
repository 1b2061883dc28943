"""Batches of different prompts: what one asks for, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .interventions import Intervention, as_records
from .run import Dose, Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt of a batch with what is its own.

    ``prompt`` is a text (through the chat template if there is one, unless ``raw``),
    chat messages or token ids. What is ``None`` is as the batch has it. ``stop`` and
    ``stop_ids`` go before those of ``sampling``; where neither says any, those of the
    batch hold, and an empty tuple here means none.
    """

    prompt: str | Sequence[int] | Sequence[Mapping[str, str]]
    interventions: tuple[Intervention, ...] | None = None
    sampling: Sampling | None = None
    stop: tuple[str, ...] | None = None
    stop_ids: tuple[int, ...] | None = None
    raw: bool | None = None

    def __post_init__(self) -> None:
        if self.interventions is not None:
            object.__setattr__(self, "interventions", as_records(self.interventions))


@dataclass(frozen=True, slots=True)
class BatchRow:
    """What came of one prompt of a batch.

    ``logprobs`` are in nats, one a token, under the row's own distribution at
    temperature 1. ``reason`` is ``stop`` (end of text, or a stop of its own),
    ``length``, ``stopped`` (by the caller), or ``""`` while it runs.
    ``batch_rows`` says of each token how many rows the forward had that made it: in
    lower precision than float32, rows may round differently in another batch shape.
    ``reused`` is how many prompt tokens came from a prefix that was there already.
    """

    index: int
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    interventions: tuple[Intervention, ...] = ()
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    batch_rows: tuple[int, ...] = ()
    reason: str = ""
    doses: tuple[Dose, ...] = ()
    reused: int = 0
