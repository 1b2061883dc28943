"""Settings: what can be set, and errors that name the key and the line."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_tui.records import LensError, Sampling, disk, paths
from lens_tui.records.settings import Settings, as_toml, changed, load_settings, manual, parse_settings, set_one


def test_no_file_means_the_defaults() -> None:
    assert load_settings() == Settings()
    assert load_settings().generate.sampling() == Sampling()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "settings.toml"
    text = '[look]\ntheme = "nord \\"x\\""\n[generate]\ntemp = 1\nseed = 3\n[keys]\n"lane.next" = "j,down"\n'
    settings = parse_settings(text)
    assert (settings.generate.temp, settings.keys) == (1.0, {"lane.next": "j,down"})
    disk.write_text(path, as_toml(settings))
    assert load_settings(path) == settings
    assert changed(settings) == ["look.theme", "generate.temp", "generate.seed", "keys.lane.next"]


@given(st.dictionaries(st.text(), st.text(st.characters(codec="utf-8"))))
def test_any_key_and_value_survive(keys: dict[str, str]) -> None:
    settings = Settings(keys={name: value for name, value in keys.items() if name.isprintable()})
    assert parse_settings(as_toml(settings)) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[look]\n\nthem = 1", "line 3: there is no setting look.them. Known: theme"),
        ("x = 1", "line 1: there is no setting x. Known: look"),
        ("# hi\n[generate]\ntemp = 'hot'", "line 3: generate.temp is 'hot'"),
        ("[generate]\nmax_tokens = 0", "line 2: generate.max_tokens is 0"),
        ("[generate]\nmax_tokens = true", "line 2: generate.max_tokens is True"),
        ("[look]\ntint = 'loud'", "line 2: look.tint is 'loud'"),
        ("[keys]\nrun = 3", "line 2: keys.run is 3"),
        ("[look]\ntheme = 'a'\n[generate]\nseed = -1", "line 4: generate.seed is -1"),
        ("look = 3", "line 1: look is 3"),
        ("look = [3]", r"line 1: look is \[3\]"),
        ("[models]\nfolders = 'x'", "line 2: models.folders is 'x', which is not a list"),
        ("[generate]\ntop_p = 2", r"line 2: generate.top_p is 2.0, which is not from 0.0 to 1.0"),
        ("[look\n", "is not TOML: .*line 1"),
        ("[look]\n[look]\n", "is not TOML"),
        ('[look]\n"th\x1bm" = 1', "not TOML|␛"),
    ],
)
def test_an_error_names_the_key_and_the_line(text: str, message: str) -> None:
    with pytest.raises(LensError, match=message) as caught:
        parse_settings(text)
    assert "\x1b" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LensError, match="cannot be read"):
        load_settings(path)


def test_setting_one_key_leaves_the_rest_of_the_file() -> None:
    path = paths.settings_file()
    path.parent.mkdir(parents=True)
    path.write_text('# mine\n[look]\ntheme = "a"  # nice\n\n[generate]\n# hot\ntemp = 0.5\n')
    assert set_one("look", "theme", "b").look.theme == "b"
    assert set_one("generate", "seed", 4).generate.seed == 4
    assert set_one("keys", "lane.next", "j").keys == {"lane.next": "j"}
    text = path.read_text()
    assert text.startswith('# mine\n[look]\ntheme = "b"\n')
    assert "# hot\ntemp = 0.5" in text
    with pytest.raises(LensError, match="line 3: look"):
        set_one("look", "tint", "loud")
    assert path.read_text() == text


def test_the_manual_is_a_settings_file_with_every_key() -> None:
    live = re.sub(r"^# (\w+ = )", r"\1", manual(), flags=re.MULTILINE)
    assert parse_settings(live) == Settings()
    for section in fields(Settings):
        held = getattr(Settings(), section.name)
        for inner in fields(held) if is_dataclass(held) else ():
            assert f"\n# {inner.name} = " in manual(), (section.name, inner.name)
            assert inner.metadata["says"]


def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    text = '# a\u2028b\x85c\n[look]\ntheme = "a" # \u2029\n'
    file.write_text(text, encoding="utf-8")
    set_one("generate", "seed", 4, file)
    assert file.read_text(encoding="utf-8") == text + "\n[generate]\nseed = 4\n"
    set_one("look", "theme", "b", file)
    assert file.read_text(encoding="utf-8").startswith('# a\u2028b\x85c\n[look]\ntheme = "b"\n')
