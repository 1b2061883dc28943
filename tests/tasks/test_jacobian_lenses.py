"""A Jacobian lens of a corpus: what it averages over, stopped and taken up again, and where it is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.read.jacobian import text_jacobians
from lens_tui.records import LensError
from lens_tui.records.jacobian_lens import JacobianLens, write_jacobian_lens
from lens_tui.tasks.jacobian_lenses import fit_on_corpus, lens_of, place_of
from lens_tui.tasks.make_vectors import from_token
from tests.lens import tiny
from tests.sae.reading.makers import write_torch

TEXTS = [
    "The old man opened the door and saw the sea.",
    "Rain.",
    "A letter lay on the table and nobody had read it.",
    "She counted the boats twice before the night came down.",
    "The lamp was still burning when they came home.",
]


@pytest.fixture
def lens() -> LensModel:
    return LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def test_it_is_the_mean_over_windows_of_documents(lens: LensModel, corpus: Path, tmp_path: Path) -> None:
    file, found = fit_on_corpus(lens, corpus, tmp_path / "j.safetensors", n_texts=50, context=10, skip=3)
    assert found is not None
    assert file.exists()
    bos, ids = lens.tokens.bos, []
    for text in TEXTS:
        plain = [token for token in lens.tokens.encode(text) if token != bos]
        ids += [[bos, *plain[at : at + 9]] for at in range(0, len(plain), 9)]
    singles = [text_jacobians(lens, one, (0,), skip=3)[0] for one in ids if len(one) >= 5]  # type: ignore[arg-type]
    assert 3 < len(singles) == found.n_texts < len(ids)
    np.testing.assert_allclose(found.matrix(0), np.mean(singles, axis=0), rtol=2e-3, atol=1e-3)
    assert (found.facts["context"], found.facts["skip"], found.facts["layers"]) == (10, 3, [0])
    assert not file.with_name(file.name + ".fit").exists()
    again = fit_on_corpus(lens, corpus, file, n_texts=50, context=10, skip=3, should_stop=lambda: True)[1]
    assert again is not None  # nothing is computed again
    with pytest.raises(LensError, match="holds another"):
        fit_on_corpus(lens, corpus, file, n_texts=50, context=9, skip=3)


def test_stopped_it_goes_on_to_the_same_numbers(lens: LensModel, corpus: Path, tmp_path: Path) -> None:
    whole = fit_on_corpus(lens, corpus, tmp_path / "whole.safetensors", n_texts=3, context=10, skip=3, rows=32)[1]
    done: list[int] = []
    file = tmp_path / "parts.safetensors"
    for at in (1, 2):
        stopped = fit_on_corpus(
            lens, corpus, file, n_texts=3, context=10, skip=3, rows=32,
            progress=lambda step: done.append(step.done), should_stop=lambda at=at: len(done) >= at,  # type: ignore[misc]
        )  # fmt: skip
        assert stopped[1] is None
        assert not file.exists()
    with pytest.raises(LensError, match="other settings"):
        fit_on_corpus(lens, corpus, file, n_texts=4, context=10, skip=3)
    found = fit_on_corpus(lens, corpus, file, n_texts=3, context=10, skip=3, rows=32)[1]
    assert found is not None
    assert whole is not None
    assert done == [1, 2]
    np.testing.assert_array_equal(found.matrix(0), whole.matrix(0))
    assert (found.errors, dict(found.facts)) == (whole.errors, dict(whole.facts))


def test_a_damaged_state_is_refused(lens: LensModel, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "j.safetensors.fit").write_bytes(b"none")
    with pytest.raises(LensError, match="begin anew"):
        fit_on_corpus(lens, corpus, tmp_path / "j.safetensors", n_texts=3, context=10, skip=3)
    with pytest.raises(LensError, match="leave nothing"):
        fit_on_corpus(lens, corpus, tmp_path / "k.safetensors", n_texts=3, context=10)


def test_a_models_lens_is_found_by_its_name(lens: LensModel) -> None:
    with pytest.raises(LensError, match="no Jacobian lens of"):
        lens_of(lens.info)
    eye = np.eye(64, dtype=np.float32)
    write_jacobian_lens(JacobianLens(lens.info.name, {0: eye}, 7), place_of(lens.info))
    assert lens_of(lens.info).n_texts == 7
    write_jacobian_lens(JacobianLens(lens.info.name, {0: eye[:32, :32]}), place_of(lens.info))
    with pytest.raises(LensError, match="32 wide"):
        lens_of(lens.info)


def test_a_published_file_in_its_place_is_read_and_a_token_is_pulled_back_through_it(lens: LensModel) -> None:
    matrix = np.random.default_rng(4).normal(size=(64, 64)).astype(np.float32)
    with pytest.raises(LensError) as caught:
        from_token(lens, "id:5", 0, "jacobian")
    published = place_of(lens.info).with_suffix(".pt")
    assert str(published) in (caught.value.hint or "")
    published.parent.mkdir(parents=True, exist_ok=True)
    held = {"J": {0: matrix}, "n_prompts": 9, "source_layers": [0], "d_model": 64}
    write_torch(published, held, "FloatStorage")
    found, row = (from_token(lens, "id:5", 0, kind) for kind in ("jacobian", "unembedding"))
    expected = (row.direction * row.norm).astype(np.float64) @ matrix
    np.testing.assert_allclose(found.direction, expected / np.linalg.norm(expected), atol=1e-5)
    assert abs(float(found.direction @ row.direction)) < 0.9
