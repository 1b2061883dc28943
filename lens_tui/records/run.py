"""What generation is asked for and what comes of it; the names of sampling settings are mlx-lm's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .interventions import Intervention, as_records


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings. ``temp`` 0 is greedy.

    ``seed`` makes a run repeatable: with the same settings, model, machine and
    batch shape the same tokens come out. Every arm of a comparison draws from
    the same random numbers, so that texts differ by the intervention alone.
    ``min_tokens_to_keep`` goes with ``min_p``; with ``xtc_probability`` the tokens above
    ``xtc_threshold`` but the least likely of them are left out at a step, save those of
    ``xtc_special_tokens``. ``stop`` are texts that end a row and are left out of it, however they are cut
    into tokens; ``stop_ids`` are token ids that end it beside the tokenizer's own.
    """

    max_tokens: int = 128
    temp: float = 0.0
    top_p: float = 0.0
    min_p: float = 0.0
    top_k: int = 0
    repetition_penalty: float = 0.0
    repetition_context_size: int = 20
    seed: int = 0
    min_tokens_to_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    xtc_special_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()


LIMITS: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 10**9),
    "temp": (0.0, 1000.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "top_k": (0, 10**9),
    "repetition_penalty": (0.0, 1000.0),
    "repetition_context_size": (1, 10**9),
    "seed": (0, 2**64 - 1),
    "min_tokens_to_keep": (1, 10**9),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 0.5),
}
"""The smallest and the largest value that each number of :class:`Sampling` can have, wherever it is asked for."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have come next, with its log-probability (nats)."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    ``arm`` counts the rows of the run and ``index`` the tokens of the arm, both
    from 0. ``text`` is what the token adds to the readable text, exactly as the
    tokenizer decodes it (empty while the bytes of a character are incomplete);
    ``token`` is the token's own display form, safe to show. ``logprob`` is in
    nats under the arm's own distribution at temperature 1. In a comparison ``kl`` is
    D(arm || plain) of the next token in nats, ``reverse_kl`` D(plain || arm), and
    ``plain_logprob`` the plain model's log-probability of this token: the plain model
    reads the arm's own tokens. They are 0, 0 and ``logprob`` where nothing acts on the arm, and
    ``None`` outside comparisons and in those without KL. ``version`` counts the changes of the run's interventions and
    ``scales`` lists ``(id, scale)`` as they stood when this token was computed. ``readings`` are what each monitor of
    the run read at the token before this one, which it was chosen from; the run's own are of every token itself.
    """

    index: int
    token_id: int
    token: str
    text: str
    logprob: float
    arm: int = 0
    kl: float | None = None
    top: tuple[Candidate, ...] = ()
    version: int = 0
    scales: tuple[tuple[str, float], ...] = ()
    reverse_kl: float | None = None
    plain_logprob: float | None = None
    readings: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Dose:
    """How far a site was moved, averaged over the tokens that were touched, in the residual's units.

    ``asked`` is the mean length of the change in exact arithmetic, ``delivered``
    of what survived the rounding of the model's dtype, ``relative`` the mean of
    ``||delta h|| / ||h||``. ``tokens`` is how many tokens were measured.
    """

    layer: int
    site: str
    asked: float
    delivered: float
    relative: float
    tokens: int


@dataclass(frozen=True, slots=True)
class ArmEnd:
    """An arm ended.

    ``reason`` is ``stop`` (end of text, or a stop that was asked for), ``length`` or ``stopped`` (by the caller).
    """

    arm: int
    reason: str
    n_tokens: int
    text: str = ""
    doses: tuple[Dose, ...] = ()

    @property
    def dose(self) -> float | None:
        """Mean ``||delta h|| / ||h||`` over the steered sites, ``None`` where nothing is steered."""
        return sum(dose.relative for dose in self.doses) / len(self.doses) if self.doses else None


@dataclass(frozen=True, slots=True)
class Steered:
    """The tokens that an intervention touched, each at the absolute position it has in the run.

    ``tokens`` are their display forms. The last token of a run is not among them: it did not go through the model.
    """

    id: str
    layer: int
    site: str
    positions: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Echo:
    """What a change leaves in the residual stream behind a layer, averaged over tokens.

    ``moved`` is ``||delta h||``, ``relative`` ``||delta h|| / ||h||`` against the
    unchanged residual, ``along`` the projection of the change on the direction
    that was steered with (``None`` where there is none).
    """

    layer: int
    moved: float
    relative: float
    along: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt of a batch with what is its own.

    ``prompt`` is a text (through the chat template if there is one, unless ``raw``),
    chat messages or token ids. What is ``None`` is as the batch has it. ``stop`` and
    ``stop_ids`` go before those of ``sampling``; where neither says any, those of the
    batch hold, and an empty tuple here means none. ``name`` is what errors call it, by default its number.
    """

    prompt: str | Sequence[int] | Sequence[Mapping[str, str]]
    interventions: tuple[Intervention, ...] | None = None
    sampling: Sampling | None = None
    stop: tuple[str, ...] | None = None
    stop_ids: tuple[int, ...] | None = None
    raw: bool | None = None
    name: str = ""

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
