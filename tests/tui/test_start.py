"""Starting the app: what garbage collection does meanwhile."""

from __future__ import annotations

import gc

import pytest

from lens_tui.tui.start import GARBAGE, rare_collections


def test_nothing_is_collected_before_the_first_frame_and_what_is_there_by_then_never() -> None:
    gc.unfreeze()
    before = gc.get_threshold()
    with rare_collections() as app_is_up:
        assert not gc.isenabled()
        app_is_up()
        assert gc.isenabled()
        assert gc.get_threshold() == GARBAGE
        assert gc.get_freeze_count() > 0
    assert (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()) == (True, before, 0)


def test_collections_go_on_after_an_app_that_never_came_up() -> None:
    before = gc.get_threshold()
    with pytest.raises(RuntimeError), rare_collections():
        raise RuntimeError
    assert (gc.isenabled(), gc.get_threshold()) == (True, before)


def test_who_had_collections_off_has_them_off() -> None:
    gc.disable()
    try:
        with rare_collections() as app_is_up:
            app_is_up()
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
