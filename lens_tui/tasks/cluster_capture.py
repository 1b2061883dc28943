"""Capture a data set on the workers of a cluster: the shards, and the manifest, that one process writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Intervention, LensError
from lens_tui.records.disk import write_json
from lens_tui.records.read_files import read_json
from lens_tui.records.remote import OutFolder
from lens_tui.records.training import Place

from .capture import (
    SHARD_BYTES,
    CaptureProgress,
    CaptureReport,
    check_memory,
    facts_of,
    on_host,
    report_of,
    shard_file,
    shard_spans,
    taken_up,
    write_manifest,
    write_shard,
)
from .cluster import Cluster, ClusterProgress, Said, WorkerModel, check_ray, run_shards

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.lens.read.activations import TextActivations, TokenizedText

AHEAD = "cluster.json"
"""The shards that are done behind a gap; only there until the capture is whole."""


@dataclass(frozen=True, slots=True)
class CaptureJob:
    """What every worker is told; ``spans[i]`` are the blocks of shard i, first and the one to end before."""

    model: WorkerModel
    places: tuple[Place, ...]
    interventions: tuple[Intervention, ...]
    out: str
    spans: Mapping[int, tuple[int, int]]
    shard_bytes: int

    def open(self, shared: TokenizedText) -> CaptureWork:
        """Load the model."""
        model = self.model.open()
        check_memory(model, self.places, shared.windowing.rows * shared.windowing.context, self.shard_bytes)
        return CaptureWork(self, model, shared.read_by(model, self.places))


@dataclass(frozen=True, slots=True)
class CaptureWork:
    """A worker's model, over the text."""

    job: CaptureJob
    model: LensModel
    source: TextActivations

    def shard(self, number: int, said: Said) -> bool:
        """Write a shard; one that is stopped is not kept."""
        blocks, tokens = [], 0
        first, end = self.job.spans[number]
        with self.model.intervene(*self.job.interventions):
            for block in self.source.blocks(first, end):
                blocks.append(on_host(block))
                tokens += len(block.token_ids)
                if said(len(blocks), tokens) and block.index + 1 < end:
                    return False
        write_shard(OutFolder(self.job.out), number, blocks)
        return True


def capture_on_cluster(
    model: LensModel,
    text: str | Path,
    out: str | Path,
    places: Sequence[Place],
    *,
    cluster: Cluster,
    adapter: str = "",
    interventions: Sequence[Intervention] = (),
    context: int = 256,
    rows: int = 32,
    max_tokens: int | None = None,
    text_key: str = "text",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[CaptureProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CaptureReport:
    """As :func:`lens_tui.tasks.capture.capture_texts`, a shard at a time on each worker of a cluster.

    The text is tokenised here once; each worker loads the model from the path that it has here and writes shards into
    ``out``, which all machines see: a shared folder, or an address of fsspec. Stopped or killed, the same call
    continues, and so does one process; a shard that was under way is begun again.

    Args:
        model: the model, which has files.
        text, out, places, interventions, context, rows, max_tokens, text_key, shard_bytes, should_stop: as for one
            process. A gate that reads a feature is refused: the workers have no SAE.
        cluster: the workers.
        adapter: the LoRA folder that the model was loaded with.
        progress: blocks and tokens of all workers together.

    Raises:
        LensError: as for one process, and what :func:`lens_tui.tasks.cluster.run_shards` raises.
    """
    from lens_tui.lens.read.activations import Windowing, text_activations

    named, folder = WorkerModel.of(model, adapter), OutFolder(out)
    _check_gates(interventions)
    windowing = Windowing(context=context, rows=rows, packed=False, shuffle=False)
    source, _ = text_activations(model, text, places, max_tokens=max_tokens, text_key=text_key, windowing=windowing)
    facts = facts_of(source, model, interventions, rows, shard_bytes)
    held = taken_up(folder, facts)
    spans = shard_spans(source, held, shard_bytes)
    sizes, ahead = source.sizes(), _Ahead(folder, facts, held, spans)
    todo = [number for number in spans if number not in ahead.done]
    complete = not todo
    if todo:
        check_ray()  # before there is a folder of a capture that has not begun
        write_manifest(folder, held)
        where = str(out) if folder.remote else str(folder.local.resolve())
        job = CaptureJob(named, source.places, tuple(interventions), where, spans, shard_bytes)
        complete = run_shards(
            cluster, job, source.text, todo, done=lambda number: ahead.took(number, sizes),
            progress=_joint_progress(source.n_blocks, held, spans, todo, progress), should_stop=should_stop,
        )  # fmt: skip
    ahead.take_in(sizes)
    return report_of(folder, held, source.places, not complete)


class _Ahead:
    """Shards that are done while one before them is not: the manifest names shards without a gap."""

    def __init__(
        self,
        folder: OutFolder,
        facts: Mapping[str, Any],
        held: dict[str, Any],
        spans: Mapping[int, tuple[int, int]],
    ) -> None:
        self._folder, self._held, self._spans = folder, held, spans
        self._of = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.done: set[int] = set()
        folder.fetch(AHEAD)
        try:
            found = read_json(folder.local / AHEAD)
        except LensError:  # absent or damaged: it only saves work
            return
        if isinstance(found, dict) and found.get("of") == self._of and isinstance(found.get("done"), dict):
            for number, span in found["done"].items():
                if number.isdigit() and spans.get(int(number)) == tuple(span) and folder.has(shard_file(int(number))):
                    self.done.add(int(number))

    def took(self, number: int, sizes: NDArray[np.int64]) -> None:
        """A worker has written a shard."""
        if not self._folder.has(shard_file(number)):
            raise LensError(
                f"A worker wrote {shard_file(number)} to {self._folder.name}, and it is not there from here.",
                "Give a folder that all machines share, or an address such as s3://bucket/capture.",
            )
        self.done.add(number)
        self.take_in(sizes)

    def take_in(self, sizes: NDArray[np.int64]) -> None:
        """Put into the manifest what has no gap before it, and keep the rest on record."""
        before = len(self._held["shards"])
        while (number := len(self._held["shards"])) in self.done:
            first, end = self._spans[number]
            tokens = int(sizes[first:end].sum())
            self._held["shards"].append({"file": shard_file(number), "blocks": end - first, "tokens": tokens})
        if len(self._held["shards"]) > before:
            write_manifest(self._folder, self._held)
        behind = {str(n): self._spans[n] for n in sorted(self.done) if n >= len(self._held["shards"])}
        if behind:
            write_json(self._folder.local / AHEAD, {"of": self._of, "done": behind})
            self._folder.keep(AHEAD)
        elif (self._folder.local / AHEAD).exists():
            (self._folder.local / AHEAD).unlink()
            self._folder.remove(AHEAD)


def _joint_progress(
    n_blocks: int,
    held: Mapping[str, Any],
    spans: Mapping[int, tuple[int, int]],
    todo: Sequence[int],
    progress: Callable[[CaptureProgress], None] | None,
) -> Callable[[ClusterProgress], None]:
    """The progress of all workers, said as that of one process."""
    before = n_blocks - sum(spans[number][1] - spans[number][0] for number in todo)
    tokens = sum(shard["tokens"] for shard in held["shards"])

    def report(far: ClusterProgress) -> None:
        if progress is not None:
            progress(CaptureProgress(before + far.blocks, n_blocks, tokens + far.tokens, far.tokens_per_s))

    return report


def _check_gates(interventions: Sequence[Intervention]) -> None:
    for record in interventions:
        gate = getattr(record, "gate", None)
        if gate is not None and gate.monitor.sae:
            raise LensError(
                "A gate that reads a feature cannot act on the workers of a cluster.", "Capture in one process."
            )
