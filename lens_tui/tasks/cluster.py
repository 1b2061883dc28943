"""The shards of a task as Ray Data tasks on the workers of a cluster. The one file that imports Ray.

Ray places the workers, hands out shards, starts a worker again that died and gives it its shard once more; nothing of
that is done here. A worker is a process with one model; its MLX work is on one thread. What the workers tell, and
whether they are to stop, goes over one small actor, the desk, which each asks twice a second at most.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lens_tui import blas
from lens_tui.records import LensError
from lens_tui.records.errors import warn
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel

Said = Callable[[int, int], bool]
"""A shard says ``said(blocks, tokens)``, how much of it is done, and hears whether to stop."""

_TELL_SECONDS = 0.5
_TIMES = 4
"""How often a shard is begun whose workers die; Ray would go on for ever."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where shards are computed.

    Attributes:
        workers: processes, each with a model of its own.
        address: that of a running cluster (``auto``, ``host:port``); empty starts one on this machine and ends it.
        cpus: cores of a worker: what Ray reserves, and how many threads its products use.
        gpus: GPUs of a worker, of which Ray shows it no others.
    """

    workers: int = 2
    address: str = ""
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus < 1 or self.gpus < 0:
            each = f"{many(self.cpus, 'core')} and {self.gpus:g} GPUs"
            raise LensError(f"There is no cluster of {many(self.workers, 'worker')} with {each}.", "Give 1 or more.")
        if self.address.startswith("ray://"):
            raise LensError("Ray's client (ray://) hands out no shards.", "Run this on a machine of the cluster.")


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """How a worker loads the model, so that it holds what the process that asks holds."""

    path: str
    dequantize: str
    adapter: str
    precision: str

    @classmethod
    def of(cls, model: LensModel, adapter: str = "") -> WorkerModel:
        """That of a model; raises ``LensError`` for one that was made in memory."""
        info = model.info
        if not info.path:
            raise LensError("The workers of a cluster need a model with files.", "Save it and open its folder.")
        if model.registry.decoder.shared is not None:
            raise LensError("A model that several processes share has no workers.", "Leave --shard out.")
        held = "always" if info.weights.startswith("float32") else "never"
        return cls(info.path, held, adapter, _precision(model))

    def open(self) -> LensModel:
        """Load it, in a worker."""
        from lens_tui.lens.model import LensModel

        model = LensModel(self.path, dequantize=self.dequantize, adapter=self.adapter)
        if (found := _precision(model)) != self.precision:
            raise LensError(f"A worker holds the model as {found}, not {self.precision}.", "Use machines of one kind.")
        return model


def _precision(model: LensModel) -> str:
    info = model.info
    return f"{info.quantization or info.dtype}{', in float32' if info.weights.startswith('float32') else ''}"


class ShardWork(Protocol):
    """What a worker does with a shard."""

    def shard(self, number: int, said: Said) -> bool:
        """Do a shard, and say whether all of it is done."""
        ...


class ShardJob(Protocol):
    """What is sent to every worker."""

    def open(self, shared: Any) -> ShardWork:
        """Make ready: load the model. ``shared`` is one copy for all workers of a machine."""
        ...


@dataclass(frozen=True, slots=True)
class ClusterProgress:
    """How far all shards are together, and for how many seconds: tokens are those of this sitting."""

    blocks: int
    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Of all workers together."""
        return self.tokens / max(self.seconds, 1e-9)


def run_shards(
    cluster: Cluster,
    job: ShardJob,
    shared: Any,
    shards: Sequence[int],
    progress: Callable[[ClusterProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    done: Callable[[int], None] = lambda number: None,
) -> bool:
    """Do all shards on the workers, in whatever order they end; whether none is left.

    Asked to stop, the workers keep what is done of their shards. A Ray that is initialised already is used as it is.

    Args:
        cluster: the workers.
        job: what they do.
        shared: arrays that they all read, which Ray keeps once on each machine.
        shards: their numbers.
        progress: called twice a second.
        should_stop: asked as often.
        done: called with each one that is done.

    Raises:
        LensError: without Ray or the cluster, for too few cores, for what a worker refuses (with its sentence, once
            all have kept what they did), and for a shard whose worker dies again and again.
    """
    with _connected(cluster, _size(shared)) as ray:
        _check_room(ray, cluster)
        desk = ray.remote(_Desk).options(num_cpus=0).remote()
        given = (job, [ray.put(shared)], desk, cluster.cpus)  # in a list, so that each worker fetches it by itself
        rows = _rows_of(ray, cluster, shards, given)
        return _watch(ray, rows, desk, len(shards), done, progress, should_stop)


def _rows_of(ray: Any, cluster: Cluster, shards: Sequence[int], given: Any) -> queue.Queue[Any]:
    """What comes of the shards, row by row from a thread that runs the data set; the last is ``None`` or an error."""
    data = ray.data
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    made = data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards)).map(
        _Worker,
        fn_constructor_args=given,
        compute=data.ActorPoolStrategy(size=min(cluster.workers, len(shards)), max_tasks_in_flight_per_actor=1),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus or None,
    )
    rows: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            for row in made.iter_rows():
                rows.put(row)
            rows.put(None)
        except Exception as error:  # Ray's own; who watches says it
            rows.put(error)

    threading.Thread(target=run, daemon=True, name="ray-data").start()
    return rows


def _watch(
    ray: Any,
    rows: queue.Queue[Any],
    desk: Any,
    n_shards: int,
    done: Callable[[int], None],
    progress: Callable[[ClusterProgress], None],
    should_stop: Callable[[], bool],
) -> bool:
    begun, finished, again = time.monotonic(), 0, 0
    refused: LensError | None = None
    while True:
        row: Any = ()
        with suppress(queue.Empty):
            row = rows.get(timeout=_TELL_SECONDS)
        if row is None:
            break
        if isinstance(row, Exception):
            raise refused or _lost(row) from row
        if row:
            finished += row["done"]
            if row["error"]:
                refused = refused or LensError(row["error"], row["hint"])
            elif row["done"]:
                done(row["shard"])
        asked = should_stop() or refused is not None
        blocks, tokens, lost = ray.get(desk.look.remote(asked))
        progress(ClusterProgress(blocks, tokens, time.monotonic() - begun))
        if lost > again:
            warn(f"{many(lost - again, 'worker')} of the cluster died; what it did is done again.")
            again = lost
    if refused:
        raise refused
    return finished == n_shards


def _lost(error: Exception) -> LensError:
    """The sentence for what Ray raises when it gives up."""
    last = [line for line in str(error).splitlines() if line.strip()]
    reason = one_line(last[0] if last else type(error).__name__, 200).rstrip(".")
    hint = "What was done is kept: run it again. A worker that needs more memory than there is dies at once."
    return LensError(f"The cluster gave up: {reason}.", hint)


class _Desk:
    """The actor that workers report to."""

    def __init__(self) -> None:
        self._stop = False
        self._begun: dict[int, int] = {}
        self._far: dict[int, tuple[int, int]] = {}

    def begin(self, shard: int) -> int:
        """A shard is begun; says how often so far: more than once if its worker died."""
        self._begun[shard] = self._begun.get(shard, 0) + 1
        self._far[shard] = (0, 0)
        return self._begun[shard]

    def tell(self, shard: int, blocks: int, tokens: int) -> bool:
        """How far a shard is; says whether to stop."""
        self._far[shard] = (blocks, tokens)
        return self._stop

    def look(self, stop: bool) -> tuple[int, int, int]:
        """Blocks and tokens of all shards, and how often one was begun again; with ``stop`` workers hear to stop."""
        self._stop = self._stop or stop
        blocks, tokens = (sum(far[part] for far in self._far.values()) for part in (0, 1))
        return blocks, tokens, sum(self._begun.values()) - len(self._begun)


class _Worker:
    """A process of the cluster: one model, and one thread that uses it."""

    def __init__(self, job: ShardJob, shared: list[Any], desk: Any, cpus: int) -> None:
        self._job, self._shared, self._desk, self._cpus = job, shared, desk, cpus
        self._work: ShardWork | None = None
        # Ray may call from any thread; MLX belongs to the one that first used it.
        self._thread = ThreadPoolExecutor(1)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._thread.submit(self._one, int(row["shard"])).result()

    def _one(self, number: int) -> dict[str, Any]:
        import ray

        answer = {"shard": number, "done": False, "error": "", "hint": ""}
        if ray.get(self._desk.begin.remote(number)) > _TIMES:
            lost = f"Shard {number} was begun {_TIMES} times, and each time its worker died."
            return {**answer, "error": lost, "hint": "Its memory may not do: ask for fewer workers, or lower rows."}
        heard, at, last = False, 0.0, (0, 0)

        def said(blocks: int, tokens: int) -> bool:
            nonlocal heard, at, last
            last = (blocks, tokens)
            if time.monotonic() - at > _TELL_SECONDS:
                heard = bool(ray.get(self._desk.tell.remote(number, blocks, tokens)))
                at = time.monotonic()
            return heard

        try:
            if said(0, 0):
                return answer
            if self._work is None:
                self._work = self._job.open(ray.get(self._shared[0]))
                blas.set_threads(self._cpus)
            answer["done"] = self._work.shard(number, said)
            ray.get(self._desk.tell.remote(number, *last))
        except LensError as error:
            return {**answer, "error": error.message, "hint": error.hint}
        return answer


# -- Ray, begun and ended -------------------------------------------------------


@contextmanager
def _connected(cluster: Cluster, shared: int) -> Iterator[Any]:
    """Ray, initialised; ended again if it was not so before."""
    ray = _imported()
    if ray.is_initialized():
        yield ray
        return
    handlers = _handlers()
    try:
        with _no_lines():
            ray.init(**_how(cluster, shared))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = one_line(cluster.address, 80) if cluster.address else "this machine"
        reason = one_line(str(error), 160).rstrip(".")
        raise LensError(
            f"No Ray cluster could be reached or started at {where}: {reason}.",
            "Start one: `ray start --head`. One that asks for a token needs RAY_AUTH_MODE=token here too.",
        ) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def check_ray() -> None:
    """Raises :class:`LensError` where Ray is not installed."""
    _imported()


def _imported() -> Any:
    """Ray. It reads these as it starts: no word to anybody, and no lines in the midst of ours.

    What it has to say of dead workers it would print to standard output, where results are.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise LensError(
            f"Work on a cluster needs Ray: {one_line(str(error), 120)}.", "pip install 'mlx-lens-tui[ray]'"
        ) from None
    return ray


@contextmanager
def _no_lines() -> Iterator[None]:
    """Inside, nothing is written to standard error, by Ray's own library either, which writes as it starts."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _how(cluster: Cluster, shared: int) -> dict[str, Any]:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address:
        return {"address": cluster.address, **quiet}
    return {
        "address": "local",
        "num_cpus": cluster.workers * cluster.cpus,
        "include_dashboard": False,
        # Ray would take a third of the memory; only the text is kept there, and what comes back is small.
        "object_store_memory": max(128 << 20, 2 * shared),
        **quiet,
    }


def _handlers() -> dict[Any, Any]:
    """What signals do now, where that can be set: Ray changes it."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}


def _check_room(ray: Any, cluster: Cluster) -> None:
    """Raises ``LensError`` where the cluster has no room for the workers."""
    have = ray.cluster_resources()
    room = int(have.get("CPU", 0) // cluster.cpus)
    if cluster.gpus:
        room = min(room, int(have.get("GPU", 0) / cluster.gpus))
    if room < cluster.workers:
        each = f"{many(cluster.cpus, 'core')}{f' and {cluster.gpus:g} GPUs' if cluster.gpus else ''}"
        raise LensError(
            f"The cluster has room for {many(room, 'worker')} of {each}, not {cluster.workers}.",
            "Ask for fewer, or for less for each.",
        )


def _size(shared: Any) -> int:
    """Bytes of the arrays that are shared."""
    store = getattr(shared, "store", None)
    return sum(
        int(getattr(store, name).nbytes) for name in ("ids", "starts", "lengths", "documents") if hasattr(store, name)
    )
