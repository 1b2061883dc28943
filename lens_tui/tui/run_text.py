"""A run as the screens know it: its arms and what they have written so far, reduced from events. No Textual."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from lens_tui.records import Arm, Intervention, Sampling, Token
from lens_tui.records.chat import Turn
from lens_tui.records.gates import Watched
from lens_tui.records.interventions import BenchRow
from lens_tui.records.run import ArmRecord, MadeWith, RunRecord, State, perplexity_of, pieces
from lens_tui.worker.events import (
    ArmDone,
    Dialed,
    Event,
    JobDone,
    JobFailed,
    RunKept,
    RunStarted,
    Speed,
    TokenEvent,
)

from .session import Session, Written, plan


@dataclass(slots=True, eq=False)
class Mean:
    """A running mean of the values that are known."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float | None) -> None:
        """Take a value; ``None`` does not count."""
        if value is not None:
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        """The mean, ``None`` of nothing."""
        return self.total / self.count if self.count else None


@dataclass(slots=True, eq=False)
class ArmText:
    """One arm of a run and what it wrote.

    ``number`` is its place on the bench (0: baseline). ``dials`` are changes made
    while it wrote: the first token made under them, and what they were.
    ``parted`` is the first token that is not the baseline's. ``shade`` are the levels of the chosen feature, as far as
    they were read, ``read`` those of the chosen monitor; ``readings`` are the monitors' at the last token.
    """

    number: int
    arm: Arm
    tokens: list[Token] = field(default_factory=list)
    dials: list[tuple[int, tuple[Intervention, ...]]] = field(default_factory=list)
    reason: str = ""
    dose: float | None = None
    parted: int | None = None
    shade: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    readings: tuple[float, ...] = ()
    _logprob: Mean = field(default_factory=Mean)
    _kl: Mean = field(default_factory=Mean)
    _reverse_kl: Mean = field(default_factory=Mean)
    _plain: Mean = field(default_factory=Mean)
    _agreed: int = 0

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """What is done to it now."""
        return self.dials[-1][1] if self.dials else self.arm.interventions

    @property
    def text(self) -> str:
        """The readable text so far."""
        return "".join(token.text for token in self.tokens)

    @property
    def pieces(self) -> list[str]:
        """What each token shows; see :func:`~lens_tui.records.run.pieces`."""
        return pieces(self.tokens, self.reason)

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability a token (nats) under the arm's own distribution."""
        return self._logprob.value

    @property
    def perplexity(self) -> float | None:
        """``exp`` of minus the mean log-probability: of the arm's text, to the model that wrote it."""
        return perplexity_of(self.mean_logprob)

    @property
    def plain_perplexity(self) -> float | None:
        """Perplexity of the arm's text to the plain model: high beside a low own one is confidently broken text."""
        return perplexity_of(self._plain.value)

    @property
    def mean_kl(self) -> float | None:
        """Mean D(arm || plain) a token (nats), both models on the arm's own text; of the tokens where it is known."""
        return self._kl.value

    @property
    def mean_reverse_kl(self) -> float | None:
        """Mean D(plain || arm) a token (nats), in the same way."""
        return self._reverse_kl.value

    def add(self, token: Token) -> None:
        """Take the next token."""
        self.tokens.append(token)
        self._logprob.add(token.logprob)
        self._kl.add(token.kl)
        self._reverse_kl.add(token.reverse_kl)
        self._plain.add(token.plain_logprob)

    def compare_with(self, baseline: ArmText) -> None:
        """Look for the first token that is not the baseline's, from where we last agreed."""
        if self.parted is not None or baseline is self:
            return
        shared = min(len(self.tokens), len(baseline.tokens))
        while self._agreed < shared:
            if self.tokens[self._agreed].token_id != baseline.tokens[self._agreed].token_id:
                self.parted = self._agreed
                return
            self._agreed += 1
        if (baseline.reason and len(self.tokens) > shared) or (self.reason and len(baseline.tokens) > shared):
            self.parted = shared


@dataclass(slots=True, eq=False)
class RunText:
    """A run: what was asked, under which settings, and what came out so far.

    ``steers`` is the bench as it was, so that the run can be put back; ``source``
    is what the model can be loaded by again; ``kept`` is its number in the history on disk, 0 where none is kept.
    ``again`` is the run that this one repeats, token for token; ``turns`` the conversation that it answers.
    """

    number: int
    prompt: str
    sampling: Sampling
    arms: tuple[ArmText, ...]
    steers: tuple[BenchRow, ...] = ()
    model: str = ""
    source: str = ""
    raw: bool = False
    prompt_ids: tuple[int, ...] = ()
    prompt_tokens: tuple[str, ...] = ()
    tokens_per_s: float | None = None
    kept: int = 0
    job: int = 0
    state: Literal["waiting", "running", "done", "stopped", "failed"] = "waiting"
    made_with: MadeWith = field(default_factory=MadeWith)
    created: float = 0.0
    again: RunText | None = None
    turns: tuple[Turn, ...] = ()
    monitors: tuple[Watched, ...] = ()

    @classmethod
    def begin(cls, number: int, session: Session) -> RunText:
        """A run of the session as it is now."""
        arms = plan(session)
        made = MadeWith()
        if session.model is not None:
            from lens_tui.tasks.made_with import made_with  # not before the first run

            made = made_with(session.model, [arm for _, arm in arms], session.saes, monitors=session.monitors)
        texts = tuple(ArmText(place, arm) for place, arm in arms)
        name = session.model.name if session.model else ""
        prompt, turns, raw = session.question
        run = cls(number, prompt, session.sampling, texts, session.steers, name, made.source, raw)
        run.made_with, run.turns, run.monitors = made, turns, session.monitors
        return run

    @property
    def question(self) -> tuple[str, tuple[Turn, ...], bool]:
        """What it asks, as of :attr:`Session.question`."""
        return self.prompt, self.turns, self.raw

    def repeat(self) -> RunText:
        """This run to be made again, from its record: arms as they were, as many tokens as came if it was cut off."""
        arms = tuple(ArmText(text.number, text.arm) for text in self.arms)
        sampling = self.record().sampling_again
        run = RunText(0, self.prompt, sampling, arms, self.steers, self.model, self.source, self.raw)
        run.again, run.made_with, run.turns, run.monitors = self, self.made_with, self.turns, self.monitors
        return run

    def is_of(self, other: RunText) -> bool:
        """Whether it is of the same prompt, settings and arms as another, and they were not changed meanwhile."""
        mine, others = ([arm.interventions for arm in run.arms] for run in (self, other))
        return (self.question, self.sampling, mine) == (other.question, other.sampling, others)

    def record(self) -> RunRecord:
        """The run as far as it has come, as it is kept and exported."""
        state: State = "running" if self.state in ("waiting", "running") else self.state  # type: ignore[assignment]
        return RunRecord(
            self.model,
            self.prompt,
            tuple(
                ArmRecord(arm.arm, tuple(arm.tokens), arm.text, arm.reason, arm.dose, arm.readings) for arm in self.arms
            ),
            self.sampling,
            self.raw,
            self.prompt_ids,
            self.created,
            state,
            self.kept,
            self.made_with,
            self.turns,
            self.monitors,
        )

    @property
    def going(self) -> bool:
        """Whether tokens may still come."""
        return self.state in ("waiting", "running")

    @property
    def baseline(self) -> ArmText:
        """The arm nothing is done to."""
        return self.arms[0]

    def arm_of(self, number: int) -> ArmText | None:
        """The arm with that number on the bench."""
        return next((arm for arm in self.arms if arm.number == number), None)

    def arm_now(self, number: int, session: Session) -> ArmText | None:
        """The arm of that number, unless another has taken its place on the bench since: no row of it is there."""
        before = {row.id for row in self.steers if row.arm == number}
        now = {row.id for row in session.steers if row.arm == number}
        return None if before and not before & now else self.arm_of(number)

    def index_of(self, number: int) -> int | None:
        """The place in the job's arms of the arm with that number."""
        return next((index for index, arm in enumerate(self.arms) if arm.number == number), None)

    def written(self) -> tuple[Written, ...]:
        """Prompt and output of every arm that wrote something."""
        return tuple(
            Written(arm.arm.name, (*self.prompt_ids, *(token.token_id for token in arm.tokens)))
            for arm in self.arms
            if arm.tokens
        )

    def apply(self, event: Event) -> None:
        """Take an event of this run's job."""

        match event:
            case RunStarted():
                self.state, self.kept = "running", event.run
                self.prompt_ids, self.prompt_tokens = event.prompt_ids, event.prompt_tokens
                if event.made_with.version:  # an SAE that only the kept run's record names stays named
                    self.made_with = replace(event.made_with, saes={**self.made_with.saes, **event.made_with.saes})
            case RunKept():
                self.kept = event.run
            case TokenEvent():
                arm = self.arms[event.token.arm]
                arm.add(event.token)
                arm.compare_with(self.baseline)
            case Dialed():
                self.arms[event.arm].dials.append((event.index, event.interventions))
            case ArmDone():
                arm = self.arms[event.arm]
                arm.reason, arm.dose, arm.readings = event.reason, event.dose, event.readings
                for other in self.arms:
                    other.compare_with(self.baseline)
            case Speed():
                self.tokens_per_s = event.tokens_per_s
            case JobDone():
                self.state = "stopped" if event.stopped else "done"
            case JobFailed():
                self.state = "failed"


def summary(sampling: Sampling) -> str:
    """The settings in one line: ``seed 7 · greedy · max 200``."""
    parts = [f"seed {sampling.seed}", f"temp {sampling.temp:g}" if sampling.temp else "greedy"]
    parts += [
        f"{label} {getattr(sampling, name):g}"
        for name, label in (("top_p", "top-p"), ("top_k", "top-k"), ("min_p", "min-p"), ("repetition_penalty", "rep"))
        if getattr(sampling, name)
    ]
    return " · ".join([*parts, f"max {sampling.max_tokens}"])
