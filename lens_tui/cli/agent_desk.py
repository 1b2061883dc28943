"""One model and one thread for an agent's questions: asked one after the other, told how far they are, stopped."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from lens_tui.records import LensError, SAEInfo
from lens_tui.records.errors import AskedToStop, warnings_to

from .sources import Vectors, open_model

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.sae.load_sae import SAE

T = TypeVar("T")
Report = Callable[[float, float | None, str | None], Awaitable[None]]
_APART = 0.1


class Work:
    """What a question has at hand while it is computed: the model, its SAE, vectors by name, and a way to say more."""

    def __init__(self, lens: LensModel, vectors: Vectors, model: str, say: Callable[[float, float, str], None]) -> None:
        self.lens, self.vectors, self.model = lens, vectors, model
        self._say = say
        self.stopping = threading.Event()
        self._said_at = 0.0

    @property
    def sae(self) -> SAE:
        """The SAE that features are of."""
        return self.vectors.sae

    @property
    def sae_info(self) -> SAEInfo:
        """What is known of it."""
        return self.vectors.sae.info

    def say(self, done: float, total: float, text: str = "") -> None:
        """How far it is, at most ten times a second; raises :class:`AskedToStop` once nobody wants it any longer."""
        if self.stopping.is_set():
            raise AskedToStop
        now = time.monotonic()
        if now - self._said_at >= _APART or done >= total:
            self._said_at = now
            self._say(done, total, text)


class Desk:
    """Answers one question at a time, on the thread that has opened the model with the first one.

    Args:
        model: A folder, a hub id or ``demo``.
        sae: The SAE that features are of, as ``--sae`` names one.
    """

    def __init__(self, model: str, sae: str) -> None:
        self._model, self._sae = model, sae
        self._thread = ThreadPoolExecutor(1, "mlx-agent")
        self._asked = copy_context()  # what was asked for before the verb holds on the model's thread too
        self._opened: tuple[LensModel, Vectors] | None = None

    async def ask(self, work: Callable[[Work], T], report: Report) -> tuple[T, list[str]]:
        """What ``work`` gives, and what there was to warn of.

        A caller who is cancelled leaves, and the work ends at its next word of progress.

        Raises:
            LensError: What the work raises.
        """
        loop, warned = asyncio.get_running_loop(), list[str]()
        stopping = threading.Event()

        def say(done: float, total: float, text: str) -> None:
            asyncio.run_coroutine_threadsafe(_quietly(report(done, total, text or None)), loop)

        def run() -> T:
            if stopping.is_set():
                raise AskedToStop
            with warnings_to(warned.append):
                lens, vectors = self._open()
                here = Work(lens, vectors, self._model, say)
                here.stopping = stopping
                return work(here)

        job = loop.run_in_executor(self._thread, self._asked.run, run)
        try:
            return await asyncio.shield(job), warned
        except asyncio.CancelledError:
            stopping.set()
            job.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, and left
            raise

    def close(self) -> None:
        """Wait for nobody: what is going on ends with the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> tuple[LensModel, Vectors]:
        if self._opened is None:
            lens = open_model(self._model)
            self._opened = lens, Vectors(lens, self._sae, self._model)
        return self._opened


async def _quietly(said: Awaitable[Any]) -> None:
    try:
        await said
    except Exception:  # a client that has gone hears nothing
        return


def limited(value: int, name: str, most: int) -> int:
    """A count of an agent's that is within reason. Raises :class:`LensError`."""
    if not 1 <= value <= most:
        raise LensError(f"{name} is {value}.", f"Give 1 to {most:,}.")
    return value
