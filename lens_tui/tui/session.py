"""What the app is about right now, as one frozen record, and the store that changes it.

Screens read the session and ask the store for changes; nothing else holds
state that two screens need. Every edit of the steers can be undone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from lens_tui.records import Add, Arm, ModelInfo, SAEInfo, Sampling, SteeringVector

MAX_ARMS = 4


@dataclass(frozen=True, slots=True)
class Steer:
    """One row of the vector bench: a vector at a layer with a scale, in one arm.

    ``arm`` counts from 1; rows with the same arm act together in one lane.
    ``scale`` is absolute, in residual-stream units on the unit direction.
    """

    id: str
    vector: SteeringVector
    layer: int
    scale: float
    enabled: bool = True
    arm: int = 1


@dataclass(frozen=True, slots=True)
class Session:
    """The model, its SAEs, the bench, the prompt and the sampling settings."""

    model: ModelInfo | None = None
    saes: tuple[SAEInfo, ...] = ()
    sae: str | None = None
    steers: tuple[Steer, ...] = ()
    prompt: str = ""
    sampling: Sampling = field(default_factory=Sampling)

    def arms(self) -> tuple[Arm, ...]:
        """The baseline, then one arm for each arm number with an enabled row, in order."""
        arms = [Arm("baseline")]
        for number in sorted({row.arm for row in self.steers if row.enabled}):
            rows = [row for row in self.steers if row.enabled and row.arm == number]
            items = tuple(Add(id=row.id, layer=row.layer, vector=row.vector, scale=row.scale) for row in rows)
            arms.append(Arm(" + ".join(row.vector.name for row in rows), items))
        return tuple(arms)


Listener = Callable[[Session, Session], None]


class SessionStore:
    """Holds the session, tells listeners of each change, and remembers steers for undo."""

    def __init__(self, session: Session | None = None) -> None:
        self.session = session or Session()
        self._listeners: list[Listener] = []
        self._undo: list[tuple[Steer, ...]] = []
        self._redo: list[tuple[Steer, ...]] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener(old, new)`` after each change; returns what ends the subscription."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def update(self, **changes: object) -> None:
        """Replace fields of the session. A change of ``steers`` can be undone."""
        old = self.session
        new = replace(old, **changes)  # type: ignore[arg-type]
        if new.steers != old.steers:
            self._undo.append(old.steers)
            self._redo.clear()
        self._set(new)

    def undo(self) -> bool:
        """Take back the last edit of the steers; false if there is none."""
        return self._swap(self._undo, self._redo)

    def redo(self) -> bool:
        """Do again what was undone; false if there is nothing."""
        return self._swap(self._redo, self._undo)

    def _swap(self, source: list[tuple[Steer, ...]], target: list[tuple[Steer, ...]]) -> bool:
        if not source:
            return False
        target.append(self.session.steers)
        self._set(replace(self.session, steers=source.pop()))
        return True

    def _set(self, new: Session) -> None:
        old, self.session = self.session, new
        for listener in tuple(self._listeners):
            listener(old, new)
