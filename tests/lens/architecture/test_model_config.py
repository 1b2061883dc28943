"""config.json as transformers 4 and 5 write it: mlx-lm is told what it says, or refuses it naming the field."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from lens_tui import LensError, LensModel
from lens_tui.lens.architecture.load_model import load_folder
from lens_tui.lens.architecture.model_config import _args_class, _text_class, understand
from tests.folders import D_MODEL, HEADS, N_LAYERS, llama_folder
from tests.lens import architectures
from tests.lens.numpy_models import _heads, attend, rms, rope

THETA, LOCAL = 777777.0, 33333.0
REFUSED = {"dbrx": "rope_theta", "recurrent_gemma": "rope_theta"}
"""Architectures whose base of rotary positions mlx-lm fixes, or has where transformers 5 does not write it."""
BASES = ("rope_theta", "rotary_emb_base")
LOCAL_BASES = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("transformers")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


def written_by_5(name: str) -> dict[str, Any]:
    """What transformers 5 writes for a model of its own defaults, with bases that no class has by default."""
    from transformers import CONFIG_MAPPING

    written: dict[str, Any] = json.loads(json.dumps(CONFIG_MAPPING[name]().to_dict(), default=str))
    inner = text_of(written)
    rope = inner.get("rope_parameters")
    if isinstance(rope, dict):
        parts = {kind: part for kind, part in rope.items() if isinstance(part, dict)}
        for kind, part in parts.items() or [("full_attention", rope)]:
            part["rope_theta"] = THETA if kind == "full_attention" else LOCAL
    return written


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def known() -> list[str]:
    from transformers import CONFIG_MAPPING

    names = {*architectures.names(), "mistral"} - set(architectures.UNIMPORTABLE)
    return sorted(name for name in names if name in CONFIG_MAPPING)


def one_base(name: str) -> bool:
    """Whether transformers writes one base for all layers, or mlx-lm's class has a place for the second."""
    rope = text_of(written_by_5(name)).get("rope_parameters")
    return isinstance(rope, dict) and "rope_theta" in rope


@pytest.mark.parametrize("name", known())
def test_what_transformers_5_writes_reaches_mlx_lms_class_or_is_refused(name: str) -> None:
    config = written_by_5(name)
    inner = text_of(config)
    rope = inner.get("rope_parameters")
    if name in REFUSED:
        with pytest.raises(LensError, match=rf"config\.json sets \S*{REFUSED[name]}"):
            understand(config)
        return
    try:
        found = understand(config)
    except LensError:
        found = None
    if found is None:
        assert not one_base(name)  # mlx-lm has one base for layers of two
        return
    told = {**inner, **found.changes.get("text_config", found.changes)}
    if not isinstance(rope, dict):
        return
    if "rope_theta" in rope:
        placed = [told[field] for field in BASES if field in told]
        assert THETA in placed or "rope_parameters" in names_of(config)
    elif any(field in told for field in LOCAL_BASES):
        assert [told[field] for field in LOCAL_BASES if field in told] == [LOCAL]
        assert told["rope_theta"] == THETA


def names_of(config: dict[str, Any]) -> set[str]:
    """The fields of mlx-lm's class for a language model's configuration."""
    from dataclasses import fields

    args = _args_class(config)
    inner = _text_class(args, text_of(config))
    return {item.name for item in fields(inner or args)}


def logits(folder: Path, **options: Any) -> np.ndarray[Any, Any]:
    loaded = load_folder(folder, **options)
    model: Any = loaded.model
    return np.array(model(mx.array([[1, 17, 5, 80, 33, 2]])).astype(mx.float32))


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}, LLAMA3], ids=["none", "linear", "3"])
def test_the_same_model_in_both_forms_is_the_same_model(tmp_path: Path, scaling: dict[str, Any] | None) -> None:
    rope = {"rope_theta": THETA, **(scaling or {"rope_type": "default"})}
    old = llama_folder(tmp_path / "old", rope_theta=THETA, rope_scaling=scaling)
    new = llama_folder(tmp_path / "new", rope_parameters=rope)
    plain = llama_folder(tmp_path / "plain")
    np.testing.assert_array_equal(logits(new), logits(old))
    assert np.abs(logits(new) - logits(plain)).max() > 1e-3
    np.testing.assert_array_equal(
        logits(plain, model_config={"rope_theta": THETA, "rope_scaling": scaling}), logits(old)
    )


def in_numpy(folder: Path, ids: list[int], theta: float) -> np.ndarray[Any, Any]:
    """Logits of a folder of ``llama_folder`` from its weights alone."""
    w = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(N_LAYERS):
        p = f"model.layers.{layer}."
        n = rms(x, w[p + "input_layernorm.weight"], 1e-5)
        q, k, v = (_heads(n @ w[f"{p}self_attn.{name}_proj.weight"].T, HEADS) for name in "qkv")
        z = attend(rope(q, theta), rope(k, theta), v, (D_MODEL // HEADS) ** -0.5, None)
        x = x + z.transpose(1, 0, 2).reshape(len(ids), -1) @ w[p + "self_attn.o_proj.weight"].T
        n = rms(x, w[p + "post_attention_layernorm.weight"], 1e-5)
        gate, up = n @ w[p + "mlp.gate_proj.weight"].T, n @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    logits: np.ndarray[Any, Any] = rms(x, w["model.norm.weight"], 1e-5) @ w["model.embed_tokens.weight"].T
    return logits


def test_the_base_of_transformers_5_is_computed(tmp_path: Path) -> None:
    ids = [1, 17, 5, 80, 33, 2, 64, 9]
    folder = llama_folder(tmp_path / "m", rope_parameters={"rope_type": "default", "rope_theta": THETA})
    got = np.array(LensModel(str(folder)).forward(ids).astype(mx.float32))[0]
    expected = in_numpy(folder, ids, THETA)
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())
    assert np.abs(in_numpy(folder, ids, 10000.0) - expected).max() > 2e-2 * np.abs(expected).max()


def test_brackets_spaces_and_accents_in_a_path(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "a [b] é *" / "m[1]")
    assert LensModel(str(folder)).loss([1, 2, 3]) == LensModel(str(llama_folder(tmp_path / "m"))).loss([1, 2, 3])


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_theta": {"__float__": "NaN"}}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "rope_scaling.factor"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_parameters.rope_theta"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 1}, "hidden_size"),
        ({"intermediate_size": 1}, "_proj.weight"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"num_attention_heads": 10**9}, "num_attention_heads"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"quantization": {"bits": 8, "group_size": 0}}, "quantization.group_size"),
        ({"text_config": [1]}, "text_config"),
        ({"model_type": "gemma3n"}, "text_config"),
        ({"model_type": "\x1b[31m" + "x" * 100_000}, "architecture"),
        ({"model_type": "mixtral", "rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling"),
    ],
)
def test_what_makes_no_model_is_refused_naming_the_field(tmp_path: Path, config: dict[str, Any], field: str) -> None:
    with pytest.raises(LensError) as refused:
        LensModel(str(llama_folder(tmp_path / "m", **config)))
    said = str(refused.value)
    assert field in said
    assert len(said) < 500
    assert said.isprintable()


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral", "sliding_window": 16}, 16),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"sliding_window": 16}, None),  # not a field of llama
    ],
)
def test_texts_longer_than_a_window_that_is_not_computed_are_refused(
    tmp_path: Path, config: dict[str, Any], window: int | None
) -> None:
    lens = LensModel(str(llama_folder(tmp_path / "m", **config)))
    assert lens.registry.decoder.window == window
    lens.forward([1] * 16)
    if window is not None:
        with pytest.raises(LensError, match="17 positions; mlx-lm gets this model right for 16"):
            lens.forward([1] * 17)


def test_a_pattern_of_layers_in_transformers_5_is_mlx_lms_period() -> None:
    layers = ["sliding_attention", "full_attention"] * 2
    config = {**written_by_5("gemma3_text"), "num_hidden_layers": 4, "layer_types": layers}
    config.pop("_sliding_window_pattern", None)
    assert understand(config).changes["sliding_window_pattern"] == 2
    config["layer_types"] = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    with pytest.raises(LensError, match="layer_types"):
        understand(config)


def test_fields_that_are_left_out_are_transformers_defaults(tmp_path: Path) -> None:
    """mlx-lm's Mistral ties its embeddings unless it is told; transformers' does not."""
    assert understand({"model_type": "mistral", "hidden_size": 64}).changes["tie_word_embeddings"] is False


def test_long_rope_is_that_of_short_texts_up_to_their_length() -> None:
    short, long = [1.0] * 48, [2.0] * 48
    scaling = {"type": "longrope", "short_factor": short, "long_factor": long}
    config = {
        **written_by_5("phi3"),
        "original_max_position_embeddings": 4096,
        "max_position_embeddings": 131072,
        "sliding_window": None,
        "rope_scaling": scaling,
    }
    config.pop("rope_parameters")
    found = understand(config)
    assert found.changes["rope_scaling"]["long_factor"] == short
    assert found.window == 4096


def test_yarn_without_truncation_has_the_frequencies_of_the_paper() -> None:
    """gpt-oss: the ramp between YaRN's bounds (Peng et al. 2023, arXiv:2309.00071) as they are."""
    from lens_tui.lens.architecture.load_model import _untruncate

    model = architectures.make("gpt_oss")
    from mlx_lm.models.rope_utils import YarnRoPE

    dims, theta, factor, original = 8, 150000.0, 32.0, 4096
    rope: Any = YarnRoPE
    for layer in model.layers:
        layer.self_attn.rope = rope(dims, base=theta, scaling_factor=factor, original_max_position_embeddings=original)
    scaling = {"factor": factor, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": original}
    _untruncate(model, scaling, {"rope_theta": theta})
    low, high = (dims * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(theta)) for turns in (32.0, 1.0))
    ramp = np.clip((np.arange(dims // 2) - max(low, 0)) / (min(high, dims - 1) - max(low, 0)), 0, 1)
    plain = theta ** (-np.arange(0, dims, 2) / dims)
    expected = plain / factor * ramp + plain * (1 - ramp)
    np.testing.assert_allclose(1 / np.array(model.layers[0].self_attn.rope._freqs), expected, rtol=1e-5)
