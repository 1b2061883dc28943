from __future__ import annotations

import json

from lens_tui import demo
from recipes.hashes import listed


def test_the_bundled_model_is_whole() -> None:
    folder = demo.model_path()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 8
    assert (folder / "model.safetensors").stat().st_size > 10_000_000
    assert (folder / "tokenizer.json").exists()


def test_the_default_sae_is_one_of_the_bundled() -> None:
    paths = demo.sae_paths()
    assert demo.default_sae() in paths
    for path in paths.values():
        assert (path / "params.safetensors").exists()


def test_the_starter_names_bundled_saes_or_vectors_and_layers_that_exist() -> None:
    starter = demo.starter()
    assert starter.prompt
    assert len(starter.steers) == 2
    assert starter.steers[1].kind == "file"  # the second arm is one of the ready vectors
    for steer in starter.steers:
        assert steer.scale > 0
        if steer.kind == "file":
            ready = demo.ready_vector(steer.name)
            assert ready is not None
            assert (str(ready.path), ready.layer, ready.scale) == (steer.source, steer.layer, steer.scale)
            continue
        config = json.loads((demo.sae_paths()[steer.sae] / "config.json").read_text(encoding="utf-8"))
        assert config["hf_hook_point_in"] == f"model.layers.{steer.layer}.output"
        assert 0 <= steer.feature < config["width"]


def test_every_file_is_the_one_that_was_made() -> None:
    folder = demo.model_path().parent
    assert (folder / "SHA256SUMS").read_text(encoding="utf-8") == listed(folder)
