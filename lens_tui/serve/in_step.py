"""The turns of a server whose model several processes share: rank 0 says what came, and all do the same with it.

Between two steps every process tells the others how long rank 0's message is, whether it was asked to end, and a
checksum of all that it has done so far. So what differs in one of them, a token or a row that failed, is found before
the next forward, in which processes of different minds would wait for each other without end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from zlib import crc32

from lens_tui.lens.architecture.ranks import Shared, bytes_of_first, numbers_of_all
from lens_tui.lens.decode.open_batch import BatchEvent, RowFailed, StepFailed
from lens_tui.records import ArmEnd, LensError

from .wire_request import Kind, Order

PAUSE = 0.02
"""Seconds between two exchanges while there is nothing to do: processes that wait for each other burn the CPU."""
_END, _CLOSE, _DROP = 1, 2, 4
_HERE = 20103
"""What every process says in an exchange."""


class OutOfStep(LensError):
    """The processes that share the model cannot go on together."""


@dataclass(frozen=True, slots=True)
class StepMail:
    """What a turn of all processes begins with.

    Attributes:
        orders: Kind and body of each new request.
        gone: Numbers of those that nobody wants any longer.
        end: A process was asked to end.
        close: No new ones come: end when all is done.
        drop: End now.
    """

    orders: Sequence[tuple[Kind, Mapping[str, Any]]] = ()
    gone: Sequence[int] = ()
    end: bool = False
    close: bool = False
    drop: bool = False


class InStep:
    """One process's side of it. ``shared`` says how the model is shared, and which process this is."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._mark = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that has the server."""
        return self._shared.rank == 0

    def turn(self, own: StepMail) -> StepMail:
        """Begin a turn together.

        Args:
            own: In rank 0 what has come; of the others only ``end`` is heard.

        Returns:
            The same in every process.

        Raises:
            OutOfStep: Where they have done different things, or one cannot be reached.
        """
        said = json.dumps([own.orders, own.gone]).encode() if own.orders or own.gone else b""
        flags = _END * own.end | _CLOSE * own.close | _DROP * own.drop
        table = self._exchange([len(said), flags])
        length, flags = int(table[0][0]), int(table[0][1])
        orders, gone = json.loads(self._heard(said, length)) if length else ((), ())
        end = any(int(row[1]) & _END for row in table)
        return StepMail(orders, gone, end, bool(flags & _CLOSE), bool(flags & _DROP))

    def did(self, *what: object) -> None:
        """Note what this process has done; :meth:`turn` and :meth:`agree` compare it."""
        self._mark = crc32(repr(what).encode("utf-8", "surrogatepass"), self._mark)

    def stepped(self, events: Sequence[BatchEvent]) -> None:
        """Note what came of a step. Raises :class:`OutOfStep` where it could not be done here."""
        for event in events:
            if isinstance(event, RowFailed):
                if isinstance(event.error, StepFailed):
                    self.broken(event.error)
                self.did(event.arm, "failed")
            else:
                self.did(event.arm, event.reason if isinstance(event, ArmEnd) else event.token_id)

    def prepared(self, order: Order, prompts: Sequence[Sequence[int]]) -> None:
        """Note the tokens of an order's prompts: a template may write the date of its machine."""
        self.did(order.kind, order.rows, [tuple(ids) for ids in prompts])

    def agree(self) -> None:
        """Raise :class:`OutOfStep` unless all have done the same."""
        self._exchange([0, 0])

    def broken(self, error: Exception) -> NoReturn:
        """This process cannot do what the others do: nobody can go on."""
        if isinstance(error, OutOfStep):
            raise error
        said = error.message if isinstance(error, LensError) else f"{type(error).__name__}: {error}"
        raise OutOfStep(
            f"Process {self._shared.rank} of {self._shared.size} could not go on, and so the server has ended: {said}"
        ) from error

    def _exchange(self, numbers: Sequence[int]) -> Any:
        try:
            table = numbers_of_all(self._shared, [*numbers, _HERE, self._mark & 0x7FFFFFFF])
        except RuntimeError as error:
            raise _lost() from error
        if not (table[:, -2] == _HERE).all():  # MLX may give what it has before it says that nobody is there
            raise _lost()
        if len(set(table[:, -1].tolist())) > 1:
            raise OutOfStep(
                "The processes that share the model have computed different things, and so the server has ended.",
                "Let all of them run the same versions, over the same files, on machines of one kind.",
            )
        return table

    def _heard(self, said: bytes, length: int) -> bytes:
        try:
            return bytes_of_first(self._shared, said, length)
        except RuntimeError as error:
            raise _lost() from error


def _lost() -> OutOfStep:
    return OutOfStep(
        "A process that shares the model has ended or cannot be reached, and so the server has ended.",
        "Start all of them again with mlx.launch.",
    )
