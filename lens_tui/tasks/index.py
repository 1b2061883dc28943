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

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.sae.index.build import BuildResult, IndexProgress
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
        text: a folder, a ``.txt`` or a ``.jsonl`` file.
        out: the folder of indexes; by default the user's.
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
    from lens_tui.sae.index.build import BuildResult, Target, build_index, check_shard

    check_shard(shard)
    places, hooks = [_place(sae) for sae in saes], _Hooks(progress, should_stop)
    _check_memory(model, saes, places, settings, rows * context)
    windowing = Windowing(context=context, rows=rows, packed=False, shuffle=False)
    try:
        source, _ = text_activations(model, text, places, max_tokens=max_tokens, text_key=text_key, windowing=windowing,
                                     model_name=model_name, progress=partial(hooks.said, "tokens"))  # fmt: skip
        tables = [token_tables(model, sae, conventions, hooks.said) if shard[1] == 1 else () for sae in saes]
    except AskedToStop:
        return BuildResult(stopped=True)
    named = {"model_hash": _hash(model.info.path), "corpus": corpus_name}
    targets = [Target(sae, place, sae.d_sae, sae.info.id, tables=made, **named)
               for sae, place, made in zip(saes, places, tables, strict=True)]  # fmt: skip
    return build_index(source, targets, out or paths.indexes_folder(), settings,
                       shard=shard, progress=progress, should_stop=should_stop)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Hooks:
    """What is told, and asked, while a text and the token tables are made."""

    progress: Callable[[IndexProgress], None] | None
    should_stop: Callable[[], bool]

    def said(self, stage: str, done: int, total: int) -> None:
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
        parts: the folders that :func:`index_text` made with ``shard``.
        out: the folder of indexes; by default the user's.
        conventions: the token tables to make.

    Returns:
        the folder of the index.
    """
    from lens_tui.sae.index.build import merge_parts
    from lens_tui.sae.index.tally import StoredPart

    for part in parts:
        StoredPart.open(Path(part))  # what is not a part is refused before the tables, which take time
    return merge_parts(parts, out or paths.indexes_folder(), tables=token_tables(model, sae, conventions))


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


def _place(sae: SAE) -> tuple[int, str]:
    info = sae.info
    if info.layer < 0 or not info.site:
        raise LensError(
            f"{info.name or 'An SAE'} does not say which layer and site it reads.", "Give them when loading it."
        )
    return info.layer, info.site


def _check_memory(
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


def _hash(path: str) -> str:
    return fingerprint(path) if path and Path(path).exists() else ""
