"""A run: what is asked for, what comes of it, how it is kept and carried elsewhere, what is counted over its tokens.

The names of sampling settings are mlx-lm's. A record of a run says what was asked, what it was made with, and every
token that came. The functions give means, perplexities, where two texts part, and the level of a KL.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal

from .chat import Turn, as_prompt
from .gates import Watched
from .interventions import Arm, Intervention, as_records


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


State = Literal["running", "done", "stopped", "failed", "killed"]


@dataclass(frozen=True, slots=True)
class MadeWith:
    """What a run's tokens rest on beside its arms and settings; ``""`` and 0 where it was not noted.

    ``version`` is of this program, ``mlx`` and ``mlx_lm`` of those; ``machine`` and ``device`` are what MLX ran on,
    ``dtype`` and ``weights`` how the model was held (as of ``ModelInfo``). ``batch_rows`` were in each forward.
    ``source`` is what the model is loaded by; ``saes`` gives for an SAE's id what it is loaded by;
    ``adapter`` is the folder of the model's LoRA.
    """

    version: str = ""
    mlx: str = ""
    mlx_lm: str = ""
    machine: str = ""
    device: str = ""
    source: str = ""
    dtype: str = ""
    weights: str = ""
    batch_rows: int = 0
    saes: Mapping[str, str] = field(default_factory=dict)
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class ArmRecord:
    """One arm of a kept run: what it was, what came out, how it ended (``""``: it did not).

    ``readings`` are those of the run's monitors at the last token, which no token after it carries.
    """

    arm: Arm
    tokens: tuple[Token, ...] = ()
    text: str = ""
    reason: str = ""
    dose: float | None = None
    readings: tuple[float, ...] = ()

    def read(self, at: int) -> list[float | None]:
        """What the run's monitor number ``at`` read at each token; ``None`` where it did not go in."""
        return readings_of(self.tokens, self.readings, at)

    @property
    def changes(self) -> list[tuple[int, tuple[Intervention, ...]]]:
        """Changes of scale while the arm wrote: the first token made under each, and what acted from there on."""
        found: list[tuple[int, tuple[Intervention, ...]]] = []
        now = self.arm.interventions
        for token in self.tokens:
            scales = dict(token.scales)
            new = tuple(_at(item, scales[item.id]) if item.id in scales else item for item in now)
            if _scales(new) != _scales(now):
                found.append((token.index, new))
            now = new
        return found


def _at(item: Intervention, amount: float) -> Intervention:
    changes: dict[str, Any] = {name: amount for name in ("scale", "value") if hasattr(item, name)}
    return replace(item, **changes)


def _scales(interventions: Sequence[Intervention]) -> list[float]:
    return [getattr(item, "scale", getattr(item, "value", 0.0)) for item in interventions]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A kept run. ``created`` is seconds since 1970 (UTC); ``id`` 0 means not stored.

    ``turns`` are the conversation that the arms answer, of which ``prompt`` is then what the user said last.
    ``monitors`` read every token of it.
    """

    model: str
    prompt: str
    arms: tuple[ArmRecord, ...]
    sampling: Sampling = field(default_factory=Sampling)
    raw: bool = False
    prompt_ids: tuple[int, ...] = ()
    created: float = 0.0
    state: State = "done"
    id: int = 0
    made_with: MadeWith = field(default_factory=MadeWith)
    turns: tuple[Turn, ...] = ()
    monitors: tuple[Watched, ...] = ()

    @property
    def asked(self) -> str | list[dict[str, str]]:
        """What the model was given: a text, or chat messages."""
        return as_prompt(self.prompt, self.turns)

    @property
    def before(self) -> str:
        """What a text is shown after, to be read as one with it: the prompt, but not what was said in a chat."""
        return "" if self.turns else self.prompt

    @property
    def is_whole(self) -> bool:
        """Whether it came to its end by itself, so that the same run has just these tokens and no more."""
        return self.state == "done"

    @property
    def sampling_again(self) -> Sampling:
        """The settings to run it again with: one that was cut off goes as far as it came."""
        if self.is_whole:
            return self.sampling
        longest = max((len(arm.tokens) for arm in self.arms), default=0)
        return replace(self.sampling, max_tokens=longest) if longest else self.sampling


def readings_of(tokens: Sequence[Token], last: Sequence[float], at: int) -> list[float | None]:
    """What a monitor read at each token: a token carries what was read before it, and ``last`` is of the last one."""
    read = [*(token.readings for token in tokens[1:]), last] if tokens else []
    return [values[at] if at < len(values) and isfinite(values[at]) else None for values in read]


KL_STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Lower bounds of levels 1 to 7 for the KL of a steering, in nats: two steps a decade.

Steering that leaves a text sound moves the next token by hundredths of a nat, strong steering by one or more.
"""


def step_level(value: float | None, steps: Sequence[float]) -> int:
    """The level of a value on a fixed scale of seven rising lower bounds; NaN and ``None`` give 0."""
    if value is None or value != value:
        return 0
    return bisect_right(steps, value)


def kl_level(value: float | None) -> int:
    """The level of a steering's KL in nats."""
    return step_level(value, KL_STEPS)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known, ``None`` of nothing."""
    # Added up one by one, as a run does while it is written: from Python 3.12 on ``sum`` rounds in another way.
    total, count = 0.0, 0
    for value in values:
        if value is not None:
            total, count = total + value, count + 1
    return total / count if count else None


def perplexity_of(mean_logprob: float | None) -> float | None:
    """``exp`` of minus a mean log-probability in nats a token; at most ``exp(700)``, which a float still holds."""
    return None if mean_logprob is None else math.exp(min(700.0, -mean_logprob))


def figures(tokens: Sequence[Token]) -> dict[str, Any]:
    """An arm's figures as plain data: values a token, and over them the means and perplexities.

    ``kl`` is D(arm || plain) and ``reverse_kl`` D(plain || arm) of the next token in nats, both models on the arm's own
    text; ``logprobs`` and ``perplexity`` are to the arm's own model, those with ``plain_`` to the plain model.
    """
    logprobs, plain = [token.logprob for token in tokens], [token.plain_logprob for token in tokens]
    forward, reverse = [token.kl for token in tokens], [token.reverse_kl for token in tokens]
    return {
        "logprobs": logprobs,
        "plain_logprobs": plain,
        "kl": forward,
        "reverse_kl": reverse,
        "mean_logprob": mean(logprobs),
        "perplexity": perplexity_of(mean(logprobs)),
        "plain_perplexity": perplexity_of(mean(plain)),
        "mean_kl": mean(forward),
        "mean_reverse_kl": mean(reverse),
    }


def first_difference(one: Sequence[Token], other: Sequence[Token]) -> int | None:
    """The first place at which two rows hold another token; ``None`` if one is a beginning of the other."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a.token_id != b.token_id), None)


def parts_at(tokens: Sequence[Token], ended: bool, baseline: Sequence[Token], baseline_ended: bool) -> int | None:
    """The first token that is not the baseline's, or where the shorter of the two has ended; ``None`` if neither."""
    place = first_difference(tokens, baseline)
    if place is not None:
        return place
    shared = min(len(tokens), len(baseline))
    longer = (baseline_ended and len(tokens) > shared) or (ended and len(baseline) > shared)
    return shared if longer else None


END = "∎"
"""What stands for a token that ended a text and is no part of it."""


def pieces(tokens: Sequence[Token], reason: str, *, ends: bool = False) -> list[str]:
    """What each token shows in its text, in the order of the tokens.

    A token that adds nothing shows its own form if it is a part of a character. One whose text was held back, because a
    stop text may begin with it, shows that text, and the token with which it was let go only what is its own. The
    tokens that ended the text are no part of it: each is :data:`END` unless ``ends``.

    Args:
        tokens: What was written.
        reason: Why it ended, ``""`` while it is written: what is held back at the end is left out then.
        ends: Show the tokens that ended the text in their own form.
    """
    out: list[str] = []
    held: list[str] = []
    for token in tokens:
        if not token.text:
            held.append(token.token)
            continue
        before, text = "".join(held), token.text
        out += [*held, text.removeprefix(before) or text]
        held = []
    if reason:
        out += [END] * len(held) if reason == "stop" and not ends else held
    return out
