"""Labels keep their history and provenance, are found by their words, and survive a round trip through other tools."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_tui.records import LensError, SAEInfo
from lens_tui.records.label_files import read_delphi, read_neuronpedia, write_delphi, write_neuronpedia
from lens_tui.records.labels import MAX_TEXT, Label, Labels, NewLabel
from lens_tui.records.read_files import MAX_LINE
from lens_tui.records.store import Store


@pytest.fixture
def labels() -> Iterator[Labels]:
    with Store(":memory:") as store:
        yield Labels(store)


def _neuronpedia(folder: Path, rows: list[dict[str, object]], batch: int = 0, *, zipped: bool = True) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = folder / "explanations" / f"batch-{batch}.jsonl{'.gz' if zipped else ''}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text) if zipped else text)
    return path


ROW = {
    "id": "cl1",
    "modelId": "gemma-2-2b",
    "layer": "20-gemmascope-res-16k",
    "index": "12",
    "authorId": "me",
    "description": "mentions of cats",
    "embedding": [0.5] * 256,
    "typeName": "oai_token-act-pair",
    "explanationModelName": "gpt-4o-mini",
    "umap_x": 1.0,
}


def test_my_label_has_a_history(labels: Labels) -> None:
    labels.set("sae", 7, "cats", author="ann")
    labels.set("sae", 7, "felines")
    labels.set("sae", 7, "felines")  # the same again is no change
    labels.set("other", 7, "ships")
    assert [(label.text, bool(label.ended)) for label in labels.history("sae", 7)] == [
        ("felines", False),
        ("cats", True),
    ]
    assert labels.history("sae", 7)[1].author == "ann"
    assert labels.set("sae", 7, "  ") is None
    assert labels.of("sae", 7) == ()
    assert labels.search("felines") == labels.search("cats") == ()
    assert len(labels.history("sae", 7)) == 2
    assert [label.text for label in labels.of("other", 7)] == ["ships"]


def test_several_labels_a_feature_mine_first_then_by_score(labels: Labels) -> None:
    new = [
        NewLabel(3, "low", "delphi", score=0.2),
        NewLabel(3, "unscored", "neuronpedia"),
        NewLabel(3, "high", "delphi", score=0.9),
        NewLabel(4, "four", "neuronpedia"),
    ]
    assert labels.take("sae", new, origin="x").added == 4
    assert [label.text for label in labels.of("sae", 3)] == ["high", "low", "unscored"]
    labels.set("sae", 3, "mine")
    assert [label.text for label in labels.of("sae", 3)] == ["mine", "high", "low", "unscored"]
    best = labels.best("sae", [3, 4, 5, *range(10, 2000)])
    assert {feature: label.text for feature, label in best.items()} == {3: "mine", 4: "four"}
    assert labels.count("sae") == {"delphi": 2, "mine": 1, "neuronpedia": 2}
    assert labels.remove("sae", "delphi") == 2
    assert labels.search("high") == ()
    assert [label.text for label in labels.standing("sae")] == ["mine", "unscored", "four"]
    with pytest.raises(LensError, match="in bulk"):
        labels.remove("sae", "mine")


def test_importing_twice_adds_nothing_and_renews_the_score(labels: Labels) -> None:
    assert labels.take("sae", [NewLabel(1, "a", "delphi", score=0.5)], origin="x").added == 1
    result = labels.take("sae", [NewLabel(1, "a", "delphi", score=0.75), NewLabel(2, "b", "delphi")], origin="x")
    assert (result.added, result.known) == (1, 1)
    assert labels.of("sae", 1)[0].score == 0.75


@pytest.mark.parametrize("form", ["neuronpedia", "delphi"])
def test_an_export_comes_back_as_it_was(labels: Labels, tmp_path: Path, form: str) -> None:
    labels.set("sae", 3, "mine \x1b[31m\u202e", author="ann")
    labels.set("sae", 4, "also mine")
    given = [
        NewLabel(5, "bundled one", "bundled", method="by hand", score=0.8, scorer="fuzz"),
        NewLabel(6, "theirs", "neuronpedia", author="bob", method="m", explainer="gpt", external_id="abc"),
        NewLabel(7, "scored", "delphi", method="delphi", score=0.1 + 0.2, scorer="fuzz"),
    ]
    assert labels.take("sae", given, origin="x").added == 3

    def export(folder: Path, of: Labels) -> None:
        standing = of.standing("sae", raw=True)
        if form == "neuronpedia":
            write_neuronpedia(standing, folder, model_id="m", source_id="4-x", sae_id="sae")
        else:
            write_delphi(standing, folder, module="layers.4", sae_id="sae")

    read = read_neuronpedia if form == "neuronpedia" else read_delphi
    export(tmp_path / "out", labels)
    result = labels.take("sae", read(tmp_path / "out"), origin="out")
    assert (result.added, result.known, result.changed) == (0, 5, 0)
    with Store(":memory:") as store:  # somewhere else all of it is new, and the same
        other = Labels(store)
        assert other.take("sae", read(tmp_path / "out"), origin="out").added == 5
        assert [_all(label) for label in other.standing("sae", raw=True)] == [
            _all(label) for label in labels.standing("sae", raw=True)
        ]
        other.set("sae", 3, "another's")  # what is yours is never taken away
        result = other.take("sae", read(tmp_path / "out"), origin="out")
        assert (result.added, result.known) == (1, 4)
        assert [(label.text[:4], label.source) for label in other.of("sae", 3)] == [
            ("anot", "mine"),
            ("mine", "mlx-lens-tui"),
        ]


def _all(label: Label) -> tuple[object, ...]:
    names = ("feature", "text", "source", "author", "method", "explainer", "score", "scorer", "external_id")
    return tuple(getattr(label, name) for name in names)


SAE = SAEInfo("sae", "mine", "", "topk", "resid_post", 4, 8, 16, "google/gemma-2-2b")


@pytest.mark.parametrize(
    ("model", "source", "message"),
    [
        ("gemma-2-2b", "4-gemmascope-res-16k", ""),
        ("mlx-community/gemma-2-2b-4bit", "4-x", ""),
        ("", "", ""),
        ("gemma-2-2b", "own-name", ""),
        ("gemma-2-2b-it", "4-x", "is of model gemma-2-2b-it, but the SAE mine is of google/gemma-2-2b"),
        ("gemma-2-2b", "20-gemmascope-res-16k", "is of layer 20, but the SAE mine is of layer 4"),
    ],
)
def test_labels_of_another_model_or_layer_are_refused(tmp_path: Path, model: str, source: str, message: str) -> None:
    _neuronpedia(tmp_path, [{**ROW, "modelId": model, "layer": source}])
    assert len(list(read_neuronpedia(tmp_path))) == 1
    if not message:
        assert len(list(read_neuronpedia(tmp_path, sae=SAE))) == 1
        return
    with pytest.raises(LensError, match=message):
        list(read_neuronpedia(tmp_path, sae=SAE))


def test_a_delphi_folder_of_another_layer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "layers.5.mlp_latent1.txt").write_text('"x"')
    assert len(list(read_delphi(tmp_path))) == 1
    with pytest.raises(LensError, match="is of layer 5"):
        list(read_delphi(tmp_path, sae=SAE))
    (tmp_path / "layers.5.mlp_latent1.txt").rename(tmp_path / "layers.4.mlp_latent1.txt")
    assert len(list(read_delphi(tmp_path, sae=SAE))) == 1


def test_search_ranks_stems_and_completes_the_last_word(labels: Labels) -> None:
    texts = ["running dogs", "dogs and a long text about many other things", "Über cafés", "cats"]
    labels.take("sae", [NewLabel(i, text, "x") for i, text in enumerate(texts)], origin="")
    assert [label.feature for label in labels.search("dog")] == [0, 1]
    assert [label.feature for label in labels.search("run dog")] == [0]
    assert [label.feature for label in labels.search("cafe uber")] == [2]
    assert [label.feature for label in labels.search("thin")] == [1]
    assert labels.search("dogs", sae="other") == labels.search('"') == labels.search("dogs", k=0) == ()


@given(words=st.text(max_size=40))
def test_nothing_typed_breaks_the_search(words: str) -> None:
    with Store(":memory:") as store:
        labels = Labels(store)
        labels.take("sae", [NewLabel(1, words + " x", "t")], origin=words)
        labels.search(words)
        labels.search(words + " OR (")
        assert labels.remove("sae", "t") == 1
        store.all("INSERT INTO label_words (label_words) VALUES ('integrity-check')")


def test_text_from_files_is_safe_to_show(labels: Labels) -> None:
    labels.take("sae", [NewLabel(1, "\x1b]0;gone\x07 \u202e \ud800", "\x1b[31m", author="\x9b")], origin="\x1b")
    label = labels.of("sae", 1)[0]
    assert label.text == "␛]0;gone␇ ⟨U+202E⟩ ?"
    assert "\x1b" not in label.source + label.origin
    assert label.author == "⟨9b⟩"


def test_neuronpedia_exports_are_read_whatever_the_order_and_type_of_index(tmp_path: Path, labels: Labels) -> None:
    _neuronpedia(tmp_path, [ROW, {**ROW, "index": 3, "description": "three", "authorId": None}], batch=10)
    _neuronpedia(tmp_path, [{**ROW, "typeName": "np_max-act", "description": "cats again"}], batch=2, zipped=False)
    labels.take("sae", read_neuronpedia(tmp_path), origin=tmp_path.name)
    assert [label.text for label in labels.of("sae", 12)] == ["cats again", "mentions of cats"]
    assert [label.text for label in labels.of("sae", 3)] == ["three"]
    label = labels.of("sae", 12)[1]
    assert (label.source, label.method, label.explainer) == ("neuronpedia", "oai_token-act-pair", "gpt-4o-mini")
    assert (label.external_id, label.author, label.origin) == ("cl1", "me", tmp_path.name)


def test_neuronpedia_round_trip(tmp_path: Path, labels: Labels) -> None:
    labels.take("sae", [NewLabel(i, f"text {i} é", "neuronpedia", "a", "m", "e") for i in range(2500)], origin="")
    paths = write_neuronpedia(labels.standing("sae"), tmp_path, model_id="gemma", source_id="20-x")
    assert len(paths) == 3
    with Store(":memory:") as store:
        back = Labels(store)
        assert back.take("sae", read_neuronpedia(tmp_path, source_id="20-x"), origin="").added == 2500
        assert _facts(back.standing("sae")) == _facts(labels.standing("sae"))


def test_delphi_round_trip_and_scores(tmp_path: Path, labels: Labels) -> None:
    labels.take("sae", [NewLabel(5, 'quotes " and\nlines', "delphi", method="delphi")], origin="")
    labels.take("sae", [NewLabel(6, "worse", "x", score=0.1), NewLabel(6, "better", "x", score=0.9)], origin="")
    assert write_delphi(labels.standing("sae"), tmp_path, module="layers.4.mlp") == 2
    judged = [{"correct": True}, {"correct": False}, {"correct": True}, {"correct": None}, {"correct": True}]
    for scorer, rows in (("detection", judged[:2]), ("fuzz", judged)):
        (tmp_path / "scores" / scorer).mkdir(parents=True)
        (tmp_path / "scores" / scorer / "layers.4.mlp_latent5.txt").write_text(json.dumps(rows))
    found = list(read_delphi(tmp_path))
    assert [(new.feature, new.text) for new in found] == [(5, 'quotes " and\nlines'), (6, "better")]
    assert (found[0].score, found[0].scorer, found[1].score) == (0.75, "fuzz", 0.9)
    (tmp_path / "explanations" / "layers.5_latent1.txt").write_text('"x"')
    with pytest.raises(LensError, match=r"holds labels of layers\.4\.mlp, layers\.5"):
        list(read_delphi(tmp_path))
    assert [new.text for new in read_delphi(tmp_path, module="layers.5")] == ["x"]
    with pytest.raises(LensError, match="not a module name"):
        write_delphi([], tmp_path, module="../../etc")


BAD_ROWS = [
    ({**ROW, "index": "twelve"}, "feature number in line 2"),
    ({**ROW, "index": True}, "feature number in line 2"),
    ({**ROW, "index": -1}, "feature number in line 2"),
    ({**ROW, "index": 10**9}, "feature number in line 2"),
    ({**ROW, "index": "9" * 30}, "feature number in line 2"),
    ({**ROW, "index": "²"}, "feature number in line 2"),
    ({**ROW, "description": ["a"]}, "'description' in line 2"),
    ({**ROW, "description": "x" * (MAX_TEXT + 1)}, "characters"),
    ({**ROW, "layer": "21-other"}, "Say which"),
]


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS)
def test_a_bad_row_is_named_and_nothing_is_kept(
    tmp_path: Path, labels: Labels, row: dict[str, object], sentence: str
) -> None:
    _neuronpedia(tmp_path, [ROW, row])
    with pytest.raises(LensError, match=sentence):
        labels.take("sae", read_neuronpedia(tmp_path), origin="")
    assert labels.of("sae", 12) == labels.search("cats") == ()


def _damaged(kind: str, folder: Path) -> None:
    path = _neuronpedia(folder, [ROW] * 50)
    whole = path.read_bytes()
    contents = {
        "truncated": whole[: len(whole) // 2],
        "not gzip": b"hello",
        "empty header": whole[:5],
        "checksum": whole[:-8] + bytes(8),
        "flipped": whole[:20] + bytes([whole[20] ^ 255]) + whole[21:],
        "huge line": gzip.compress(b'{"index":' + b" " * (MAX_LINE + 5) + b"1}"),
        "deep": gzip.compress(b"[" * 100_000),
        "digits": gzip.compress(b'{"index":' + b"1" * 10_000 + b"}"),
        "not json": gzip.compress(b"{'a': 1}"),
        "list": gzip.compress(b"[1]"),
        "not utf-8": gzip.compress(b'{"index": "\xff\xfe"}'),
    }
    path.write_bytes(contents[kind])


KINDS = (
    *("truncated", "not gzip", "empty header", "checksum", "flipped", "huge line"),
    *("deep", "digits", "not json", "list", "not utf-8"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path, labels: Labels, kind: str) -> None:
    _damaged(kind, tmp_path)
    with pytest.raises(LensError, match=r"batch-0\.jsonl\.gz") as caught:
        labels.take("sae", read_neuronpedia(tmp_path), origin="")
    assert "\n" not in str(caught.value)
    assert labels.count("sae") == {}


@pytest.mark.parametrize("content", ["", "{", "12", '["a"]', '"a', '{"a": "b"}'])
def test_bad_delphi_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "m_latent1.txt").write_text(content)
    with pytest.raises(LensError, match=r"m_latent1\.txt"):
        list(read_delphi(tmp_path))


def test_folders_without_labels_are_refused(tmp_path: Path) -> None:
    for read in (read_neuronpedia, read_delphi):
        with pytest.raises(LensError, match="contains no"):
            list(read(tmp_path))
    _neuronpedia(tmp_path, [ROW])
    with pytest.raises(LensError, match="no labels of '3-x'"):
        list(read_neuronpedia(tmp_path, source_id="3-x"))


@pytest.mark.parametrize("feature", [-1, 10_000_001])
def test_feature_numbers_have_bounds(labels: Labels, feature: int) -> None:
    with pytest.raises(LensError, match="no feature"):
        labels.set("sae", feature, "x")


def _facts(labels: Iterator[Label]) -> list[tuple[object, ...]]:
    return [(item.feature, item.text, item.source, item.author, item.method, item.explainer) for item in labels]
