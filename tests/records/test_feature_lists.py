"""Lists of features kept by name."""

from __future__ import annotations

import pytest

from lens_tui.records import LensError
from lens_tui.records.feature_lists import FeatureLists
from lens_tui.records.store import Store


@pytest.fixture
def lists() -> FeatureLists:
    return FeatureLists(Store(":memory:"))


def test_a_list_keeps_its_order_and_each_feature_once(lists: FeatureLists) -> None:
    assert lists.keep("s", "sea", [5, 3, 5, 9]).features == (5, 3, 9)
    lists.keep("other", "sea", [1])
    lists.keep("s", "food", [2])
    assert [item.name for item in lists.all("s")] == ["food", "sea"]
    assert len(lists.all()) == 3
    assert lists.get("s", "sea").features == (5, 3, 9)


def test_what_is_deleted_or_replaced_comes_back(lists: FeatureLists) -> None:
    lists.keep("s", "sea", [1, 2])
    lists.keep("s", "sea", [3])
    assert lists.get("s", "sea").features == (3,)
    assert lists.restore("s", "sea").features == (1, 2)
    assert lists.restore("s", "sea").features == (3,)  # the two change places
    assert lists.delete("s", "sea").features == (3,)
    assert lists.all("s") == ()
    assert lists.restore("s", "sea").features == (3,)


@pytest.mark.parametrize(
    ("name", "features", "says"),
    [("  ", [1], "name"), ("x" * 81, [1], "80"), ("a", [], "0 features"), ("a", [-1], "feature -1")],
)
def test_what_cannot_be_kept_is_refused(lists: FeatureLists, name: str, features: list[int], says: str) -> None:
    with pytest.raises(LensError, match=says):
        lists.keep("s", name, features)
    assert lists.all() == ()


def test_a_missing_list_names_those_there_are(lists: FeatureLists) -> None:
    lists.keep("s", "sea", [1])
    with pytest.raises(LensError, match="No list") as refused:
        lists.get("s", "see")
    assert "sea" in refused.value.hint
    with pytest.raises(LensError, match="deleted"):
        lists.restore("s", "sea")


def test_a_hostile_name_is_safe_and_finds_its_list(lists: FeatureLists) -> None:
    nasty = "\x1b]52;c;QQ==\x07[/b]\nx \udc80"
    kept = lists.keep("s", nasty, [1])
    assert not any(ord(letter) < 32 for letter in kept.name)
    assert lists.get("s", nasty) == lists.get("s", kept.name) == kept
