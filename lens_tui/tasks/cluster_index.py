"""Index a text on the workers of a cluster: the shards of one pass, merged to what one process makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lens_tui.records import LensError, paths
from lens_tui.records.errors import AskedToStop
from lens_tui.records.remote import OutFolder, without_password

from .cluster import Cluster, ClusterProgress, Said, WorkerModel, run_shards
from .index import Hooks, check_memory, model_hash, place_of, put_away, take_up, targets_of, token_tables

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.lens.read.activations import TextActivations, TokenizedText
    from lens_tui.sae.index.build import BuildResult, IndexProgress, Target
    from lens_tui.sae.index.index_settings import IndexSettings
    from lens_tui.sae.load_sae import SAE

SAEFiles = tuple[str, int, str]
"""Where an SAE's files are, its layer and its site."""


@dataclass(frozen=True, slots=True)
class IndexJob:
    """What every worker is told; shard i of ``of`` becomes part i of each index in ``out``."""

    model: WorkerModel
    saes: tuple[SAEFiles, ...]
    settings: IndexSettings
    out: str
    of: int
    model_hash: str

    def open(self, shared: TokenizedText) -> IndexWork:
        """Load the model and the SAEs."""
        from lens_tui.sae.load_sae import load_sae

        model = self.model.open()
        saes = [load_sae(path, layer=layer, site=site) for path, layer, site in self.saes]
        places = [place_of(sae) for sae in saes]
        check_memory(model, saes, places, self.settings, shared.windowing.rows * shared.windowing.context)
        source = shared.read_by(model, places)
        return IndexWork(self, source, targets_of(saes, self.model_hash))


@dataclass(frozen=True, slots=True)
class IndexWork:
    """A worker's model, over the text, and what it indexes."""

    job: IndexJob
    source: TextActivations
    targets: list[Target]

    def shard(self, number: int, said: Said) -> bool:
        """Make or finish a part; what is there of it is taken up."""
        from lens_tui.sae.index.build import build_index, keys_of

        job, stop, tokens = self.job, False, 0
        first, end = (self.source.n_blocks * place // job.of for place in (number, number + 1))

        def report(progress: IndexProgress) -> None:
            nonlocal stop, tokens
            tokens = progress.n_tokens
            stop = said(progress.block - first, tokens)

        keys = tuple(keys_of(self.source, self.targets, job.settings))
        place = take_up(job.out, keys, (number, job.of))
        made = build_index(self.source, self.targets, place.local, job.settings, shard=(number, job.of),
                           progress=report, should_stop=lambda: stop)  # fmt: skip
        put_away(place, made)
        if not made.stopped:
            said(end - first, tokens)  # of what was done before nothing was reported
        return not made.stopped


def index_on_cluster(
    model: LensModel,
    saes: Sequence[SAE],
    text: str | Path,
    out: str | Path | None = None,
    *,
    cluster: Cluster,
    adapter: str = "",
    settings: IndexSettings | None = None,
    context: int = 256,
    rows: int = 32,
    max_tokens: int | None = None,
    text_key: str = "text",
    conventions: Sequence[str] = ("norm", "raw"),
    progress: Callable[[IndexProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> BuildResult:
    """As :func:`lens_tui.tasks.index.index_text`, its blocks shared out among the workers of a cluster.

    The text is tokenised here once; each worker loads the model and the SAEs from the paths that they have here, and
    writes its part into ``out``, which all machines see: a shared folder, or an address of fsspec. The parts are
    merged here, to the index of one pass. Stopped or killed, the same call continues, with any number of workers.

    Args:
        model, saes: they have files; the model makes the token tables here.
        cluster: the workers.
        adapter: the LoRA folder that the model was loaded with.
        progress: blocks and tokens of all workers together. The rest is as for one process.

    Raises:
        LensError: as for one process, and what :func:`lens_tui.tasks.cluster.run_shards` raises.
    """
    from lens_tui.lens.read.activations import Windowing, text_activations
    from lens_tui.sae.index.build import BuildResult, keys_of
    from lens_tui.sae.index.index_settings import IndexSettings

    settings, hooks = settings or IndexSettings(), Hooks(progress, should_stop)
    named, place = WorkerModel.of(model, adapter), OutFolder(out or paths.indexes_folder())
    try:
        source, _ = text_activations(
            model, text, [place_of(sae) for sae in saes], max_tokens=max_tokens, text_key=text_key,
            windowing=Windowing(context=context, rows=rows, packed=False, shuffle=False),
            progress=partial(hooks.said, "tokens"),
        )  # fmt: skip
    except AskedToStop:
        return BuildResult(stopped=True)
    digest = model_hash(model)
    keys = tuple(keys_of(source, targets_of(saes, digest), settings))
    todo = {key: sae for key, sae in zip(keys, saes, strict=True) if not place.has(f"{key}/manifest.json")}
    if todo:
        of, where = _shards(place, next(iter(todo)), cluster), out if place.remote else place.local.resolve()
        job = IndexJob(named, tuple(map(_files, todo.values())), settings, str(where), of, digest)
        try:
            if not run_shards(cluster, job, source.text, range(of), _joint_progress(source, progress), should_stop):
                raise AskedToStop
            for key, sae in todo.items():
                _merge(model, sae, place, key, of, conventions, hooks)
        except AskedToStop:
            return BuildResult(True, (), tuple(_parts(place, tuple(todo), of)))
    return BuildResult(False, tuple(place.fetch(key) for key in keys))


def _joint_progress(
    source: TextActivations, progress: Callable[[IndexProgress], None] | None
) -> Callable[[ClusterProgress], None]:
    """The progress of all workers, said as that of one pass."""
    from lens_tui.sae.index.build import IndexProgress

    total, tokens = source.n_blocks, source.facts.n_tokens

    def report(far: ClusterProgress) -> None:
        left = (total - far.blocks) * far.seconds / far.blocks if far.blocks and far.tokens else None
        if progress is not None:
            progress(IndexProgress("read", far.blocks, total, far.tokens, far.tokens_per_s, left, tokens))

    return report


def _files(sae: SAE) -> SAEFiles:
    info = sae.info
    if not info.path:
        raise LensError(f"The workers of a cluster cannot load {info.name}.", "Give an SAE that has files.")
    return info.path, info.layer, info.site


def _shards(place: OutFolder, key: str, cluster: Cluster) -> int:
    """One for each worker, at least two; or as many as an earlier sitting made, which is to be continued."""
    found = [re.fullmatch(re.escape(key) + r"\.part-\d+-of-(\d{1,6})", name) for name in place.folders()]
    earlier = [int(match[1]) for match in found if match]
    return max(earlier) if earlier and max(earlier) > 1 else max(2, cluster.workers)


def _parts(place: OutFolder, keys: Sequence[str], of: int) -> list[Path]:
    """The parts that are there."""
    from lens_tui.sae.index.build import part_name

    names = [part_name(key, (number, of)) for key in keys for number in range(of)]
    return [place.local / name for name in names if place.has(f"{name}/state.json")]


def _merge(
    model: LensModel, sae: SAE, place: OutFolder, key: str, of: int, conventions: Sequence[str], hooks: Hooks
) -> None:
    """The parts of one index put together, and taken away."""
    from lens_tui.sae.index.build import merge_parts, part_name

    names = [part_name(key, (number, of)) for number in range(of)]
    for name in names:
        if not place.has(f"{name}/state.json"):
            raise LensError(
                f"A worker wrote {name} to {without_password(place.name)}, and it is not there from here.",
                "Give a folder that all machines share, or an address such as s3://bucket/indexes.",
            )
        place.fetch(name)
    tables = token_tables(model, sae, conventions, hooks.said)
    hooks.said("write", 0, 0)
    merge_parts([place.local / name for name in names], place.local, tables=tables)
    place.keep(key)
    for name in names:
        place.remove(name)
