"""Models and SAEs found on disk, what is said of them, and what someone typed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from lens_tui import LensModel, blas, demo
from lens_tui.records import LensError
from lens_tui.records.hub_fetch import cached_snapshot
from lens_tui.records.info import Dequantize
from lens_tui.records.machine import machine_memory
from lens_tui.tasks import models
from lens_tui.tasks.models import (
    ModelEntry,
    SAEEntry,
    cached_models,
    check_model,
    describe_quantization,
    estimate_memory,
    kv_bytes_per_token,
    list_models,
    list_saes,
    read_model_folder,
    recent_models,
    remember_model,
    remove,
    saes_at_hub,
    supported_architectures,
)
from tests.folders import D_MODEL, N_LAYERS, VOCAB, llama_folder, sae_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, repo: str, source: Path, commit: str = "a" * 40, *, main: bool = True) -> Path:
    """A repository in the cache's own layout, with ``source`` as the snapshot of ``commit``."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, snapshot)
    (home / "blobs").mkdir(exist_ok=True)
    if main:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(commit)
    return snapshot


def test_the_bundled_model_comes_first(cache: Path) -> None:
    (first,) = list_models(cache)
    assert (first.id, first.source, first.architecture, first.problem) == ("demo", "demo", "qwen3", "")
    assert first.nbytes > 1_000_000
    assert first.n_layers > 0


def test_cached_models_are_listed_and_all_else_is_not(cache: Path, tmp_path: Path) -> None:
    model = llama_folder(tmp_path / "m", quantization={"group_size": 64, "bits": 4})
    snapshot = put(cache, "org/model", model)
    put(cache, "org/adapter", sae_folder(tmp_path / "adapter"))
    put(cache, "org/torch", llama_folder(tmp_path / "t"))
    torch = cache / "models--org--torch" / "snapshots" / ("a" * 40)
    (torch / "model.safetensors").rename(torch / "pytorch_model.bin")
    put(cache, "org/old", llama_folder(tmp_path / "o", hidden_size=100), "b" * 40, main=False)
    (cache / "datasets--org--data" / "snapshots").mkdir(parents=True)
    (cache / "models--broken").mkdir()
    found = {entry.id: entry for entry in list_models(cache)}
    assert set(found) == {"demo", "org/model", "org/old"}
    entry = found["org/model"]
    assert entry.path == str(snapshot)
    assert (entry.n_layers, entry.d_model, entry.vocab_size, entry.context) == (N_LAYERS, D_MODEL, VOCAB, 512)
    assert entry.quantization == "4-bit, groups of 64"
    assert entry.nbytes == (snapshot / "model.safetensors").stat().st_size


def test_folders_used_lately_and_folders_of_folders(cache: Path, tmp_path: Path) -> None:
    one = llama_folder(tmp_path / "some" / "one")
    two = llama_folder(tmp_path / "some" / "two", model_type="unheard_of")
    (tmp_path / "some" / "notes").mkdir()
    remember_model(str(one))
    remember_model("/gone/away")
    remember_model("org/not-here")
    assert {entry.id for entry in list_models(cache)} == {"demo", str(one)}
    both = {entry.id: entry for entry in list_models(cache, folders=(tmp_path / "some", "/nowhere"))}
    assert set(both) == {"demo", str(one), str(two)}
    assert "does not know the architecture unheard_of" in both[str(two)].problem


def test_no_cache_at_all(tmp_path: Path) -> None:
    assert cached_models(tmp_path / "nothing") == []
    assert list_saes("google/gemma-3-1b-it", tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "no model at an empty path"),
        ("nonsense", "no model at nonsense"),
        ("/no/such/folder", "no model at /no/such/folder"),
        ("../up/../down", "no model at"),
        ("a/b/c", "no model at a/b/c"),
        ("org/na me", "no model at"),
        ("x\x1b[31m", "no model at x␛"),
        ("org/--", "no model at"),
    ],
)
def test_what_is_no_model_is_one_sentence(cache: Path, typed: str, message: str) -> None:
    with pytest.raises(LensError, match=message) as caught:
        check_model(typed)
    assert caught.value.hint


def test_what_was_typed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = llama_folder(tmp_path / "org" / "model")
    assert check_model(" demo ").source == "demo"
    assert check_model("org/model").source == "hub"
    put(cache, "org/model", folder)
    assert check_model("org/model").source == "cache"
    assert check_model(str(folder)).source == "folder"
    monkeypatch.chdir(tmp_path)
    assert check_model("org/model") == check_model(str(folder))  # a folder wins
    with pytest.raises(LensError, match=r"is a file"):
        check_model(str(folder / "config.json"))
    with pytest.raises(LensError, match=r"no config\.json"):
        check_model(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": "' + "x" * (5 << 20) + '"}', "more than 4 MiB"),
    ],
    ids=["cut", "a list", "deep", "large"],
)
def test_a_config_that_is_none(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(LensError, match=message):
        read_model_folder(tmp_path)


def test_a_config_of_wrong_types_is_read_as_unknown(tmp_path: Path) -> None:
    folder = llama_folder(
        tmp_path / "m",
        hidden_size="wide\x1b",
        num_hidden_layers=-3,
        vocab_size=True,
        model_type=["x"],
        text_config=[1],
        quantization="8",
        max_position_embeddings=1e300,
    )
    entry = read_model_folder(folder)
    assert (entry.d_model, entry.n_layers, entry.vocab_size, entry.quantization) == (0, 0, 0, "")
    assert entry.problem
    assert "\x1b" not in repr(entry)


def test_problems_are_said(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    assert read_model_folder(folder).problem == "1 of its 2 weight files are missing."
    index.write_text("{")
    assert "index.json cannot be read" in read_model_folder(folder).problem
    index.unlink()
    (folder / "model.safetensors").rename(folder / "x.gguf")
    assert "not in mlx-lm's format" in read_model_folder(folder).problem
    (folder / "x.gguf").unlink()
    assert "no weights" in read_model_folder(folder).problem


def test_architectures_are_mlx_lms_without_importing_it() -> None:
    known = supported_architectures()
    assert {"llama", "gemma3", "qwen3", "mistral", "falcon_mamba"} <= known  # the last two are other names
    assert "nothing_like_it" not in known


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({}, ""),
        ({"quantization": {"bits": 8, "group_size": 32}}, "8-bit, groups of 32"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "mxfp4 4-bit, groups of 32"),
        ({"quantization": {"bits": 4, "group_size": 64, "lm_head": {"bits": 8}}}, "4-bit, groups of 64, mixed"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    ],
)
def test_quantisation_in_words(config: dict[str, Any], shown: str) -> None:
    assert describe_quantization(config) == shown


def test_kv_cache_size() -> None:
    plain = {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 64}
    assert kv_bytes_per_token(plain) == 2 * 3 * 64 * 2
    assert kv_bytes_per_token({**plain, "num_key_value_heads": 2}) == 2 * 3 * 16 * 2
    assert kv_bytes_per_token({**plain, "num_key_value_heads": 2, "head_dim": 32}) == 2 * 3 * 64 * 2
    assert kv_bytes_per_token({**plain, "kv_lora_rank": 100, "qk_rope_head_dim": 10}) == 3 * 110 * 2
    assert kv_bytes_per_token({}) == 0


def test_kv_cache_size_is_what_mlx_lm_takes(tiny: Path) -> None:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    found: Any = load(str(tiny))
    cache = make_prompt_cache(found[0])
    tokens = 256  # the cache grows in steps of 256
    found[0](mx.zeros((1, tokens), dtype=mx.int32), cache=cache)
    mx.eval([layer.state for layer in cache])
    # The tiny model is float32, 4 bytes; the estimate is for 16-bit values.
    assert sum(layer.nbytes for layer in cache) == 2 * read_model_folder(tiny).kv_bytes * tokens


def test_memory_is_estimated_before_loading() -> None:
    entry = ModelEntry("x", "x", "hub", nbytes=1000, kv_bytes=10, d_model=4, vocab_size=7)
    found = estimate_memory(entry, tokens=5, arms=3, captured_layers=2)
    assert (found.weights, found.cache, found.capture, found.logits) == (1000, 150, 2 * 5 * 3 * 4 * 4, 3 * 7 * 16)
    assert found.total == 1000 + 150 + 480 + 336
    assert found.machine == machine_memory() > 1 << 28
    assert found.fits
    assert not estimate_memory(ModelEntry("x", "x", "hub", nbytes=1 << 60)).fits


def test_weights_in_float32_are_estimated_where_they_will_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = read_model_folder(demo.model_path())
    exact = 19_668_352 * 4
    assert entry.float32_bytes == pytest.approx(exact, rel=0.03)
    found = {how: estimate_memory(entry, tokens=5, dequantize=how) for how in get_args(Dequantize)}
    assert (found["never"].weights, found["never"].float32) == (entry.nbytes, False)
    assert (found["always"].weights, found["always"].float32) == (entry.float32_bytes, True)
    assert found["always"].cache == 2 * found["never"].cache
    monkeypatch.setattr(blas, "state", lambda: blas.Blas(True, ""))
    assert estimate_memory(entry).float32
    monkeypatch.setattr(models, "free_memory", lambda: 2 * entry.float32_bytes - 1)
    assert not estimate_memory(entry).float32


@pytest.mark.parametrize(
    ("config", "times"),
    [
        ({"torch_dtype": "bfloat16"}, 2),
        ({"dtype": "float16"}, 2),
        ({"torch_dtype": "float32"}, 0),
        ({}, 0),
        ({"quantization": {"bits": 4, "group_size": 64}, "torch_dtype": "bfloat16"}, 32 / 4.5),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, 32 / 4.25),
        ({"quantization": {"bits": "4"}}, 0),
        ({"quantization": {"bits": 4, "group_size": 0}}, 8),
    ],
)
def test_what_a_config_says_of_float32(config: dict[str, Any], times: float, tmp_path: Path) -> None:
    entry = read_model_folder(llama_folder(tmp_path / "m", **config))
    assert entry.float32_bytes == int(entry.nbytes * times)


def test_saes_at_hand(cache: Path, tmp_path: Path) -> None:
    assert [sae.source for sae in list_saes("demo", cache)] == ["demo"] * len(list_saes("demo", cache))
    assert list_saes("demo", cache)
    scope = tmp_path / "scope"
    sae_folder(scope / "resid_post" / "layer_7_width_16k_l0_medium")
    put(cache, "google/gemma-scope-2-1b-it", scope)
    put(cache, "google/gemma-scope-2b-pt-res", scope)
    put(cache, "someone/other-saes", scope)
    (found,) = list_saes("mlx-community/gemma-3-1b-it-4bit", cache)
    assert found.name == "google/gemma-scope-2-1b-it/resid_post/layer_7_width_16k_l0_medium"
    assert found.nbytes > 0
    assert Path(found.path, "params.safetensors").exists()
    assert list_saes("google/gemma-3-1b-pt", cache) == []
    assert len(list_saes("google/gemma-2-2b-it", cache)) == 1
    assert list_saes("google/gemma-3-4b-it", cache) == []
    assert list_saes("meta/llama", cache) == []


def test_saes_trained_here_are_at_hand_for_their_model(cache: Path, tmp_path: Path) -> None:
    from lens_tui.records import paths

    own = sae_folder(paths.saes_folder() / "mine")  # says it is of "tiny"
    (paths.saes_folder() / "broken").mkdir()
    (paths.saes_folder() / "broken" / "config.json").write_text("[")
    assert [(sae.path, sae.source) for sae in list_saes("tiny", cache)] == [(str(own), "own")]
    assert [sae.name for sae in list_saes(str(tmp_path / "tiny"), cache)] == ["mine"]
    assert all(sae.source == "demo" for sae in list_saes("demo", cache))


def test_snapshots_whose_ref_moved_on_and_broken_links_are_listed_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"

    def repo(name: str, ref: str, *snapshots: str) -> Path:
        folder = hub / f"models--org--{name}"
        for number, snapshot in enumerate(snapshots):
            llama_folder(folder / "snapshots" / snapshot, seed=number)
            os.utime(folder / "snapshots" / snapshot, (1000 + number, 1000 + number))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(ref)
        return folder / "snapshots" / snapshots[-1]

    repo("dangling", "b" * 40, "a" * 40)
    (repo("badlink", "a" * 40, "a" * 40) / "README.md").symlink_to("../../blobs/none")
    repo("two", "a" * 40, "a" * 40, "c" * 40)
    (repo("half", "c" * 40, "a" * 40, "c" * 40) / "model.safetensors").unlink()
    entries = {entry.id: entry for entry in cached_models(hub)}
    assert sorted(entries) == ["org/badlink", "org/dangling", "org/half", "org/two"]
    assert all(entry.path.endswith("a" * 40) and not entry.problem for entry in entries.values())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in entries:
        assert cached_snapshot(name) == Path(entries[name].path)
        assert LensModel(name).loss([1, 2, 3]) > 0
    with pytest.raises(LensError, match="not in the cache"):
        LensModel("org/none")


def test_a_download_that_broke_off_is_listed_with_what_came(cache: Path, tmp_path: Path) -> None:
    snapshot = put(cache, "org/model", llama_folder(tmp_path / "m"))
    (snapshot / "model.safetensors").unlink()
    assert cached_models(cache) == []  # a model of another kind, as far as one can tell
    (cache / "models--org--model" / "blobs" / "abc.lens-tui.incomplete").write_bytes(b"x" * 1000)
    (entry,) = cached_models(cache)
    assert (entry.source, entry.partial, entry.nbytes, entry.problem, entry.path) == ("hub", 1000, 0, "", "")
    assert entry.n_layers == N_LAYERS
    (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"y" * 50)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [entry.partial for entry in cached_models(cache)] == [1050]


def test_a_model_is_removed_from_the_cache_whole_and_nothing_else(cache: Path, tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "m")
    put(cache, "org/model", folder)
    put(cache, "org/model", folder, "b" * 40, main=False)
    put(cache, "org/other", folder)
    remember_model("org/model")
    size = sum(file.stat().st_size for file in (cache / "models--org--model").rglob("*") if file.is_file())
    (entry,) = (entry for entry in cached_models(cache) if entry.id == "org/model")
    assert remove(entry) == size > 0
    assert [place.name for place in cache.iterdir()] == ["models--org--other"]
    assert recent_models() == []
    with pytest.raises(LensError, match="org/model is not in the cache"):
        remove(entry)
    for name in ("", "..", "org/../..", "org"):
        with pytest.raises(LensError, match="not in the cache"):
            remove(replace(entry, id=name))
    assert (cache / "models--org--other").is_dir()


def test_a_folder_only_leaves_the_list_and_the_bundled_model_stays(cache: Path, tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "m")
    remember_model(str(folder))
    entry = check_model(str(folder))
    assert remove(entry) == 0
    assert recent_models() == []
    assert (folder / "config.json").exists()
    with pytest.raises(LensError, match="your settings name"):
        remove(entry)
    with pytest.raises(LensError, match="part of the app"):
        remove(check_model("demo"))


def test_an_sae_is_removed_with_what_its_links_name_and_the_others_stay(cache: Path, tmp_path: Path) -> None:
    scope = tmp_path / "scope"
    for layer in (7, 13):
        sae_folder(scope / "resid_post" / f"layer_{layer}_width_16k_l0_medium", seed=layer)
    snapshot = put(cache, "google/gemma-scope-2-1b-it", scope)
    blobs = cache / "models--google--gemma-scope-2-1b-it" / "blobs"
    for number, file in enumerate(sorted(file for file in snapshot.rglob("*") if file.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    first, second = list_saes("google/gemma-3-1b-it", cache)
    assert remove(first) == first.nbytes > 0
    assert list_saes("google/gemma-3-1b-it", cache) == [second]
    assert len(list(blobs.iterdir())) == len(list(Path(second.path).iterdir()))


@pytest.mark.parametrize(
    ("model", "repo", "one"),
    [
        ("mlx-community/gemma-3-1b-it-4bit", "google/gemma-scope-2-1b-it", "resid_post/layer_13_width_16k_l0_medium"),
        ("google/gemma-3-4b-pt", "google/gemma-scope-2-4b-pt", "resid_post/layer_9_width_16k_l0_medium"),
        ("google/gemma-3-270m", "google/gemma-scope-2-270m-pt", "resid_post/layer_5_width_16k_l0_medium"),
        ("mlx-community/gemma-2-2b-it-4bit", "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"),
        ("google/gemma-2-9b-it", "google/gemma-scope-9b-it-res", "layer_20/width_16k/average_l0_91"),
        ("google/gemma-2-9b", "google/gemma-scope-9b-pt-res", "layer_20/width_16k/average_l0_68"),
        ("mlx-community/Meta-Llama-3.1-8B-4bit", "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x"),
        ("/models/Meta-Llama-3-8B", "EleutherAI/sae-llama-3-8b-32x-v2", "layers.23"),
        ("Qwen/Qwen3-8B-Base", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50", "layer24.sae.pt"),
    ],
)
def test_saes_at_the_hub_of_known_families(model: str, repo: str, one: str) -> None:
    found = [sae.path for sae in saes_at_hub(model)]
    assert f"{repo}/{one}" in found
    assert {"/".join(path.split("/")[:2]) for path in found} - {repo} <= {"EleutherAI/sae-llama-3.1-8b-64x"}
    here = [SAEEntry("/x", f"{repo}/{one}", "cache")]
    assert f"{repo}/{one}" not in [sae.path for sae in saes_at_hub(model, here)]


@pytest.mark.parametrize("model", ["demo", "org/gemma-3-1bit", "Qwen/Qwen3-80B", "meta-llama/Llama-3.2-1B", ""])
def test_models_of_no_known_family_have_none(model: str) -> None:
    assert saes_at_hub(model) == []
