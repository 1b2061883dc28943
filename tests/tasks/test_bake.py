"""Baked models as files: in plain mlx-lm and here, as a LoRA of both forms, as a control vector; PEFT's adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lens_tui import Add, Baked, LensError, LensModel, ProjectOut, bake
from lens_tui.records.vector_formats import load_vectors
from tests.folders import D_MODEL, N_LAYERS, llama_folder

IDS = [3, 17, 900, 33, 2, 64, 9]
TEXTS = [IDS, [5, 6, 7, 8, 9, 10]]


def direction(seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=D_MODEL)


def log_probs(logits: Any) -> Any:
    x = np.array(logits.astype(mx.float32), np.float64)[0]
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = llama_folder(tmp_path_factory.mktemp("bake") / "untied", tie_word_embeddings=False)
    weights = load_file(made / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, made / "model.safetensors")
    return made


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("bake") / "tied")


def live(folder: Path, *records: Any) -> Any:
    lens = LensModel(str(folder))
    with lens.intervene(*records):
        return log_probs(lens.forward(IDS))


def in_mlx_lm(folder: Path, **options: Any) -> Any:
    """What mlx-lm gives, without anything of this library."""
    import mlx_lm

    load: Any = mlx_lm.load
    return log_probs(load(str(folder), **options)[0](mx.array([IDS])))


def add(layer: int = 1) -> Add:
    return Add(id="a", layer=layer, vector=direction(), scale=0.6)


def everywhere() -> list[ProjectOut]:
    sites = [(0, "resid_pre"), *[(at, site) for at in range(N_LAYERS) for site in ("attn_out", "mlp_out")]]
    return [ProjectOut(id=f"{at}{site}", layer=at, site=site, vector=direction()) for at, site in sites]


def test_a_baked_model_is_the_steered_one_in_plain_mlx_lm(tied: Path, tmp_path: Path) -> None:
    made = bake(str(tied), [add()], tmp_path / "out", texts=TEXTS)
    want = live(tied, add())
    np.testing.assert_allclose(in_mlx_lm(tmp_path / "out"), want, atol=1e-4)
    assert made.max_delta < 1e-4
    assert made.kl_live < 1e-6 < 1e-3 < made.kl_plain
    plain = log_probs(LensModel(str(tied)).forward(IDS))
    kl = (np.exp(plain) * (plain - want)).sum(-1)[:-1]
    alone = bake(str(tied), [add()], tmp_path / "alone", texts=[IDS])
    assert alone.kl_plain == pytest.approx(kl.mean(), rel=1e-3)
    assert alone.loss_baked == pytest.approx(-want[np.arange(len(IDS) - 1), IDS[1:]].mean(), rel=1e-4)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mlp_bias"] is True


def test_a_baked_model_has_the_chat_templates_of_the_plain_one(tied: Path, tmp_path: Path) -> None:
    shutil.copytree(tied, tmp_path / "m")
    templates = {"chat_template.jinja": "usual", "additional_chat_templates/dialogue.jinja": "other"}
    for name, text in templates.items():
        file = tmp_path / "m" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    bake(str(tmp_path / "m"), [add()], tmp_path / "out", texts=TEXTS)
    assert {name: (tmp_path / "out" / name).read_text() for name in templates} == templates


def test_a_projection_unties_an_embedding_and_says_that_it_acts_everywhere(tied: Path, tmp_path: Path) -> None:
    made = bake(str(tied), [ProjectOut(id="p", layer=1, vector=direction())], tmp_path / "out", texts=TEXTS)
    np.testing.assert_allclose(in_mlx_lm(tmp_path / "out"), live(tied, *everywhere()), atol=1e-4)
    assert made.everywhere
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_packed_model_is_packed_again(tied: Path, tmp_path: Path) -> None:
    import mlx_lm

    convert: Any = mlx_lm.convert
    convert(str(tied), str(tmp_path / "q"), quantize=True, q_bits=8, q_group_size=32)
    made = bake(str(tmp_path / "q"), [add()], tmp_path / "out", texts=TEXTS)
    assert made.max_delta < 1e-4
    assert made.kl_live < 1e-3
    assert "8-bit, group 32" in made.quantization
    was, now = (load_file(tmp_path / name / "model.safetensors") for name in ("q", "out"))
    np.testing.assert_array_equal(
        now["model.layers.1.mlp.down_proj.weight"], was["model.layers.1.mlp.down_proj.weight"]
    )


def test_a_lora_of_mlx_lm_takes_a_direction_out(folder: Path, tmp_path: Path) -> None:
    made = bake(
        str(folder), [ProjectOut(id="p", layer=1, vector=direction())], tmp_path / "l", form="lora", texts=TEXTS
    )
    want = live(folder, *everywhere())
    np.testing.assert_allclose(in_mlx_lm(folder, adapter_path=str(tmp_path / "l")), want, atol=1e-4)
    assert made.max_delta < 1e-4


@pytest.mark.parametrize("kind", ["add", "out"])
def test_an_adapter_of_peft_is_the_steering(tied: Path, tmp_path: Path, kind: str) -> None:
    records: list[Any] = [add()] if kind == "add" else [ProjectOut(id="p", layer=1, vector=direction())]
    made = bake(str(tied), records, tmp_path / "p", form="peft", texts=TEXTS)
    want = live(tied, *(records if kind == "add" else everywhere()))
    got = log_probs(LensModel(str(tied), adapter=str(tmp_path / "p")).forward(IDS))
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert made.max_delta < 1e-4


def test_a_control_vector_is_read_back_at_its_length(tied: Path, tmp_path: Path) -> None:
    records = [add(1), Add(id="b", layer=1, vector=direction(4), scale=-0.3)]
    made = bake(str(tied), records, tmp_path / "v.gguf", form="gguf", texts=TEXTS)
    (found,) = load_vectors(tmp_path / "v.gguf", n_layers=N_LAYERS)
    total = 0.6 * direction() - 0.3 * direction(4)
    np.testing.assert_allclose(found.direction * found.norm, total, rtol=1e-4, atol=1e-5)
    assert isinstance(made, Baked)
    assert made.max_delta < 1e-4


def test_forms_that_have_no_place_for_a_steering_say_so(tied: Path, tmp_path: Path) -> None:
    out = ProjectOut(id="p", layer=1, vector=direction())
    for form, records, says in (
        ("lora", [add()], "is a bias"),
        ("lora", [out], "tied to it"),
        ("peft", [out, add()], "not both"),
        ("gguf", [out], "cannot take a direction out"),
        ("gguf", [add(0)], "layer 0"),
    ):
        name = tmp_path / f"x{'.gguf' if form == 'gguf' else ''}"
        with pytest.raises(LensError, match=says):
            bake(str(tied), records, name, form=form, texts=TEXTS)  # type: ignore[arg-type]
        assert not name.exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    with pytest.raises(LensError, match="already"):
        bake(str(tied), [add()], tmp_path / "there")


# -- adapters of others ----------------------------------------------------


def peft_folder(folder: Path, tensors: dict[str, NDArray[np.float32]], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    facts = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_others_is_its_low_rank_product(tied: Path, tmp_path: Path, rslora: bool) -> None:
    rng = np.random.default_rng(1)
    start = "base_model.model.model.layers"
    shapes = {"1.self_attn.q_proj": (D_MODEL, D_MODEL, 4), "2.mlp.down_proj": (D_MODEL, 96, 2)}
    tensors, merged = {}, load_file(tied / "model.safetensors")
    for path, (rows, columns, rank) in shapes.items():
        a, b = rng.normal(size=(rank, columns)) * 0.2, rng.normal(size=(rows, rank)) * 0.2
        alpha = 11 if "down" in path else 6
        scale = alpha / (np.sqrt(rank) if rslora else rank)
        tensors[f"{start}.{path}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"{start}.{path}.lora_B.weight"] = b.astype(np.float32)
        merged[f"model.layers.{path}.weight"] += (scale * b @ a).astype(np.float32)
    adapter = peft_folder(tmp_path / "a", tensors, use_rslora=rslora, alpha_pattern={"mlp.down_proj": 11})
    other = llama_folder(tmp_path / "merged")
    save_file(merged, other / "model.safetensors")
    got = log_probs(LensModel(str(tied), adapter=str(adapter)).forward(IDS))
    np.testing.assert_allclose(got, log_probs(LensModel(str(other)).forward(IDS)), atol=1e-4)
    assert np.abs(got - log_probs(LensModel(str(tied)).forward(IDS))).max() > 0.1


def test_an_adapter_beside_packed_weights_leaves_them_packed(tied: Path, tmp_path: Path) -> None:
    import mlx_lm

    convert: Any = mlx_lm.convert
    convert(str(tied), str(tmp_path / "q"), quantize=True, q_bits=8, q_group_size=32)
    rng = np.random.default_rng(2)
    start = "base_model.model.model.layers.1.mlp.down_proj"
    a, b = (rng.normal(size=shape).astype(np.float32) * 0.2 for shape in ((2, 96), (D_MODEL, 2)))
    adapter = peft_folder(tmp_path / "a", {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}, r=2, lora_alpha=2)
    packed = LensModel(str(tmp_path / "q"), dequantize="never", adapter=str(adapter))
    module: Any = packed.model
    assert "scales" in module.layers[1].mlp.down_proj.linear
    plain = LensModel(str(tmp_path / "q"), dequantize="always", adapter=str(adapter))
    got, want = (log_probs(lens.forward(IDS)) for lens in (packed, plain))
    np.testing.assert_allclose(got, want, atol=0.05)
    assert packed.sites(1) == plain.sites(1)


def test_adapters_that_are_not_loras_of_this_model_are_refused_in_a_sentence(tied: Path, tmp_path: Path) -> None:
    good = "base_model.model.model.layers.1.mlp.down_proj"
    a, b = np.zeros((2, 96), np.float32), np.zeros((D_MODEL, 2), np.float32)
    pair = {f"{good}.lora_A.weight": a, f"{good}.lora_B.weight": b}
    strange = {key.replace("layers.1", "layers.9"): value for key, value in pair.items()}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (pair, {"peft_type": "IA3"}, "is IA3"),
        (pair, {"use_dora": True}, "use_dora"),
        (pair, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (strange, {}, "does not have"),
        ({**pair, f"{good}.lora_A.weight": np.zeros((2, 95), np.float32)}, {}, "shapes"),
        ({f"{good}.lora_A.weight": a}, {}, "only one of its two"),
        ({"model.norm.weight": np.zeros(4, np.float32)}, {}, "no part of a LoRA"),
        (pair, {"lora_alpha": "much"}, "lora_alpha"),
    ]
    for number, (tensors, config, says) in enumerate(cases):
        with pytest.raises(LensError, match=says):
            LensModel(str(tied), adapter=str(peft_folder(tmp_path / str(number), tensors, **config)))
    pickled = peft_folder(tmp_path / "pickle", pair)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(LensError, match="pickle"):
        LensModel(str(tied), adapter=str(pickled))
    with pytest.raises(LensError, match="no folder"):
        LensModel(str(tied), adapter=str(tmp_path / "nowhere"))
