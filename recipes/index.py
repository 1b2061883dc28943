"""The index that ships: the bundled model's SAEs and transcoders over text that is free to ship, in few bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lens_tui import FeatureIndex, IndexSettings, demo, load_sae
from lens_tui.sae.index.build import IndexProgress
from lens_tui.sae.index.finish import share_text
from lens_tui.tasks.index import index_text
from lens_tui.tasks.text_source import BUNDLED, text_source
from recipes.bundled import open_model, sae_folders

CORPUS = "written by the model, and public-domain books"
"""What the index calls its text."""

CONTEXT = 512
"""Tokens a window, as the SAEs were trained."""

SETTINGS = {
    "early": IndexSettings(top_k=8, before=8, after=5, sample_per_bin=1),
    "middle": IndexSettings(top_k=12, before=8, after=5, sample_per_bin=1),
    "late": IndexSettings(top_k=8, before=8, after=5, sample_per_bin=1),
}

TRANSCODERS = IndexSettings(top_k=4, before=5, after=2, sample_per_bin=0)
"""16,384 features: few examples each, no sample of the weaker ones, no token tables, which are computed when asked."""


@dataclass(frozen=True, slots=True)
class Made:
    """An index that was made: ``live`` features were active somewhere in its text, which is not in its ``nbytes``."""

    depth: str
    folder: Path
    nbytes: int
    tokens: int
    live: int
    width: int


def build(
    texts: Path,
    out: Path,
    *,
    model: Path | None = None,
    saes: Path | None = None,
    rows: int = 16,
    progress: Callable[[IndexProgress], None] | None = None,
) -> list[Made]:
    """Index ``texts`` for every depth with its own settings: folders ``out/<key>``.

    Their text is kept once, beside them. An index made before is not made again; ``saes`` is a folder with the three
    SAEs' folders. Nothing that goes into the index names a place on this machine.
    """
    lens = open_model(model)
    made = []
    for name, (_, folder) in sae_folders(saes).items():
        result = index_text(
            lens,
            [load_sae(folder)],
            texts,
            out,
            settings=SETTINGS[name],
            context=CONTEXT,
            rows=rows,
            conventions=("norm",),
            model_name=demo.NAME,
            corpus_name=CORPUS,
            progress=progress,
        )
        index = FeatureIndex(result.indexes[0])
        index.verify()
        live = int((index.count > 0).sum())
        made.append(Made(name, index.path, 0, index.n_tokens, live, index.width))
    share_text([item.folder for item in made])
    return [replace(item, nbytes=size(item.folder)) for item in made]


def build_transcoders(
    out: Path, *, model: Path | None = None, rows: int = 8, progress: Callable[[IndexProgress], None] | None = None
) -> list[Made]:
    """Index the bundled transcoders over the text that the indexes in ``out`` hold, and share it with them."""
    others = [manifest.parent for manifest in sorted(out.glob("*/manifest.json"))]
    folders = demo.transcoder_paths()
    result = index_text(
        open_model(model),
        [load_sae(folder) for folder in folders],
        text_source(BUNDLED),
        out,
        settings=TRANSCODERS,
        context=CONTEXT,
        rows=rows,
        conventions=(),
        model_name=demo.NAME,
        corpus_name=CORPUS,
        progress=progress,
    )
    made = []
    for folder, path in zip(folders, result.indexes, strict=True):
        index = FeatureIndex(path)
        index.verify()
        live = int((index.count > 0).sum())
        made.append(Made(folder.name, index.path, 0, index.n_tokens, live, index.width))
    share_text(sorted({*others, *(item.folder for item in made)}))
    return [replace(item, nbytes=size(item.folder)) for item in made]


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
