from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from lens_tui import FeatureIndex, IndexSettings, co_active, decoder_neighbours, promoting, rank_features
from lens_tui.records import LensError
from lens_tui.records.labels import Labels, NewLabel
from lens_tui.records.store import Store
from lens_tui.sae.index.build import Target, build_index
from lens_tui.sae.index.index_reader import describe
from lens_tui.sae.index.index_settings import EDGES
from lens_tui.sae.index.questions import direct_effects
from lens_tui.sae.index.tables import TokenTable, token_table
from lens_tui.tasks.knowledge import upload_batches

from .corpora import D_MODEL, PLACE, TinySAE, TinySource

VOCABULARY = 60
SETTINGS = IndexSettings(top_k=6, before=3, after=2, sample_per_bin=2, max_active=24, full=True)
RNG = np.random.default_rng(3)
DECODER = RNG.normal(size=(24, D_MODEL)).astype(np.float32)
UNEMBED = RNG.normal(size=(D_MODEL, VOCABULARY)).astype(np.float32)


def _unit(ids: Any) -> NDArray[np.float32]:
    rows = DECODER[np.asarray(ids)]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _unembed(directions: Any, k: int) -> tuple[Any, ...]:
    logits = mx.array(directions) @ mx.array(UNEMBED)
    order = mx.argsort(logits, axis=1)
    low, high = order[:, :k], order[:, ::-1][:, :k]
    values = [mx.take_along_axis(logits, ids, 1).astype(mx.bfloat16) for ids in (high, low)]
    return high, values[0], low, values[1]


def _table(convention: str = "raw") -> TokenTable:
    return token_table(_unit, 24, _unembed, convention, k=5, block=7)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    sae = TinySAE()
    target = Target(sae, PLACE, 24, "tiny", tables=(_table("raw"), _table("norm")))
    return FeatureIndex(build_index(TinySource(), [target], tmp_path_factory.mktemp("index"), SETTINGS).indexes[0])


def _acts(sae: TinySAE | None = None) -> NDArray[np.float32]:
    blocks = list(TinySource().blocks())
    acts = np.concatenate([(sae or TinySAE()).dense(block.values[PLACE]) for block in blocks])
    acts[np.concatenate([block.special for block in blocks])] = 0
    return acts


def test_the_token_table_is_the_sorted_product(index: FeatureIndex) -> None:
    logits = _unit(range(24)) @ UNEMBED
    table = index.table("raw")
    assert index.conventions == ("raw", "norm")
    assert np.array_equal(table.promoted_ids, np.argsort(-logits, axis=1)[:, :5])
    assert np.array_equal(table.suppressed_ids, np.argsort(logits, axis=1)[:, :5])
    assert np.allclose(table.promoted_values, np.take_along_axis(logits, table.promoted_ids.astype(int), 1), rtol=2**-7)
    with pytest.raises(LensError, match="no token table 'centred'"):
        index.table("centred")
    with pytest.raises(LensError, match="no convention"):
        _table("folded")


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    target = Target(TinySAE(), PLACE, 24, "tiny")
    return FeatureIndex(build_index(TinySource(), [target], tmp_path_factory.mktemp("slim")).indexes[0])


def test_an_index_without_token_tables_says_so_and_one_of_another_width_is_refused(
    tmp_path: Path, slim: FeatureIndex
) -> None:
    with pytest.raises(LensError, match="It has: none"):
        slim.table()
    ids, values = np.zeros((3, 2), np.uint32), np.zeros((3, 2), np.float32)
    target = Target(TinySAE(), PLACE, 24, "tiny", tables=(TokenTable("raw", ids, values, ids, values),))
    with pytest.raises(LensError, match="3 rows"):
        build_index(TinySource(), [target], tmp_path, SETTINGS)


def test_quantiles_follow_the_feature_s_own_distribution(index: FeatureIndex, slim: FeatureIndex) -> None:
    acts = _acts()
    for f in range(1, 24):
        active = acts[:, f][acts[:, f] > 0]
        values = np.linspace(0.01, 8, 60, dtype=np.float32)
        ids = np.full(60, f)
        exact = np.array([(active <= v).mean() for v in values])
        assert np.abs(index.quantile(ids, values) - exact).max() <= 1.01 / len(active)  # values are kept in float16
        near = slim.quantile(ids, values)
        assert (np.diff(near) >= 0).all()
        share = np.histogram(active, EDGES)[0] / len(active)
        assert np.abs(near - exact).max() <= share.max()  # never off by more than a bin holds
        edges = EDGES[1:-1]
        assert slim.quantile(np.full(len(edges), f), edges) == pytest.approx([(active < v).mean() for v in edges])
        for some in (index, slim):
            assert some.quantile(np.array([f, f]), np.array([active.max(), 1e9])) == pytest.approx([1, 1])
            assert some.quantile(np.array([f]), np.array([1e-12]))[0] == pytest.approx(0, abs=0.01)
    for some in (index, slim):
        assert np.isnan(some.quantile(np.array([0]), np.array([1.0])))[0]


def test_ranks_put_a_rare_feature_at_its_maximum_before_a_large_dense_one(index: FeatureIndex) -> None:
    acts = _acts()
    rare = int(np.argmin(np.where(acts.max(0) > 0, acts.max(0), np.inf)))
    ids = np.array([rare, 1, 0, 5])
    values = np.array([acts[:, rare].max(), np.median(acts[:, 1]), 0.0, -1.0])
    assert values[1] > values[0]
    by_size, sizes = rank_features(index, ids, values)
    by_rank, ranks = rank_features(index, ids, values, by="rank")
    assert by_size.tolist() == [1, rare]
    assert sizes.tolist() == sorted(values[:2].tolist(), reverse=True)
    assert by_rank.tolist() == [rare, 1]
    assert ranks[0] == 1.0
    assert 0.3 < ranks[1] < 0.7
    assert len(rank_features(index, ids, values, k=1)[0]) == 1


def test_the_direct_effect_is_a_difference_of_log_probabilities() -> None:
    residual, contributions = RNG.normal(size=D_MODEL), RNG.normal(size=(4, D_MODEL))

    def logprobs(x: NDArray[np.float32]) -> mx.array:
        h = mx.array(x)
        h = h * mx.rsqrt((h * h).mean(-1, keepdims=True))
        logits = h @ mx.array(UNEMBED)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    found = direct_effects(residual, mx.array(contributions.astype(np.float32)), 17, logprobs)
    for effect, c in zip(found, contributions, strict=True):
        logs = []
        for x in (residual, residual - c):
            logits = x / np.sqrt((x * x).mean()) @ UNEMBED.astype(np.float64)
            logs.append(logits[17] - np.log(np.exp(logits).sum()))
        assert effect == pytest.approx(logs[0] - logs[1], abs=1e-4)
    with pytest.raises(LensError, match="no token 60"):
        direct_effects(residual, contributions, VOCABULARY, logprobs)
    with pytest.raises(LensError, match="do not fit"):
        direct_effects(residual, contributions[0], 1, logprobs)


def test_co_active_features_equal_a_brute_force_count(index: FeatureIndex) -> None:
    active = _acts() > 0
    n = index.n_counted
    for f in range(1, 24):
        both = (active & active[:, [f]]).sum(0)
        either = (active | active[:, [f]]).sum(0)
        both[f] = 0
        expected = {g: both[g] / either[g] for g in np.flatnonzero(both)}
        found = co_active(index, f, k=24)
        assert {item.feature: pytest.approx(item.jaccard) for item in found} == expected
        assert [item.jaccard for item in found] == sorted(expected.values(), reverse=True)
        for item in found:
            assert item.both == both[item.feature]
            assert item.given == pytest.approx(both[item.feature] / active[:, f].sum())
            assert item.lift == pytest.approx(item.given / (active[:, item.feature].sum() / n))
    assert co_active(index, 0) == ()
    sampled = co_active(index, 1, k=24, limit=40)
    assert {item.n_used for item in sampled} == {40}
    exact = {item.feature: item.jaccard for item in co_active(index, 1, k=24)}
    assert all(abs(item.jaccard - exact[item.feature]) < 0.3 for item in sampled)


def test_decoder_neighbours_equal_a_full_product_whatever_the_block() -> None:
    cosines = _unit(range(24)) @ _unit(range(24)).T
    np.fill_diagonal(cosines, -np.inf)
    for block in (1, 5, 100):
        found = decoder_neighbours(lambda ids: mx.array(_unit(ids)), 24, 7, k=5, block=block)
        assert [f for f, _ in found] == np.argsort(-cosines[7])[:5].tolist()
        assert [c for _, c in found] == pytest.approx(sorted(cosines[7], reverse=True)[:5], abs=1e-6)
    assert len(decoder_neighbours(_unit, 24, 7, k=100)) == 23
    with pytest.raises(LensError, match="no feature 24"):
        decoder_neighbours(_unit, 24, 24)


def test_features_are_found_by_the_tokens_they_promote(index: FeatureIndex) -> None:
    logits = _unit(range(24)) @ UNEMBED
    top = np.argsort(-logits, axis=1)[:, :5]
    token = int(top[3, 1])
    found = promoting(index, [token], convention="raw", k=100)
    assert {item.feature for item in found} == {f for f in range(24) if token in top[f]}
    assert next(item.place for item in found if item.feature == 3) == 1
    values = [item.value for item in found]
    assert values == sorted(values, reverse=True)
    down = promoting(index, [token], convention="raw", suppressing=True, k=100)
    assert {item.feature for item in down} == {f for f in range(24) if token in np.argsort(logits[f])[:5]}
    assert promoting(index, [], convention="raw") == promoting(index, [10**6], convention="raw") == ()


def test_a_description_is_marked_as_automatic(index: FeatureIndex) -> None:
    text = describe(index, 1, lambda token: f" \x1bt{token}\n").text
    assert text.startswith("auto: peaks on ‘ ␛t")
    assert "promotes ‘" in text
    assert "\x1b" not in text
    assert describe(index, 0, str).text.startswith("auto: never active in the corpus · promotes")


def test_upload_batches_keep_to_the_form(index: FeatureIndex) -> None:
    with Store(":memory:") as store:
        labels = Labels(store)
        labels.take("tiny", [NewLabel(1, "x" * 600, "delphi", explainer="m"), NewLabel(2, "two", "x")], origin="")
        by_feature = {f: labels.of("tiny", f) for f in range(24)}
    batches = list(upload_batches(index, range(24), str, by_feature, model_id="m", source="1-tiny"))
    assert json.loads(json.dumps(batches, allow_nan=False)) == batches
    rows = [row for batch in batches for row in batch["features"]]
    assert [row["index"] for row in rows] == [f for f in range(24) if index.count[f]]
    row = next(row for row in rows if row["index"] == 1)
    assert len(row["explanations"][0]["text"]) == 512
    assert row["explanations"][0]["modelName"] == "m"
    assert len(row["topLogits"]) == 5
    assert row["density"] == index.statistics(1).density
    top = row["activations"][0]
    assert max(top["values"]) == pytest.approx(index.statistics(1).max, rel=2**-10)
    assert (top["quantileMin"], len(top["tokens"])) == (-1, len(top["values"]))
    drawn = [item for item in row["activations"] if item["quantileMin"] != -1]
    assert drawn
    for item in drawn:
        assert any(item["quantileMin"] <= value <= item["quantileMax"] for value in item["values"])
    many = list(upload_batches(index, [1] * 300, str, {}, model_id="m", source="s"))
    assert [len(batch["features"]) for batch in many] == [128, 128, 44]
    with pytest.raises(LensError, match="model id"):
        list(upload_batches(index, [1], str, {}, model_id="", source="s"))


@pytest.mark.parametrize("feature", [-1, 24, 10**12])
def test_feature_ids_out_of_range_are_refused(index: FeatureIndex, feature: int) -> None:
    for ask in (index.statistics, index.examples, index.sample, index.everywhere, lambda f: co_active(index, f)):
        with pytest.raises(LensError, match="no feature"):
            ask(feature)
    with pytest.raises(LensError, match="out of range"):
        index.quantile(np.array([0, feature]), np.ones(2))
    with pytest.raises(LensError, match="no token"):
        index.at_token(index.n_tokens if feature > 0 else -1)


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    target = Target(TinySAE(), PLACE, 24, "tiny", tables=(_table(),))
    path = build_index(TinySource(), [target], tmp_path, SETTINGS).indexes[0]
    FeatureIndex(path).verify()
    manifest = (path / "manifest.json").read_text()
    for broken in ("{", "[]", '{"format": 99}', manifest.replace('"width": 24', '"width": 25'), "[" * 10**5):
        (path / "manifest.json").write_text(broken)
        with pytest.raises(LensError):
            FeatureIndex(path)
    (path / "manifest.json").write_text(manifest)
    whole = (path / "count.npy").read_bytes()
    (path / "count.npy").write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(LensError, match=r"count\.npy .*damaged"):
        FeatureIndex(path).verify()
    for damage in (whole[:-8], b"", whole[:20]):
        (path / "count.npy").write_bytes(damage)
        with pytest.raises(LensError, match="count"):
            FeatureIndex(path)
    np.save(path / "count.npy", np.array([{"a": 1}] * 24, dtype=object), allow_pickle=True)
    with pytest.raises(LensError, match="count"):
        FeatureIndex(path)
    (path / "count.npy").write_bytes(whole)
    tokens = np.load(path / "example_tokens.npy")
    np.save(path / "example_tokens.npy", np.full_like(tokens, np.iinfo(tokens.dtype).max - 1))
    with pytest.raises(LensError, match="outside the corpus"):
        FeatureIndex(path).examples(1)
    with pytest.raises(LensError, match="no index"):
        FeatureIndex(tmp_path / "nothing")


def test_mlx_encoders_in_half_precision_give_the_same_index(tmp_path: Path) -> None:
    class Device(TinySAE):
        def top_k(self, residual: Any, k: int) -> tuple[Any, Any]:
            acts = mx.maximum(mx.array(residual) @ mx.array(self.weight) + mx.array(self.bias), 0).astype(mx.bfloat16)
            ids = mx.argpartition(-acts, min(k, self.width - 1), axis=1)[:, :k]
            return ids, mx.take_along_axis(acts, ids, 1)

    index = FeatureIndex(build_index(TinySource(), [Target(Device(), PLACE, 24, "t")], tmp_path, SETTINGS).indexes[0])
    acts = np.array(mx.array(_acts()).astype(mx.bfloat16).astype(mx.float32))
    assert np.array_equal(index.count, (acts > 0).sum(0))
    assert np.allclose(index.max, acts.max(0), rtol=2**-7)
    for f in range(24):
        tokens, values = index.everywhere(f)
        assert np.allclose(values, acts[tokens, f], rtol=2**-7)
