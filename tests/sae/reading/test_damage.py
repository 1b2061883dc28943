"""SAE files that anybody may have changed: what they give is finite, or refused in one sentence, at once."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import load_sae, sae_info
from lens_tui.records import LensError

from .makers import numbers, write_json, write_safetensors, write_torch
from .test_recognised import KINDS, W

X = mx.array(W["x"])
ODD: tuple[Any, ...] = (
    *(None, [], {}, True, -1, 0, 7, 10**30, 1e300, 1e-300, math.inf, math.nan, "", "x", "9" * 5000),
    *("../../x", "\x1b[31m\u202e", [1], {"a": 1}, "blocks.-3.hook_resid_post", "blocks.99999999999.hook_resid_pre"),
)


def made(home: Path, form: str) -> Path:
    write, usual, tensors, config, facts, _ = KINDS[form]
    write(home / usual, tensors)
    if config:
        write_json(home / config, {**facts, "model_name": "m"})
    return home / usual


class Answered(Exception):
    """It did."""


def answered(path: Path) -> bool:
    """Whether an SAE gives finite numbers; if not, it says so in one sentence that can be shown."""

    def everything() -> None:
        sae = load_sae(path)
        ids, values = sae.top_k(X, 3)
        parts = [sae.encode(X), sae.reconstruct(X).output, values, sae.directions(), sae.encode_features(X, [0, 5])]
        assert all(np.isfinite(np.array(part)).all() for part in parts), path
        assert np.array(ids).max() < sae.d_sae
        assert "\x1b" not in repr(sae.info)
        assert -1 <= sae.info.layer < 10_000
        raise Answered

    with pytest.raises((LensError, Answered)) as caught:
        everything()
    said = str(caught.value)
    assert "\n" not in said
    assert "\x1b" not in said
    assert len(said) < 500, said
    return caught.type is Answered


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*path, name)
        yield from keys(inner, (*path, name))


@pytest.mark.parametrize("form", KINDS)
def test_configurations_of_every_kind_of_nonsense(tmp_path: Path, form: str) -> None:
    path, config = made(tmp_path, form), KINDS[form][3]
    assert answered(path)
    if not config:
        return
    facts = json.loads((tmp_path / config).read_text())
    more = ("architecture", "normalize_activations", "hook_name", "hook_layer", "metadata", "transcode", "activation")
    for name in [*keys(facts), *((name,) for name in (*more, "trainer", "type", "norm_activation", "context_size"))]:
        for odd in ODD:
            changed = json.loads(json.dumps(facts))
            place = changed
            for part in name[:-1]:
                place = place[part]
            place[name[-1]] = odd
            (tmp_path / config).write_text(json.dumps(changed))
            answered(path)
    for text in (b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"k": ' + b"9" * 5000 + b"}", b"{}" * 3):
        (tmp_path / config).write_bytes(text)
        assert not answered(path) or not config


@pytest.mark.parametrize("form", KINDS)
def test_a_seeded_walk_through_damage(tmp_path: Path, form: str) -> None:
    path = made(tmp_path / "good", form)
    whole, rng = path.read_bytes(), random.Random(form)
    other = tmp_path / "bad"
    shutil.copytree(path.parent, other)
    place = other / path.name
    for _ in range(60):
        data = bytearray(whole)
        near = rng.choice([12, 300, 1200, len(data)])
        for _ in range(rng.choice([1, 1, 3, 30])):
            at = rng.randrange(min(near, len(data)))
            data[at if rng.random() < 0.7 else len(data) - 1 - at] = rng.choice([0, 255, rng.randrange(256)])
        cut = rng.choice([len(data)] * 4 + [len(data) // 2, 9])
        place.write_bytes(bytes(data[:cut]) + bytes(rng.choice([0, 0, 0, 4, 5000])))
        answered(place)


@pytest.mark.parametrize("form", KINDS)
def test_each_tensor_as_something_else(tmp_path: Path, form: str) -> None:
    write, usual, tensors, config, facts, _ = KINDS[form]
    if config:
        write_json(tmp_path / config, facts)
    for name, array in tensors.items():
        odd = [np.zeros(1), array[..., :1], array.reshape(-1), array.T[None], array * 1e30, array * np.nan]
        odd += [np.full_like(array, 3e38), np.full_like(array, -3e38)]
        for other in odd:
            write(tmp_path / usual, {**tensors, name: np.ascontiguousarray(other, np.float32)})
            answered(tmp_path / usual)
        write(tmp_path / usual, {other: value for other, value in tensors.items() if other != name})
        answered(tmp_path / usual)


@pytest.mark.parametrize("form", KINDS)
def test_what_is_in_the_place_of_a_file(tmp_path: Path, form: str) -> None:
    path, config = made(tmp_path, form), KINDS[form][3]
    for place in [path, *([tmp_path / config] if config else [])]:
        kept = place.read_bytes()
        for what in ("pipe", "folder", "/dev/zero", "nothing", "itself", "longer"):
            place.unlink()
            if what == "pipe":
                os.mkfifo(place)
            elif what == "folder":
                place.mkdir()
            elif what == "longer":
                place.write_bytes(kept)
                os.truncate(place, 50 << 30)  # sparse: it takes no room
            else:
                place.symlink_to(place if what == "itself" else what)
            assert not answered(path) or place.name == "config.json", what
            place.rmdir() if what == "folder" else place.unlink()
            place.write_bytes(kept)
    assert answered(path)


def test_a_safetensors_header_that_lies(tmp_path: Path) -> None:
    def header(**entries: Any) -> bytes:
        text = json.dumps(entries).encode()
        return struct.pack("<Q", len(text)) + text

    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    for raw in (
        header(w_enc={**entry, "shape": [1] * 300_000}) + bytes(16),
        header(w_enc=entry) + bytes(15),
        header(w_enc=entry) + bytes(17),
        header(w_enc=entry, w_dec=entry) + bytes(16),  # one within the other
        header(w_enc=entry, w_dec={**entry, "data_offsets": [20, 36]}) + bytes(36),  # a hole
        header(w_enc={**entry, "shape": {"0": 2}}) + bytes(16),
        header(w_enc={**entry, "dtype": ["F32"]}) + bytes(16),
        header(w_enc={**entry, "shape": [True, 4]}) + bytes(16),
        header(w_enc={**entry, "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}),
        b"\xff" * 8 + b"{",
    ):
        (tmp_path / "params.safetensors").write_bytes(raw)
        assert not answered(tmp_path / "params.safetensors")


def torch_file(path: Path, pickled: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickled)  # not compressed, as torch writes it
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


def test_archives_that_unfold(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(1, np.float32))
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", array.getvalue()[:-4] + bytes(64 << 20))
    small = pickle.dumps({})
    bombs = [
        torch_file(tmp_path / "a.pt", small, byteorder=bytes(64 << 20)),
        torch_file(tmp_path / "b.pt", b"\x80\x05" + b"]" * (16 << 20) + b"."),  # lists
        torch_file(tmp_path / "c.pt", b"\x80\x05\x96" + struct.pack("<Q", 64 << 20) + b"."),  # a bytearray
        tmp_path / "params.npz",
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            assert not answered(bomb)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_many_tensors_take_one_descriptor(tmp_path: Path) -> None:
    tensors = {name: W[name] for name in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}
    many = {**tensors, **{f"extra.{i}": np.zeros(2, np.float32) for i in range(600)}}
    write_safetensors(tmp_path / "params.safetensors", many)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        sae = load_sae(tmp_path, residence="disk")
        assert np.isfinite(np.array(sae.encode(X))).all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


CUT = """
import os, sys
import mlx.core as mx
from lens_tui.records import LensError
from lens_tui import load_sae

path, residence = sys.argv[1:]
sae = load_sae(path, residence=residence)
x = mx.random.normal((5, sae.d_model))
sae.reconstruct(x)
os.truncate(path, 5000)
for ask in (sae.encode, sae.reconstruct, lambda x: sae.top_k(x, 3), lambda x: sae.directions()):
    try:
        mx.eval(ask(x))
    except LensError as error:
        assert "has changed on disk" in str(error), error
        print("told")
"""


@pytest.mark.parametrize("residence", ["memory", "disk"])
def test_a_file_that_is_cut_in_place_while_it_is_loaded_does_not_end_the_process(
    tmp_path: Path, residence: str
) -> None:
    w = numbers(n=20_000)
    names = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
    path = write_safetensors(tmp_path / "params.safetensors", {name: w[name] for name in names})
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(path), residence], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["told"] * (0 if residence == "memory" else 4)


def test_tensors_that_do_not_lie_row_by_row(tmp_path: Path) -> None:
    """As ``torch.save`` writes views: a transpose, and every second column of a matrix."""
    layers = {"encoder.bias": W["b_enc"], "decoder.weight": W["w_dec"].T.copy(), "bias": W["b_dec"]}
    wide = np.zeros((W["w_enc"].shape[1], 64), np.float32)
    wide[:, 1::2] = W["w_enc"].T
    views = {"plain": W["w_enc"].T.copy(), "turned": W["w_enc"].T, "strided": wide[:, 1::2]}
    found = [
        load_sae(write_torch(tmp_path / f"{name}.pt", {**layers, "encoder.weight": views[name]})) for name in views
    ]
    z = np.maximum((W["x"] - W["b_dec"]) @ W["w_enc"] + W["b_enc"], 0)
    for sae in found:
        assert np.allclose(np.array(sae.encode(X)), z, atol=1e-4)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody/x", "", "\ud800"])
def test_paths_that_are_none(name: str) -> None:
    for ask in (load_sae, sae_info):
        with pytest.raises(LensError):
            ask(name)
