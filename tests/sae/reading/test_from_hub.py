"""SAEs from a stand-in of the hub on this machine."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import JumpReLUSAE, load_sae, load_transcoders
from lens_tui.records import LensError
from lens_tui.sae.from_hub import fetch_transcoders
from lens_tui.sae.transcoder_sets import LayerTranscoders
from tests.hub import FakeHub, use_hub

from .makers import numbers, write_json, write_safetensors, write_torch

REPO = "google/gemma-scope-2-270m-it"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub().serve() as served:
        use_hub(monkeypatch, served.url, tmp_path / "cache")
        yield served


def gemma(folder: str, tmp_path: Path, seed: int = 0, config: bool = True) -> dict[str, bytes]:
    w = numbers(seed)
    names = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
    path = write_safetensors(tmp_path / "made" / "params.safetensors", {name: w[name] for name in names})
    layer = folder.split("layer_")[1].split("_")[0]
    hook = f"model.layers.{layer}.output"
    facts = {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "l0": 15, "model_name": "google/gemma-3-270m-it"}
    files = {f"{folder}/params.safetensors": path.read_bytes(), f"{folder}/examples.safetensors": b"x" * 1000}
    return files | ({f"{folder}/config.json": json.dumps(facts).encode()} if config else {})


@pytest.fixture
def scope(hub: FakeHub, tmp_path: Path) -> FakeHub:
    files = gemma("resid_post/layer_5_width_16k_l0_small", tmp_path)
    files |= gemma("resid_post_all/layer_5_width_16k_l0_small", tmp_path, seed=1)
    files |= gemma("resid_post_all/layer_6_width_16k_l0_small", tmp_path, seed=2)
    files |= gemma("resid_post_all/layer_7_width_262k_l0_big", tmp_path, seed=3, config=False)
    hub.repos[REPO] = files
    return hub


def test_two_files_and_no_more_with_progress(scope: FakeHub) -> None:
    seen: list[tuple[int, int]] = []
    sae = JumpReLUSAE.from_gemma_scope(
        REPO, 5, "16k", "l0_small", progress=lambda done, total: seen.append((done, total))
    )
    assert (sae.info.layer, sae.info.site, sae.info.l0) == (5, "resid_post", 15)
    assert sae.info.provenance["folder"] == "resid_post/layer_5_width_16k_l0_small (the set of four layers)"
    assert sae.info.provenance["revision"] == scope.commit
    assert scope.fetched("params.safetensors") == 1
    assert scope.fetched("config.json") == 1
    assert scope.fetched("examples.safetensors") == 0
    assert seen
    assert seen[-1][0] == seen[-1][1] > 1000


def test_a_layer_outside_the_four_is_in_the_set_of_every_layer(scope: FakeHub) -> None:
    sae = JumpReLUSAE.from_gemma_scope(REPO, 6, "16k", "l0_small")
    assert sae.info.layer == 6
    assert "the set of every layer" in sae.info.provenance["folder"]
    asked = [path for _, path, _ in scope.asked]
    assert not any("/resid_post/" in path for path in asked)


def test_a_folder_without_a_config_is_read_by_its_names(scope: FakeHub) -> None:
    sae = JumpReLUSAE.from_gemma_scope(REPO, 7, "262k", "l0_big")
    assert (sae.info.layer, sae.info.site, sae.info.model_name) == (7, "resid_post", "google/gemma-3-270m-it")
    assert "names" in sae.info.provenance["site"]


def test_the_cache_is_used_without_a_network(scope: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = JumpReLUSAE.from_gemma_scope(REPO, 6, "16k", "l0_small")
    asked = len(scope.asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    second = JumpReLUSAE.from_gemma_scope(REPO, 6, "16k", "l0_small")
    assert len(scope.asked) == asked
    assert first.info.id == second.info.id
    with pytest.raises(LensError, match="not in the cache"):
        JumpReLUSAE.from_gemma_scope(REPO, 7, "262k", "l0_big")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((REPO, 5, "16k", "l0_big"), "Of layer 5 it has width 16k l0_small"),
        ((REPO, 4, "16k", "l0_small"), "It has layers 5, 6, 7"),
        ((REPO, 18, "16k", "l0_small"), "its 18 layers are 0 to 17"),
        (("google/gemma-scope-2-2b-it", 5, "16k", "l0_small"), "SIZE is one of 270m, 1b, 4b, 12b, 27b"),
        (("google/gemma-scope-2-1b-it", 7, "16k", "l0_small"), "no google/gemma-scope-2-1b-it on the hub"),
        ((REPO, 5, "16k", "l0_small", "resid_mid"), "Its sites are resid_post"),
    ],
)
def test_what_does_not_exist_is_refused_naming_what_does(
    scope: FakeHub, arguments: tuple[object, ...], words: str
) -> None:
    with pytest.raises(LensError) as caught:
        JumpReLUSAE.from_gemma_scope(*arguments)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_an_interrupted_download_is_taken_up_again(scope: FakeHub) -> None:
    data = scope.repos[REPO]["resid_post/layer_5_width_16k_l0_small/params.safetensors"]

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        JumpReLUSAE.from_gemma_scope(REPO, 5, "16k", "l0_small", progress=stop)
    sae = JumpReLUSAE.from_gemma_scope(REPO, 5, "16k", "l0_small")
    assert (Path(sae.info.path) / "params.safetensors").read_bytes() == data


def test_load_sae_by_its_place_at_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    w = numbers()
    tensors = {
        "encoder.weight": w["w_enc"].T.copy(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["w_dec"],
        "b_dec": w["b_dec"],
    }
    made = write_safetensors(tmp_path / "s" / "sae.safetensors", tensors)
    write_json(tmp_path / "s" / "cfg.json", {"k": 7})
    q = write_torch(
        tmp_path / "q" / "layer3.sae.pt",
        {"W_enc": w["w_enc"].T.copy(), "W_dec": w["w_dec"].T.copy(), "b_enc": w["b_enc"], "b_dec": w["b_dec"]},
    )
    hub.repos["EleutherAI/sae-x"] = {
        "config.json": b'{"model": "some/model"}',
        "layers.2/sae.safetensors": made.read_bytes(),
        "layers.2/cfg.json": (tmp_path / "s" / "cfg.json").read_bytes(),
        "layers.3/sae.safetensors": b"broken",
    }
    hub.repos["Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_6"] = {"layer3.sae.pt": q.read_bytes()}
    sae = load_sae("EleutherAI/sae-x/layers.2")
    assert (sae.info.layer, sae.info.model_name, sae.info.k) == (2, "some/model", 7)
    assert hub.fetched("sae.safetensors") == 1
    sae = load_sae("Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_6/layer3.sae.pt")
    assert (sae.info.layer, sae.info.k, sae.info.model_name) == (3, 6, "Qwen/Qwen3-8B-Base")
    with pytest.raises(LensError, match=r"layers\.2, layers\.3"):
        load_sae("EleutherAI/sae-x")
    with pytest.raises(LensError, match=r"no file or folder nobody/nothing here.*no nobody/nothing on the hub"):
        load_sae("nobody/nothing")
    with pytest.raises(LensError, match="There is no SAE at"):
        load_sae("/no/such/place")


def test_weights_of_another_name_are_named(hub: FakeHub, tmp_path: Path) -> None:
    w = numbers()
    layers = {"encoder.weight": w["w_enc"].T.copy(), "encoder.bias": w["b_enc"], "decoder.weight": w["w_dec"].T.copy()}
    made = write_torch(tmp_path / "made" / "ae1.pt", {**layers, "bias": w["b_dec"]})
    hub.repos["someone/saes"] = {"one/ae1.pt": made.read_bytes(), "one/README.md": b"x"}
    with pytest.raises(
        LensError, match=r"no weights under a usual name.*Give one of its files: someone/saes/one/ae1\.pt"
    ):
        load_sae("someone/saes/one")
    assert load_sae("someone/saes/one/ae1.pt").info.format == "dictionary_learning"


def test_without_a_network_it_is_said_at_once_and_what_is_cached_loads(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after the half minute of new tries that the hub's client makes."""
    w = numbers()
    names = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
    made = write_safetensors(tmp_path / "made" / "params.safetensors", {name: w[name] for name in names})
    folder = "gemma-scope-2-270m-pt/resid_post/layer_3_width_16k_l0_small"
    hub.repos["org/x"] = {f"{folder}/params.safetensors": made.read_bytes()}
    first = load_sae(f"org/x/{folder}")

    tries: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as closing:

        def close() -> None:
            with suppress(OSError):  # until the test closes it
                while True:
                    closing.accept()[0].close()
                    tries.append("")

        thread = threading.Thread(target=close)
        thread.start()
        use_hub(monkeypatch, f"http://127.0.0.1:{closing.getsockname()[1]}")
        for wanted in ("org/y", "org/y/file.safetensors", "org/x/another"):
            with pytest.raises(LensError, match="The hub could not be reached"):
                load_sae(wanted)
        assert load_sae(f"org/x/{folder}").info.id == first.info.id
        assert len(tries) == 3  # once each, and not for what is cached
        closing.shutdown(socket.SHUT_RDWR)
        thread.join()


HOOKS = "feature_input_hook: ln2.hook_normalized\nfeature_output_hook: hook_mlp_out\nscan: a-set\n"


def listing(kind: str, lines: list[str], more: str = "") -> bytes:
    return (f"model_kind: {kind}\n{HOOKS}{more}transcoders:\n" + "".join(f'- "{line}"\n' for line in lines)).encode()


def relu(tmp_path: Path, seed: int) -> bytes:
    """circuit-tracer's ReLU tensors, which say nothing of what they are."""
    w = numbers(seed)
    tensors = {"W_enc": w["w_enc"].T.copy(), "W_dec": w["w_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    return write_safetensors(tmp_path / "made" / "one.safetensors", tensors).read_bytes()


def test_a_set_that_lists_its_files_is_brought_from_where_they_are(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma Scope's own files, other people's, at a branch and beside the list: no file more, and none twice."""
    w = numbers(0)
    buffer = io.BytesIO()
    names = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    arrays: Any = {key: w[name] for key, name in names.items()}
    np.savez(buffer, **arrays)
    scope_1 = "layer_0/width_16k/average_l0_76/params.npz"
    hub.repos["google/gemma-scope-2b-pt-transcoders"] = {scope_1: buffer.getvalue(), "layer_1/big.npz": b"x" * 1000}
    hub.repos["someone/parts"] = {"weights/second.safetensors": relu(tmp_path, 1)}
    lines = [
        f"hf://google/gemma-scope-2b-pt-transcoders/{scope_1}",
        "hf://someone/parts/weights/second.safetensors?revision=main",
        "third.safetensors",
    ]
    hub.repos["org/set"] = {
        "small/config.yaml": listing("transcoder_set", lines),
        "small/layer_0.safetensors": b"not this one",
    }
    home = fetch_transcoders("org/set/small")
    (home / "third.safetensors").write_bytes(relu(tmp_path, 2))
    made = load_transcoders(home)
    assert isinstance(made, LayerTranscoders)
    assert (made.name, made.layers, made.reads, made.writes) == ("a-set", (0, 1, 2), "mlp_normed", "mlp_added")
    for layer, sae in made.saes.items():
        w = numbers(layer)
        x = w["x"].reshape(-1, w["x"].shape[-1])
        pre = x @ w["w_enc"] + w["b_enc"]
        expected = np.where(pre > (w["threshold"] if layer == 0 else 0.0), pre, 0.0)
        np.testing.assert_allclose(np.array(sae.encode(mx.array(x))), expected, atol=1e-4)
        np.testing.assert_array_equal(np.array(made.decoder(layer, layer, np.array([3, 1]))), w["w_dec"][[3, 1]])
    once = [hub.fetched(name) for name in ("params.npz", "second.safetensors", "config.yaml")]
    assert (once, hub.fetched("layer_0.safetensors"), hub.fetched("big.npz")) == ([1, 1, 1], 0, 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_transcoders(fetch_transcoders("org/set/small")).layers == (0, 1, 2)


def test_a_listed_file_is_read_as_its_set_says(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["someone/parts"] = {f"part_{at}.safetensors": relu(tmp_path, at) for at in range(2)}
    lines = [f"hf://someone/parts/part_{at}.safetensors" for at in range(2)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "config.yaml").write_bytes(listing("transcoder_set", lines, "activation: topk\nk: 3\n"))
    made = load_transcoders(tmp_path / "set")
    assert isinstance(made, LayerTranscoders)
    for layer, sae in made.saes.items():
        x = numbers(layer)["x"].reshape(-1, sae.info.d_model)
        assert ((np.array(sae.encode(mx.array(x))) > 0).sum(axis=1) <= 3).all()
        assert (sae.info.layer, sae.definition.k) == (layer, 3)


def test_a_list_of_cross_layer_files_is_a_cross_layer_set(hub: FakeHub, tmp_path: Path) -> None:
    rows = [np.random.default_rng(at).normal(size=(96, 2, 32)).astype(np.float32) for at in range(2)]
    for at in range(2):
        w = numbers(at)
        tensors = {name: w[name] for name in ("w_enc", "b_enc", "b_dec", "threshold")} | {"w_dec": rows[at]}
        made = write_safetensors(tmp_path / "made" / "p.safetensors", tensors).read_bytes()
        hub.repos.setdefault("google/clt", {})[f"clt/width_1k/params_layer_{at}.safetensors"] = made
    lines = [f"hf://google/clt/clt/width_1k/params_layer_{at}.safetensors" for at in range(2)]
    hub.repos["org/clt"] = {"config.yaml": listing("cross_layer_transcoder", lines)}
    found = load_transcoders(fetch_transcoders("org/clt"))
    assert (found.crosses, found.layers, found.reads) == (True, (0, 1), "mlp_normed")
    np.testing.assert_array_equal(np.array(found.decoder(0, 1, np.array([5, 2]))), rows[0][[5, 2], 1])
    np.testing.assert_array_equal(np.array(found.decoder(1, 1, np.array([0]))), rows[1][[0], 1])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["hf://someone/parts/none.safetensors"], r"someone/parts has no file none\.safetensors, which config\.yaml"),
        (["hf://someone/parts/../x.safetensors"], "lists .*, which is no file of weights"),
        (["hf://someone/parts"], "which is no file of weights"),
        (["https://host/a.safetensors"], "which is no file of weights"),
        (["/etc/passwd"], "which is no file of weights"),
        (["../other/layer_0.safetensors"], "which is no file of weights"),
        (["layer_0.safetensors"], r"has no file layer_0\.safetensors, which config\.yaml"),
    ],
)
def test_a_list_of_what_is_no_file_is_refused(hub: FakeHub, tmp_path: Path, lines: list[str], words: str) -> None:
    hub.repos["someone/parts"] = {"part.safetensors": relu(tmp_path, 0)}
    (tmp_path / "config.yaml").write_bytes(listing("transcoder_set", lines))
    with pytest.raises(LensError, match=words):
        load_transcoders(tmp_path)
    (tmp_path / "config.yaml").write_bytes(f"{HOOKS}transcoders: all of them".encode())
    with pytest.raises(LensError, match="transcoders that are no list of files"):
        load_transcoders(tmp_path)
