"""Scores of labels against hand values, and what is written of those that pass."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lens_tui import demo
from recipes.__main__ import app
from recipes.labels import score
from recipes.saes import DEPTHS

HERE = Path(score.__file__).parent / "written"
WRITTEN = [HERE, *sorted(path for path in HERE.iterdir() if path.is_dir())]
"""What was written of layer 4 in the first rounds, and by SAE what came later."""

FILES = {"labels": "labels.jsonl", "answers": "answers.jsonl", "key": "quiz_key.jsonl"}

KEY = {window: window in (1, 3, 4, 8, 10) for window in range(1, 11)}


@pytest.mark.parametrize(
    ("judged", "balanced"),
    [
        ((1, 3, 4, 8, 10), 1.0),
        ((2, 5, 6, 7, 9), 0.0),
        ((), 0.5),
        (range(1, 11), 0.5),
        ((1, 3, 4), 0.8),
        ((1, 3, 4, 8, 2), 0.8),
        ((1, 1, 1, 2), 0.5),
        ((1, 3, 4, 8, 10, 2, 5, 6), 0.7),
    ],
)
def test_a_score_is_the_mean_of_both_shares_told_right(judged: tuple[int, ...], balanced: float) -> None:
    assert score.detection(KEY, judged).balanced == pytest.approx(balanced)


def test_unequal_kinds_weigh_the_same() -> None:
    key = {1: True, 2: False, 3: False, 4: False, 5: False}
    assert score.detection(key, [1, 2]).balanced == pytest.approx((1 + 3 / 4) / 2)
    assert score.detection(key, [1, 2]) == score.Score(hits=1, active=1, alarms=1, silent=4)
    with pytest.raises(ValueError, match="no window 6"):
        score.detection(key, [6])
    with pytest.raises(ValueError, match="active and silent"):
        score.detection({1: True}, [1])


def test_tossing_coins_is_counted_out() -> None:
    passing = 0
    for called in product((False, True), repeat=10):
        right = [called[window - 1] == on for window, on in KEY.items()]
        hits = sum(good for good, on in zip(right, KEY.values(), strict=True) if on)
        quiet = sum(good for good, on in zip(right, KEY.values(), strict=True) if not on)
        passing += (hits + quiet) / 10 >= 0.7
    assert score.by_chance(5, 5, 0.7) == passing / 1024 == 176 / 1024


def _files(folder: Path) -> list[str]:
    labels = [(3, "words of\n the sea"), (7, "“quotes” and naïve words"), (9, "wrong"), (11, "not judged")]
    answers = [(3, [1, 3, 4, 8, 10]), (7, [1, 3, 4, 2]), (9, [2, 5, 1])]
    keys: list[dict[str, object]] = [
        {"feature": f, "window": w, "active": on} for f in (3, 7, 9, 11, 13) for w, on in KEY.items()
    ]
    rows: dict[str, list[dict[str, object]]] = {
        "labels": [{"feature": f, "label": text} for f, text in labels],
        "answers": [{"feature": f, "active": windows} for f, windows in answers],
        "key": keys,
    }
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return [part for name in rows for part in (f"--{name}", str(folder / f"{name}.jsonl"))]


def test_labels_that_pass_are_written_as_the_app_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "kept.jsonl"
    done = CliRunner().invoke(app, ["label-score", *_files(tmp_path), str(out)])
    assert done.exit_code == 0, done.output
    assert "3 labels judged, mean balanced accuracy 0.700" in done.output  # 1.0, 0.7 and 0.4
    assert "2 kept at 0.7 or more, 1 failed; tossing coins 17.2% would pass" in done.output
    assert "1 labels without an answer, 1 quizzes without a label" in done.output
    monkeypatch.setattr(demo, "LABELS", out)
    ((folder, labels),) = demo.bundled_labels().items()
    assert folder == DEPTHS["middle"].folder == demo.default_sae()
    assert [(one.feature, one.text, one.score) for one in labels] == [
        (3, "words of the sea", 1.0),
        (7, "“quotes” and naïve words", 0.7),
    ]
    assert {(one.source, one.scorer, one.method) for one in labels} == {
        ("bundled", "detection", "a language model, from top examples and promoted tokens")
    }
    stricter = CliRunner().invoke(app, ["label-score", *_files(tmp_path), "--keep", "0.8", str(out)])
    assert "1 kept at 0.8" in stricter.output


def test_labels_of_another_sae_name_it(tmp_path: Path) -> None:
    out = tmp_path / "kept.jsonl"
    done = CliRunner().invoke(app, ["label-score", *_files(tmp_path), "--sae", "layer_3_transcoder_2k", str(out)])
    assert done.exit_code == 0, done.output
    assert {row["sae"] for row in score.read_rows(out)} == {"layer_3_transcoder_2k"}


def test_the_labels_that_ship_are_what_the_written_files_score(tmp_path: Path) -> None:
    rows = []
    for folder in WRITTEN:
        files = [part for name, file in FILES.items() for part in (f"--{name}", str(folder / file))]
        named = [] if folder == WRITTEN[0] else ["--sae", folder.name]
        done = CliRunner().invoke(app, ["label-score", *files, *named, str(tmp_path / "kept.jsonl")])
        assert done.exit_code == 0, (folder, done.output, done.exception)
        rows += score.read_rows(tmp_path / "kept.jsonl")
    assert rows == score.read_rows(demo.LABELS)


@pytest.mark.parametrize(
    ("file", "row", "says"),
    [
        ("labels", {"feature": 3, "label": "again"}, "feature 3 has two labels"),
        ("labels", {"feature": 15, "label": " "}, "feature 15 has an empty label"),
        ("answers", {"feature": 3, "active": [11]}, "feature 3: there is no window 11"),
    ],
)
def test_what_cannot_be_scored_is_said(tmp_path: Path, file: str, row: dict[str, object], says: str) -> None:
    asked = _files(tmp_path)
    with (tmp_path / f"{file}.jsonl").open("a") as written:
        written.write(json.dumps(row) + "\n")
    done = CliRunner().invoke(app, ["label-score", *asked, str(tmp_path / "kept.jsonl")])
    assert isinstance(done.exception, ValueError)
    assert says in str(done.exception)
