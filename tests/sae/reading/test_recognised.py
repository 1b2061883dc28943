"""An SAE is what its tensors say, whatever its file and folder are called; what is said of it is true."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import SAE, load_sae, sae_info, splice
from lens_tui.records import LensError

from .makers import Array, N, numbers, write_json, write_safetensors, write_torch

W = numbers()
ROWS = {"encoder.weight": W["w_enc"].T.copy(), "encoder.bias": W["b_enc"], "b_dec": W["b_dec"]}
LINEAR = {"encoder.weight": W["w_enc"].T.copy(), "encoder.bias": W["b_enc"], "decoder.weight": W["w_dec"].T.copy()}
UPPER = {"W_enc": W["w_enc"], "W_dec": W["w_dec"], "b_enc": W["b_enc"], "b_dec": W["b_dec"]}
NORM = {"dataset_average_activation_norm": {"in": 9.0, "out": 8.0}}


def write_npz(path: Path, tensors: dict[str, Array]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = dict(tensors)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


Write = Callable[[Path, dict[str, Array]], Path]
KINDS: dict[str, tuple[Write, str, dict[str, Array], str, dict[str, Any], str]] = {
    "Gemma Scope 2": (
        write_safetensors,
        "params.safetensors",
        {name: W[name] for name in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")},
        "config.json",
        {"architecture": "jump_relu", "width": N},
        "jumprelu",
    ),
    "Gemma Scope": (write_npz, "params.npz", {**UPPER, "threshold": W["threshold"]}, "", {}, "jumprelu"),
    "sparsify": (
        write_safetensors,
        "sae.safetensors",
        {**ROWS, "W_dec": W["w_dec"]},
        "cfg.json",
        {"k": 6, "d_in": 32},
        "topk",
    ),
    "SAELens": (
        write_safetensors,
        "sae_weights.safetensors",
        UPPER,
        "cfg.json",
        {"architecture": "standard", "d_in": 32, "d_sae": N},
        "standard",
    ),
    "Llama Scope": (
        write_safetensors,
        "final.safetensors",
        {**LINEAR, "decoder.bias": W["b_dec"]},
        "hyperparams.json",
        {"hook_point_in": "blocks.3.hook_resid_post", "jump_relu_threshold": 0.4, **NORM},
        "jumprelu",
    ),
    "dictionary_learning": (write_torch, "ae.pt", {**LINEAR, "bias": W["b_dec"]}, "", {}, "standard"),
    "mlxterp": (
        write_safetensors,
        "weights.safetensors",
        {**LINEAR, "decoder.bias": W["b_dec"]},
        "config.json",
        {"class": "SAE", "k": 7, "d_model": 32, "d_hidden": N, "normalize_input": False},
        "topk",
    ),
}


def values(sae: SAE) -> Array:
    return np.array(sae.encode(mx.array(W["x"])))


@pytest.mark.parametrize("form", KINDS)
def test_the_name_of_the_file_does_not_matter(tmp_path: Path, form: str) -> None:
    write, usual, tensors, config, facts, architecture = KINDS[form]
    plain = tmp_path / "usual"
    write(plain / usual, tensors)
    if config:
        write_json(plain / config, facts)
    wanted = load_sae(plain / usual)
    assert (wanted.info.format, wanted.info.architecture) == (form, architecture)
    for name in (f"ae1{Path(usual).suffix}", "my sae [3]", f"step_1000{Path(usual).suffix}"):
        home = tmp_path / f"with {name}"
        path = write(home / name, tensors)
        if config:
            write_json(home / config, facts)
        for place in (path, home) if path.suffix else (path,):
            found = load_sae(place)
            assert (found.info.format, found.info.id) == (form, wanted.info.id), place
            assert np.array_equal(values(found), values(wanted))


def test_qwen_scope_under_another_name_says_that_its_layer_is_not_known(tmp_path: Path) -> None:
    tensors = {"W_enc": W["w_enc"].T.copy(), "W_dec": W["w_dec"].T.copy(), "b_enc": W["b_enc"], "b_dec": W["b_dec"]}
    home = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_6"
    named = load_sae(write_torch(home / "layer11.sae.pt", tensors))
    other = load_sae(write_torch(home / "mine.pt", tensors))
    assert (other.info.format, other.info.id, other.info.k) == ("Qwen Scope", named.info.id, 6)
    assert (named.info.layer, other.info.layer) == (11, -1)
    assert other.info.provenance["layer"].startswith("not known")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("dictionary_learning", "layer3.sae.pt"),
        ("sparsify", "params.safetensors"),
        ("SAELens", "params.safetensors"),
        ("SAELens", "sae.safetensors"),
        ("Gemma Scope 2", "sae_weights.safetensors"),
        ("Gemma Scope 2", "sae.safetensors"),
        ("Llama Scope", "weights.safetensors"),
        ("mlxterp", "sae_weights.safetensors"),
        ("Qwen Scope", "ae.pt"),
    ],
)
def test_the_usual_name_of_another_format_does_not_matter(tmp_path: Path, form: str, name: str) -> None:
    if form == "Qwen Scope":
        tensors = {"W_enc": W["w_enc"].T.copy(), "W_dec": W["w_dec"].T.copy(), "b_enc": W["b_enc"], "b_dec": W["b_dec"]}
        assert load_sae(write_torch(tmp_path / "SAE-Res-Qwen3-8B-W64K-L0_50" / name, tensors)).info.format == form
        return
    write, _, tensors, config, facts, _ = KINDS[form]
    write(tmp_path / name, tensors)
    if config:
        write_json(tmp_path / config, facts)
    assert load_sae(tmp_path / name).info.format == form


def test_the_same_tensors_in_another_kind_of_file(tmp_path: Path) -> None:
    _, _, tensors, config, facts, _ = KINDS["SAELens"]
    found = []
    for name, write in (("a.safetensors", write_safetensors), ("a.npz", write_npz), ("a.pt", write_torch)):
        home = tmp_path / name
        write(home / name, tensors)
        write_json(home / config, facts)
        found.append(load_sae(home))
    assert {sae.info.format for sae in found} == {"SAELens"}
    assert len({sae.info.id for sae in found}) == 1


def test_the_first_found_of_several_saes_is_not_taken(tmp_path: Path) -> None:
    for name in ("ae1.pt", "ae2.pt"):
        write_torch(tmp_path / name, {**LINEAR, "bias": W["b_dec"]})
    with pytest.raises(LensError, match=r"several SAEs.*ae1\.pt, ae2\.pt"):
        load_sae(tmp_path)
    assert load_sae(tmp_path / "ae2.pt").info.architecture == "standard"


def test_a_weight_file_that_is_no_sae_is_passed_over_in_a_folder(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "sparsity.safetensors", {"sparsity": W["b_enc"]})
    write_safetensors(tmp_path / "mine.safetensors", UPPER)
    write_json(tmp_path / "cfg.json", {"architecture": "standard"})
    assert load_sae(tmp_path).info.format == "SAELens"
    with pytest.raises(LensError, match=r"It has sparsity"):
        load_sae(tmp_path / "sparsity.safetensors")


def test_what_lacks_its_configuration_says_so(tmp_path: Path) -> None:
    with pytest.raises(LensError, match=r"fetch its cfg\.json too"):
        load_sae(write_safetensors(tmp_path / "a" / "sae_weights.safetensors", UPPER))
    with pytest.raises(LensError, match="fetch its configuration"):
        load_sae(write_safetensors(tmp_path / "b" / "x.safetensors", {**LINEAR, "decoder.bias": W["b_dec"]}))


@pytest.mark.parametrize(
    ("tensors", "architecture"),
    [
        ({**LINEAR, "bias": W["b_dec"]}, "standard"),
        ({**LINEAR, "b_dec": W["b_dec"], "k": np.array(5.0, np.float32)}, "topk"),
        (
            {**UPPER, "threshold": np.array(0.5, np.float32), "group_sizes": np.array([32.0, 64.0], np.float32)},
            "matryoshka_batchtopk",
        ),
    ],
)
def test_provenance_names_no_file_that_is_not_there(
    tmp_path: Path, tensors: dict[str, Array], architecture: str
) -> None:
    info = load_sae(write_torch(tmp_path / "ae.pt", tensors)).info
    assert info.architecture == architecture
    assert info.provenance["architecture"] == "the names of its tensors"
    assert not any(said.startswith("config.json") for said in info.provenance.values())


@pytest.mark.parametrize("form", KINDS)
def test_provenance_names_files_that_are_there(tmp_path: Path, form: str) -> None:
    write, usual, tensors, config, facts, _ = KINDS[form]
    write(tmp_path / usual, tensors)
    if config:
        write_json(tmp_path / config, {**facts, "model_name": "m", "hf_hook_point_in": "model.layers.3.output"})
    for said in sae_info(tmp_path / usual).provenance.values():
        for name in ("config.json", "cfg.json", "hyperparams.json"):
            if said.startswith(name):
                assert name == config, said


def test_a_hooks_layer_that_no_model_has_is_not_taken(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "mine.safetensors", UPPER)
    for layer in (-5, 10**30):
        write_json(tmp_path / "cfg.json", {"architecture": "standard", "hook_layer": layer})
        info = sae_info(tmp_path)
        assert info.layer == -1
        assert info.provenance["layer"].startswith("not known: cfg.json hook_layer is ")


SIZES = {
    "Gemma Scope 2": "width",
    "sparsify": "d_in",
    "SAELens": "d_sae",
    "Llama Scope": "d_model",
    "mlxterp": "d_hidden",
}


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("size", [5, 10**12, 1e300])
def test_a_configuration_that_is_of_another_sae(tmp_path: Path, form: str, size: float) -> None:
    write, usual, tensors, config, facts, _ = KINDS[form]
    write(tmp_path / usual, tensors)
    write_json(tmp_path / config, {**facts, SIZES[form]: size})
    with pytest.raises(LensError, match=rf"^{SIZES[form]} of .*{config} is .*; its tensors say"):
        load_sae(tmp_path / usual)


@pytest.mark.parametrize("form", ["sparsify", "mlxterp", "SAELens"])
@pytest.mark.parametrize("k", [6.7, math.inf, -math.inf, math.nan, True, 0, -3, 10**30, "6", [6], N + 1])
def test_a_k_that_is_none(tmp_path: Path, form: str, k: Any) -> None:
    if form == "mlxterp" and k == N + 1:
        return  # as many as there are: all are kept
    write, usual, tensors, config, facts, _ = KINDS[form]
    write(tmp_path / usual, tensors)
    write_json(tmp_path / config, {**facts, "k": k} | ({"architecture": "topk"} if form == "SAELens" else {}))
    with pytest.raises(LensError, match=r"\bk\b"):
        load_sae(tmp_path / usual)


@pytest.mark.parametrize("k", [math.nan, math.inf, 0.0, 2.5, -1.0])
def test_a_k_among_the_tensors(tmp_path: Path, k: float) -> None:
    path = write_torch(tmp_path / "x.pt", {**LINEAR, "b_dec": W["b_dec"], "k": np.array(k, np.float32)})
    with pytest.raises(LensError, match=r"\bk\b"):
        load_sae(path)


BAD = [-1.0, 0, math.inf, math.nan, 1e300, 1e-300, True, "1", [1.0]]


@pytest.mark.parametrize("norm", BAD)
def test_a_length_of_activations_that_is_none(tmp_path: Path, norm: Any) -> None:
    write, usual, tensors, config, facts, _ = KINDS["Llama Scope"]
    write(tmp_path / usual, tensors)
    for field in ({"in": norm, "out": 8.0}, {"in": 9.0, "out": norm}):
        write_json(tmp_path / config, {**facts, "dataset_average_activation_norm": field})
        with pytest.raises(LensError, match=r"^dataset_average_activation_norm of"):
            load_sae(tmp_path / usual)


@pytest.mark.parametrize("scale", BAD)
def test_a_scaling_factor_that_is_none(tmp_path: Path, scale: Any) -> None:
    write, usual, tensors, config, facts, _ = KINDS["SAELens"]
    write(tmp_path / usual, tensors)
    scaled = {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": scale}
    write_json(tmp_path / config, {**facts, **scaled})
    with pytest.raises(LensError, match=r"^norm_scaling_factor of"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, input_scale=0.5).definition.input_scale == 0.5
    with pytest.raises(LensError, match=r"^input_scale of"):
        load_sae(tmp_path, input_scale=scale)


@pytest.mark.parametrize("threshold", [-1.0, math.inf, math.nan, 1e300, "x"])
def test_a_threshold_that_is_none(tmp_path: Path, threshold: Any) -> None:
    write, usual, tensors, config, facts, _ = KINDS["Llama Scope"]
    write(tmp_path / usual, tensors)
    write_json(tmp_path / config, {**facts, "jump_relu_threshold": threshold})
    with pytest.raises(LensError, match=r"^jump_relu_threshold of"):
        load_sae(tmp_path / usual)


@pytest.mark.parametrize("name", ["w_enc", "w_dec", "b_dec"])
@pytest.mark.parametrize("residence", ["memory", "disk"])
def test_weights_that_would_overflow_in_a_product(tmp_path: Path, name: str, residence: Any) -> None:
    tensors = {other: W[other].copy() for other in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}
    tensors[name].reshape(-1)[7] = 3e38
    write_safetensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(LensError, match=f"The tensor {name} holds numbers beyond"):
        load_sae(tmp_path, residence=residence).reconstruct(mx.array(W["x"]))


def test_a_latent_that_is_switched_off_by_its_threshold_is_none_the_worse(tmp_path: Path) -> None:
    tensors = {other: W[other].copy() for other in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}
    tensors["threshold"][3] = np.finfo(np.float32).max
    tensors["b_enc"][4] = -np.finfo(np.float32).max
    write_safetensors(tmp_path / "x.safetensors", tensors)
    z = values(load_sae(tmp_path))
    assert (z[..., 3:5] == 0).all()
    pre = W["x"] @ W["w_enc"] + W["b_enc"]
    assert np.allclose(z[..., 5:], np.where(pre > W["threshold"], np.maximum(pre, 0), 0)[..., 5:], atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("form", KINDS)
def test_a_residual_that_is_none_is_said_with_its_token(tmp_path: Path, form: str, value: float) -> None:
    write, usual, tensors, config, facts, _ = KINDS[form]
    write(tmp_path / usual, tensors)
    if config:
        write_json(tmp_path / config, facts)
    sae = load_sae(tmp_path / usual)
    x = W["x"].copy()
    x[1, 2, 5] = value
    for ask in (sae.encode, sae.reconstruct, lambda rows: sae.top_k(rows, 3)):
        with pytest.raises(LensError, match="residual of token 7"):
            ask(mx.array(x))


@pytest.mark.parametrize("form", ["Gemma Scope 2", "SAELens"])
def test_inside_a_transformation_what_is_not_finite_stays_so(tmp_path: Path, form: str) -> None:
    write, usual, tensors, config, facts, _ = KINDS[form]
    write(tmp_path / usual, tensors)
    write_json(tmp_path / config, facts)
    sae = load_sae(tmp_path)
    x = mx.array(W["x"].reshape(-1, 32))
    assert np.allclose(np.array(mx.compile(sae.encode)(x)), np.array(sae.encode(x)), atol=1e-5)
    x[2, 3] = math.nan
    assert np.isnan(np.array(mx.compile(sae.encode)(x))[2]).all()
    assert np.isnan(np.array(sae.encode_features(x, [4]))[2]).all()


def test_a_product_beyond_half_precision_is_said(tmp_path: Path) -> None:
    tensors = {other: W[other] for other in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}
    write_safetensors(tmp_path / "x.safetensors", {**tensors, "w_enc": W["w_enc"] * 3000})
    x = mx.array(W["x"] * 20)
    assert np.isfinite(np.array(load_sae(tmp_path).encode(x))).all()
    sae = load_sae(tmp_path, dtype=mx.float16)
    for ask in (sae.encode, sae.reconstruct, lambda rows: sae.top_k(rows, 3)):
        with pytest.raises(LensError, match=r"beyond float16 at token 0.*dtype=mx\.float32"):
            ask(x)


def test_activations_and_edits_that_are_none_are_said(tmp_path: Path) -> None:
    write, usual, tensors, _, _, _ = KINDS["dictionary_learning"]
    sae = load_sae(write(tmp_path / usual, tensors))
    z = sae.encode(mx.array(W["x"]))
    assert np.isfinite(np.array(sae.decode(z))).all()
    for value in (math.nan, 3e38):
        with pytest.raises(LensError, match="at token 0"):
            sae.decode(mx.full(z.shape, value))
    with pytest.raises(LensError, match="Feature 3 is to be nan"):
        splice(sae, clamp={3: math.nan})
    with pytest.raises(LensError, match="Feature 3 is to be inf"):
        splice(sae, scale={3: math.inf})
