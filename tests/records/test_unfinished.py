"""Long work that was begun: noted, found again, forgotten when done, and never a reason to fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from lens_tui.tui.screens.work_forms import MOST, Unfinished, begin, finish, unfinished

WORK = Unfinished("index", "demo", "index text for sae", {"text": "a\nb", "sae": "x"})


def test_work_is_found_again_until_it_is_done(tmp_path: Path) -> None:
    file = tmp_path / "u.json"
    assert unfinished("demo", file) == ()
    other = replace(WORK, kind="train", model="tiny")
    begin(WORK, file)
    begin(other, file)
    begin(replace(WORK, share=0.4), file)
    assert unfinished("", file) == (replace(WORK, share=0.4), other)
    assert unfinished("tiny", file) == (other,)
    finish(WORK, file)
    assert unfinished("", file) == (other,)
    for number in range(MOST + 5):
        begin(replace(WORK, title=str(number), values={"text": str(number)}), file)
    assert len(unfinished("", file)) == MOST


def test_what_is_damaged_or_hostile_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "u.json"
    good = {"kind": "train", "model": "m", "title": "a\x1b[31m\nb", "values": {"k": "3"}, "share": 7}
    bad = [3, {"kind": "rm"}, {**good, "values": {"k": 3}}, {**good, "title": None}, {**good, "values": []}]
    file.write_text(json.dumps([*bad, good]))
    (work,) = unfinished("", file)
    assert work.share == 0.0
    assert "\x1b" not in work.title
    assert "\n" not in work.title
    file.write_text("{not json")
    assert unfinished("", file) == ()
    begin(WORK, file)
    assert unfinished("", file) == (WORK,)
