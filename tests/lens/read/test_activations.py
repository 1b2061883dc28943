"""Activations of a text against numpy forward passes; windows and passes; losses with a splice; training on it."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens.read.activations import TextActivations, TokenStore, Windowing, text_activations, tokenize
from lens_tui.records import LensError
from lens_tui.records.corpus import open_corpus
from lens_tui.records.training import ActivationBlock, ActivationSource, TrainConfig
from lens_tui.sae.training.trainer import train
from tests.lens import numpy_models, tiny
from tests.lens.numpy_models import Array

POST = (2, "resid_post")
TEXTS = [
    "The cat sat on the mat and looked at the moon.",
    "Salt, flour and water.",
    "def f(x):\n    return x + 1\n" * 6,
]


@pytest.fixture(scope="module")
def model() -> LensModel:
    return LensModel.from_model(tiny.llama(vocab=8192), tiny.tokenizer(), name="/somewhere/tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    return tmp_path / "texts"


def opened(model: LensModel, folder: Path, places: Any = (POST,), **windowing: Any) -> TextActivations:
    given: dict[str, Any] = {"context": 12, "rows": 3, **windowing}
    return text_activations(model, folder, places, windowing=Windowing(**given))[0]


def one_pass(source: TextActivations) -> list[ActivationBlock]:
    return list(source.blocks(0, source.n_blocks))


def windows(source: TextActivations, block: int) -> list[tuple[int, ...]]:
    """The token ids of each window of a block, by its padding-free rows."""
    batch = source._batches.batch(block)
    t = batch.ids.shape[1]
    return [tuple(int(i) for i in batch.ids[r, batch.real[batch.real // t == r] % t]) for r in range(len(batch.ids))]


@pytest.mark.parametrize("packed", [True, False])
def test_values_are_those_of_a_numpy_forward(model: LensModel, folder: Path, packed: bool) -> None:
    places = (POST, (0, "mlp_out"), (1, "resid_pre"))
    source = opened(model, folder, places, packed=packed)
    for block in one_pass(source):
        seen: dict[tuple[int, str], list[Array]] = {}

        def note(layer: int, site: str, x: Array, seen: dict[tuple[int, str], list[Array]] = seen) -> Array:
            seen.setdefault((layer, site), []).append(x)
            return x

        for ids in windows(source, block.index):
            numpy_models.llama(model.model, ids, note)
        for place in places:
            np.testing.assert_allclose(np.asarray(block.values[place]), np.concatenate(seen[place]), atol=2e-4)


def test_sliding_windows_without_a_tokenizer_or_bos() -> None:
    lens = LensModel.from_model(tiny.gemma3())
    lengths = np.asarray([9, 2, 14])
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB, 25).astype(np.int32)
    store = TokenStore(ids, np.cumsum(lengths) - lengths, lengths, np.asarray([4, 6, 7], np.int32), False)
    source = TextActivations(lens, store, [POST], Windowing(context=8, rows=2, packed=False, shuffle=False))
    blocks = one_pass(source)
    assert np.concatenate([block.token_ids for block in blocks]).tolist() == ids.tolist()
    assert np.concatenate([block.documents for block in blocks]).tolist() == [4] * 9 + [6] * 2 + [7] * 14
    assert np.concatenate([block.offsets for block in blocks]).tolist() == [*range(9), *range(2), *range(14)]
    starts = np.flatnonzero(np.concatenate([block.special for block in blocks]))
    assert starts.tolist() == [0, 8, 9, 11, 19]  # the first position of each window
    assert source.facts.n_tokens == 20
    kept: list[Array] = []

    def note(layer: int, site: str, x: Array) -> Array:
        if (layer, site) == POST:
            kept.append(x)
        return x

    for block in blocks:
        for window in windows(source, block.index):
            numpy_models.gemma3(lens.model, window, note)
    values = np.concatenate([np.asarray(block.values[POST]) for block in blocks])
    np.testing.assert_allclose(values, np.concatenate(kept), atol=2e-4)


def test_documents_come_back_whole_and_special_positions_are_told(model: LensModel, folder: Path) -> None:
    bos = model.tokens.bos
    for packed in (True, False):
        source = opened(model, folder, packed=packed)
        found: dict[tuple[int, int], int] = {}
        for block in one_pass(source):
            for token, document, offset, special in zip(
                block.token_ids, block.documents, block.offsets, block.special, strict=True
            ):
                assert special == (token == bos)
                assert (offset < 0) == (token == bos)
                if not special:
                    found[int(document), int(offset)] = int(token)
        for number, text in enumerate(TEXTS):
            whole = model.tokens.encode(text.strip())[1:]
            got = [found.get((number, i)) for i in range(len(whole))]
            present = [token for token in got if token is not None]
            assert present == [token for token, g in zip(whole, got, strict=True) if g is not None]
            assert packed or len(present) == len(whole)
        assert source.facts.n_tokens == len(found)


def test_a_block_is_the_same_whenever_it_is_asked_for(model: LensModel, folder: Path) -> None:
    source, again = opened(model, folder, rows=2), opened(model, folder, rows=2)
    n = source.n_blocks
    assert n > 3
    first = list(source.blocks(0, 2 * n))
    for block in again.blocks(n + 1, n + 3):
        same = first[block.index]
        assert np.array_equal(block.token_ids, same.token_ids)
        assert np.array_equal(np.asarray(block.values[POST]), np.asarray(same.values[POST]))
    passes = [[w for i in range(n) for w in windows(source, start + i)] for start in (0, n)]
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1])
    still = opened(model, folder, rows=2, shuffle=False)
    assert windows(still, 0) == windows(still, n)


@pytest.mark.parametrize("packed", [True, False])
def test_losses_are_those_of_a_numpy_forward(model: LensModel, folder: Path, packed: bool) -> None:
    source = opened(model, folder, packed=packed, rows=2)
    half = 0.5

    def by_hand(change: Any) -> float:
        losses = []
        for ids in itertools.chain.from_iterable(windows(source, i) for i in range(2)):
            special = np.asarray([token == model.tokens.bos for token in ids])

            def edit(layer: int, site: str, x: Array, special: Any = special) -> Array:
                return np.where(special[:, None], x, change(x)) if (layer, site) == POST else x

            logits = numpy_models.llama(model.model, ids, edit)
            shifted = logits - logits.max(-1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            losses += [-log_p[i, ids[i + 1]] for i in range(len(ids) - 1)]
        return float(np.mean(losses))

    assert source.loss_with(POST, None, 2) == pytest.approx(by_hand(lambda x: x), rel=1e-4)
    assert source.loss_with(POST, mx.zeros_like, 2) == pytest.approx(by_hand(np.zeros_like), rel=1e-4)
    changed = source.loss_with(POST, lambda x: x * half, 2)
    assert changed == pytest.approx(by_hand(lambda x: x * half), rel=1e-4)
    assert len({source.loss_with(POST, None, 2), changed, source.loss_with(POST, mx.zeros_like, 2)}) == 3
    assert not model.hooked


def test_logits_are_taken_in_portions(model: LensModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(model, folder, packed=False)
    whole = source.loss_with(POST, mx.zeros_like, 2)
    monkeypatch.setattr("lens_tui.lens.read.activations._LOGITS_AT_ONCE", 1)
    assert source.loss_with(POST, mx.zeros_like, 2) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("settings", [{"dtype": mx.bfloat16}, {"bits": 4}])
def test_values_keep_the_model_s_dtype_and_place_widths(settings: dict[str, Any], folder: Path) -> None:
    lens = LensModel.from_model(tiny.llama(vocab=8192, **settings), tiny.tokenizer())
    source = opened(lens, folder, [POST, (0, "attn_z")])
    block = next(source.blocks(0, 1))
    assert block.values[POST].dtype == mx.bfloat16
    assert block.values[0, "attn_z"].shape[1] == source.d_model((0, "attn_z")) == 64
    with lens.capture(2) as captured:
        lens.forward(mx.array(source._batches.batch(0).ids))
    flat = np.asarray(captured[2].astype(mx.float32)).reshape(-1, 64)
    assert np.array_equal(np.asarray(block.values[POST].astype(mx.float32)), flat)
    assert np.isfinite(source.loss_with(POST, mx.zeros_like, 1))


def test_what_lies_above_the_place_is_never_computed(folder: Path) -> None:
    """A block above that gives NaN would show in the loss, and a lazy forward never gets there."""
    inner = tiny.llama(vocab=8192)
    lens = LensModel.from_model(inner, tiny.tokenizer())
    source = opened(lens, folder, [(1, "resid_post")])
    ran = []

    def spy(_: Any, h: mx.array) -> None:
        ran.append(h)

    with lens.hook(3, spy):
        block = next(source.blocks(0, 1))
        mx.eval(block.values)
    assert len(ran) == 1
    assert not _computed(ran[0])
    mx.eval(ran[0])
    assert _computed(ran[0])


def _computed(array: mx.array) -> bool:
    """MLX writes out an array's graph only while it is not computed."""
    graph = io.StringIO()
    mx.export_to_dot(graph, array)
    return "->" not in graph.getvalue()


def test_limits_and_held_out_documents(model: LensModel, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\n<|endoftext|>\n".join(f"document number {i} says {i * 7}" for i in range(40)))
    windowing = Windowing(context=12, rows=4)
    source, held = text_activations(model, tmp_path, [POST], held_out=10, windowing=windowing)
    assert held is not None
    assert (source.facts.n_documents, held.facts.n_documents) == (36, 4)
    seen = {int(d) for block in one_pass(held) for d in block.documents}
    assert seen == set(range(4))
    assert source.facts.corpus_sha256 == held.facts.corpus_sha256 == open_corpus(tmp_path).sha256
    assert source.facts.model_name == "tiny"  # a path on this machine is nobody's business
    few, _ = text_activations(model, tmp_path, [POST], max_tokens=60, windowing=windowing)
    assert 4 < few.facts.n_documents < 15
    same, _ = text_activations(model, tmp_path, [POST], max_tokens=60, windowing=windowing)
    other, _ = text_activations(model, tmp_path, [POST], max_tokens=60, windowing=replace(windowing, seed=1))
    drawn = [np.unique(np.concatenate([b.documents for b in one_pass(s)])).tolist() for s in (few, same, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert isinstance(source, ActivationSource)


def test_what_cannot_be_read_is_refused(model: LensModel, folder: Path) -> None:
    with pytest.raises(LensError, match="no layer 9"):
        opened(model, folder, [(9, "resid_post")])
    with pytest.raises(LensError, match="attn_out_normed"):
        opened(model, folder, [(1, "attn_out_normed")])
    with pytest.raises(LensError, match="no layer and site"):
        opened(model, folder, [])
    with pytest.raises(LensError, match="leave nothing to read"):
        opened(model, folder, context=2)
    with pytest.raises(LensError, match="no BOS"):
        TextActivations(LensModel.from_model(tiny.llama()), _store(), [POST], Windowing(bos=True))
    with pytest.raises(LensError, match="without a tokenizer"):
        tokenize(open_corpus(folder), LensModel.from_model(tiny.llama()).tokens)
    small = LensModel.from_model(tiny.llama(vocab=50), tiny.tokenizer())
    with pytest.raises(LensError, match="beyond the model's vocabulary of 50"):
        tokenize(open_corpus(folder), small.tokens)


def _store() -> TokenStore:
    return TokenStore(
        np.arange(20, dtype=np.int32), np.asarray([0]), np.asarray([20]), np.asarray([0], np.int32), False
    )


def test_an_sae_trained_on_a_text_resumes_to_the_bit(model: LensModel, folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        width=128, k=8, tokens=64 * 12, batch=64, pool_tokens=192, calibration_tokens=128, evaluation_tokens=64
    )
    whole = train(opened(model, folder), config, tmp_path / "whole")
    steps = iter(range(100))
    train(opened(model, folder), config, tmp_path / "broken", should_stop=lambda: next(steps) >= 5)
    broken = train(opened(model, folder), config, tmp_path / "broken")
    assert whole.final == broken.final
    assert whole.final is not None
    assert whole.final.loss_recovered is not None
    a, b = ((tmp_path / name / "params.safetensors").read_bytes() for name in ("whole", "broken"))
    assert a == b
