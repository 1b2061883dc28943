"""Features that tell texts A from texts B: the texts are read with a model and an SAE, the rest is statistics."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.corpus import open_corpus

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.sae import SAE
    from lens_tui.sae.index import Contrast, TextFeatures
    from lens_tui.sae.index.contrast import Measure, Over

MAX_ACTIVE = 256
"""Features of a token that are read, strongest first."""
MAX_TEXTS = 100_000


def contrast_texts(
    model: LensModel,
    sae: SAE,
    a: Sequence[str],
    b: Sequence[str],
    *,
    measure: Measure = "auc",
    over: Over = "max",
    both_sides: bool = False,
    k: int = 20,
    seed: int = 0,
    context: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Contrast, ...]:
    """The ``k`` features that best tell texts ``a`` from texts ``b``; see :func:`lens_tui.sae.index.contrast`.

    Each text is read by itself, unsteered, its first ``context`` tokens; special tokens are left out. A text's value
    of a feature is its ``max`` or ``mean`` over tokens. ``progress(done, total)`` counts texts.
    """
    from lens_tui.sae.index import contrast

    done = 0

    def read(texts: Sequence[str]) -> list[TextFeatures]:
        nonlocal done
        rows = []
        for text in texts:
            rows.append(read_text_features(model, sae, text, over=over, context=context))
            done += 1
            if progress is not None:
                progress(done, len(a) + len(b))
        return rows

    return contrast(read(a), read(b), measure=measure, both_sides=both_sides, k=k, seed=seed)


def read_text_features(
    model: LensModel, sae: SAE, text: str, *, over: Over = "max", context: int = 512
) -> TextFeatures:
    """One text as its features. Raises ``LensError`` for an SAE that does not say which layer and site it reads."""
    from lens_tui.sae.index import text_features

    info = sae.info
    if info.layer < 0 or not info.site:
        raise LensError(f"The SAE {info.name!r} does not say which layer and site it reads.", "Say it on loading.")
    ids = model.tokens.encode(text)[:context]
    specials = model.tokens.special_ids()
    found, values = sae.top_k(model.residuals(ids, info.layer, site=info.site), min(MAX_ACTIVE, sae.d_sae))
    special = np.array([token in specials for token in ids], bool)
    return text_features(np.array(found), np.array(values), special, over=over)


def read_texts(path: str | Path, *, text_key: str = "text") -> list[str]:
    """The texts of one side: documents of a folder, a ``.jsonl`` or a separated ``.txt`` file, or else lines of a file.

    Raises ``LensError`` where there is nothing to read, or more than 100,000 texts.
    """
    corpus = open_corpus(path, text_key=text_key)
    if len(corpus) > MAX_TEXTS:
        raise LensError(f"{Path(path).name} holds {len(corpus)} texts; at most {MAX_TEXTS} are compared.", "Sample it.")
    texts = [document.text for document in corpus]
    if len(texts) == 1 and Path(path).suffix != ".jsonl":
        texts = [line for line in re.split(r"\r\n|\r|\n", texts[0]) if line.strip()]
    return texts
