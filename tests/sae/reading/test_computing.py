"""What SAEs compute, in every residence of the encoder, across blocks and dtypes, against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import GatedSAE, JumpReLUSAE, StandardSAE, TopKSAE, blas, load_sae
from lens_tui.records import LensError
from lens_tui.sae import matrices
from lens_tui.sae.files import Definition

from .makers import Array, N, cut, numbers, write_json, write_safetensors

NAMES = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")


def folder(tmp_path: Path, w: dict[str, Array], bfloat16: bool = False) -> Path:
    write_safetensors(tmp_path / "params.safetensors", {name: w[name] for name in NAMES}, bfloat16)
    write_json(tmp_path / "config.json", {"hf_hook_point_in": "model.layers.2.output", "model_name": "m"})
    return tmp_path


def formula(w: dict[str, Array]) -> tuple[Array, Array]:
    pre = w["x"] @ w["w_enc"] + w["b_enc"]
    z = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    return z, z @ w["w_dec"] + w["b_dec"]


def jumprelu(w: dict[str, Array]) -> JumpReLUSAE:
    return JumpReLUSAE.from_arrays(w["w_enc"], w["w_dec"], w["b_dec"], b_enc=w["b_enc"], threshold=w["threshold"])


@pytest.fixture(params=["numpy", "mlx"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Products by NumPy, as on a Linux CPU, and by MLX, as everywhere else."""
    monkeypatch.setattr(blas, "on_host", lambda: request.param == "numpy")
    return str(request.param)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("residence", ["memory", "disk"])
@pytest.mark.parametrize("block", [16384, 25])
def test_blocks_and_residences_give_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, residence: Any, block: int
) -> None:
    monkeypatch.setattr(matrices, "BLOCK", block)
    w = numbers()
    z, y = formula(w)
    sae = load_sae(folder(tmp_path, w), residence=residence)
    x = mx.array(w["x"])
    assert np.allclose(np.array(sae.encode(x)), z, atol=1e-4)
    assert np.allclose(np.array(sae.decode(mx.array(z))), y, atol=1e-4)
    made = sae.reconstruct(x)
    assert np.allclose(np.array(made.output), y, atol=1e-4)
    assert made.error is not None
    assert np.allclose(np.array(made.error), w["x"] - y, atol=1e-4)
    flat, out = w["x"].reshape(-1, 32).astype(np.float64), y.reshape(-1, 32)
    fvu = ((flat - out) ** 2).sum() / ((flat - flat.mean(0)) ** 2).sum()
    assert made.fvu == pytest.approx(fvu, rel=1e-4)
    for k in (1, 7, 40, N):
        ids, values = (np.array(part) for part in sae.top_k(x, k))
        assert ids.shape == (3, 5, k)
        assert np.allclose(values, -np.sort(-z, axis=-1)[..., :k], atol=1e-4)
        assert np.allclose(np.where(ids >= 0, np.take_along_axis(z, np.maximum(ids, 0), -1), 0), values, atol=1e-4)


def test_one_token_goes_its_own_way_to_the_same_numbers(tmp_path: Path) -> None:
    w = numbers()
    z, _ = formula(w)
    sae = load_sae(folder(tmp_path, w))
    for shape in ((32,), (1, 32), (1, 1, 32)):
        one = mx.array(w["x"][0, 0]).reshape(shape)
        assert np.allclose(np.array(sae.encode(one)).reshape(-1), z[0, 0], atol=1e-4)
        assert sae.top_k(one, 3)[0].shape == (*shape[:-1], 3)
    assert sae.encode(mx.zeros((0, 32))).shape == (0, N)
    assert sae.top_k(mx.zeros((0, 32)), 3)[0].shape == (0, 3)


def test_bfloat16_residuals_and_weights(tmp_path: Path) -> None:
    w = numbers()
    sae = load_sae(folder(tmp_path, w, bfloat16=True))
    exact = {name: cut(value) for name, value in w.items()}
    z, _ = formula(exact)
    out = sae.encode(mx.array(exact["x"]).astype(mx.bfloat16))
    assert out.dtype == mx.float32
    assert np.allclose(np.array(out), z, atol=1e-4)
    assert np.allclose(np.array(sae.decode(mx.array(z))), z @ exact["w_dec"] + exact["b_dec"], atol=1e-4)
    low = load_sae(tmp_path, dtype=mx.bfloat16).encode(mx.array(exact["x"]))
    assert low.dtype == mx.float32
    gap = np.abs(np.array(low) - z)
    assert 0 < np.median(gap[z > 2]) < 0.05


@pytest.mark.parametrize("block", [16384, 40])
def test_eight_bits_find_nearly_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(matrices, "BLOCK", block)
    w = numbers(d=64, n=512)
    sae = load_sae(folder(tmp_path, w), residence="8bit")
    z, _ = formula(w)
    x = mx.array(w["x"])
    ids = np.array(sae.top_k(x, 20)[0]).reshape(-1, 20)
    best = np.argsort(-z.reshape(-1, 512), axis=1)[:, :20]
    shared = np.mean([len(np.intersect1d(a, b)) / 20 for a, b in zip(ids, best, strict=True)])
    assert shared > 0.95
    assert np.abs(np.array(sae.encode(x)) - z)[z > 1.6].max() < 0.1
    some = [3, 500]
    both = np.array(sae.encode(x))[..., some], np.array(sae.encode_features(x, some))
    assert np.allclose(*both, atol=1e-3)


def test_eight_bits_need_a_width_that_32_divides() -> None:
    w = numbers(d=24)
    sae = jumprelu(w)
    assert sae.residence == "memory"
    with pytest.raises(LensError, match="32 divides"):
        matrices.make_encoder(sae._weights.w_enc, "8bit", mx.float32)


def test_directions_are_unit_rows_and_bad_ids_are_refused(tmp_path: Path) -> None:
    w = numbers()
    w["w_dec"][4] = 0
    sae = load_sae(folder(tmp_path, w))
    rows = np.array(sae.directions([9, 0, 9]))
    wanted = w["w_dec"][[9, 0, 9]]
    assert np.allclose(rows, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    assert sae.directions([]).shape == (0, 32)
    assert sae.directions().shape == (N, 32)
    assert np.array_equal(np.array(sae.directions([4])), np.zeros((1, 32)))
    assert np.allclose(np.array(sae.decoder_norms([9, 0])), np.linalg.norm(wanted[:2], axis=1), atol=1e-5)
    assert sae.directions(mx.array([1, 2])).shape == (2, 32)
    assert sae.directions(np.array([1, 2])).shape == (2, 32)
    bad: list[Any] = [[N], [-1], [10**6], [2**40], [1.5], [[1]], ["a"], [True]]
    for ids in bad:
        with pytest.raises(LensError):
            sae.directions(ids)
        with pytest.raises(LensError):
            sae.encode_features(mx.array(w["x"]), ids)


def test_a_feature_as_a_steering_vector(tmp_path: Path) -> None:
    w = numbers()
    sae = load_sae(folder(tmp_path, w))
    vector = sae.vector(9, max_activation=3.0)
    length = float(np.linalg.norm(w["w_dec"][9]))
    assert np.allclose(vector.direction, w["w_dec"][9] / length, atol=1e-6)
    assert (vector.layer, vector.site, vector.model) == (2, "resid_post", "m")
    assert vector.max_activation == pytest.approx(3 * length, rel=1e-5)
    assert vector.origin.facts["feature"] == 9


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    sae = load_sae(folder(tmp_path, numbers()))
    with pytest.raises(LensError, match="reads width 32"):
        sae.encode(mx.zeros((2, 33)))
    with pytest.raises(LensError, match="reads width 32"):
        sae.top_k(mx.array(1.0), 3)
    with pytest.raises(LensError, match="96 features"):
        sae.decode(mx.zeros((2, 95)))
    for k in (0, -1, N + 1, True, 2.0):
        with pytest.raises(LensError, match="k is"):
            sae.top_k(mx.zeros((2, 32)), k)  # type: ignore[arg-type]


def test_the_kind_is_checked(tmp_path: Path) -> None:
    home = folder(tmp_path, numbers())
    assert isinstance(JumpReLUSAE.from_pretrained(home), JumpReLUSAE)
    assert isinstance(JumpReLUSAE.from_pretrained(str(home / "params.safetensors")), JumpReLUSAE)
    with pytest.raises(LensError, match="jumprelu SAE, not one for TopKSAE"):
        TopKSAE.from_pretrained(home)


def test_saes_from_arrays() -> None:
    w = numbers()
    arrays: dict[str, Any] = {name: w[name] for name in ("w_enc", "w_dec", "b_dec")}
    x = mx.array(w["x"])
    z = np.array(StandardSAE.from_arrays(**arrays, b_enc=w["b_enc"]).encode(x))
    assert np.allclose(z, np.maximum(w["x"] @ w["w_enc"] + w["b_enc"], 0), atol=1e-4)
    topk = TopKSAE.from_arrays(**arrays, b_enc=w["b_enc"], definition=Definition(activation="topk", k=4))
    assert int(mx.max(mx.sum(topk.encode(x) > 0, axis=-1))) == 4
    with pytest.raises(LensError, match="not a TopKSAE"):
        TopKSAE.from_arrays(**arrays, b_enc=w["b_enc"], definition=Definition(activation="relu"))
    with pytest.raises(LensError, match="b_gate"):
        GatedSAE.from_arrays(**arrays, b_enc=w["b_enc"])
    with pytest.raises(LensError, match="k = 0"):
        TopKSAE.from_arrays(**arrays, b_enc=w["b_enc"])


def test_gradients_go_through_encode_and_decode(tmp_path: Path) -> None:
    w = numbers()
    sae = load_sae(folder(tmp_path, w))
    x, v = mx.array(w["x"][0]), np.random.default_rng(1).standard_normal(32).astype(np.float32)

    def out(x: mx.array) -> mx.array:
        return mx.sum(sae.decode(sae.encode(x)) @ mx.array(v))

    gradient = np.array(mx.grad(out)(x))
    z, _ = formula(w)
    wanted = ((z[0] > 0) * (w["w_dec"] @ v)) @ w["w_enc"].T
    assert np.allclose(gradient, wanted, atol=1e-3)


@pytest.mark.parametrize(("m", "k"), [(96, 1), (1024, 7), (1000, 64), (16384, 64), (50, 50), (50, 80)])
def test_largest_is_exact(m: int, k: int) -> None:
    values = np.random.default_rng(m).standard_normal((5, m)).astype(np.float32)
    values[0] = 1.0  # ties
    values[1] = np.maximum(values[1] - 1.5, 0)  # mostly zeros
    values[2, :k] = 9.0  # the best are neighbours
    ids, found = (np.array(part) for part in matrices.largest(mx.array(values), k))
    kept = min(k, m)
    assert np.allclose(-np.sort(-found, axis=1), -np.sort(-values, axis=1)[:, :kept])
    assert np.array_equal(np.take_along_axis(values, ids, 1), found)
    assert all(len(set(row)) == kept for row in ids.tolist())


def test_top_k_is_in_order_and_equals_go_by_id() -> None:
    w = numbers()
    w["w_enc"][:, 10] = w["w_enc"][:, 70]
    w["b_enc"][10] = w["b_enc"][70] = 9.0
    w["threshold"][:] = 0.1
    sae = jumprelu(w)
    ids, values = (np.array(part) for part in sae.top_k(mx.array(w["x"]), 30))
    assert (np.diff(values, axis=-1) <= 0).all()
    places = [np.flatnonzero(np.isin(row, [10, 70])) for row in ids.reshape(-1, 30)]
    assert all(b - a == 1 and row[a] == 10 for (a, b), row in zip(places, ids.reshape(-1, 30), strict=True))


def test_numpy_is_used_on_a_linux_cpu_without_openblas_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    for system, fast, used in (("darwin", False, False), ("linux", True, False), ("linux", False, on_cpu)):
        monkeypatch.setattr("sys.platform", system)
        monkeypatch.setattr(blas, "state", lambda fast=fast: blas.Blas(fast, ""))
        assert blas.on_host() == used
