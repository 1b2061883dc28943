"""Cards, quiz and the figure about features, on a small random model: what is written is true, held out stays out."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from lens_tui import LensModel, demo
from recipes.__main__ import app
from recipes.corpus import HELD_OUT_EVERY, HELD_OUT_INDEX, SEPARATOR, read_corpus
from recipes.labels import choose, material, seen, windows
from recipes.saes import DEPTHS
from tests.folders import llama_folder, sae_folder

WORDS = {
    "farm": "the cow ate hay near an old barn and drank milk by its gate while rain fell on",
    "ship": "a sailor pulled wet rope over that deck as salt wind blew through our sails and mast",
    "shop": "she sold red silk to him for ten coins but kept blue cotton behind her counter until dusk",
}
DENSITY = 0.02
TOKENS = 4000
SETTINGS = ["--tokens", str(TOKENS), "--rows", "8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Cards and a quiz of a model whose SAE fires on one token in fifty, and the folders they come from."""
    root = tmp_path_factory.mktemp("labels")
    model = llama_folder(root / "model")
    source = random.Random(3)
    (root / "corpus").mkdir()
    for name, words in WORDS.items():
        texts = [
            f"{name} {n}. " + " ".join(source.choices(words.split(), k=source.randint(30, 60))) for n in range(170)
        ]
        (root / "corpus" / f"{name}.txt").write_text("".join(f"{text}\n{SEPARATOR}\n" for text in texts))
    lens = LensModel(str(model))
    for layer, depth in enumerate(DEPTHS.values()):
        _sparse(sae_folder(root / "saes" / depth.folder, layer=layer, seed=layer), lens, layer, root)
    shared = ["--corpus", str(root / "corpus"), "--work", str(root / "work"), "--model", str(model)]
    shared += ["--saes", str(root / "saes")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "DENSITIES", (0.001, 0.1))
        said = [_run("label-cards", *shared, *SETTINGS, "--features", "20", str(root / "out"))]
    said.append(_run("label-quiz", *shared, "--rows", "8", str(root / "out")))
    said.append(_run("label-meaning", *shared, *SETTINGS, "--features", "30"))
    truth = Truth(root, lens)
    return SimpleNamespace(root=root, model=model, said=said, out=root / "out", truth=truth)


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def _before(folder: Path, residual: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the SAE's thresholds are held against, in NumPy."""
    tensors = load_file(folder / "params.safetensors")
    return np.asarray(residual @ tensors["w_enc"] + tensors["b_enc"], np.float32)


def _residual(lens: LensModel, text: str, layer: int) -> NDArray[np.float32]:
    return np.asarray(lens.residuals(list(lens.tokens.encode(text)), layer), np.float32)[1:]


def _sparse(folder: Path, lens: LensModel, layer: int, root: Path) -> None:
    """Set the thresholds so that every feature fires on a share of ``DENSITY`` of the tokens.

    Documents begin alike, so that many activations are equal but for their last bits: a threshold stands above such.
    """
    texts = [text for domain in read_corpus(root / "corpus") for text in domain.train[:12]]
    before = np.concatenate([_before(folder, _residual(lens, text, layer)) for text in texts])
    tensors = load_file(folder / "params.safetensors")
    tensors["threshold"] = np.maximum(1.001 * np.quantile(before, 1 - DENSITY, axis=0), 1e-3).astype(np.float32)
    save_file(tensors, folder / "params.safetensors")


class Truth:
    """Activations of the documents of the corpus, computed apart from index and SAE code."""

    def __init__(self, root: Path, lens: LensModel, depth: str = "middle") -> None:
        self.lens, self.folder = lens, root / "saes" / DEPTHS[depth].folder
        self.layer = list(DEPTHS).index(depth)
        self.threshold = load_file(self.folder / "params.safetensors")["threshold"]
        files = {name: (root / "corpus" / f"{name}.txt").read_text() for name in WORDS}
        self.texts = {name: [part.strip() for part in text.split(SEPARATOR)] for name, text in files.items()}
        self.known: dict[tuple[str, int], NDArray[np.float32]] = {}

    def of(self, domain: str, number: int) -> NDArray[np.float32]:
        """Of every token of a document, ``(n, width)``."""
        if (domain, number) not in self.known:
            before = _before(self.folder, _residual(self.lens, self.texts[domain][number], self.layer))
            self.known[domain, number] = np.where(before > self.threshold, before, 0)
        return self.known[domain, number]


def _jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def test_a_quiz_is_of_held_out_documents_and_its_key_is_true(made: SimpleNamespace) -> None:
    cards = {row["feature"]: row for row in _jsonl(made.out / "cards.jsonl")}
    key = _jsonl(made.out / "quiz_key.jsonl")
    assert len(cards) == 20
    assert "a quiz for 20 features" in made.said[1]
    assert len(key) == 200
    assert all(row["document"] % HELD_OUT_EVERY == HELD_OUT_INDEX for row in key)
    starts = _starts(made)
    for row in key:
        place = (row["domain"], row["document"])
        low = row["token"] - starts[place]
        values = made.truth.of(*place)[low : low + row["tokens"], row["feature"]]
        assert len(values) == windows.LENGTH
        assert (values > 0).any() == row["active"]
        if row["active"]:
            assert values.max() >= windows.LEVEL * cards[row["feature"]]["maximum"] * 0.999
            assert np.isclose(values, row["value"], rtol=2e-3).any()
    for feature in cards:
        rows = [row for row in key if row["feature"] == feature]
        assert [row["window"] for row in rows] == list(range(1, 11))
        assert sum(row["active"] for row in rows) == 5
        spans = sorted((row["token"], row["token"] + row["tokens"]) for row in rows)
        assert all(left[1] <= right[0] for left, right in pairwise(spans))
    assert len({tuple(row["active"] for row in key if row["feature"] == f) for f in cards}) > 5  # shuffled
    hard = [row for row in key if row["kind"] == "hard"]
    for row in hard:
        assert row["domain"] in {r["domain"] for r in key if r["feature"] == row["feature"] and r["active"]}
    assert len(hard) > 20


def _starts(made: SimpleNamespace) -> dict[tuple[str, int], int]:
    """The first token (after BOS) of every held-out document in the order of the corpus."""
    lens, at, found = made.truth.lens, 0, {}
    for domain in read_corpus(made.root / "corpus"):
        for place, text in enumerate(domain.held_out):
            found[domain.name, HELD_OUT_INDEX + HELD_OUT_EVERY * place] = at + 1
            at += len(lens.tokens.encode(text))
    return found


def test_a_card_tells_what_the_feature_does_on_trained_documents(made: SimpleNamespace) -> None:
    sample = material.training_sample(read_corpus(made.root / "corpus"), TOKENS)
    assert all(place.number % HELD_OUT_EVERY != HELD_OUT_INDEX for place, _ in sample)
    acts = {place: made.truth.of(place.domain, place.number) for place, _ in sample}
    whole = np.concatenate(list(acts.values()))
    size = {name: sum(len(a) for place, a in acts.items() if place.domain == name) for name in WORDS}
    for one in _jsonl(made.out / "cards.jsonl"):
        f = one["feature"]
        assert one["density"] == pytest.approx((whole[:, f] > 0).mean(), rel=0.02)
        assert one["maximum"] == pytest.approx(whole[:, f].max(), rel=2e-3)
        assert 0.001 <= one["density"] <= 0.1
        best = sorted((a[:, f].max() for a in acts.values()), reverse=True)[:12]
        assert [value for value, _, _ in one["top"]] == pytest.approx(best, abs=0.02)
        rate = {n: sum((a[:, f] > 0).sum() for p, a in acts.items() if p.domain == n) / size[n] for n in WORDS}
        shares = {name: value / sum(rate.values()) for name, value in rate.items()}
        assert dict(one["domains"]) == pytest.approx({n: s for n, s in shares.items() if s >= 0.02}, abs=0.01)
        assert len(one["promoted"]) == len(one["suppressed"]) == 10
        assert 3 <= len(one["middle"]) <= 6
        for _, _, text in one["top"] + one["middle"]:
            assert text.count("[[") == text.count("]]") == 1


def test_files_match_and_the_quiz_gives_nothing_away(made: SimpleNamespace) -> None:
    cards, quiz = ((made.out / kind / "00.txt").read_text() for kind in ("cards", "quiz"))
    features = [line for line in cards.split("\n") if line.startswith("## ")]
    assert features == [line for line in quiz.split("\n") if line.startswith("## ")]
    assert "[[" in cards
    assert "[[" not in quiz
    assert sum(line[:3].strip(" .").isdigit() for line in quiz.split("\n")) == 200
    again = made.root / "again"
    again.mkdir()
    (again / "cards.jsonl").write_text((made.out / "cards.jsonl").read_text())
    shared = ["--corpus", str(made.root / "corpus"), "--work", str(made.root / "work"), "--model", str(made.model)]
    _run("label-quiz", *shared, "--saes", str(made.root / "saes"), "--rows", "8", str(again))
    assert (again / "quiz" / "00.txt").read_text() == quiz
    assert (again / "quiz_key.jsonl").read_text() == (made.out / "quiz_key.jsonl").read_text()


def test_features_that_are_asked_for_get_cards_of_any_density(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {row["feature"]: row for row in _jsonl(made.out / "cards.jsonl")}
    known = sorted(before)[3]
    asked = [known, *[feature for feature in range(64) if feature not in before][:3], known]
    (tmp_path / "also.json").write_text(json.dumps(asked))
    monkeypatch.setattr(choose, "DENSITIES", (0.9, 1.0))  # nothing is chosen by itself
    dropped, pick = asked[2], windows.pick
    monkeypatch.setattr(windows, "pick", lambda *given: None if given[1] == dropped else pick(*given))
    shared = ["--corpus", str(made.root / "corpus"), "--work", str(made.root / "work"), "--model", str(made.model)]
    shared += ["--saes", str(made.root / "saes")]
    also = ["--features", "0", "--also", str(tmp_path / "also.json"), str(tmp_path / "out")]
    said = _run("label-cards", *shared, *SETTINGS, *also)
    assert "3 of 4 that were asked for" in said
    rows = {row["feature"]: row for row in _jsonl(tmp_path / "out" / "cards.jsonl")}
    assert list(rows) == sorted(set(asked) - {dropped})
    assert rows[known] == before[known]
    assert "a quiz for 3 features" in _run("label-quiz", *shared, "--rows", "8", str(tmp_path / "out"))


def test_cards_and_quiz_of_another_depth_leave_out_what_is_known(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "DENSITIES", (0.001, 0.1))
    shared = ["--corpus", str(made.root / "corpus"), "--work", str(tmp_path / "work"), "--model", str(made.model)]
    shared += ["--saes", str(made.root / "saes"), "--depth", "early", "--rows", "8"]
    first, second = tmp_path / "first", tmp_path / "second"
    _run("label-cards", *shared, "--tokens", str(TOKENS), "--features", "6", str(first))
    known = ["--known", str(first / "cards.jsonl")]
    _run("label-cards", *shared, "--tokens", str(TOKENS), "--features", "6", *known, str(second))
    cards = {folder: {row["feature"] for row in _jsonl(folder / "cards.jsonl")} for folder in (first, second)}
    assert [len(features) for features in cards.values()] == [6, 6]
    assert not cards[first] & cards[second]
    assert "a quiz for 6 features" in _run("label-quiz", *shared, str(second))
    truth, starts = Truth(made.root, made.truth.lens, "early"), _starts(made)
    for row in _jsonl(second / "quiz_key.jsonl"):
        place = (row["domain"], row["document"])
        low = row["token"] - starts[place]
        values = truth.of(*place)[low : low + row["tokens"], row["feature"]]
        assert (values > 0).any() == row["active"]


def test_a_depth_that_is_none_is_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    given = ["--corpus", str(made.root / "corpus"), "--work", str(tmp_path), "--model", str(made.model)]
    done = CliRunner().invoke(app, ["label-quiz", *given, "--depth", "deep", str(made.out)], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "deep is none of early, middle, late" in done.output


@pytest.mark.parametrize(
    ("levels", "shares"),
    [
        ((0.1, 0.2, 0.25, 1.0), windows.DENSE_LEVELS[0]),
        ((0.3, 0.4, 0.45, 1.0), windows.DENSE_LEVELS[1]),
        ((0.6, 0.7, 0.7, 1.0), None),
    ],
)
def test_a_feature_active_on_every_token_is_asked_for_where_it_is_strong(
    levels: tuple[float, ...], shares: tuple[float, float] | None
) -> None:
    values = np.random.default_rng(0).choice(levels, 4000, p=[0.4, 0.55, 0.04, 0.01])
    order = np.argsort(-values, kind="stable")
    places = np.arange(len(values))
    dense: Any = SimpleNamespace(
        index=SimpleNamespace(
            everywhere=lambda feature: (order, values[order]), n_tokens=len(values), special=np.zeros(len(values), bool)
        ),
        starts=np.arange(0, 4001, 200),
        documents=np.arange(20),
        sequences=lambda tokens: tokens // 200,
        domain_of_token=places // 2000,
        tokens_of_domain=(places[:2000], places[2000:]),
    )
    quiz = windows.pick(dense, 0, 1.0, 3)
    if shares is None:
        assert quiz is None
        return
    assert quiz is not None
    strongest: dict[str, list[float]] = {"active": [], "silent": []}
    for window in quiz:
        strongest["active" if window.kind == "active" else "silent"].append(values[window.low : window.high].max())
    assert [len(found) for found in strongest.values()] == [5, 5]
    assert min(strongest["active"]) >= shares[0]
    assert max(strongest["silent"]) <= shares[1]


@pytest.mark.parametrize("written", ["[1, 64]", "[-1]", "[true]", '{"1": 2}', '["3"]'])
def test_a_list_of_other_things_than_features_is_refused(tmp_path: Path, written: str) -> None:
    (tmp_path / "also.json").write_text(written)
    with pytest.raises(ValueError, match="is not a list of features from 0 to 63"):
        choose.read_features(tmp_path / "also.json", 64)


def test_what_is_seen_first_is_what_stands_among_the_strongest(made: SimpleNamespace, tmp_path: Path) -> None:
    texts = ["the cow ate hay near an old barn", "a sailor pulled wet rope", "the cow ate red silk"]
    counts: Counter[int] = Counter()
    totals: dict[int, float] = {}
    for text in texts:
        before = _before(made.truth.folder, _residual(made.truth.lens, text, 1))
        for token in np.where(before > made.truth.threshold, before, 0):
            for feature in np.argsort(-token)[:3].tolist():
                counts[feature] += int(token[feature] > 0)
                totals[feature] = totals.get(feature, 0.0) + float(token[feature])
    ranked = sorted((f for f in counts if counts[f]), key=lambda f: (-counts[f], -totals[f]))
    assert len(ranked) > 8
    sample = material.training_sample(read_corpus(made.root / "corpus"), TOKENS)
    whole = np.concatenate([made.truth.of(place.domain, place.number) for place, _ in sample])
    density = (whole > 0).mean(0)
    some = np.sort(density[ranked])
    densest = float(some[-2:].mean())  # the densest one is left out
    (tmp_path / "known.jsonl").write_text(json.dumps({"feature": ranked[1], "label": "x"}) + "\n")
    expected = [f for f in ranked if f != ranked[1] and density[f] <= densest]
    arguments = ["--model", str(made.model), "--saes", str(made.root / "saes"), "--no-opening", "--strongest", "3"]
    arguments += ["--index", str(made.root / "work" / "trained_on" / "index"), "--densest", str(densest)]
    arguments += ["--known", str(tmp_path / "known.jsonl"), *texts, str(tmp_path / "seen.json")]
    said = _run("label-seen", "--limit", "5", *arguments)
    assert json.loads((tmp_path / "seen.json").read_text()) == expected[:5]
    shares = [sum(counts[f] for f in fs) / counts.total() for fs in ([ranked[1]], [ranked[1], *expected[:5]])]
    assert f"known are {shares[0]:.0%} of what is shown, with those listed {shares[1]:.0%}" in said


def test_the_opening_is_read_with_what_every_arm_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = demo.starter()
    short = replace(whole, sampling=replace(whole.sampling, max_tokens=6))
    monkeypatch.setattr(demo, "starter", lambda: short)
    with LensModel(demo.NAME) as lens:
        prompt, baseline, *steered = seen.opening_texts(lens)
        plain = lens.generate(prompt, sampling=short.sampling)
    assert prompt == short.prompt
    assert baseline == prompt + plain
    assert len({baseline, *steered}) == 1 + len(short.steers)
    assert all(text.startswith(prompt) for text in steered)


def test_the_figure_about_features_is_a_count(made: SimpleNamespace) -> None:
    lines = made.said[2].strip().split("\n")
    assert [line.split()[0] for line in lines] == list(DEPTHS)
    assert all("of 30 random live features" in line for line in lines)
    shares = [float(line.split()[1].rstrip("%")) / 100 for line in lines]
    sample = material.training_sample(read_corpus(made.root / "corpus"), TOKENS)
    top: list[set[int]] = []
    chosen = np.random.default_rng(7).choice(64, 30, replace=False)
    for f in chosen.tolist():
        peaks = []
        for place, text in sample:
            values = made.truth.of(place.domain, place.number)[:, f]
            if values.max() > 0:
                peaks.append((-values.max(), made.truth.lens.tokens.encode(text)[1:][int(values.argmax())]))
        top.append({token for _, token in sorted(peaks)[:20]})
    assert shares[1] == pytest.approx(np.mean([len(peaks) > 3 for peaks in top]), abs=0.035)


def test_the_parts_of_usefulness_against_hand_values() -> None:
    assert choose.selectivity(np.array([0.25] * 4)) == pytest.approx(0)
    assert choose.selectivity(np.array([0, 0, 1.0, 0])) == pytest.approx(1)
    assert choose.selectivity(np.array([0.5, 0.5, 0, 0])) == pytest.approx(0.5)
    rows = np.array([[1, 0], [0, 2], [3, 0]], np.float32)
    assert choose.cosine(rows) == pytest.approx(1 / 3)
    meaning = choose.Candidate(4, peaks=8, domain=0.5, cluster=0.2, purity=0.3)
    token = choose.Candidate(2, peaks=3, domain=0.5, cluster=0.2, purity=0.9)
    assert not meaning.single
    assert meaning.score == pytest.approx(1.5)
    assert token.single
    assert token.score == pytest.approx(1.6)
    many = [choose.Candidate(f, 1 if f % 2 else 9, f / 100, 0.0, 1.0) for f in range(40)]
    chosen = choose.choose(many, 8)
    assert [one.feature for one in chosen] == [28, 30, 32, 34, 36, 37, 38, 39]  # two of eight for a token
