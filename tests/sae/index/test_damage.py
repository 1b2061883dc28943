"""Index folders that anybody may have changed: what they give is whole, or refused in one sentence, at once."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui import FeatureIndex, co_active, promoting
from lens_tui.records import LensError
from lens_tui.sae.index.build import Target, build_index, merge_parts
from lens_tui.sae.index.index_reader import describe
from lens_tui.tasks.knowledge import upload_batches

from .corpora import PLACE, TinySAE, TinySource
from .test_build import SETTINGS
from .test_types import _table

ODD: tuple[Any, ...] = (
    *(None, [], {}, True, -1, 0, 7, 10**30, 1e300, math.inf, math.nan, "", "x", "../../x", "a\0b", "9" * 5000),
    *("\x1b[31m\u202e", [1], {"a": 1}, ["\x1b]0;x\x07"]),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = Target(TinySAE(), PLACE, 24, "tiny", tables=(_table(),))
    return build_index(TinySource(), [target], tmp_path_factory.mktemp("good"), SETTINGS).indexes[0]


def ask(path: Path, features: Sequence[int] = (1, 2, 7)) -> None:
    """Everything that is asked of an index; numbers that no corpus gives fail."""
    index = FeatureIndex(path)
    assert "\x1b" not in repr((index.conventions, index.notes, index.identity))
    assert ((index.density >= 0) & (index.density <= 1)).all()
    for f in features:
        numbers = index.statistics(f)
        assert all(map(math.isfinite, (numbers.density, numbers.max, numbers.mean, numbers.std)))
        assert sum(numbers.histogram) == numbers.count
        shown = [*index.examples(f), *(item for _, group in index.sample(f) for item in group)]
        for example in shown:
            assert 0 < example.value < math.inf
            assert 0 <= example.peak < len(example.token_ids) == len(example.values)
            assert not np.isinf(example.values).any()
        tokens, values = index.everywhere(f)
        assert len(tokens) == numbers.count
        assert np.isfinite(values).all()
        share = index.quantile(np.full(3, f), np.array([0.1, 1.0, 9.0]))
        assert ((share >= 0) & (share <= 1)).all() or not numbers.count
        co_active(index, f)
        describe(index, f, str)
    assert (index.at_token(3)[1] > 0).all()
    index.features_at(np.arange(index.n_tokens))
    for row in promoting(index, range(50), k=5):
        assert math.isfinite(row.value)
    json.dumps(list(upload_batches(index, range(4), str, {}, model_id="m", source="s")), allow_nan=False)


def answered(path: Path, features: Sequence[int] = (1, 7)) -> bool:
    """Whether an index answers; if not, it says so in one sentence that can be shown."""

    def all_of_it() -> None:
        ask(path, features)
        FeatureIndex(path).verify()
        raise Answered

    with pytest.raises((LensError, Answered)) as caught:
        all_of_it()
    said = str(caught.value)
    assert "\n" not in said
    assert "\x1b" not in said
    assert len(said) < 400
    return caught.type is Answered


class Answered(Exception):
    """It did."""


def arrays(path: Path) -> list[Path]:
    return sorted(path.rglob("*.npy"))


def test_a_whole_index_answers(good: Path) -> None:
    assert answered(good)


def fill(file: Path, change: Callable[[bytearray, int], None]) -> None:
    data = bytearray(file.read_bytes())
    change(data, int.from_bytes(data[8:10], "little") + 10)
    file.write_bytes(data)


def ones(data: bytearray, start: int) -> None:
    data[start:] = b"\xff" * (len(data) - start)


def flipped_header(data: bytearray, start: int) -> None:
    data[20] ^= 0x55
    data[31] ^= 0x0F


def longer(data: bytearray, start: int) -> None:
    data.extend(bytes(1000))


def shorter(data: bytearray, start: int) -> None:
    del data[-1:]


@pytest.mark.parametrize("change", [ones, flipped_header, longer, shorter])
def test_no_array_that_is_damaged_is_believed(tmp_path: Path, good: Path, change: Any) -> None:
    for file in arrays(good):
        home = tmp_path / file.stem
        shutil.copytree(good, home)
        fill(home / file.relative_to(good), change)
        if (home / file.relative_to(good)).read_bytes() == file.read_bytes():
            continue
        assert not answered(home), file
        if file.stem not in ("tokens", "special", "sequence_documents") and not file.stem.endswith("_ids"):
            with pytest.raises(LensError):  # without its checksum too, but where any number may stand
                ask(home)


@pytest.mark.parametrize(
    "name", ["max", "sum", "sumsq", "example_peaks", "sample_values", "row_values", "feature_values"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_statistics_that_are_none_are_not_shown(tmp_path: Path, good: Path, name: str, value: float) -> None:
    home = tmp_path / "index"
    shutil.copytree(good, home)
    array = np.load(home / f"{name}.npy")
    array[...] = value
    np.save(home / f"{name}.npy", array)
    with pytest.raises(LensError, match=rf"{name}\.npy of the index index is damaged"):
        ask(home)


@pytest.mark.parametrize("what", ["pipe", "folder", "device", "gone", "link to itself"])
def test_what_is_in_the_place_of_an_array(tmp_path: Path, good: Path, what: str) -> None:
    for file in arrays(good):
        home = tmp_path / file.stem
        shutil.copytree(good, home)
        place = home / file.relative_to(good)
        place.unlink()
        if what == "pipe":
            os.mkfifo(place)
        elif what == "folder":
            place.mkdir()
        elif what != "gone":
            place.symlink_to("/dev/zero" if what == "device" else place)
        assert not answered(home), file


def keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*path, name)
        if name in ("identity", "settings"):  # what is in the others is not looked at by name
            yield from keys(inner, (*path, name))


def test_manifests_of_every_kind_of_nonsense(tmp_path: Path, good: Path) -> None:
    manifest = json.loads((good / "manifest.json").read_text())
    home = tmp_path / "index"
    shutil.copytree(good, home)
    rng = random.Random(3)
    for path in keys(manifest):
        for odd in rng.sample(ODD, 7):
            changed = json.loads(json.dumps(manifest))
            place = changed
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = odd
            (home / "manifest.json").write_text(json.dumps(changed))
            answered(home, [1])


@pytest.mark.parametrize("counted", [0, -1, 10**9, None, 1.5, True, "9"])
def test_a_number_of_counted_tokens_that_cannot_be(tmp_path: Path, good: Path, counted: Any) -> None:
    home = tmp_path / "index"
    shutil.copytree(good, home)
    manifest = json.loads((good / "manifest.json").read_text())
    (home / "manifest.json").write_text(json.dumps(manifest | {"n_counted": counted}))
    with pytest.raises(LensError, match="damaged"):
        FeatureIndex(home)


def test_an_index_that_is_cut_while_it_is_open(tmp_path: Path, good: Path) -> None:
    home = tmp_path / "index"
    shutil.copytree(good, home)
    index = FeatureIndex(home)
    for file in arrays(home):
        os.truncate(file, 100)
    for question in (index.examples, index.sample, index.everywhere, index.statistics, index.pushed):
        with pytest.raises(LensError, match=r"has changed on disk|cannot be read"):
            question(1)


def test_an_open_index_takes_no_descriptors(good: Path) -> None:
    gc.collect()  # of what others left
    before = len(os.listdir("/dev/fd"))
    index = FeatureIndex(good)
    index.examples(1)
    assert len(os.listdir("/dev/fd")) == before


def test_parts_of_every_kind_of_nonsense(tmp_path: Path) -> None:
    target = Target(TinySAE(), PLACE, 24, "tiny")
    (part,) = build_index(TinySource(), [target], tmp_path, SETTINGS, shard=(0, 2)).parts
    state = json.loads((part / "state.json").read_text())
    rng = random.Random(4)
    for path in [*keys(state), *(("state", name) for name in state["state"])]:
        for odd in rng.sample(ODD, 7):
            changed = json.loads(json.dumps(state))
            place = changed
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = odd
            (part / "state.json").write_text(json.dumps(changed))
            with pytest.raises(LensError):
                merge_parts([part], tmp_path / "out", keep=True)


def test_a_seeded_walk_through_damage(tmp_path: Path, good: Path) -> None:
    rng = random.Random(9)
    files = [*arrays(good), good / "manifest.json"]
    for number in range(60):
        home = tmp_path / str(number)
        shutil.copytree(good, home)
        for _ in range(rng.randint(1, 3)):
            place = home / rng.choice(files).relative_to(good)
            data = bytearray(place.read_bytes())
            for _ in range(rng.choice([1, 1, 2, 20])):
                at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 140))
                data[at] = rng.randrange(256)
            place.write_bytes(data[: rng.choice([len(data), len(data), len(data) // 2])])
        answered(home)
        shutil.rmtree(home)
