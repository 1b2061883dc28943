"""What the app is about right now, as one frozen record, and the store that changes it.

Screens read the session and ask the store for changes; nothing else holds
state that two screens need. Every edit of the steers can be undone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lens_tui.records import Arm, ModelInfo, Positions, SAEInfo, Sampling, SteeringVector, TokenWeight
from lens_tui.records.interventions import BenchRow
from lens_tui.worker.events import Event, ModelLoaded, ModelUnloaded, SAEChecked, SAELoaded

if TYPE_CHECKING:  # the first frame needs none of them
    from lens_tui.records.training import FitReport

MAX_ARMS = 4


@dataclass(frozen=True, slots=True)
class Written:
    """What an arm of the last run wrote, with the prompt before it, as the model saw it."""

    name: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Session:
    """The model, its SAEs, the bench, the prompt, the sampling settings, and what the last run wrote.

    ``fits`` says of SAEs that were measured whether they fit the model, by their id.
    """

    model: ModelInfo | None = None
    saes: tuple[SAEInfo, ...] = ()
    sae: str | None = None
    steers: tuple[BenchRow, ...] = ()
    prompt: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    written: tuple[Written, ...] = ()
    fits: tuple[tuple[str, FitReport], ...] = ()

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
            arms.append(Arm(" + ".join(row.vector.name for row in rows), tuple(row.intervention() for row in rows)))
        return tuple(arms)


Listener = Callable[[Session, Session], None]


class SessionStore:
    """Holds the session, tells listeners of each change, and remembers steers for undo."""

    def __init__(self, session: Session | None = None) -> None:
        self.session = session or Session()
        self._listeners: list[Listener] = []
        self._undo: list[tuple[BenchRow, ...]] = []
        self._redo: list[tuple[BenchRow, ...]] = []
        self._made = 0

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
            self._undo.append(old.steers)
            self._redo.clear()
        self._set(new)

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
    ) -> BenchRow:
        """Put a vector on the bench as a new row, in the next free arm unless one is named.

        Without a scale it gets the feature's maximum activation, or half the
        median residual norm, or 8.
        """
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
        )
        self.update(steers=(*self.session.steers, row))
        return row

    def edit_steer(self, steer_id: str, **changes: Any) -> None:
        """Change fields of one row; nothing happens if the row is gone."""
        rows = self.session.steers
        self.update(steers=tuple(replace(row, **changes) if row.id == steer_id else row for row in rows))

    def remove_steer(self, steer_id: str) -> None:
        """Take a row off the bench."""
        self.update(steers=tuple(row for row in self.session.steers if row.id != steer_id))

    def forget_edits(self) -> None:
        """Make what is on the bench now the state that undo goes back to."""
        self._undo.clear()
        self._redo.clear()

    def undo(self) -> bool:
        """Take back the last edit of the steers; false if there is none."""
        return self._swap(self._undo, self._redo)

    def redo(self) -> bool:
        """Do again what was undone; false if there is nothing."""
        return self._swap(self._redo, self._undo)

    def _swap(self, source: list[tuple[BenchRow, ...]], target: list[tuple[BenchRow, ...]]) -> bool:
        if not source:
            return False
        target.append(self.session.steers)
        self._set(replace(self.session, steers=source.pop()))
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


def absorb(store: SessionStore, event: Event) -> None:
    """Take from a worker event what every screen must know: which model and SAEs there are."""
    session = store.session
    match event:
        case ModelLoaded(_, info, saes):
            fitting = tuple(row for row in session.steers if row.vector.d_model == info.d_model)
            store.update(model=info, saes=saes, sae=None, steers=fitting, written=(), fits=())
        case ModelUnloaded():
            store.update(model=None, saes=(), sae=None, written=(), fits=())
        case SAELoaded(_, info):
            known = tuple(sae for sae in session.saes if sae.id != info.id)
            store.update(saes=(*known, info), sae=info.id)
        case SAEChecked(_, sae, report):
            store.update(fits=(*(item for item in session.fits if item[0] != sae), (sae, report)))
