"""The text of the bundled index: free domains only, held out, seeded; and the index made of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import FeatureIndex, LensModel
from recipes import index, prompts, saes, texts
from recipes.__main__ import app
from recipes.bundled import embeddings, open_model
from recipes.copied import Copied
from recipes.corpus import HELD_OUT_EVERY, HELD_OUT_INDEX, Domain
from tests.folders import llama_folder, sae_folder

SMALL = texts.Settings(written=120, books=200, shortest=8, longest=14, passage=20, least=5, rows=6)
DOMAINS = ("bible", "dialogue", "novels", "python")


def _domains() -> list[Domain]:
    """Documents that say what they are; in each line of a held-out one stand its domain and number."""
    made = []
    for name in DOMAINS:
        documents = [f"the {name} document {n}\n" + f"of {name} number {n}, said he.\n" * 6 for n in range(90)]
        held = [text for n, text in enumerate(documents) if n % HELD_OUT_EVERY == HELD_OUT_INDEX]
        made.append(Domain(name, tuple(text for text in documents if text not in held), tuple(held)))
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("model") / "tiny")


def _rows(folder: Path) -> dict[str, list[dict[str, str]]]:
    files = sorted(folder.glob("*.jsonl"))
    return {file.stem: [json.loads(line) for line in file.read_text().strip().split("\n")] for file in files}


def test_texts_are_of_the_model_and_of_free_held_out_documents(model: Path, tmp_path: Path) -> None:
    lens = open_model(model)
    facts = texts.write(lens, _domains(), tmp_path / "a", SMALL)
    rows = _rows(tmp_path / "a")
    assert sorted(rows) == ["bible", "novels", "prompted", "unprompted"]
    for name in ("bible", "novels"):
        assert 0 < facts["tokens"][name] <= SMALL.books // 2
        for row in rows[name]:
            number = int(row["source"].split()[1])
            assert number % HELD_OUT_EVERY == HELD_OUT_INDEX
            assert f"{name} document {number}" in row["text"] or f"of {name} number {number}" in row["text"]
            assert len(lens.tokens.encode(row["text"])) - 1 <= SMALL.passage + 2
        sources = [row["source"] for row in rows[name]]
        assert len(set(sources)) == 3  # the first passage of each document before the second of any
        assert len(set(sources[:3])) == 3
    for row in rows["prompted"]:
        assert any(row["text"].startswith(prompt) for prompt in prompts.PROMPTS[row["domain"]])
    assert {row["domain"] for row in rows["unprompted"]} == {""}
    total = facts["tokens"]["prompted"] + facts["tokens"]["unprompted"]
    assert SMALL.written <= total < SMALL.written + SMALL.longest + 20
    texts.write(lens, _domains(), tmp_path / "b", SMALL)
    assert _rows(tmp_path / "b") == rows
    texts.write(lens, _domains(), tmp_path / "c", replace(SMALL, seed=8))
    assert _rows(tmp_path / "c")["unprompted"] != rows["unprompted"]
    assert _rows(tmp_path / "c")["bible"] == rows["bible"]


def test_what_the_model_copied_is_dropped(model: Path) -> None:
    lens = open_model(model)
    kept, dropped = texts.written(lens, Copied([], run=3), SMALL)
    assert dropped == {}
    copy = next(text for text in kept if text.kind == "prompted")
    fewer, dropped = texts.written(lens, Copied([f"before {copy.text} after"], run=3), SMALL)
    assert dropped[copy.domain] >= 1
    assert copy.text not in [text.text for text in fewer]


def test_runs_of_words_are_found_wherever_they_stand() -> None:
    words = [f"w{n}" for n in range(40)]
    copied = Copied([" ".join(words), "short one"], run=10)
    assert copied.share(" ".join(words[5:15])) == 1.0
    assert copied.share("\n".join(words[5:14])) == 0.0  # nine words
    assert copied.share("x " + " ".join(words[5:15]) + " y") == pytest.approx(1 / 3)
    assert copied.share(" ".join(words[15:5:-1])) == 0.0
    assert copied.share(" ".join(["w0"] * 12)) == 0.0
    assert Copied([]).share("anything at all") == 0.0


def test_passages_lose_nothing_but_white_space() -> None:
    text = "One, two. Three four five!\nSix\n\nSeven; eight " + "nine " * 30
    cut = texts.cut_passages(text, lambda piece: len(piece.split()), 4)
    assert "".join("".join(part.split()) for part, _ in cut) == "".join(text.split())
    assert cut[0] == ("One, two.", 2)
    assert max(size for part, size in cut if "nine" not in part) <= 4
    assert cut[-1][1] >= 30  # what has no place to cut at stays whole


def test_every_domain_of_the_corpus_has_five_prompts_of_its_own() -> None:
    assert len(prompts.PROMPTS) == 13
    assert set(texts.FREE) < set(prompts.PROMPTS)
    assert {len(set(some)) for some in prompts.PROMPTS.values()} == {5}
    assert [domain for domain, _ in texts.prompts()[:13]] == list(prompts.PROMPTS)
    assert len(texts.prompts()) == 65


def test_the_bundled_model_in_plain_matrices_is_the_same_function() -> None:
    plain, lens = open_model(), LensModel("demo")
    assert plain.info.name == lens.info.name
    assert lens.info.quantization
    assert not plain.info.quantization
    ids = [0, 5, 900, 77, 4000]
    expected = np.asarray(lens.forward(ids))
    assert np.abs(np.asarray(plain.forward(ids)) - expected).max() < 1e-3 * np.abs(expected).max()
    rows = embeddings(plain)
    assert rows.shape == (8192, 384)
    assert np.abs(rows.mean(0)).max() < 1e-4


def test_the_command_builds_the_three_indexes_without_a_name_of_this_machine(model: Path, tmp_path: Path) -> None:
    for layer, depth in enumerate(saes.DEPTHS.values()):
        sae_folder(tmp_path / "saes" / depth.folder, layer=layer, seed=layer)
    folder = tmp_path / "texts"
    texts.write(open_model(model), _domains(), folder, SMALL)
    asked = ["index", "--texts", str(folder), "--out", str(tmp_path / "index"), "--model", str(model)]
    done = CliRunner().invoke(app, [*asked, "--saes", str(tmp_path / "saes"), "--rows", "4"])
    assert done.exit_code == 0, done.output
    (text,) = (tmp_path / "index").glob("text-*")
    made = [FeatureIndex(path) for path in (tmp_path / "index").iterdir() if path != text]
    assert sorted(found.identity.layer for found in made) == [0, 1, 2]
    for found in made:
        name = list(saes.DEPTHS)[found.identity.layer]
        assert found.settings == index.SETTINGS[name]
        assert (found.identity.model, found.identity.corpus) == ("demo", index.CORPUS)
        assert found.conventions == ("norm",)
        assert str(tmp_path) not in (found.path / "manifest.json").read_text()
        assert f"{name:8}{found.path.name}" in done.output
        shutil.copytree(text, tmp_path / "installed" / text.name, dirs_exist_ok=True)
        read_only = shutil.copytree(found.path, tmp_path / "installed" / found.path.name)
        for file in read_only.rglob("*"):
            file.chmod(0o555 if file.is_dir() else 0o444)
        feature = int(found.count.argmax())
        assert FeatureIndex(read_only).examples(feature)[0].value == found.examples(feature)[0].value
    assert f"in all {index.size(tmp_path / 'index') / 1e6:.2f} MB with the text" in done.output
