"""Small models and SAEs as folders on disk, written with NumPy alone; and the saved session as it lies there."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lens_tui import demo
from lens_tui.records import paths, session_file
from lens_tui.records.read_files import FileAbsent

_CACHE = paths.folder("cache")
D_MODEL, N_LAYERS, HEADS, D_MLP, VOCAB = 48, 3, 4, 96, 8192


def lens_home(folder: Path) -> Path:
    """A ``LENS_TUI_HOME`` in which nothing was done yet, but what any first start makes is there.

    A process that finds neither the BLAS (:mod:`lens_tui.blas`) nor transformers' table
    (:mod:`lens_tui.lens.light_imports`) takes half as long again; these are made once for all tests, and linked.
    """
    if folder.is_file():  # a home that cannot be one
        return folder
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    for made in _made():
        with suppress(FileExistsError):  # it was made before, or by another thread at this moment
            (folder / "cache" / made.name).symlink_to(made)
    return folder


def _made() -> list[Path]:
    return [file for pattern in ("openblas-*.so", "transformers-*.json") for file in _CACHE.glob(pattern)]


def llama_folder(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A random float32 llama in mlx-lm's format, with the bundled model's tokenizer; ``config`` changes its config."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[-1]), dtype=np.float32)

    weights = {"model.embed_tokens.weight": normal(VOCAB, D_MODEL) * 6, "model.norm.weight": normal(1, D_MODEL)[0] + 1}
    for layer in range(N_LAYERS):
        block = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{block}.{name}.weight"] = 1 + normal(1, D_MODEL)[0]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{block}.self_attn.{name}.weight"] = normal(D_MODEL, D_MODEL)
        for name, shape in {"gate": (D_MLP, D_MODEL), "up": (D_MLP, D_MODEL), "down": (D_MODEL, D_MLP)}.items():
            weights[f"{block}.mlp.{name}_proj.weight"] = normal(*shape)
    save_file(weights, folder / "model.safetensors")
    facts = {
        "model_type": "llama",
        "hidden_size": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "intermediate_size": D_MLP,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(facts))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.model_path() / name, folder / name)
    return folder


def transcoder_folder(
    folder: Path,
    *,
    n_layers: int = N_LAYERS,
    width: int = 40,
    d_model: int = D_MODEL,
    scan: str = "a-set",
    size: float = 1.0,
) -> Path:
    """Random ReLU transcoders of all layers in circuit-tracer's layout; about one feature in ten is active.

    ``size`` is the root mean square of the numbers that they read.
    """
    folder.mkdir(parents=True)
    hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out"
    (folder / "config.yaml").write_text(f"model_kind: transcoder_set\n{hooks}\nscan: {scan}\n")
    for layer in range(n_layers):
        rng = np.random.default_rng(layer)
        tensors = {
            "W_enc": rng.standard_normal((width, d_model)) / np.sqrt(d_model),
            "W_dec": rng.standard_normal((width, d_model)) * 0.3,
            "b_enc": (rng.standard_normal(width) * 0.1 - 1.2) * size,
            "b_dec": rng.standard_normal(d_model) * 0.1,
        }
        save_file(
            {name: value.astype(np.float32) for name, value in tensors.items()}, folder / f"layer_{layer}.safetensors"
        )
    return folder


def sae_folder(folder: Path, *, layer: int = 1, width: int = 64, d_model: int = D_MODEL, seed: int = 5) -> Path:
    """A random JumpReLU SAE in Gemma Scope 2's layout."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {
        "w_enc": rng.standard_normal((d_model, width)) / np.sqrt(d_model),
        "w_dec": rng.standard_normal((width, d_model)),
        "b_enc": rng.standard_normal(width) * 0.1,
        "b_dec": rng.standard_normal(d_model) * 0.1,
        "threshold": np.abs(rng.standard_normal(width)) * 0.5,
    }
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, folder / "params.safetensors")
    hook = f"model.layers.{layer}.output"
    facts = {
        "hf_hook_point_in": hook,
        "hf_hook_point_out": hook,
        "width": width,
        "model_name": "tiny",
        "architecture": "jump_relu",
        "l0": 10,
        "affine_connection": False,
        "type": "sae",
    }
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def read_session(path: Path | None = None) -> session_file.SavedSession | None:
    """The session last written, or ``None`` if there is none. Raises ``LensError`` if the file is damaged."""
    try:
        return session_file._read(path or session_file.own_file())[0]
    except FileAbsent:
        return None
