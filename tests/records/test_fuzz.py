"""A seeded fuzzer of the files that people and other tools write: each is read, or refused with a LensError.

Nothing else may come out: a foreign exception stops the app at its start or is a traceback at the command line.
A seed that finds something stays: put its number into ``SEEDS``.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui.records import Arm, LensError, Positions, Sampling, SteeringVector, Token
from lens_tui.records.corpus import open_corpus, read_pairs
from lens_tui.records.disk import fingerprint
from lens_tui.records.interventions import BenchRow
from lens_tui.records.label_files import (
    Dashboards,
    read_delphi,
    read_neuronpedia,
    read_neuronpedia_features,
    read_saedashboard,
    write_delphi,
    write_neuronpedia,
)
from lens_tui.records.labels import Labels, NewLabel
from lens_tui.records.read_files import read_text
from lens_tui.records.run_store import RunStore
from lens_tui.records.session_file import SavedSession, interrupted_sessions, save_session
from lens_tui.records.settings import load_settings
from lens_tui.records.store import Store
from lens_tui.records.training import TrainConfig
from lens_tui.records.vector_formats import list_vectors, load_vectors, save_vectors
from lens_tui.tasks.models import recent_models, remember_model
from lens_tui.tui.themes import bundled_dir, load_themes, read_theme
from tests.folders import read_session
from tests.sae.reading.makers import write_torch

SEEDS = range(60)
ROWS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
VECTORS = [SteeringVector.of(f"v{at}", row, at) for at, row in enumerate(ROWS)]
SETTINGS = """[look]
theme = "ink"
[generate]
max_tokens = 64
temp = 0.5
[models]
folders = ["a", 'b']
[keys]
app.run = "r,ctrl+r"  # two
"""
ODD: tuple[Any, ...] = (
    *(None, True, [], {}, "", "x", "\0", "\ud800", -1, 0, 2**63, 10**400, -1e308, 1e-320),
    *(float("inf"), float("nan"), [[]], ["x"], [{}], {"x": {}}, "9" * 5000, [0] * 3000, "e" * 100_000),
)


def _write_npz(path: Path) -> None:
    np.savez_compressed(path, layer_0=ROWS[0], layer_1=ROWS[1])


def _write_saedashboard(path: Path) -> None:
    example = {"bin_min": -1, "bin_max": 2.5, "tokens": [" a", "b"], "values": [0.5, 1.0]}
    row = {"feature_index": 7, "frac_nonzero": 0.25, "pos_str": ["a"], "pos_values": [1.5], "activations": [example]}
    path.write_text(json.dumps({"model_id": "m", "layer": 1, "sae_set": "s", "features": [row, row]}))


def _write_features(path: Path) -> None:
    row = {"modelId": "m", "layer": "1-x", "index": "3", "maxActApprox": 2.0, "neg_str": ["b"], "neg_values": [0]}
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for _ in range(3)).encode()))


def _some_labels() -> Iterator[Any]:
    with Store(":memory:") as store:
        labels = Labels(store)
        labels.set("sae", 3, "mine")
        labels.take("sae", [NewLabel(4, "theirs", "neuronpedia", score=0.5, scorer="fuzz")], origin="x")
        yield from labels.standing("sae", raw=True)


def _write_labels(path: Path) -> None:
    (file,) = write_neuronpedia(_some_labels(), path.parent, model_id="m", source_id="4-x")
    path.write_bytes(gzip.decompress(file.read_bytes()))


def _write_delphi(path: Path) -> None:
    write_delphi(_some_labels(), path.parent, module="layers.4")


def _write_pairs(path: Path) -> None:
    path.write_text(json.dumps([{"positive": "a", "negative": "b"}, {"positive": "c", "negative": "d"}]))


def _write_session(path: Path) -> None:
    steer = BenchRow("1", VECTORS[0], 1, 2.0, positions=Positions("slice", start=1, stop=3))
    save_session(SavedSession("m", "s", "steer", "Once", Sampling(stop=("x",)), (steer,)), path)


def _write_store(path: Path) -> None:
    runs = RunStore(path)
    run = runs.begin("m", "p", [Arm("a")], Sampling())
    runs.add(run, [Token(0, 1, "t", "t", -1.0)])
    runs.end(run)
    Labels(runs.store).set("sae", 3, "mine")
    runs.store.close()
    connection = sqlite3.connect(path)  # all of it in the one file
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()


def _read_store(path: Path) -> None:
    with Store(path) as store:
        runs = RunStore(store)
        runs.broken()
        runs.list()
        runs.list("p")
        runs.get(1)
        labels = Labels(store)
        labels.of("sae", 3)
        labels.search("mine")
        labels.set("sae", 3, "other")
        Dashboards(store).of("sae", 3)


def _read_vectors(path: Path) -> None:
    load_vectors(path, layer=1, n_layers=3)


def _read_session(path: Path) -> None:
    try:
        read_session(path)
    finally:
        interrupted_sessions(path.parent)  # never raises: the app opens without it


Case = tuple[str, Callable[[Path], object], Callable[[Path], object]]
KINDS: tuple[Case, ...] = (
    *((f"v{suffix}", lambda path: save_vectors(VECTORS, path), _read_vectors) for suffix in (".gguf", ".json")),
    ("one.safetensors", lambda path: save_vectors(VECTORS[1], path), _read_vectors),
    ("several.safetensors", lambda path: save_vectors(VECTORS, path), lambda path: list_vectors(path.parent)),
    ("v.npz", _write_npz, _read_vectors),
    ("v.npy", lambda path: np.save(path, ROWS), _read_vectors),
    ("v.pt", lambda path: write_torch(path, {"layer_1": ROWS[1], "layer_2": ROWS[2]}), _read_vectors),
    ("m.pt", lambda path: write_torch(path, ROWS), _read_vectors),
    ("batch-0.json", _write_saedashboard, lambda path: list(read_saedashboard(path))),
    ("batch-0.jsonl.gz", _write_features, lambda path: list(read_neuronpedia_features(path))),
    ("labels.jsonl", _write_labels, lambda path: list(read_neuronpedia(path))),
    ("layers.4_latent3.txt", _write_delphi, lambda path: list(read_delphi(path.parent.parent, module="layers.4"))),
    ("mlx_lens_tui.json", _write_delphi, lambda path: list(read_delphi(path.parent, module="layers.4"))),
    ("pairs.json", _write_pairs, read_pairs),
    ("settings.toml", lambda path: path.write_text(SETTINGS), load_settings),
    ("x.toml", lambda path: path.write_bytes((bundled_dir() / "ink.toml").read_bytes()), read_theme),
    ("recent.json", lambda path: remember_model("m", path), recent_models),
    ("session.json", _write_session, _read_session),
    ("lens.sqlite3", _write_store, _read_store),
    ("text.jsonl", lambda path: path.write_text('{"text": "one"}\n{"text": "two"}\n'), lambda p: list(open_corpus(p))),
    ("text.txt", lambda path: path.write_text("one\n<|endoftext|>\ntwo"), lambda path: list(open_corpus(path))),
    (
        "train.json",
        lambda path: path.write_text(TrainConfig(width=64, k=4).to_json()),
        lambda path: TrainConfig.from_json(read_text(path)),
    ),
    ("any.bin", lambda path: path.write_bytes(b"x" * 99), fingerprint),
)


def _bytes(whole: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, left out, put in, doubled, or huge numbers in place of small ones."""
    data = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 3, 20))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(7)
        if kind == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del data[at : at + chance.randrange(1, 40)]
        elif kind == 2:
            data[at:at] = chance.choice((b"[" * 3000, b"\0" * 50, b"\xff" * 9, b'"', b"{", b"\n" * 9, b"1" * 5000))
        elif kind == 3:
            data[at : at + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, (1 << 62).to_bytes(8, "little")))
        elif kind == 4:
            data[at : at + 4] = chance.randrange(1 << 32).to_bytes(4, "little")
        elif kind == 5:
            data = data[: max(at, 1)]
        else:
            data[at:at] = data[at : at + chance.randrange(400)]
    return bytes(data)


def _value(whole: Any, chance: random.Random) -> Any:
    """JSON with one value, at any depth, replaced by an odd one, left out, or under another key."""
    if isinstance(whole, dict) and whole and chance.random() < 0.9:
        key = chance.choice(list(whole))
        changed = {**whole, key: _value(whole[key], chance)}
        if chance.random() < 0.15:
            changed[chance.choice(("x", "", "layer", "\ud800"))] = changed.pop(key)
        return changed
    if isinstance(whole, list) and whole and chance.random() < 0.9:
        at = chance.randrange(len(whole))
        return [*whole[:at], _value(whole[at], chance), *whole[at + 1 :]]
    return chance.choice(ODD)


def _hostile(path: Path, seed: int) -> None:
    chance = random.Random(f"{path.name} {seed}")
    whole = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and chance.random() < 0.7:
        lines = whole.split(b"\n") if path.suffix == ".jsonl" else [whole]
        at = chance.randrange(len(lines))
        if lines[at]:
            text = json.dumps(_value(json.loads(lines[at]), chance), ensure_ascii=chance.random() < 0.5)
            lines[at] = text.replace("1" + "0" * 400, "1" + "0" * 5000).encode("utf-8", "surrogatepass")
        path.write_bytes(b"\n".join(lines))
    elif path.suffix == ".gz" and chance.random() < 0.7:
        path.write_bytes(gzip.compress(_bytes(gzip.decompress(whole), chance)))
    else:
        path.write_bytes(_bytes(whole, chance))


def _made(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    path = folder / name
    make(path)
    return path if path.exists() else next(folder.rglob(name))


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case[0])
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_file_is_read_or_refused(tmp_path: Path, case: Case) -> None:
    name, make, read = case
    path = _made(tmp_path, name, make)
    read(path)
    whole = path.read_bytes()
    for seed in SEEDS:
        for left in tmp_path.glob(f"{name}-*"):  # of SQLite
            left.unlink()
        path.write_bytes(whole)
        _hostile(path, seed)
        said = ""
        try:
            read(path)
        except LensError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}") from error
        assert len(said) < 1000, f"seed {seed}"
        assert "\n" not in said, f"seed {seed}"


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case[0])
def test_what_is_no_file_is_refused(tmp_path: Path, case: Case) -> None:
    name, make, read = case
    path = _made(tmp_path, name, make)
    for replace in (
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: path.mkdir(),
        lambda path: _sparse(path, 50 << 30),
    ):
        if replace is not os.mkfifo and path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        replace(path)
        if name in ("any.bin", "text.txt", "text.jsonl") and path.is_file():
            continue  # these may be as large as they like
        try:
            read(path)
        except LensError:
            continue


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def test_a_folder_of_hostile_themes_is_reported_never_fatal(tmp_path: Path) -> None:
    good = (bundled_dir() / "ink.toml").read_text()
    (tmp_path / "good.toml").write_text(good.replace("ink", "own"))
    (tmp_path / "deep.toml").write_text("x = " + "[" * 5000)
    (tmp_path / "dots.toml").write_text(".".join("a" * 20_000) + " = 1")
    (tmp_path / "long.toml").write_text(good.replace('accent = "', 'accent = "' + "x" * 100_000))
    (tmp_path / "\x1b[31m.toml").write_text("x")
    os.mkfifo(tmp_path / "pipe.toml")
    began = time.monotonic()
    themes, problems = load_themes([tmp_path])
    assert time.monotonic() - began < 300  # a hang is what is looked for, not speed
    assert list(themes) == ["own"]
    assert len(problems) == 5
    assert all(len(problem) < 500 and problem.isprintable() for problem in problems)
