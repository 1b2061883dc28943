"""An encoder that stays on disk: the numbers of NumPy however it lies there, and what is wrong in it is found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import blas
from lens_tui.records import LensError
from lens_tui.sae import matrices
from lens_tui.sae.files import Stored, read_safetensors
from lens_tui.sae.matrices import EncoderMatrix

from .makers import Array, cut, write_safetensors

KINDS = ("float32", "float16", "bfloat16")
RNG = np.random.default_rng(0)
W = RNG.standard_normal((32, 90)).astype(np.float32)
X = RNG.standard_normal((6, 32)).astype(np.float32)


def on_disk(path: Path, w: Array, kind: str, *, turned: bool = False) -> Stored:
    w = np.ascontiguousarray(w.T if turned else w)
    array = w.astype(np.float16) if kind == "float16" else w
    found = read_safetensors(write_safetensors(path / "w.safetensors", {"w": array}, kind == "bfloat16"))["w"]
    return found.T if turned else found


def as_stored(w: Array, kind: str) -> Array:
    return cut(w) if kind == "bfloat16" else w.astype(kind).astype(np.float32)


@pytest.fixture(autouse=True)
def _blocks_by_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 40 latents, the last one narrower, multiplied by MLX as with OpenBLAS under it."""
    monkeypatch.setattr(matrices, "BLOCK", 40)
    monkeypatch.setattr(blas, "on_host", lambda: False)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_read_one_into_the_place_of_another_keep_their_own_products(
    tmp_path: Path, kind: str, turned: bool
) -> None:
    encoder = EncoderMatrix(on_disk(tmp_path, W, kind, turned=turned), "disk", mx.float32)
    expected = X @ as_stored(W, kind)
    for order in ((0, 1, 2), (2, 0, 1, 1)):
        made = [(block, encoder.now(mx.array(X), block)) for block in order]
        for block, product in made:
            assert np.allclose(np.asarray(product), expected[:, 40 * block : 40 * block + 40], atol=1e-5)


def test_a_block_that_another_thread_asks_for_meanwhile_has_memory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = EncoderMatrix(on_disk(tmp_path, W, "float32"), "disk", mx.float32)
    encoder.now(mx.array(X), 0)  # leaves its memory for the next
    fill = Stored.fill
    others: list[Any] = []

    def interrupted(stored: Stored, out: Array, columns: slice) -> None:
        fill(stored, out, columns)
        if not others:
            others.append(None)
            others[0] = encoder.now(mx.array(X), 1)

    monkeypatch.setattr(Stored, "fill", interrupted)
    found = encoder.now(mx.array(X), 0)
    assert np.allclose(np.asarray(found), (X @ W)[:, :40], atol=1e-5)
    assert np.allclose(np.asarray(others[0]), (X @ W)[:, 40:80], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (31, 89), (7, 41)])
def test_one_number_that_is_none_is_found_wherever_it_is(
    tmp_path: Path, kind: str, wrong: float, place: tuple[int, int]
) -> None:
    w = W.copy()
    w[place] = wrong
    stored = on_disk(tmp_path, w, kind)
    for ask in (stored.read, stored.host, lambda: EncoderMatrix(stored, "disk", mx.float32).now(mx.array(X), 0)):
        if ask == stored.read or ask == stored.host or place[1] < 40:
            with pytest.raises(LensError, match="w holds NaN or infinity"):
                ask()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_bound_is_the_largest_size_that_is_let_through(tmp_path: Path, kind: str, sign: int) -> None:
    w = W.copy()
    w[3, 5] = sign * 512.0
    within = on_disk(tmp_path, w, kind)
    for bound, allowed in ((512.0, True), (511.0, False)):
        stored = Stored("w", within.array, within.bfloat16, bound=bound)
        for ask in (stored.read, stored.host):
            if allowed:
                assert float(np.asarray(ask())[3, 5]) == sign * 512
            else:
                with pytest.raises(LensError, match="w holds numbers beyond 511"):
                    ask()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tensor_of_one_sign_is_measured_too(tmp_path: Path, sign: int) -> None:
    for kind in KINDS:
        stored = on_disk(tmp_path, sign * np.abs(W) - sign * 0.0, kind)
        assert np.array_equal(stored.host(), as_stored(sign * np.abs(W), kind))


def test_numbers_beyond_half_precision_are_refused_for_it_alone(tmp_path: Path) -> None:
    w = W.copy()
    w[0, 0] = 1e6
    stored = on_disk(tmp_path, w, "float32")
    assert stored.read()[0, 0].item() == 1e6
    with pytest.raises(LensError, match="NaN or infinity"):
        stored.read(dtype=mx.float16)


def test_a_file_that_is_cut_between_two_blocks_is_a_sentence(tmp_path: Path) -> None:
    encoder = EncoderMatrix(on_disk(tmp_path, W, "float32"), "disk", mx.float32)
    encoder.now(mx.array(X), 0)
    os.truncate(tmp_path / "w.safetensors", 3000)
    with pytest.raises(LensError, match="has changed on disk since it was opened"):
        encoder.now(mx.array(X), 1)
