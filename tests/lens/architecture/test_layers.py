"""Blocks are proved or refused, sites are found by identity, never by name alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.base import Module

from lens_tui import LensModel
from lens_tui.lens.architecture.find import find_decoder
from lens_tui.records import LensError
from tests.lens import architectures, tiny

Base: Any = Module  # has no types
NARROW = np.random.default_rng(0).normal(size=32).astype(np.float32)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma3, tiny.gemma4])
def test_the_decoder_knows_its_shape(make: Any) -> None:
    decoder = find_decoder(make())
    assert (decoder.n_layers, decoder.d_model, decoder.vocab_size) == (4, 64, tiny.VOCAB)
    assert decoder.tuple_output == (make is tiny.gemma4)


def test_a_model_that_takes_its_blocks_apart_is_refused_with_the_reason() -> None:
    with pytest.raises(LensError, match=r"iquestloopcoder.*cannot be proved.*never calls the 2 blocks themselves"):
        LensModel.from_model(tiny.looped())


def test_a_multimodal_wrappers_language_model_is_found() -> None:
    class Wrapper(Base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.vision_tower = [tiny.llama(layers=1)]
            self.language_model = tiny.llama()

        def __call__(self, inputs: mx.array, cache: Any = None) -> Any:
            return self.language_model(inputs, cache=cache)

    lens = LensModel.from_model(Wrapper())
    assert lens.n_layers == 4
    inner = LensModel.from_model(tiny.llama())
    with lens.steer(2, np.ones(64), 2.0), inner.steer(2, np.ones(64), 2.0):
        np.testing.assert_array_equal(np.array(lens.forward([1, 2, 3])), np.array(inner.forward([1, 2, 3])))


def test_a_call_of_the_inner_model_alone_is_a_forward_too() -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    ids = mx.array([tiny.IDS])
    with lens.steer(1, np.ones(64), 3.0):
        np.testing.assert_array_equal(np.array(model.lm_head(model.model(ids))), np.array(model(ids)))
    assert not np.allclose(np.array(model.lm_head(model.model(ids))), 0)


@pytest.mark.parametrize("skip", ["some", "none_last"])
def test_blocks_that_a_forward_leaves_out_are_refused(skip: str) -> None:
    class Stack(Base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            inner = tiny.llama()
            self.embed = inner.model.embed_tokens
            self.layers = inner.model.layers
            self.head = inner.lm_head

        def __call__(self, inputs: mx.array, cache: Any = None) -> Any:
            h = self.embed(inputs)
            order = [0, 2, 3] if skip == "some" else [1, 0, 2, 3]
            for index in order:
                h = self.layers[index](h, "causal", None)
            return self.head(h)

    with pytest.raises(LensError, match="cannot be proved"):
        find_decoder(Stack())


def test_llamas_post_attention_norm_is_not_a_post_norm() -> None:
    lens = LensModel.from_model(tiny.llama())
    with pytest.raises(LensError, match="nothing in the block norms the output of self_attn"):
        lens.capture(0, site="attn_out_normed").__enter__()
    assert "attn_out_normed" in LensModel.from_model(tiny.gemma3()).sites(0)


def test_sites_of_blocks_that_return_tuples_add_up_to_the_residual() -> None:
    lens = LensModel.from_model(tiny.gemma4())
    sites = ["resid_pre", "resid_post", "attn_out_normed", "mlp_out_normed", "attn_out", "mlp_in"]
    with lens.capture([1], site=sites) as captured:
        lens.forward(list(tiny.IDS))
    assert captured[1, "attn_out"].shape == (1, 8, 64)
    # Gemma 4's block adds a per-layer input and a scale after the MLP, so only the first half is a plain sum:
    # the MLP reads the normed sum of what came in and what attention gave.
    middle = np.array(captured[1, "resid_pre"] + captured[1, "attn_out_normed"], dtype=np.float64)
    norm = lens.model.model.layers[1].pre_feedforward_layernorm
    np.testing.assert_allclose(
        np.array(captured[1, "mlp_in"]), np.array(norm(mx.array(middle.astype(np.float32)))), atol=1e-4
    )


def test_layers_that_do_not_exist_are_named() -> None:
    lens = LensModel.from_model(tiny.llama())
    for bad in (4, -5, 1.5, "1", True):
        with pytest.raises(LensError, match="layer"):
            lens.steer(bad, np.ones(64), 1.0)  # type: ignore[arg-type]
    with pytest.raises(LensError, match="no site 'resid'"):
        lens.steer(1, np.ones(64), 1.0, site="resid")


def test_the_info_counts_what_there_is() -> None:
    plain = LensModel.from_model(tiny.llama()).info
    quantised = LensModel.from_model(tiny.llama(bits=4)).info
    assert (plain.n_layers, plain.d_model, plain.vocab_size, plain.dtype) == (4, 64, tiny.VOCAB, "float32")
    assert plain.n_parameters == quantised.n_parameters > 100_000
    assert plain.nbytes == 4 * plain.n_parameters
    assert (plain.quantization, quantised.quantization) == ("", "4-bit, group 32")
    assert quantised.nbytes < plain.nbytes / 4


@pytest.mark.usefixtures("without_compiling")
@pytest.mark.parametrize("name", ["plamo", "plamo2", "afm7"])
def test_b15_every_layer_is_found_and_steered(name: str) -> None:
    """There PLaMo has one layer, steering it a ``KeyError``, and of AFM's two halves the second is not seen."""
    lens = LensModel.from_model(architectures.make(name))
    assert lens.n_layers == 4
    with lens.capture(range(4)) as plain:
        base = np.array(lens.forward(list(tiny.IDS)))
    for layer in range(4):
        with lens.steer(layer, NARROW, 1.0), lens.capture(range(4)) as captured:
            steered = np.array(lens.forward(list(tiny.IDS)))
        moved = [bool(np.any(np.array(captured[at] != plain[at]))) for at in range(4)]
        assert moved == [at >= layer for at in range(4)]
        np.testing.assert_allclose(np.array(captured[layer] - plain[layer])[0], np.tile(NARROW, (8, 1)), atol=1e-4)
        assert np.abs(steered - base).max() > 1e-3
    np.testing.assert_array_equal(np.array(lens.forward(list(tiny.IDS))), base)


def test_b16_a_model_that_never_calls_its_blocks_is_refused() -> None:
    """There steering it by any amount leaves the logits as they are, and nothing says so."""
    model = tiny.looped()
    with pytest.raises(LensError, match=r"iquestloopcoder.*never calls the 2 blocks themselves"):
        LensModel.from_model(model)


@pytest.mark.usefixtures("without_compiling")
def test_b17_of_gemma_3ns_four_streams_the_active_one_is_read_and_steered() -> None:
    """There all four are, as an array (4, batch, tokens, d_model), and ``d_model`` is ``None``."""
    model: Any = architectures.make("gemma3n")
    lens = LensModel.from_model(model)
    assert (lens.n_layers, lens.d_model) == (4, 32)
    block = lens.model.model.language_model.layers[1]
    seen: list[np.ndarray[Any, Any]] = []
    kind: Any = type(block)
    call = kind.__call__

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = call(self, *args, **kwargs)
        if self is model.model.language_model.layers[2]:
            seen.append(np.array(args[0]))
        return out

    kind.__call__ = watched
    try:
        with lens.capture(1) as plain:
            lens.forward(list(tiny.IDS))
        with lens.steer(1, NARROW, 2.0), lens.capture(1) as captured:
            lens.forward(list(tiny.IDS))
    finally:
        kind.__call__ = call
    assert captured[1].shape == (1, 8, 32)
    np.testing.assert_allclose(np.array(captured[1] - plain[1])[0], np.tile(2 * NARROW, (8, 1)), atol=1e-4)
    moved = seen[1] - seen[0]
    assert moved.shape == (4, 1, 8, 32)
    np.testing.assert_allclose(moved[0, 0], np.tile(2 * NARROW, (8, 1)), atol=1e-4)
    np.testing.assert_array_equal(moved[1:], 0)
