"""The figures of the shipped SAEs as they are, on the shipped model and the corpus' held-out documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from lens_tui import demo
from lens_tui.records.training import Evaluation
from recipes.corpus import HELD_OUT_EVERY

if TYPE_CHECKING:
    from lens_tui import LensModel
    from lens_tui.lens.read.activations import TextActivations


def weights(folder: Path) -> dict[str, mx.array]:
    """The arrays of a bundled SAE, float32."""
    from lens_tui.sae.formats import gemma_scope_2
    from lens_tui.sae.formats.parts import Source

    found = gemma_scope_2.FORMAT.read(Source(folder, folder.name)).weights
    return {
        "w_enc": found.w_enc.read(),
        "w_dec": found.w_dec.read(),
        "b_dec": found.b_dec.read(),
        **{name: tensor.read() for name, tensor in found.vectors.items()},
    }


def held_out_activations(
    lens: LensModel, corpus: Path, places: Sequence[tuple[int, str]], tokens: int, *, context: int, rows: int
) -> TextActivations:
    """Activations of at least ``tokens`` positions of held-out documents of the corpus, or of all there are.

    Args:
        lens: The bundled model.
        corpus: A corpus' folder.
        places: Layers and sites.
        tokens: Positions wanted.
        context: Positions of a window.
        rows: Windows in a forward.

    Raises:
        ValueError: The corpus has no held-out documents.
    """
    from lens_tui.lens.read.activations import Windowing, text_activations

    _, held = text_activations(
        lens,
        corpus,
        places,
        held_out=HELD_OUT_EVERY,
        max_tokens=10 * tokens,  # the held-out part gets a tenth
        windowing=Windowing(context=context, rows=rows),
        model_name=demo.NAME,
    )
    if held is None:
        raise ValueError(f"{corpus} has no held-out documents")
    return held


def measure_all(
    corpus: Path, tokens: int, *, model: Path | None = None, context: int = 512, rows: int = 64
) -> Iterator[tuple[str, Evaluation]]:
    """The name and figures of each bundled SAE over at least ``tokens`` held-out positions, or all there are."""
    from lens_tui.sae.training.trainer import measure
    from recipes.bundled import open_model
    from recipes.saes import DEPTHS

    places = [(depth.layer, "resid_post") for depth in DEPTHS.values()]
    held = held_out_activations(open_model(model), corpus, places, tokens, context=context, rows=rows)
    for depth, place in zip(DEPTHS.values(), places, strict=True):
        folder = demo.sae_paths()[depth.folder]
        yield depth.folder, measure(weights(folder), held, place, tokens, depth.steps)[0]
