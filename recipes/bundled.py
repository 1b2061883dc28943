"""The bundled model and its SAEs as the recipes use them, in plain float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui import LensModel, demo
from recipes.saes import DEPTHS, Depth


def open_model(folder: Path | None = None, dtype: mx.Dtype = mx.float32) -> LensModel:
    """The bundled model (or an exported one), its stored weights turned into matrices of ``dtype``.

    In float32 the function is the same as that of the 8-bit weights with float32 scales. Plain matrices run wherever
    MLX does, and large batches run faster on them.
    """
    from mlx_lm.utils import dequantize_model, load_tokenizer

    from recipes.export import load_float32

    folder = folder or demo.model_path()
    with mx.stream(mx.cpu):  # once, and not every device has the kernels
        network: Any = dequantize_model(load_float32(folder))
        network.set_dtype(dtype)
        mx.eval(network.parameters())
    network.eval()
    tokenizer: Any = load_tokenizer(folder)  # type: ignore[no-untyped-call]
    return LensModel.from_model(network, tokenizer, name=demo.NAME, path=str(folder))


def embeddings(model: LensModel) -> NDArray[np.float32]:
    """The embedding of every token less their mean, ``(vocabulary, d_model)``."""
    network: Any = model.model
    rows = np.array(network.model.embed_tokens(mx.arange(model.tokens.vocab_size)).astype(mx.float32))
    return np.asarray(rows - rows.mean(0), np.float32)


def sae_folders(saes: Path | None = None) -> dict[str, tuple[Depth, Path]]:
    """The three SAEs by depth (``early``, ``middle``, ``late``), of the package or of a folder of such folders."""
    here = demo.sae_paths() if saes is None else {path.name: path for path in sorted(saes.iterdir()) if path.is_dir()}
    return {name: (depth, here[depth.folder]) for name, depth in DEPTHS.items() if depth.folder in here}
