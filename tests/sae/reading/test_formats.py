"""Each format against its maker's formula, written out in NumPy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import SAE, GatedSAE, GroupMaxSAE, JumpReLUSAE, StandardSAE, TopKSAE, load_sae, sae_info
from lens_tui.records import LensError

from .makers import Array, N, cut, numbers, write_json, write_safetensors, write_torch


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def jump(pre: Array, threshold: Array | float) -> Array:
    return np.where(pre > threshold, relu(pre), 0)


def top(z: Array, k: int) -> Array:
    kth = np.sort(z, axis=-1)[..., -k, None]
    return np.where(z >= kth, z, 0)


def agree(sae: SAE, w: dict[str, Array], z: Array, y: Array) -> None:
    """Every way to the same numbers: encode, decode, reconstruct, top-k."""
    x = mx.array(w["x"])
    assert np.allclose(np.array(sae.encode(x)), z, atol=1e-4)
    made = sae.reconstruct(x)
    assert np.allclose(np.array(made.output), y, atol=1e-4)
    assert np.array_equal(np.array(made.l0), (z > 0).sum(-1))
    ids, values = (np.array(part) for part in sae.top_k(x, 8))
    assert np.allclose(values, -np.sort(-z, axis=-1)[..., :8], atol=1e-4)
    there = np.take_along_axis(z, np.maximum(ids, 0), -1)
    assert np.allclose(np.where(ids >= 0, there, 0), values, atol=1e-4)
    assert ((ids >= 0) == (values > 0)).all()
    some = [5, 0, 77]
    assert np.allclose(np.array(sae.encode_features(x, some)), z[..., some], atol=1e-4)


GEMMA_2 = {
    "resid_post": ("model.layers.3.output", "resid_post"),
    "mlp_out": ("model.layers.3.post_feedforward_layernorm.output", "mlp_out_normed"),
    "attn_out": ("model.layers.3.self_attn.o_proj.input", "attn_z"),
}


def write_gemma_2(folder: Path, w: dict[str, Array], config: dict[str, Any] | None, skip: bool = False) -> None:
    names = ["w_enc", "w_dec", "b_enc", "b_dec", "threshold"]
    tensors = {name: w[name] for name in names} | ({"affine_skip_connection": w["w_skip"]} if skip else {})
    write_safetensors(folder / "params.safetensors", tensors)
    if config is not None:
        write_json(folder / "config.json", config)


@pytest.mark.parametrize("folder", ["", "_all"])
@pytest.mark.parametrize("site", GEMMA_2)
def test_gemma_scope_2(tmp_path: Path, site: str, folder: str) -> None:
    w = numbers()
    home = tmp_path / "gemma-scope-2-270m-pt" / f"{site}{folder}" / "layer_3_width_16k_l0_small"
    hook, ours = GEMMA_2[site]
    config = {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "l0": 15, "model_name": "google/gemma-3-270m-pt"}
    write_gemma_2(home, w, {**config, "architecture": "jump_relu", "affine_connection": False, "type": "sae"})
    sae = JumpReLUSAE.from_pretrained(home)
    z = jump(w["x"] @ w["w_enc"] + w["b_enc"], w["threshold"])
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert (sae.info.site, sae.info.layer, sae.info.l0) == (ours, 3, 15)
    assert sae.info.provenance["site"].startswith("config.json hf_hook_point_in")
    assert not sae.info.is_transcoder


@pytest.mark.parametrize("site", GEMMA_2)
def test_gemma_scope_2_without_a_config_goes_by_its_names(tmp_path: Path, site: str) -> None:
    home = tmp_path / "gemma-scope-2-270m-pt" / f"{site}_all" / "layer_3_width_16k_l0_small"
    write_gemma_2(home, numbers(), None)
    info = sae_info(home / "params.safetensors")
    assert (info.site, info.layer, info.model_name) == (GEMMA_2[site][1], 3, "google/gemma-3-270m")
    assert "folders' names" in info.provenance["site"]
    assert info.l0 is None
    assert info.bos is None


@pytest.mark.parametrize("affine", [True, False])
def test_gemma_scope_2_transcoder(tmp_path: Path, affine: bool) -> None:
    w = numbers(d_out=24)
    hooks = {
        "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
    }
    write_gemma_2(tmp_path / "a", w, {**hooks, "affine_connection": affine, "type": "transcoder"}, skip=affine)
    sae = load_sae(tmp_path / "a")
    z = jump(w["x"] @ w["w_enc"] + w["b_enc"], w["threshold"])
    y = z @ w["w_dec"] + w["b_dec"] + (w["x"] @ w["w_skip"] if affine else 0)
    agree(sae, w, z, y)
    assert sae.info.is_transcoder
    assert (sae.info.site, sae.info.site_out, sae.info.layer_out) == ("mlp_in", "mlp_out_normed", 3)
    made = sae.reconstruct(mx.array(w["x"]))
    assert made.error is None
    target = y + 0.1
    made = sae.reconstruct(mx.array(w["x"]), mx.array(target))
    assert made.error is not None
    assert np.allclose(np.array(made.error), 0.1, atol=1e-4)


def test_gemma_scope_2_that_lacks_its_skip_connection_is_refused(tmp_path: Path) -> None:
    write_gemma_2(tmp_path / "a", numbers(), {"affine_connection": True})
    with pytest.raises(LensError, match="affine_skip_connection"):
        load_sae(tmp_path / "a")


@pytest.mark.parametrize(("kind", "word"), [("clt", "cross-layer transcoder"), ("crosscoder", "crosscoder")])
def test_what_reads_several_layers_is_refused_by_name(tmp_path: Path, kind: str, word: str) -> None:
    home = tmp_path / kind / "x"
    write_safetensors(home / "params_layer_0.safetensors", {"w_enc": numbers()["w_enc"]})
    write_json(home / "config.json", {"type": kind})
    for path in (home, home / "params_layer_0.safetensors"):
        with pytest.raises(LensError, match=word):
            load_sae(path)


@pytest.mark.parametrize(
    ("repo", "site", "out", "layer"),
    [
        ("gemma-scope-2b-pt-res", "resid_post", "resid_post", 7),
        ("gemma-scope-9b-it-mlp", "mlp_out_normed", "mlp_out_normed", 7),
        ("gemma-scope-2b-pt-att", "attn_z", "attn_z", 7),
        ("gemma-scope-2b-pt-transcoders", "mlp_normed", "mlp_out_normed", 7),
    ],
)
def test_gemma_scope_1(tmp_path: Path, repo: str, site: str, out: str, layer: int) -> None:
    w = numbers()
    home = tmp_path / repo / f"layer_{layer}" / "width_16k" / "average_l0_71"
    home.mkdir(parents=True)
    np.savez(
        home / "params.npz",
        W_enc=w["w_enc"],
        W_dec=w["w_dec"],
        b_enc=w["b_enc"],
        b_dec=w["b_dec"],
        threshold=w["threshold"],
    )
    sae = JumpReLUSAE.from_pretrained(home)
    z = jump(w["x"] @ w["w_enc"] + w["b_enc"], w["threshold"])
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert (sae.info.site, sae.info.site_out, sae.info.layer, sae.info.l0) == (site, out, layer, 71)
    assert sae.info.model_name == f"google/gemma-2-{'9b-it' if '9b' in repo else '2b'}"


def test_gemma_scope_1_of_embeddings(tmp_path: Path) -> None:
    w = numbers()
    home = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    home.mkdir(parents=True)
    np.savez(
        home / "params.npz",
        W_enc=w["w_enc"],
        W_dec=w["w_dec"],
        b_enc=w["b_enc"],
        b_dec=w["b_dec"],
        threshold=w["threshold"],
    )
    sae = load_sae(home)
    root = math.sqrt(w["x"].shape[-1])
    z = jump(w["x"] @ (w["w_enc"] / root) + w["b_enc"], w["threshold"])
    agree(sae, w, z, z @ (w["w_dec"] * root) + w["b_dec"])
    assert sae.info.site == ""
    assert "embeddings" in sae.info.provenance["site"]


def saelens(folder: Path, w: dict[str, Array], config: dict[str, Any], names: list[str], skip: bool = False) -> SAE:
    tensors = {"W_enc": w["w_enc"], "W_dec": w["w_dec"], "b_dec": w["b_dec"]} | {name: w[name] for name in names}
    write_safetensors(folder / "sae_weights.safetensors", tensors | ({"W_skip": w["w_skip"].T} if skip else {}))
    write_json(folder / "cfg.json", config)
    return load_sae(folder)


V6 = {
    "dtype": "float32",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {
        "model_name": "gpt2-small",
        "hook_name": "blocks.8.hook_resid_pre",
        "prepend_bos": True,
        "context_size": 128,
        "sae_lens_version": "6.1.0",
    },
}


@pytest.mark.parametrize("subtract", [True, False])
def test_saelens_standard(tmp_path: Path, subtract: bool) -> None:
    w = numbers()
    sae = saelens(tmp_path, w, {**V6, "architecture": "standard", "apply_b_dec_to_input": subtract}, ["b_enc"])
    z = relu((w["x"] - w["b_dec"] * subtract) @ w["w_enc"] + w["b_enc"])
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert isinstance(sae, StandardSAE)
    info = sae.info
    assert (info.site, info.layer, info.model_name, info.bos, info.context) == ("resid_pre", 8, "gpt2-small", True, 128)
    assert info.provenance["bos"] == "cfg.json prepend_bos"


@pytest.mark.parametrize(
    ("said", "bos"),
    [
        ({}, True),
        ({"exclude_special_tokens": True}, False),
        ({"bos_included": False}, False),
        ({"prepend_bos": None}, None),
    ],
)
def test_whether_bos_was_in_training(tmp_path: Path, said: dict[str, Any], bos: bool | None) -> None:
    metadata = {"prepend_bos": True, **said}
    sae = saelens(tmp_path, numbers(), {**V6, "architecture": "standard", "metadata": metadata}, ["b_enc"])
    assert sae.info.bos is bos


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "matryoshka_batchtopk"])
def test_saelens_jumprelu_and_what_is_saved_as_it(tmp_path: Path, architecture: str) -> None:
    w = numbers()
    sae = saelens(tmp_path, w, {**V6, "architecture": architecture}, ["b_enc", "threshold"])
    z = jump((w["x"] - w["b_dec"]) @ w["w_enc"] + w["b_enc"], w["threshold"])
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert isinstance(sae, JumpReLUSAE)
    assert sae.info.architecture == architecture


def test_saelens_gated(tmp_path: Path) -> None:
    w = numbers()
    sae = saelens(tmp_path, w, {**V6, "architecture": "gated"}, ["b_gate", "b_mag", "r_mag"])
    x = w["x"] - w["b_dec"]
    z = (x @ w["w_enc"] + w["b_gate"] > 0) * relu(x @ (w["w_enc"] * np.exp(w["r_mag"])) + w["b_mag"])
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert isinstance(sae, GatedSAE)


@pytest.mark.parametrize("rescale", [True, False])
def test_saelens_topk(tmp_path: Path, rescale: bool) -> None:
    w = numbers()
    config = {**V6, "architecture": "topk", "k": 6, "rescale_acts_by_decoder_norm": rescale}
    sae = saelens(tmp_path, w, config, ["b_enc"])
    norm = np.linalg.norm(w["w_dec"], axis=1) if rescale else np.ones(N, np.float32)
    z = relu(top(((w["x"] - w["b_dec"]) @ w["w_enc"] + w["b_enc"]) * norm, 6))
    agree(sae, w, z, (z / norm) @ w["w_dec"] + w["b_dec"])
    assert isinstance(sae, TopKSAE)
    assert sae.info.k == 6
    one = np.zeros(N, np.float32)
    one[3] = 1
    moved = np.array(sae.decode(mx.array(one)) - sae.decode(mx.zeros(N)))
    assert np.isclose(np.linalg.norm(moved), float(sae.decoder_norms([3])[0]), atol=1e-4)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["", "jumprelu_"])
def test_saelens_transcoders(tmp_path: Path, kind: str, skip: bool) -> None:
    w = numbers(d_out=40)
    names = {"hook_name": "blocks.5.ln2.hook_normalized", "hook_name_out": "blocks.5.hook_mlp_out"}
    metadata = {"model_name": "gemma-2-2b", **names}
    config = {**V6, "architecture": f"{kind}{'skip_' if skip else ''}transcoder", "d_out": 40, "metadata": metadata}
    sae = saelens(tmp_path, w, config, ["b_enc"] + (["threshold"] if kind else []), skip)
    pre = w["x"] @ w["w_enc"] + w["b_enc"]
    z = jump(pre, w["threshold"]) if kind else relu(pre)
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"] + (w["x"] @ w["w_skip"] if skip else 0))
    assert sae.info.is_transcoder
    # In Gemma 2 TransformerLens' hook_mlp_out is after the block's norm of it; hook_normalized is before a gain.
    assert (sae.info.site, sae.info.site_out) == ("mlp_normed", "mlp_out_normed")


def test_saelens_hook_before_the_norm_is_not_taken_for_the_one_after(tmp_path: Path) -> None:
    metadata = {
        "model_name": "gemma-3-1b",
        "hook_name": "blocks.5.hook_mlp_in",
    }
    w = numbers()
    sae = saelens(tmp_path, w, {**V6, "architecture": "transcoder", "metadata": metadata}, ["b_enc"])
    assert sae.info.site == ""
    assert "hook_mlp_in" in sae.info.provenance["site"]
    with pytest.raises(LensError, match="layer and site"):
        sae.vector(1)


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale", "expected_average_only_in"])
def test_saelens_normalisation(tmp_path: Path, mode: str) -> None:
    w = numbers()
    config = {**V6, "architecture": "jumprelu", "normalize_activations": mode, "norm_scaling_factor": 0.6}
    sae = saelens(tmp_path, w, config, ["b_enc", "threshold"])
    x, d = w["x"], w["x"].shape[-1]
    mean = x.mean(-1, keepdims=True) if mode == "layer_norm" else 0.0
    if mode == "layer_norm":
        # SAELens adds 1e-5 when it divides and leaves it out on the way back.
        scale = x.std(-1, ddof=1, keepdims=True)
    elif mode == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=-1, keepdims=True) / math.sqrt(d)
    else:
        scale = 1 / 0.6
    into = scale + 1e-5 if mode == "layer_norm" else scale
    z = jump(((x - mean) / into - w["b_dec"]) @ w["w_enc"] + w["b_enc"], w["threshold"])
    agree(sae, w, z, (z @ w["w_dec"] + w["b_dec"]) * scale + mean)
    if mode == "expected_average_only_in":
        assert np.allclose(np.array(sae.decode(mx.array(z))), (z @ w["w_dec"] + w["b_dec"]) * scale, atol=1e-4)
    else:
        with pytest.raises(LensError, match="own statistics"):
            sae.decode(mx.array(z))
        out = np.array(sae.decode(mx.array(z), like=mx.array(x)))
        assert np.allclose(out, (z @ w["w_dec"] + w["b_dec"]) * scale + mean, atol=1e-4)


def test_saelens_scale_that_is_nowhere_is_asked_for(tmp_path: Path) -> None:
    w = numbers()
    config = {**V6, "architecture": "standard", "normalize_activations": "expected_average_only_in"}
    with pytest.raises(LensError, match="the scale is not in its files"):
        saelens(tmp_path, w, config, ["b_enc"])
    sae = load_sae(tmp_path, input_scale=0.5)
    z = relu((w["x"] * 0.5 - w["b_dec"]) @ w["w_enc"] + w["b_enc"])
    agree(sae, w, z, (z @ w["w_dec"] + w["b_dec"]) / 0.5)


def test_saelens_before_version_6(tmp_path: Path) -> None:
    w = numbers()
    old = {
        "d_in": 32,
        "d_sae": N,
        "hook_point": "blocks.2.attn.hook_z",
        "model_name": "gpt2-small",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5},
        "normalize_activations": False,
        "prepend_bos": False,
    }
    sae = saelens(tmp_path, w, old, ["b_enc"])
    z = relu(top((w["x"] - w["b_dec"]) @ w["w_enc"] + w["b_enc"], 5))
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert (sae.info.site, sae.info.layer, sae.info.bos, sae.info.k) == ("attn_z", 2, False, 5)
    heads = mx.array(w["x"]).reshape(3, 5, 4, 8)
    assert np.allclose(np.array(sae.encode(heads)), z, atol=1e-4)


@pytest.mark.parametrize("change", [{"architecture": "temporal"}, {"normalize_activations": "covariance_whitening"}])
def test_saelens_what_is_not_read_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(LensError):
        saelens(tmp_path, numbers(), {**V6, "architecture": "standard", **change}, ["b_enc"])


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("normalize_decoder", [True, False])
def test_sparsify(tmp_path: Path, turned: bool, normalize_decoder: bool) -> None:
    w = numbers()
    decoder = w["w_dec"].T.copy() if turned else w["w_dec"]
    tensors = {"encoder.weight": w["w_enc"].T.copy(), "encoder.bias": w["b_enc"], "W_dec": decoder, "b_dec": w["b_dec"]}
    write_safetensors(tmp_path / "layers.9" / "sae.safetensors", tensors, bfloat16=True)
    write_json(tmp_path / "layers.9" / "cfg.json", {"k": 7, "d_in": 32, "normalize_decoder": normalize_decoder})
    write_json(tmp_path / "config.json", {"model": "HuggingFaceTB/SmolLM2-135M"})
    sae = load_sae(tmp_path / "layers.9")
    w = {name: cut(value) if name != "x" else value for name, value in w.items()}
    # b_dec is subtracted whatever normalize_decoder says.
    z = relu(top((w["x"] - w["b_dec"]) @ w["w_enc"] + w["b_enc"], 7))
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert (sae.info.site, sae.info.layer, sae.info.model_name) == ("resid_post", 9, "HuggingFaceTB/SmolLM2-135M")


def test_sparsify_transcoder_with_a_skip_connection(tmp_path: Path) -> None:
    w = numbers()
    tensors = {
        "encoder.weight": w["w_enc"].T.copy(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["w_dec"],
        "b_dec": w["b_dec"],
    }
    write_safetensors(tmp_path / "layers.4.mlp" / "sae.safetensors", tensors | {"W_skip": w["w_skip"].T.copy()})
    write_json(tmp_path / "layers.4.mlp" / "cfg.json", {"k": 7, "transcode": True, "skip_connection": True})
    sae = load_sae(tmp_path / "layers.4.mlp")
    z = relu(top(w["x"] @ w["w_enc"] + w["b_enc"], 7))
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"] + w["x"] @ w["w_skip"])
    assert (sae.info.site, sae.info.site_out, sae.info.layer_out) == ("mlp_in", "mlp_out", 4)


def test_sparsify_groupmax(tmp_path: Path) -> None:
    w = numbers()
    tensors = {
        "encoder.weight": w["w_enc"].T.copy(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["w_dec"],
        "b_dec": w["b_dec"],
    }
    write_safetensors(tmp_path / "layers.4" / "sae.safetensors", tensors)
    write_json(tmp_path / "layers.4" / "cfg.json", {"k": 8, "activation": "groupmax"})
    sae = load_sae(tmp_path / "layers.4")
    z = relu((w["x"] - w["b_dec"]) @ w["w_enc"] + w["b_enc"])
    grouped = z.reshape(3, 5, 8, N // 8)
    z = np.where(grouped == grouped.max(-1, keepdims=True), grouped, 0).reshape(3, 5, N)
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert isinstance(sae, GroupMaxSAE)


def test_llama_scope(tmp_path: Path) -> None:
    w = numbers()
    home = tmp_path / "Llama3_1-8B-Base-L15R-8x"
    tensors = {
        "encoder.weight": w["w_enc"].T.copy(),
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["w_dec"].T.copy(),
        "decoder.bias": w["b_dec"],
    }
    write_safetensors(home / "checkpoints" / "final.safetensors", tensors, bfloat16=True)
    config = {
        "d_model": 32,
        "d_sae": N,
        "jump_relu_threshold": 0.4,
        "dataset_average_activation_norm": {"in": 9.0, "out": 8.0},
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
    }
    write_json(home / "hyperparams.json", config)
    w = {name: cut(value) if name != "x" else value for name, value in w.items()}
    scale_in, scale_out = math.sqrt(32) / 9, math.sqrt(32) / 8
    for path in (home, home / "checkpoints" / "final.safetensors"):
        sae = load_sae(path)
        z = jump(w["x"] * scale_in @ w["w_enc"] + w["b_enc"], 0.4 * scale_in)
        agree(sae, w, z, (z @ w["w_dec"] + w["b_dec"]) / scale_out)
        assert (sae.info.site, sae.info.layer) == ("resid_post", 15)
        assert "scale of the input" in sae.info.provenance["threshold"]


def test_llama_scope_of_later_years(tmp_path: Path) -> None:
    w = numbers()
    tensors = {
        "encoder.weight": w["w_enc"].T.copy(),
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["w_dec"].T.copy(),
        "decoder.bias": w["b_dec"],
        "log_jumprelu_threshold": np.log(w["threshold"]),
        "dataset_average_activation_norm.blocks.3.hook_resid_post": np.array(9.0, np.float32),
    }
    write_safetensors(tmp_path / "sae_weights.safetensors", tensors)
    write_json(tmp_path / "config.json", {"hook_point_in": "blocks.3.hook_resid_post", "d_model": 32})
    sae = load_sae(tmp_path)
    scale = math.sqrt(32) / 9
    z = jump(w["x"] * scale @ w["w_enc"] + w["b_enc"], w["threshold"])
    agree(sae, w, z, (z @ w["w_dec"] + w["b_dec"]) / scale)


def dictionary(folder: Path, kind: str, tensors: dict[str, Any], **trainer: Any) -> SAE:
    write_torch(folder / "ae.pt", tensors)
    facts = {"dict_class": kind, "layer": 6, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_6"}
    write_json(folder / "config.json", {"trainer": {**facts, **trainer}, "buffer": {"ctx_len": 128}})
    return load_sae(folder)


def test_dictionary_learning_standard(tmp_path: Path) -> None:
    w = numbers()
    layers = {"encoder.weight": w["w_enc"].T.copy(), "encoder.bias": w["b_enc"], "decoder.weight": w["w_dec"].T.copy()}
    sae = dictionary(tmp_path / "a", "AutoEncoder", {"bias": w["b_dec"], **layers})
    z = relu((w["x"] - w["b_dec"]) @ w["w_enc"] + w["b_enc"])
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert (sae.info.layer, sae.info.site, sae.info.context) == (6, "resid_post", 128)
    newer = dictionary(tmp_path / "b", "AutoEncoderNew", {"decoder.bias": w["b_dec"], **layers})
    z = relu(w["x"] @ w["w_enc"] + w["b_enc"])
    agree(newer, w, z, z @ w["w_dec"] + w["b_dec"])


def test_dictionary_learning_topk_and_batchtopk(tmp_path: Path) -> None:
    w = numbers()
    layers = {"encoder.weight": w["w_enc"].T.copy(), "encoder.bias": w["b_enc"], "decoder.weight": w["w_dec"].T.copy()}
    threshold = np.array(0.7, np.float32)
    # TopK saves a threshold too, and does not use it.
    sae = dictionary(tmp_path / "a", "AutoEncoderTopK", {**layers, "b_dec": w["b_dec"], "threshold": threshold}, k=9)
    pre = (w["x"] - w["b_dec"]) @ w["w_enc"] + w["b_enc"]
    agree(sae, w, top(relu(pre), 9), top(relu(pre), 9) @ w["w_dec"] + w["b_dec"])
    sae = dictionary(tmp_path / "b", "BatchTopKSAE", {**layers, "b_dec": w["b_dec"], "threshold": threshold}, k=9)
    agree(sae, w, jump(pre, 0.7), jump(pre, 0.7) @ w["w_dec"] + w["b_dec"])
    assert sae.info.architecture == "batchtopk"
    unfinished = {**layers, "b_dec": w["b_dec"], "threshold": np.array(-1.0, np.float32)}
    with pytest.raises(LensError, match="not finished"):
        dictionary(tmp_path / "c", "BatchTopKSAE", unfinished, k=9)


def test_dictionary_learning_matryoshka_jumprelu_and_gated(tmp_path: Path) -> None:
    w = numbers()
    plain = {"W_enc": w["w_enc"], "W_dec": w["w_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    sae = dictionary(tmp_path / "a", "MatryoshkaBatchTopKSAE", {**plain, "threshold": np.array(0.5, np.float32)}, k=9)
    z = jump((w["x"] - w["b_dec"]) @ w["w_enc"] + w["b_enc"], 0.5)
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    norm = np.linalg.norm(w["w_dec"], axis=1)
    sae = dictionary(tmp_path / "b", "JumpReluAutoEncoder", {**plain, "threshold": w["threshold"]})
    z = jump(w["x"] @ w["w_enc"] + w["b_enc"], w["threshold"]) * norm
    agree(sae, w, z, z / norm @ w["w_dec"] + w["b_dec"])
    gated = {
        "encoder.weight": w["w_enc"].T.copy(),
        "decoder.weight": w["w_dec"].T.copy(),
        "decoder_bias": w["b_dec"],
        "gate_bias": w["b_gate"],
        "mag_bias": w["b_mag"],
        "r_mag": w["r_mag"],
    }
    sae = dictionary(tmp_path / "c", "GatedAutoEncoder", gated)
    pre = (w["x"] - w["b_dec"]) @ w["w_enc"]
    z = (pre + w["b_gate"] > 0) * relu(np.exp(w["r_mag"]) * pre + w["b_mag"]) * norm
    agree(sae, w, z, z / norm @ w["w_dec"] + w["b_dec"])


@pytest.mark.parametrize("storage", ["FloatStorage", "BFloat16Storage"])
def test_qwen_scope(tmp_path: Path, storage: str) -> None:
    w = numbers()
    home = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_6"
    tensors = {"W_enc": w["w_enc"].T.copy(), "W_dec": w["w_dec"].T.copy(), "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    path = write_torch(home / "layer11.sae.pt", tensors, storage)
    sae = load_sae(path)
    if storage == "BFloat16Storage":
        w = {name: cut(value) if name != "x" else value for name, value in w.items()}
    z = relu(top(w["x"] @ w["w_enc"] + w["b_enc"], 6))
    agree(sae, w, z, z @ w["w_dec"] + w["b_dec"])
    assert (sae.info.layer, sae.info.site, sae.info.model_name) == (11, "resid_post", "Qwen/Qwen3-1.7B-Base")


@pytest.mark.parametrize("tied", [True, False])
def test_mlxterp(tmp_path: Path, tied: bool) -> None:
    w = numbers()
    mean, std = w["b_dec"][::-1] * 0.3, np.linspace(0.5, 3, 32).astype(np.float32)
    tensors = {"encoder.weight": w["w_enc"].T.copy(), "encoder.bias": w["b_enc"]}
    tensors |= (
        {"decoder_bias": w["b_dec"]} if tied else {"decoder.weight": w["w_dec"].T.copy(), "decoder.bias": w["b_dec"]}
    )
    write_safetensors(tmp_path / "weights.safetensors", tensors | {"input_mean": mean.copy(), "input_std": std})
    metadata = {"layer": 2, "component": "mlp", "model_name": "mlx-community/Llama-3.2-1B-4bit"}
    config = {"d_model": 32, "d_hidden": N, "k": 7, "class": "SAE", "normalize_input": True, "tied_weights": tied}
    write_json(tmp_path / "config.json", {**config, "metadata": metadata})
    sae = load_sae(tmp_path)
    z = top(relu((w["x"] - mean) / (std + 1e-8) @ w["w_enc"] + w["b_enc"]), 7)
    decoder = w["w_enc"].T if tied else w["w_dec"]
    agree(sae, w, z, (z @ decoder + w["b_dec"]) * std + mean)
    assert (sae.info.layer, sae.info.site) == (2, "mlp_out")


def test_what_the_caller_says_fills_gaps_and_contradicts_nothing(tmp_path: Path) -> None:
    w = numbers()
    write_safetensors(
        tmp_path / "mine.safetensors", {name: w[name] for name in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}
    )
    info = load_sae(tmp_path / "mine.safetensors").info
    assert (info.site, info.layer, info.model_name) == ("", -1, "")
    info = load_sae(tmp_path / "mine.safetensors", site="resid_post", layer=4, model_name="m").info
    assert (info.site, info.layer, info.site_out, info.layer_out) == ("resid_post", 4, "resid_post", 4)
    assert info.provenance["site"] == "given by the caller"
    write_gemma_2(tmp_path / "b", w, {"hf_hook_point_in": "model.layers.4.output"})
    with pytest.raises(LensError, match="its layer is 4"):
        load_sae(tmp_path / "b", layer=5)
    with pytest.raises(LensError, match="no site"):
        load_sae(tmp_path / "b", site="resid")
