from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lens_tui import FeatureIndex, IndexSettings
from lens_tui.records import LensError
from lens_tui.sae.index.build import IndexProgress, Target, build_index, merge_parts
from lens_tui.sae.index.finish import share_text
from lens_tui.sae.index.index_settings import EDGES, TEXT, bin_of

from .corpora import PLACE, TinySAE, TinySource

SETTINGS = IndexSettings(top_k=4, before=3, after=2, sample_per_bin=2, max_active=24, full=True)


def _target(sae: TinySAE | None = None, name: str = "tiny-sae") -> Target:
    sae = sae or TinySAE()
    return Target(sae, PLACE, sae.width, name)


def _dense(source: TinySource, sae: TinySAE) -> tuple[np.ndarray, ...]:
    """All activations ``(n, width)``, tokens, documents, offsets, special: the brute-force truth."""
    blocks = list(source.blocks())
    acts = np.concatenate([sae.dense(block.values[PLACE]) for block in blocks])
    columns = [
        np.concatenate([getattr(b, n) for b in blocks]) for n in ("token_ids", "documents", "offsets", "special")
    ]
    return acts, *columns


def _index(tmp_path: Path, source: TinySource, settings: IndexSettings = SETTINGS) -> FeatureIndex:
    result = build_index(source, [_target()], tmp_path, settings)
    assert not result.stopped
    return FeatureIndex(result.indexes[0])


def _same_files(a: Path, b: Path) -> None:
    names = sorted(p.relative_to(a).as_posix() for p in a.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(b).as_posix() for p in b.rglob("*") if p.is_file())
    assert "row_values.npy" in names
    for name in names:
        if name != "manifest.json":
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
    left, right = (json.loads((p / "manifest.json").read_text()) for p in (a, b))
    left.pop("created"), right.pop("created")
    assert left == right


def test_statistics_equal_a_brute_force_count(tmp_path: Path) -> None:
    source, sae = TinySource(), TinySAE()
    index = _index(tmp_path, source)
    acts, _, _, _, special = _dense(source, sae)
    acts = acts[~special]
    assert index.n_counted == len(acts)
    for f in range(sae.width):
        active = acts[:, f][acts[:, f] > 0].astype(np.float64)
        numbers = index.statistics(f)
        assert numbers.count == len(active)
        assert numbers.density == len(active) / len(acts)
        assert numbers.max == (active.max() if len(active) else 0)
        assert sum(numbers.histogram) == len(active)
        edges = EDGES.astype(np.float64).copy()
        edges[0], edges[-1] = 0, np.inf
        assert list(numbers.histogram) == np.histogram(active, edges)[0].tolist()
        if len(active):
            assert numbers.mean == pytest.approx(active.mean(), abs=1e-9)
            assert numbers.std == pytest.approx(active.std(), abs=1e-7)
    assert index.statistics(0).count == 0
    assert index.statistics(1).count > 100


def test_examples_equal_a_brute_force_search(tmp_path: Path) -> None:
    source, sae = TinySource(), TinySAE()
    index = _index(tmp_path, source)
    acts, tokens, documents, offsets, special = _dense(source, sae)
    acts[special] = 0
    for f in range(sae.width):
        best: dict[int, tuple[float, int]] = {}
        for place in np.flatnonzero(acts[:, f] > 0):
            if documents[place] not in best or acts[place, f] > best[documents[place]][0]:
                best[int(documents[place])] = (float(acts[place, f]), int(place))
        expected = sorted(best.values(), key=lambda pair: (-pair[0], pair[1]))[:4]
        found = index.examples(f)
        assert [(e.value, e.token) for e in found] == expected
        for example in found:
            t = example.token
            assert (example.document, example.offset) == (documents[t], offsets[t])
            low = t - example.peak
            assert np.array_equal(example.token_ids, tokens[low : low + len(example.token_ids)])
            assert np.allclose(example.values, acts[low : low + len(example.values), f], rtol=2**-10)
            assert set(documents[low : low + len(example.token_ids)]) == {example.document}
            first = np.flatnonzero(documents == example.document)[0]
            assert low == max(t - 3, first)  # the BOS of its document is shown, the document before is not


def test_the_sample_is_of_active_tokens_in_their_octave(tmp_path: Path) -> None:
    source, sae = TinySource(), TinySAE()
    index = _index(tmp_path, source)
    acts, _, _, _, special = _dense(source, sae)
    acts[special] = 0
    seen = 0
    for f in range(sae.width):
        octaves = np.clip(np.floor(np.log2(np.maximum(acts[:, f], 1e-9))) + 6, 0, 19)
        for lower, examples in index.sample(f):
            octave = int(np.log2(lower)) + 6
            there = np.flatnonzero((acts[:, f] > 0) & (octaves == octave))
            assert len(examples) == min(2, len(there))
            for example in examples:
                assert example.token in there
                assert example.value == acts[example.token, f]
                low = example.token - example.peak
                assert np.allclose(example.values, acts[low : low + len(example.values), f], rtol=2**-10)
                seen += 1
    assert seen > 50


def test_the_full_tier_holds_every_activation_both_ways(tmp_path: Path) -> None:
    source, sae = TinySource(), TinySAE()
    index = _index(tmp_path, source)
    acts, _, _, _, special = _dense(source, sae)
    acts[special] = 0
    for token in range(len(acts)):
        ids, values = index.at_token(token)
        assert sorted(ids) == np.flatnonzero(acts[token]).tolist()
        assert np.allclose(values, acts[token, ids], rtol=2**-10)
    for f in range(sae.width):
        tokens, values = index.everywhere(f)
        assert sorted(tokens) == np.flatnonzero(acts[:, f]).tolist()
        assert (np.diff(values) <= 0).all()
        assert np.allclose(values, acts[tokens, f], rtol=2**-10)


@pytest.mark.parametrize("n", [2, 3, 7, 40])
def test_merged_shards_equal_one_pass_to_the_bit(tmp_path: Path, n: int) -> None:
    source = TinySource()
    whole = build_index(source, [_target()], tmp_path / "one", SETTINGS).indexes[0]
    parts = [build_index(source, [_target()], tmp_path / "many", SETTINGS, shard=(i, n)).parts[0] for i in range(n)]
    merged = merge_parts(parts[::-1], tmp_path / "merged")
    _same_files(whole, merged)
    assert not parts[0].exists()


def test_buffers_and_chunks_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TinySource()
    whole = build_index(source, [_target()], tmp_path / "one", SETTINGS).indexes[0]
    monkeypatch.setattr("lens_tui.sae.index.finish.CHUNK", 7)
    monkeypatch.setattr("lens_tui.sae.index.finish._QUERIES", 9)
    monkeypatch.setattr("lens_tui.sae.index.tally.PENDING", 5)
    small = build_index(source, [_target()], tmp_path / "two", SETTINGS).indexes[0]
    _same_files(whole, small)


@pytest.mark.parametrize("fail_at", [1, 5])
def test_a_broken_pass_is_taken_up_where_it_was_saved(tmp_path: Path, fail_at: int) -> None:
    whole = build_index(TinySource(), [_target()], tmp_path / "one", SETTINGS).indexes[0]
    with pytest.raises(RuntimeError, match="power"):
        build_index(TinySource(fail_at=fail_at), [_target()], tmp_path / "two", SETTINGS)
    (work,) = (tmp_path / "two").iterdir()
    with (work / "features").open("ab") as file:
        file.write(b"written after the checkpoint")
    seen: list[IndexProgress] = []
    again = build_index(TinySource(), [_target()], tmp_path / "two", SETTINGS, progress=seen.append)
    assert seen[0].block == fail_at + 1  # nothing is read twice
    _same_files(whole, again.indexes[0])
    assert list((tmp_path / "two").iterdir()) == [again.indexes[0]]


KILLED = """
import os, signal, sys
from pathlib import Path
from lens_tui.sae.index.build import Target, build_index
from tests.sae.index.corpora import PLACE, TinySAE, TinySource
from tests.sae.index.test_build import SETTINGS

assert "mlx" not in sys.modules

def report(now):
    if now.block == 6:
        os.kill(os.getpid(), signal.SIGKILL)

build_index(TinySource(), [Target(TinySAE(), PLACE, 24, "tiny-sae")], Path(sys.argv[1]), SETTINGS,
            progress=report, checkpoint_seconds=0.0)
"""


def test_a_killed_pass_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = build_index(TinySource(), [_target()], tmp_path / "one", SETTINGS).indexes[0]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "two")], cwd=Path(__file__).parents[3])
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / "two" / f".{whole.name}.dead").mkdir()  # as if killed while writing the index
    seen: list[IndexProgress] = []
    again = build_index(TinySource(), [_target()], tmp_path / "two", SETTINGS, progress=seen.append)
    assert seen[0].block == 6  # the block whose checkpoint the kill prevented, and no earlier one
    _same_files(whole, again.indexes[0])
    assert list((tmp_path / "two").iterdir()) == [again.indexes[0]]


def test_a_full_disk_is_one_sentence_and_the_pass_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_index(TinySource(), [_target()], tmp_path / "one", SETTINGS).indexes[0]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lens_tui.sae.index.finish._write_rows", full)
    with pytest.raises(LensError, match="No space left on device"):
        build_index(TinySource(), [_target()], tmp_path / "two", SETTINGS)
    monkeypatch.undo()
    again = build_index(TinySource(), [_target()], tmp_path / "two", SETTINGS)
    _same_files(whole, again.indexes[0])


def test_an_interrupt_inside_a_block_does_not_save_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_index(TinySource(), [_target()], tmp_path / "one", SETTINGS).indexes[0]
    from lens_tui.sae.index.tally import Tally

    update, calls = Tally.update, [0]

    def interrupted(self: Tally, found: object) -> None:
        calls[0] += 1
        update(self, found)  # type: ignore[arg-type]
        if calls[0] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Tally, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(TinySource(), [_target()], tmp_path / "two", SETTINGS, checkpoint_seconds=0.0)
    monkeypatch.undo()
    again = build_index(TinySource(), [_target()], tmp_path / "two", SETTINGS)
    _same_files(whole, again.indexes[0])


def test_stopping_and_several_saes_in_one_pass(tmp_path: Path) -> None:
    targets = [_target(), _target(TinySAE(width=9, seed=1), "other")]
    countdown = iter([False, False, True])
    result = build_index(TinySource(), targets, tmp_path, SETTINGS, should_stop=lambda: next(countdown))
    assert result.stopped
    assert len(result.parts) == 2
    result = build_index(TinySource(), targets, tmp_path, SETTINGS)
    alone = build_index(TinySource(), targets[1:], tmp_path / "alone", SETTINGS)
    _same_files(result.indexes[1], alone.indexes[0])
    assert build_index(TinySource(), targets, tmp_path, SETTINGS).indexes == result.indexes  # built once


def test_overflow_is_counted_not_guessed(tmp_path: Path) -> None:
    source, sae = TinySource(), TinySAE()
    index = _index(tmp_path, source, IndexSettings(top_k=3, max_active=5, full=True))
    acts, _, _, _, special = _dense(source, sae)
    active = (acts[~special] > 0).sum(1)
    assert index.manifest["n_overflowed"] == (active > 5).sum() > 0
    assert index.manifest["n_active"] == np.minimum(active, 5).sum()
    assert any("more than 5 active features" in note for note in index.notes)


def test_special_tokens_are_left_out_and_it_says_so(tmp_path: Path) -> None:
    source, sae = TinySource(), TinySAE()
    left_out = _index(tmp_path / "a", source)
    acts, _, _, _, special = _dense(source, sae)
    assert f"{special.sum()} BOS and other special tokens are left out" in left_out.notes[0]
    included = _index(tmp_path / "b", source, IndexSettings(include_special=True))
    assert included.statistics(1).count == (acts[:, 1] > 0).sum() > left_out.statistics(1).count
    assert included.n_counted == included.n_tokens == len(special)


@pytest.mark.parametrize(("scale", "kind"), [(1.0, "float16"), (1e5, "float32"), (1e-5, "float32")])
def test_values_that_float16_cannot_hold_are_kept_in_float32(tmp_path: Path, scale: float, kind: str) -> None:
    source, sae = TinySource(scale=scale), TinySAE()
    sae.bias *= scale
    result = build_index(source, [_target(sae)], tmp_path, SETTINGS)
    index = FeatureIndex(result.indexes[0])
    assert index.manifest["values"] == kind
    acts, _, _, _, special = _dense(source, sae)
    acts[special] = 0
    for f in range(sae.width):
        tokens, values = index.everywhere(f)
        assert np.isfinite(values).all()
        assert np.allclose(values, acts[tokens, f], rtol=2**-10, atol=0)
        assert all(np.isfinite(e.values).all() and e.values[e.peak] > 0 for e in index.examples(f))


def test_without_the_full_tier_the_rest_is_the_same(tmp_path: Path) -> None:
    full = _index(tmp_path / "a", TinySource())
    slim = _index(
        tmp_path / "b", TinySource(), IndexSettings(top_k=4, before=3, after=2, sample_per_bin=2, max_active=24)
    )
    for name in ("count", "sum", "histogram", "example_tokens", "example_windows", "sample_tokens"):
        assert (full.path / f"{name}.npy").read_bytes() == (slim.path / f"{name}.npy").read_bytes()
    assert not (slim.path / "row_values.npy").exists()
    with pytest.raises(LensError, match="did not keep every activation"):
        slim.everywhere(1)
    example = slim.sample(1)[0][1][0]
    assert np.isnan(np.delete(example.values, example.peak)).all()
    assert example.values[example.peak] == example.value


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    def build(i: int, settings: IndexSettings = SETTINGS) -> Path:
        return build_index(TinySource(), [_target()], tmp_path / str(i), settings, shard=(i, 2)).parts[0]

    first, second = build(0), build(1)
    other = build(1, IndexSettings(top_k=5))
    with pytest.raises(LensError, match="missing"):
        merge_parts([first], tmp_path / "out")
    with pytest.raises(LensError, match="duplicated"):
        merge_parts([first, first, second], tmp_path / "out")
    with pytest.raises(LensError, match="belongs to another index"):
        merge_parts([first, other], tmp_path / "out")
    with pytest.raises(LensError, match="not a part"):
        merge_parts([tmp_path], tmp_path / "out")
    with pytest.raises(LensError, match="no shard 2 of 2"):
        build_index(TinySource(), [_target()], tmp_path, SETTINGS, shard=(2, 2))
    (first / "values").write_bytes(b"")
    with pytest.raises(LensError, match="missing or cut"):
        merge_parts([first, second], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_bad_residuals_and_bad_encoders_are_refused(tmp_path: Path) -> None:
    class Wild(TinySAE):
        def top_k(self, residual: object, k: int) -> tuple[np.ndarray, np.ndarray]:
            ids, values = super().top_k(residual, k)
            return ids + 24, values

    with pytest.raises(LensError, match=r"outside 0\.\.23"):
        build_index(TinySource(), [_target(Wild())], tmp_path / "a", SETTINGS)
    with pytest.raises(LensError, match="NaN or infinite"):
        build_index(TinySource(scale=float("inf")), [_target()], tmp_path / "b", SETTINGS)
    with pytest.raises(LensError, match="not read at resid_post of layer 3"):
        build_index(TinySource(), [Target(TinySAE(), (3, "resid_post"), 24, "x")], tmp_path / "c", SETTINGS)


def test_two_builders_do_not_share_a_folder(tmp_path: Path) -> None:
    def second() -> bool:
        with pytest.raises(LensError, match="Another process is building"):
            build_index(TinySource(), [_target()], tmp_path, SETTINGS)
        return True

    assert build_index(TinySource(), [_target()], tmp_path, SETTINGS, should_stop=second).stopped


def test_bins_change_exactly_at_their_edges() -> None:
    edges = EDGES[1:-1]
    assert bin_of(edges).tolist() == list(range(1, 40))
    assert bin_of(np.nextafter(edges, np.float32(0))).tolist() == list(range(39))
    assert bin_of(np.array([1e-40, 1e-9, 3e38], np.float32)).tolist() == [0, 0, 39]


@pytest.mark.parametrize("name", ["top_k", "max_active", "before", "seed"])
def test_settings_have_bounds(name: str) -> None:
    with pytest.raises(LensError, match=name):
        IndexSettings(**{name: -1})  # type: ignore[arg-type]


def test_indexes_over_one_text_keep_it_once(tmp_path: Path) -> None:
    one, other = Target(TinySAE(), PLACE, 24, "one"), Target(TinySAE(seed=8), PLACE, 24, "other")
    paths = build_index(TinySource(), [one, other], tmp_path / "out", SETTINGS).indexes
    before = [[repr(FeatureIndex(path).examples(f)) for f in range(24)] for path in paths]
    home = share_text(paths)
    assert share_text(paths) == home
    assert sorted(file.name for file in home.iterdir()) == sorted(f"{name}.npy" for name in TEXT)
    for path, answers in zip(paths, before, strict=True):
        assert not any((path / f"{name}.npy").exists() for name in TEXT)
        index = FeatureIndex(path)
        index.verify()
        assert [repr(index.examples(f)) for f in range(24)] == answers
    (home / "tokens.npy").write_bytes((home / "special.npy").read_bytes())
    with pytest.raises(LensError, match=r"tokens\.npy .*damaged"):
        FeatureIndex(paths[0])
    manifest = json.loads((paths[0] / "manifest.json").read_text())
    for name in ("../elsewhere", "/etc", "", None, ["text-0123456789abcdef"], "text-0123456789abcdeg"):
        (paths[0] / "manifest.json").write_text(json.dumps(manifest | {"text": name}))
        with pytest.raises(LensError, match="text names no folder"):
            FeatureIndex(paths[0])


def test_texts_that_differ_are_not_shared(tmp_path: Path) -> None:
    target = Target(TinySAE(), PLACE, 24, "one")
    paths = [build_index(TinySource(seed), [target], tmp_path / str(seed), SETTINGS).indexes[0] for seed in (0, 1)]
    with pytest.raises(LensError, match="do not share a text"):
        share_text(paths)
