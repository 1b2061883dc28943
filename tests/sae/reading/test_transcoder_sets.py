"""Sets of transcoders from files of every layout, against their formulas in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui.records import LensError
from lens_tui.sae.load_sae import load_sae
from lens_tui.sae.transcoder_sets import CrossLayerTranscoders, LayerTranscoders, load_transcoders

from .makers import Array, D, N, cut, numbers, write_json, write_safetensors

Set = LayerTranscoders | CrossLayerTranscoders
LAYERS = 3
X = numbers(9)["x"].reshape(-1, D)


def agree(made: Set, layer: int, pre: Array, z: Array) -> None:
    """What is active is what is above 0, and there the linear function of the encoder is the activation."""
    position, feature, value = made.active(layer, mx.array(X))
    found = np.zeros_like(z)
    found[position, feature] = value
    np.testing.assert_allclose(found, z, atol=1e-4)
    assert (np.lexsort((feature, position)) == np.arange(len(position))).all()
    rows, bias = made.encoder(layer, feature)
    np.testing.assert_allclose((X[position] * np.array(rows)).sum(axis=1) + bias, value, atol=1e-4)
    np.testing.assert_allclose(pre[position, feature], value, atol=1e-4)
    assert 0 < len(position) < z.size


def plt_tensors(seed: int, *, skip: bool, jump: bool) -> tuple[dict[str, Array], dict[str, Array]]:
    w = numbers(seed)
    tensors = {"W_enc": w["w_enc"].T, "W_dec": w["w_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    tensors |= {"W_skip": w["w_skip"].T} if skip else {}
    tensors |= {"activation_function.threshold": w["threshold"]} if jump else {}
    return w, {name: np.ascontiguousarray(value) for name, value in tensors.items()}


@pytest.mark.parametrize(("skip", "jump"), [(True, False), (False, True)])
@pytest.mark.parametrize(
    ("hook_in", "hook_out", "reads", "writes"),
    [
        ("mlp.hook_in", "mlp.hook_out", "mlp_in", "mlp_out"),
        ("ln2.hook_normalized", "hook_mlp_out", "mlp_normed", "mlp_added"),
        ("hook_resid_mid", "hook_mlp_out", "resid_mid", "mlp_added"),
    ],
)
def test_a_set_of_circuit_tracer(
    tmp_path: Path, skip: bool, jump: bool, hook_in: str, hook_out: str, reads: str, writes: str
) -> None:
    lines = ["model_kind: transcoder_set", f"feature_input_hook: {hook_in}", f"feature_output_hook: {hook_out}"]
    (tmp_path / "config.yaml").write_text("\n".join([*lines, "scan: a-set"]))
    known = []
    for layer in range(LAYERS):
        w, tensors = plt_tensors(layer, skip=skip, jump=jump)
        known.append(w)
        write_safetensors(tmp_path / f"layer_{layer}.safetensors", tensors)
    seen: list[tuple[int, int]] = []
    made = load_transcoders(tmp_path, progress=lambda *at: seen.append(at))
    assert (made.name, made.reads, made.writes, made.crosses, made.layers) == ("a-set", reads, writes, False, (0, 1, 2))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for layer, w in enumerate(known):
        pre = X @ w["w_enc"] + w["b_enc"]
        agree(made, layer, pre, np.where(pre > (w["threshold"] if jump else 0.0), np.maximum(pre, 0), 0))
        np.testing.assert_allclose(np.array(made.decoder(layer, layer, np.array([5, 0]))), w["w_dec"][[5, 0]])
        np.testing.assert_allclose(np.array(made.decoder_bias(layer)), w["b_dec"])
        found = made.skip(layer)
        assert (found is None) != skip
        if found is not None:
            np.testing.assert_allclose(np.array(found), w["w_skip"])


def write_clt(home: Path, *, jump: bool = True, bfloat16: bool = False) -> list[tuple[dict[str, Array], Array]]:
    lines = ["model_kind: cross_layer_transcoder", "feature_input_hook: hook_resid_mid"]
    home.mkdir(exist_ok=True)
    (home / "config.yaml").write_text("\n".join([*lines, "feature_output_hook: hook_mlp_out"]))
    known = []
    for at in range(LAYERS):
        w = numbers(at)
        rows = np.random.default_rng(at).normal(size=(N, LAYERS - at, D)).astype(np.float32)
        tensors = {
            f"W_enc_{at}": np.ascontiguousarray(w["w_enc"].T),
            f"b_enc_{at}": w["b_enc"],
            f"b_dec_{at}": w["b_dec"],
        }
        tensors |= {f"threshold_{at}": w["threshold"]} if jump else {}
        write_safetensors(home / f"W_enc_{at}.safetensors", tensors)
        write_safetensors(home / f"W_dec_{at}.safetensors", {f"W_dec_{at}": rows}, bfloat16=bfloat16)
        known.append((w, cut(rows) if bfloat16 else rows))
    return known


@pytest.mark.parametrize(("jump", "bfloat16"), [(True, False), (False, True)])
def test_a_cross_layer_set_of_circuit_tracer(tmp_path: Path, jump: bool, bfloat16: bool) -> None:
    known = write_clt(tmp_path / "a-clt", jump=jump, bfloat16=bfloat16)
    made = load_transcoders(tmp_path / "a-clt")
    assert (made.name, made.reads, made.writes, made.crosses, made.layers) == (
        "a-clt", "resid_mid", "mlp_added", True, (0, 1, 2),
    )  # fmt: skip
    for layer, (w, rows) in enumerate(known):
        pre = X @ w["w_enc"] + w["b_enc"]
        agree(made, layer, pre, np.where(pre > (w["threshold"] if jump else 0.0), np.maximum(pre, 0), 0))
        np.testing.assert_allclose(np.array(made.decoder_bias(layer)), w["b_dec"])
        for to in range(layer, LAYERS):
            some = np.array([7, 90, 0])
            found = np.array(made.decoder(layer, to, some).astype(mx.float32))
            np.testing.assert_allclose(found, rows[some, to - layer])


def test_a_cross_layer_set_of_gemma_scope_2(tmp_path: Path) -> None:
    """All layers are read, the last one too; rows to layers before a feature's own are left alone."""
    known = []
    for at in range(LAYERS):
        w = numbers(at)
        rows = np.random.default_rng(at).normal(size=(N, LAYERS, D)).astype(np.float32)
        tensors = {name: w[name] for name in ("w_enc", "b_enc", "b_dec", "threshold")}
        tensors |= {"w_dec": rows, "affine_skip_connection": w["w_skip"]}
        write_safetensors(tmp_path / f"params_layer_{at}.safetensors", tensors)
        known.append((w, rows))
    made = load_transcoders(tmp_path, name="clt")
    assert (made.name, made.reads, made.writes, made.layers) == ("clt", "mlp_in", "mlp_added", (0, 1, 2))
    for layer, (w, rows) in enumerate(known):
        pre = X @ w["w_enc"] + w["b_enc"]
        agree(made, layer, pre, np.where(pre > w["threshold"], np.maximum(pre, 0), 0))
        np.testing.assert_allclose(np.array(made.decoder(layer, LAYERS - 1, np.array([3]))), rows[[3], LAYERS - 1])
        found = made.skip(layer)
        assert found is not None
        np.testing.assert_allclose(np.array(found), w["w_skip"])
    write_json(tmp_path / "config.json", {"type": "crosscoder"})
    with pytest.raises(LensError, match="is a crosscoder"):
        load_transcoders(tmp_path)


def write_folder(home: Path, layer: int, *, sae: bool = False) -> dict[str, Array]:
    """A transcoder of one layer as Gemma Scope 2 and this program write it."""
    w = numbers(layer)
    block = f"model.layers.{layer}"
    config: dict[str, Any] = {"hf_hook_point_in": f"{block}.mlp.input", "hf_hook_point_out": f"{block}.mlp.output"}
    if sae:
        config = {"hf_hook_point_in": f"{block}.output", "hf_hook_point_out": f"{block}.output"}
    config |= {"model_name": "qwen3", "type": "sae" if sae else "transcoder"}
    write_json(home / "config.json", config)
    names = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
    write_safetensors(home / "params.safetensors", {name: w[name] for name in names})
    return w


def test_a_folder_for_each_layer_and_single_paths(tmp_path: Path) -> None:
    known = [write_folder(tmp_path / f"layer_{layer}_width_16k_l0_small", layer) for layer in range(LAYERS)]
    write_folder(tmp_path / "layer_1_of_another_kind", 1, sae=True)
    made = load_transcoders(tmp_path)
    assert (made.name, made.reads, made.writes, made.layers) == (tmp_path.name, "mlp_in", "mlp_out", (0, 1, 2))
    pre = X @ known[2]["w_enc"] + known[2]["b_enc"]
    agree(made, 2, pre, np.where(pre > known[2]["threshold"], np.maximum(pre, 0), 0))
    some = load_transcoders([tmp_path / "layer_2_width_16k_l0_small", tmp_path / "layer_0_width_16k_l0_small"])
    assert (some.layers, some.name) == ((0, 2), "transcoders")
    with pytest.raises(LensError, match="two transcoders of layer 0"):
        load_transcoders([tmp_path / "layer_0_width_16k_l0_small"] * 2)
    with pytest.raises(LensError, match="no transcoder of one layer"):
        load_transcoders([tmp_path / "layer_1_of_another_kind"])


def test_gemma_scope_reads_before_the_gain(tmp_path: Path) -> None:
    """Of Gemma 2's norm, as was measured: what is in the folder of one layer below others is found."""
    home = tmp_path / "gemma-scope-2b-pt-transcoders"
    for layer in range(2):
        w = numbers(layer)
        place = home / f"layer_{layer}" / "width_16k" / "average_l0_7"
        place.mkdir(parents=True)
        arrays: Any = {name[0].upper() + name[1:] if name[0] == "w" else name: w[name] for name in list(w)[:5]}
        np.savez(place / "params.npz", **arrays)
    made = load_transcoders(home)
    assert (made.reads, made.writes, made.layers) == ("mlp_normed", "mlp_added", (0, 1))
    (home / "layer_1" / "width_16k" / "average_l0_80").mkdir()
    with pytest.raises(LensError, match="several transcoders: average_l0_7, average_l0_80"):
        load_transcoders(home)


def test_a_bias_that_is_subtracted_and_scales_are_folded_in() -> None:
    """The linear function is of the tensor as the model has it, whatever is done to it first."""
    from lens_tui import GatedSAE, StandardSAE
    from lens_tui.sae.files import Definition

    w = numbers(1)
    how: dict[str, Any] = {"subtract_b_dec": True, "input_scale": 0.5, "output_scale": 2.0}
    plain = StandardSAE.from_arrays(
        w["w_enc"], w["w_dec"], w["b_dec"], definition=Definition(activation="relu", **how), w_skip=w["w_skip"],
        b_enc=w["b_enc"],
    )  # fmt: skip
    pre = (0.5 * X - w["b_dec"]) @ w["w_enc"] + w["b_enc"]
    made = LayerTranscoders({0: plain}, "s", "mlp_in", "mlp_out")
    agree(made, 0, pre, np.maximum(pre, 0))
    whole = np.maximum(pre, 0) @ np.array(made.decoder(0, 0, np.arange(N))) + np.array(made.decoder_bias(0))
    skip = made.skip(0)
    assert skip is not None
    expected = np.array(plain.reconstruct(mx.array(X)).output)
    np.testing.assert_allclose(whole + X @ np.array(skip), expected, atol=1e-3)
    gated = GatedSAE.from_arrays(
        w["w_enc"], w["w_dec"], w["b_dec"], b_gate=w["b_gate"], b_mag=w["b_mag"], r_mag=w["r_mag"]
    )
    q = X @ w["w_enc"]
    pre = q * np.exp(w["r_mag"]) + w["b_mag"]
    agree(
        LayerTranscoders({0: gated}, "s", "mlp_in", "mlp_out"),
        0,
        pre,
        np.where(q + w["b_gate"] > 0, np.maximum(pre, 0), 0),
    )
    own = StandardSAE.from_arrays(
        w["w_enc"], w["w_dec"], w["b_dec"], definition=Definition(activation="relu", normalize="layer_norm"),
        b_enc=w["b_enc"],
    )  # fmt: skip
    with pytest.raises(LensError, match="no direct effects go through it"):
        LayerTranscoders({0: own}, "s", "mlp_in", "mlp_out")


def test_what_is_no_set_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="no folder of transcoders"):
        load_transcoders(tmp_path / "gone")
    with pytest.raises(LensError, match="has no transcoders"):
        load_transcoders(tmp_path)
    write_clt(tmp_path)
    (tmp_path / "W_dec_1.safetensors").unlink()
    with pytest.raises(LensError, match="W_dec_1"):
        load_transcoders(tmp_path)
    write_clt(tmp_path)
    write_safetensors(tmp_path / "W_dec_1.safetensors", {"W_dec_1": np.zeros((N, 9, D), np.float32)})
    with pytest.raises(LensError, match=r"W_dec_1 .* has shape"):
        load_transcoders(tmp_path)
    (tmp_path / "W_enc_1.safetensors").unlink()
    with pytest.raises(LensError, match="no file of layer 1"):
        load_transcoders(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.yaml").write_text("feature_input_hook: blocks.hook_what")
    write_safetensors(tmp_path / "one" / "layer_0.safetensors", plt_tensors(0, skip=False, jump=False)[1])
    with pytest.raises(LensError, match=r"names the hook 'blocks\.hook_what'"):
        load_transcoders(tmp_path / "one")
    assert load_sae(tmp_path / "one" / "layer_0.safetensors").info.layer == 0
