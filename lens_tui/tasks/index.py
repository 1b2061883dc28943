"""Index a text with a model and its SAEs: where the two libraries meet. Runs on the model's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError, paths
from lens_tui.records.disk import fingerprint
from lens_tui.records.errors import AskedToStop
from lens_tui.records.machine import free_memory
from lens_tui.records.remote import OutFolder, is_remote, local_folder

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.sae.index.build import BuildResult, IndexProgress, Target
    from lens_tui.sae.index.index_settings import IndexSettings
    from lens_tui.sae.index.tables import TokenTable
    from lens_tui.sae.load_sae import SAE


def index_text(
    model: LensModel,
    saes: Sequence[SAE],
    text: str | Path,
    out: str | Path | None = None,
    *,
    settings: IndexSettings | None = None,
    context: int = 256,
    rows: int = 32,
    max_tokens: int | None = None,
    text_key: str = "text",
    conventions: Sequence[str] = ("norm", "raw"),
    model_name: str = "",
    corpus_name: str = "",
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[IndexProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> BuildResult:
    """One pass of a text through a model, indexed for each SAE.

    Windows are of one document each, in the order of the corpus. Stopped or killed, the same call continues.

    Args:
        model: the model.
        saes: the SAEs to index, each of which says its layer and site.
        text: a folder, a ``.txt`` or a ``.jsonl`` file; an address of fsspec (``s3://...``) as ``str``.
        out: the folder of indexes, or its address; by default the user's. A finished index stays in the cache too.
        settings: what is kept; ``IndexSettings(full=True)`` keeps every activation.
        context: tokens in a window.
        rows: windows in a forward pass.
        max_tokens: draw whole documents at random until there are as many tokens.
        text_key: in JSONL, the key that holds the text.
        conventions: the token tables to make.
        model_name: what the index calls the model; by default its id or folder.
        corpus_name: what the index calls the text; by default its file.
        shard: ``(i, n)`` makes part i of n, which :func:`merge_index` puts together.
        progress: called as it goes; stages: ``tokens`` (the text is read), ``tables``, ``read``, ``write``.
        should_stop: asked between two forwards, and as often while text and token tables are made.

    Raises:
        LensError: for an SAE without its layer and site, a text that cannot be read, and what memory cannot hold.
    """
    from lens_tui.lens.read.activations import Windowing, text_activations
    from lens_tui.sae.index.build import BuildResult, build_index, check_shard, keys_of
    from lens_tui.sae.index.index_settings import IndexSettings

    shard, settings = check_shard(shard), settings or IndexSettings()
    places, hooks = [place_of(sae) for sae in saes], Hooks(progress, should_stop)
    check_memory(model, saes, places, settings, rows * context)
    windowing = Windowing(context=context, rows=rows, packed=False, shuffle=False)
    try:
        source, _ = text_activations(model, text, places, max_tokens=max_tokens, text_key=text_key, windowing=windowing,
                                     model_name=model_name, progress=partial(hooks.said, "tokens"))  # fmt: skip
        tables = [token_tables(model, sae, conventions, hooks.said) if shard[1] == 1 else () for sae in saes]
    except AskedToStop:
        return BuildResult(stopped=True)
    targets = targets_of(saes, model_hash(model), corpus_name, tables)
    place = take_up(out, tuple(keys_of(source, targets, settings)), shard)
    return put_away(place, build_index(source, targets, place.local, settings, shard=shard,
                                       progress=progress, should_stop=should_stop))  # fmt: skip


def targets_of(
    saes: Sequence[SAE], model_hash: str, corpus: str = "", tables: Sequence[Sequence[TokenTable]] | None = None
) -> list[Target]:
    """What is indexed of each SAE; ``tables`` are its tokens promoted and suppressed."""
    from lens_tui.sae.index.build import Target

    named = {"model_hash": model_hash, "corpus": corpus}
    return [Target(sae, place_of(sae), sae.d_sae, sae.info.id, tables=made, **named)
            for sae, made in zip(saes, tables or [()] * len(saes), strict=True)]  # fmt: skip


def take_up(out: str | Path | None, keys: Sequence[str], shard: tuple[int, int]) -> OutFolder:
    """The folder of indexes, with what is there of these if it is remote: finished indexes, or the part of a shard."""
    from lens_tui.sae.index.build import part_name

    place = OutFolder(out or paths.indexes_folder())
    for key in keys if place.remote else ():
        place.fetch(key if place.has(f"{key}/manifest.json") else part_name(key, shard))
    return place


def put_away(place: OutFolder, result: BuildResult) -> BuildResult:
    """The result, once it is in a remote folder: parts, or finished indexes, whose one part is then not wanted."""
    from lens_tui.sae.index.build import part_name

    for part in result.parts if place.remote else ():
        place.keep(part.name, drop=True)
    for index in result.indexes if place.remote else ():
        place.keep(index.name)
        place.remove(part_name(index.name, (0, 1)))
    return result


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is told, and asked, while a text and the token tables are made."""

    progress: Callable[[IndexProgress], None] | None
    should_stop: Callable[[], bool]

    def said(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is; raises ``AskedToStop`` if no more is wanted."""
        from lens_tui.sae.index.build import IndexProgress

        if self.progress is not None:
            self.progress(IndexProgress(stage, done, total, 0, 0.0, None))
        if self.should_stop():
            raise AskedToStop


def merge_index(
    model: LensModel,
    sae: SAE,
    parts: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    conventions: Sequence[str] = ("norm", "raw"),
) -> Path:
    """The index of all shards of a pass, with the token tables; equal to the bit to that of one pass.

    Args:
        model: the model that read the text.
        sae: the SAE that the parts are of.
        parts: the folders that :func:`index_text` made with ``shard``, or their addresses.
        out: the folder of indexes, or its address; by default the user's.
        conventions: the token tables to make.

    Returns:
        the folder of the index.
    """
    from lens_tui.sae.index.build import merge_parts
    from lens_tui.sae.index.tally import StoredPart

    here = [local_folder(part) for part in parts]
    for part in here:
        StoredPart.open(part)  # what is not a part is refused before the tables, which take time
    place = OutFolder(out or paths.indexes_folder())
    made = merge_parts(here, place.local, tables=token_tables(model, sae, conventions))
    place.keep(made.name)
    for address in parts:
        if is_remote(address):
            home, _, name = str(address).rstrip("/").rpartition("/")
            OutFolder(home).remove(name)
    return made


def token_tables(
    model: LensModel,
    sae: SAE,
    conventions: Sequence[str] = ("norm", "raw"),
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> tuple[TokenTable, ...]:
    """Promoted and suppressed tokens of every feature under each convention; none if it does not write to the residual.

    ``progress("tables", done, total)`` counts features and may raise. An SAE of ``attn_z`` or of another width has no
    decoder row that the unembedding could read.
    """
    from lens_tui.lens.architecture.unembed import find_unembedding, top_tokens
    from lens_tui.sae.index.tables import token_table

    if sae.d_out != model.d_model or (sae.info.site_out or sae.info.site) == "attn_z":
        return ()
    unembedding, hide = find_unembedding(model.registry.decoder), model.registry.decoder.hide

    def table(convention: Any) -> TokenTable:
        return token_table(
            sae.directions,
            sae.d_sae,
            lambda rows, k: top_tokens(unembedding, rows, k, convention, hide),
            convention,
            progress=partial(progress, "tables"),
        )

    return tuple(table(convention) for convention in conventions)


def place_of(sae: SAE) -> tuple[int, str]:
    """The layer and site an SAE reads. Raises ``LensError`` where nothing says which."""
    info = sae.info
    if info.layer < 0 or not info.site:
        raise LensError(
            f"{info.name or 'An SAE'} does not say which layer and site it reads.", "Give them when loading it."
        )
    return info.layer, info.site


def check_memory(
    model: LensModel,
    saes: Sequence[SAE],
    places: Sequence[tuple[int, str]],
    settings: IndexSettings | None,
    tokens: int,
) -> None:
    """What is counted of every feature, on the machine; the activations of a forward, where MLX computes."""
    from lens_tui.lens.room import memory_left, refuse_above
    from lens_tui.sae.index.index_settings import IndexSettings
    from lens_tui.sae.index.tally import bytes_per_feature

    registry = model.registry
    read = sum(registry.sites.point(registry.decoder.index(layer), site).width for layer, site in set(places))
    features = sum(sae.d_sae for sae in saes)
    counted = features * bytes_per_feature(settings or IndexSettings())
    hint = "Lower top_k, or index fewer SAEs at once."
    refuse_above(free_memory, counted, f"An index of {features:,} features", hint)
    size = tokens * read * registry.decoder.dtype.size
    hint = "Lower rows or context, or index fewer SAEs at once."
    refuse_above(memory_left, size, f"Activations of {tokens:,} tokens at a time", hint)


def model_hash(model: LensModel) -> str:
    """What names the contents of a model's files; empty for one that was made in memory."""
    path = model.info.path
    return fingerprint(path) if path and Path(path).exists() else ""
