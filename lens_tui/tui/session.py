"""What the app is about right now, as one frozen record, and the store that changes it.

Screens read the session and ask the store for changes; nothing else holds
state that two screens need. Every edit of the steers can be undone. No Textual.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lens_tui.records import (
    Arm,
    Intervention,
    ModelInfo,
    Positions,
    SAEInfo,
    Sampling,
    SteeringVector,
    TokenWeight,
)
from lens_tui.records.chat import Turn
from lens_tui.records.gates import Watched
from lens_tui.records.interventions import BenchRow
from lens_tui.worker.events import (
    Event,
    ModelLoaded,
    ModelUnloaded,
    SAEChecked,
    SAELoaded,
    VectorMade,
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
        self._words: list[tuple[SteeringVector, dict[str, Any]]] = []

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
            rest=rest,
        )
        self.update(steers=(*self.session.steers, row))
        return row

    def add_made(self, made: VectorMade, *, scale: float | None = None, mode: str = "add") -> BenchRow:
        """Put a vector that was made on the bench with all that was said of it, as :meth:`add_steer` does."""
        return self.add_steer(
            made.vector,
            scale=scale,
            residual_norm=made.residual_norm,
            promoted=made.promoted,
            suppressed=made.suppressed,
            mode=mode,
            rest=made.rest,
        )

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

    def describe(self, vector: SteeringVector, made: VectorMade) -> None:
        """Say of a vector what came to be known of it, in all rows that have it, those of an undo included: no edit."""
        words = {"residual_norm": made.residual_norm, "promoted": made.promoted, "suppressed": made.suppressed}
        self._words.append((vector, words))
        for state in (*self._undo, *self._redo):
            if "steers" in state:
                state["steers"] = self.described(state["steers"])
        self._set(replace(self.session, steers=self.described(self.session.steers)))

    def described(self, rows: Iterable[BenchRow]) -> tuple[BenchRow, ...]:
        """The rows, each with what has been said of its vector since it was made."""
        said = [next((words for vector, words in self._words if vector is row.vector), {}) for row in rows]
        return tuple(replace(row, **words) for row, words in zip(rows, said, strict=True))

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
