"""What the app is about right now, as one frozen record, the store that changes it, and a run as the screens know it.

Screens read the session and ask the store for changes; nothing else holds
state that two screens need. Every edit of the steers can be undone. A run is its
arms and what they have written so far, reduced from events. No Textual.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from lens_tui.records import (
    Arm,
    Intervention,
    ModelInfo,
    Positions,
    SAEInfo,
    Sampling,
    SteeringVector,
    Token,
    TokenWeight,
)
from lens_tui.records.chat import Turn
from lens_tui.records.gates import Gate, Watched
from lens_tui.records.interventions import BenchRow
from lens_tui.records.run import ArmRecord, MadeWith, RunRecord, State, perplexity_of, pieces
from lens_tui.worker.events import (
    ArmDone,
    Dialed,
    Event,
    JobDone,
    JobFailed,
    ModelLoaded,
    ModelUnloaded,
    RunKept,
    RunStarted,
    SAEChecked,
    SAELoaded,
    Speed,
    TokenEvent,
)

if TYPE_CHECKING:
    from lens_tui.records.training import FitReport


MAX_ARMS = 4
MOST_UNDONE = 500
"""Edits that can be taken back: each keeps the vectors that were on the bench."""


@dataclass(frozen=True, slots=True)
class Written:
    """What an arm of the last run wrote, with the prompt before it, as the model saw it."""

    name: str
    token_ids: tuple[int, ...]


Question = tuple[str, tuple[Turn, ...], bool]
"""A prompt, the conversation it is the end of, and whether it goes in as it is."""


@dataclass(frozen=True, slots=True)
class AsRead:
    """The ids that a question goes in as with a model."""

    model: ModelInfo | None
    question: Question
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Session:
    """The model, its SAEs, the bench, the prompt, the sampling settings, and what the last run wrote.

    ``fits`` says of SAEs that were measured whether they fit the model, by their id. ``turns`` are the conversation
    before the prompt; ``chat`` whether the prompt goes in as one, ``None`` as is usual for the model. ``work`` says how
    far a training is, and ``work_done`` counts the indexes and SAEs made, each of which screens look at again.
    ``as_read`` is what a conversation was read as last (:attr:`chat_ids`); ``loading``: a model or its SAE is coming.
    """

    model: ModelInfo | None = None
    saes: tuple[SAEInfo, ...] = ()
    sae: str | None = None
    steers: tuple[BenchRow, ...] = ()
    prompt: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    written: tuple[Written, ...] = ()
    fits: tuple[tuple[str, FitReport], ...] = ()
    turns: tuple[Turn, ...] = ()
    chat: bool | None = None
    work: str = ""
    work_done: int = 0
    monitors: tuple[Watched, ...] = ()
    as_read: AsRead | None = None
    loading: bool = False

    @property
    def chatting(self) -> bool:
        """Whether the prompt is what a user says in a conversation."""
        model = self.model
        if model is None or not model.takes_chat:
            return False
        return model.has_chat_template if self.chat is None else self.chat

    @property
    def question(self) -> Question:
        """What a run would ask."""
        usual = self.model is not None and self.model.has_chat_template
        if self.chatting and (self.turns or not usual):
            return self.prompt, (*self.turns, Turn("user", self.prompt)), False
        return self.prompt, (), usual and self.chat is False

    @property
    def chat_ids(self) -> tuple[int, ...]:
        """The conversation with the template's own tokens, as the model reads it; nothing where that is not known."""
        known = self.as_read
        here = known is not None and (known.model, known.question) == (self.model, self.question)
        return known.token_ids if known is not None and here and self.chatting else ()

    @property
    def sae_in_use(self) -> SAEInfo | None:
        """The SAE in use."""
        return next((sae for sae in self.saes if sae.id == self.sae), None)

    def fit(self, sae_id: str | None) -> FitReport | None:
        """What was measured of an SAE, ``None`` if nothing was."""
        return dict(self.fits).get(sae_id or "")

    def free_arm(self) -> int:
        """The lowest arm with no row in it; the last arm when all are taken."""
        taken = {row.arm for row in self.steers}
        return next((number for number in range(1, MAX_ARMS + 1) if number not in taken), MAX_ARMS)

    def steer(self, steer_id: str) -> BenchRow | None:
        """The row of that id, if it is there."""
        return next((row for row in self.steers if row.id == steer_id), None)

    def arms(self) -> tuple[Arm, ...]:
        """The baseline, then one arm for each arm number with an enabled row, in order."""

        arms = [Arm("baseline")]
        for number in sorted({row.arm for row in self.steers if row.enabled}):
            rows = [row for row in self.steers if row.enabled and row.arm == number]
            arms.append(Arm(" + ".join(row.vector.name for row in rows), _acting(rows)))
        return tuple(arms)


def _acting(rows: Sequence[BenchRow]) -> tuple[Intervention, ...]:
    """What the rows of an arm do, in order."""
    return tuple(record for row in rows for record in row.interventions())


Listener = Callable[[Session, Session], None]


class SessionStore:
    """Holds the session, tells listeners of each change, and remembers steers and turns for undo."""

    def __init__(self, session: Session | None = None) -> None:
        self.session = session or Session()
        self.writing: Callable[[], str] | None = None
        """What the prompt is at this moment, while keys of it have come that the session does not have yet."""
        self._listeners: list[Listener] = []
        self._undo: deque[dict[str, Any]] = deque(maxlen=MOST_UNDONE)
        self._redo: deque[dict[str, Any]] = deque(maxlen=MOST_UNDONE)
        self._made, self._opened = 0, frozenset[str]()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener(old, new)`` after each change; returns what ends the subscription."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def update(self, **changes: object) -> None:
        """Replace fields of the session. A change of ``steers`` can be undone."""
        old = self.session
        new = replace(old, **changes)  # type: ignore[arg-type]
        if new == old:
            return
        if new.steers != old.steers:
            self._remember("steers")
        self._set(new)

    def speak(self, turns: tuple[Turn, ...], prompt: str) -> None:
        """Go on in a conversation, or elsewhere in it, which can be undone."""
        self._remember("turns", "prompt")
        self._set(replace(self.session, turns=turns, prompt=prompt))

    def _remember(self, *names: str) -> None:
        self._undo.append({name: getattr(self.session, name) for name in names})
        self._redo.clear()

    def add_steer(
        self,
        vector: SteeringVector,
        *,
        scale: float | None = None,
        arm: int | None = None,
        residual_norm: float | None = None,
        promoted: tuple[TokenWeight, ...] = (),
        suppressed: tuple[TokenWeight, ...] = (),
        mode: str = "add",
        positions: Positions | None = None,
        gate: Gate | None = None,
        rest: tuple[SteeringVector, ...] = (),
    ) -> BenchRow:
        """Put a vector on the bench as a new row, in the next free arm unless one is named.

        Without a scale it gets the feature's maximum activation, or half the
        median residual norm, or 8; a set, with ``rest`` of further layers, 1.
        """
        if scale is None and rest:
            scale = 1.0
        if scale is None:
            scale = vector.max_activation or (residual_norm / 2 if residual_norm else 8.0)
        self._made += 1
        row = BenchRow(
            f"s{self._made}",
            vector,
            vector.layer,
            float(f"{scale:.3g}"),
            arm=arm or self.session.free_arm(),
            residual_norm=residual_norm,
            promoted=promoted,
            suppressed=suppressed,
            mode=mode,
            positions=positions,
            gate=gate,
            rest=rest,
        )
        self.update(steers=(*self.session.steers, row))
        return row

    def add_like(self, row: BenchRow, scale: float, arm: int) -> BenchRow:
        """Put another row like this one on the bench, at a scale of its own in that arm."""
        self._made += 1
        like = replace(row, id=f"s{self._made}", scale=float(f"{scale:.3g}"), arm=arm, enabled=True)
        self.update(steers=(*self.session.steers, like))
        return like

    def edit_steer(self, steer_id: str, **changes: Any) -> None:
        """Change fields of one row; nothing happens if the row is gone."""
        rows = self.session.steers
        self.update(steers=tuple(replace(row, **changes) if row.id == steer_id else row for row in rows))

    def replace_steers(self, rows: Iterable[BenchRow]) -> None:
        """Put rows in the place of those with their ids, as one edit."""
        by_id = {row.id: row for row in rows}
        self.update(steers=tuple(by_id.get(row.id, row) for row in self.session.steers))

    def remove_steer(self, steer_id: str) -> None:
        """Take a row off the bench."""
        self.update(steers=tuple(row for row in self.session.steers if row.id != steer_id))

    @property
    def newest(self) -> int:
        """The place of the row that was added last; 0 where the bench is as it was opened."""
        return max((place for place, row in enumerate(self.session.steers) if row.id not in self._opened), default=0)

    def forget_edits(self) -> None:
        """Make what is on the bench now the state that undo goes back to."""
        self._opened = frozenset(row.id for row in self.session.steers)
        self._undo.clear()
        self._redo.clear()

    def comes_with_the_model(self, row: BenchRow) -> None:
        """Make a row that was just added no edit: undo of what was edited before and since leaves it there."""
        self._opened |= {row.id}
        self._undo.pop()
        for state in self._undo:
            state["steers"] = (*state.get("steers", self.session.steers[:-1]), row)

    def undo(self) -> bool:
        """Take back the last edit of the steers, or turn of the conversation; false if there is none."""
        return self._swap(self._undo, self._redo)

    def redo(self) -> bool:
        """Do again what was undone; false if there is nothing."""
        return self._swap(self._redo, self._undo)

    def _swap(self, source: deque[dict[str, Any]], target: deque[dict[str, Any]]) -> bool:
        if not source:
            return False
        before = source.pop()
        target.append({name: getattr(self.session, name) for name in before})
        self._set(replace(self.session, **before))
        return True

    def _set(self, new: Session) -> None:
        old, self.session = self.session, new
        failed: list[Exception] = []
        for listener in tuple(self._listeners):
            try:
                listener(old, new)
            except Exception as error:  # whoever shows it wrong must not keep it from the disk
                failed.append(error)
        if failed:
            raise failed[0]


def fits(watched: Watched, d_model: int) -> bool:
    """Whether a monitor can read a model of that width, as far as it says: a feature's SAE is asked when it runs."""
    vector = watched.monitor.vector
    return vector is None or vector.d_model == d_model


def absorb(store: SessionStore, event: Event) -> None:
    """Take from a worker event what every screen must know: which model and SAEs there are."""
    session = store.session
    match event:
        case ModelLoaded(_, info, saes):
            fitting = tuple(row for row in session.steers if row.vector.d_model == info.d_model)
            read = tuple(item for item in session.monitors if fits(item, info.d_model))
            store.update(model=info, saes=saes, sae=None, steers=fitting, written=(), fits=(), monitors=read)
        case ModelUnloaded():
            store.update(model=None, saes=(), sae=None, written=(), fits=())
        case SAELoaded(_, info):
            known = tuple(sae for sae in session.saes if sae.id != info.id)
            store.update(saes=(*known, info), sae=info.id)
        case SAEChecked(_, sae, report):
            store.update(fits=(*(item for item in session.fits if item[0] != sae), (sae, report)))


def plan(session: Session) -> tuple[tuple[int, Arm], ...]:
    """The arms a run would have now, each with its number on the bench; the baseline is 0."""
    numbers = sorted({row.arm for row in session.steers if row.enabled})
    return tuple(zip((0, *numbers), session.arms(), strict=True))


def lane_names(session: Session) -> tuple[tuple[int, str], ...]:
    """The lanes of :func:`plan`, by number and name. An empty bench costs no import: the first frame shows one."""
    return tuple((number, arm.name) for number, arm in plan(session)) if session.steers else ((0, "baseline"),)


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
