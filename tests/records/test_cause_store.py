"""What was found on Causes comes back from the disk to the last bit, is found by its words, and damage is said."""

from __future__ import annotations

import json
import zlib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui.records import LensError
from lens_tui.records.attribution_graph import Supernode
from lens_tui.records.cause_plan import EXAMPLE, GraphFound, GraphPlan, PatchFound
from lens_tui.records.cause_store import CauseStore
from lens_tui.records.run import MadeWith
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.fake_causes import fake_patch
from tests.fake_graphs import fake_graph
from tests.fakes import unit_vector

MADE = MadeWith(version="0.2.0", mlx="1", source="demo")


def patched(**parts: Any) -> PatchFound:
    *_, last = fake_patch(1, jobs.Patch(replace(EXAMPLE, **parts)))
    assert isinstance(last, ev.Patched)
    return last.found


def a_graph(**parts: Any) -> GraphFound:
    *_, last = fake_graph(1, jobs.MakeGraph(GraphPlan("The old man sat", **parts)))
    assert isinstance(last, ev.GraphMade)
    return last.found


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if is_dataclass(one):
        names = [field.name for field in fields(one) if field.name not in ("kept", "part", "whole", "sums")]
        return type(one) is type(other) and all(equal(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("by", ["layer-position", "head", "trace"])
def test_a_map_comes_back_to_the_last_bit(tmp_path: Path, by: str) -> None:
    found = patched(by=by)
    number = CauseStore(tmp_path / "h.db").keep(found, MADE, "abc")
    kept = CauseStore(tmp_path / "h.db").get(number)
    assert kept is not None
    assert equal(found, kept.found)
    assert (kept.made_with, kept.stamp, kept.found.kept, kept.summary.kind) == (MADE, "abc", number, "patch")
    assert (kept.summary.asked, kept.summary.title, kept.summary.model) == (EXAMPLE.clean, found.plan.title, "demo")


def test_a_graph_comes_back_as_pruning_left_it_with_pins_groups_and_its_question(tmp_path: Path) -> None:
    found = a_graph(target=" a| the", ignored=2, direction=unit_vector("dog"))
    names = tuple(node.id for node in found.pruned.nodes[:2])
    shown = replace(found.pruned, pinned=names, supernodes=(Supernode("two", names),))
    found = replace(found, pruned=shown)
    store = CauseStore(tmp_path / "h.db")
    number = store.keep(found, MADE)
    kept = store.get(number)
    assert kept is not None
    assert isinstance(kept.found, GraphFound)
    assert equal(found, kept.found)
    assert kept.found.part
    assert kept.found.whole is kept.found.pruned
    assert kept.summary.title == "Attribution graph → ‘·a’, ‘·the’, along dog"
    store.change(number, replace(found, pruned=replace(shown, pinned=(), supernodes=())))
    again = store.get(number)
    assert again is not None
    assert isinstance(again.found, GraphFound)
    assert again.found.pruned.pinned == ()


def test_the_newest_is_first_and_words_find(tmp_path: Path) -> None:
    store = CauseStore(tmp_path / "h.db")
    numbers = [store.keep(found, MADE) for found in (patched(), patched(by="trace"), a_graph())]
    assert [each.id for each in store.list()] == numbers[::-1]
    assert [each.id for each in store.list("lily TRACE")] == [numbers[1]]
    assert [each.id for each in store.list("old man demo")] == [numbers[2]]
    assert [each.id for each in store.list("", 1)] == [numbers[2]]
    assert store.get(99) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: b"no zlib",
        lambda value: zlib.compress(b"{}"),
        lambda value: zlib.compress(json.dumps({**value, "grid": None}).encode()),
        lambda value: zlib.compress(json.dumps({**value, "grid": {**value["grid"], "rows": ["one"]}}).encode()),
        lambda value: zlib.compress(json.dumps({**value, "plan": {**value["plan"], "by": "taste"}}).encode()),
        lambda value: zlib.compress(json.dumps({**value, "check": {"pearson": 1}}).encode()),
    ],
)
def test_a_damaged_record_is_said(tmp_path: Path, damage: Any) -> None:
    store = CauseStore(tmp_path / "h.db")
    number = store.keep(patched(), MADE)
    row = store.store.one("SELECT record FROM cause WHERE id = ?", (number,))
    assert row is not None
    value = json.loads(zlib.decompress(row["record"]))
    with store.store.write() as connection:
        connection.execute("UPDATE cause SET record = ? WHERE id = ?", (damage(value), number))
    with pytest.raises(LensError):
        store.get(number)
