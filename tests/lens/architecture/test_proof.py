"""What is refused as a decoder, shown by models made wrong on purpose."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.base import Module

from lens_tui import LensModel
from lens_tui.lens.architecture.find import find_decoder
from lens_tui.records import LensError
from tests.lens import tiny

Base: Any = Module  # has no types


class Block(Base):  # type: ignore[misc]
    """A Llama block behind another signature."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, h: Any, view: Any = None) -> Any:
        return self.inner(h if view is None else view, "causal", None)


class Stack(Base):  # type: ignore[misc]
    """Blocks between an embedding and a head, wired as ``kind`` says."""

    def __init__(self, kind: str, layers: int = 3) -> None:
        super().__init__()
        whole = tiny.llama(layers=layers)
        self.kind = kind
        self.embed, self.norm, self.head = whole.model.embed_tokens, whole.model.norm, whole.lm_head
        self.layers = [Block(block) for block in whole.model.layers]

    def __call__(self, inputs: mx.array, cache: Any = None) -> Any:
        embedded = h = self.embed(inputs)
        for block in self.layers:
            if self.kind == "side by side":
                h = h + block(embedded) if block is self.layers[0] else block(embedded)
            elif self.kind == "loop with a norm":
                h = block(self.norm(h))
            else:
                h = block(h)
        return self.head(self.norm(embedded if self.kind == "thrown away" else h))


class Viewed(Stack):
    """Blocks that hand the next one its input a second time; the first one is given it too."""

    def __call__(self, inputs: mx.array, cache: Any = None) -> Any:
        h = self.embed(inputs)
        view = self.norm(h)
        for block in self.layers:
            h, view = block(h, view)
        return self.head(self.norm(h))


class ViewBlock(Block):
    """Gives its output and the same once more, scaled."""

    def __call__(self, h: Any, view: Any = None) -> Any:
        out = super().__call__(h, view) + h
        return out, out * 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("side by side", "block 1 does not read what the block before it gives"),
        ("thrown away", "the logits do not depend on what the last block gives"),
    ],
)
def test_blocks_that_carry_no_residual_are_refused(kind: str, reason: str) -> None:
    with pytest.raises(LensError, match=reason):
        find_decoder(Stack(kind))


def test_a_second_view_that_a_change_would_not_reach_is_refused() -> None:
    model = Viewed("plain")
    model.layers = [ViewBlock(block.inner) for block in model.layers]
    with pytest.raises(LensError, match="hand on a second view of the residual"):
        find_decoder(model)


@pytest.mark.parametrize("kind", ["plain", "loop with a norm"])
@pytest.mark.parametrize("layers", [1, 3])
def test_what_lies_between_blocks_is_no_obstacle(kind: str, layers: int) -> None:
    model = Stack(kind, layers)
    lens = LensModel.from_model(model)
    assert (lens.n_layers, lens.d_model, lens.registry.decoder.closed) == (layers, 64, True)
    ids = mx.array([tiny.IDS])
    plain = np.array(model(ids))
    with lens.steer(-1, np.ones(64), 3.0):
        assert not np.allclose(np.array(lens.forward(list(tiny.IDS))), plain, atol=1e-3)
    np.testing.assert_array_equal(np.array(model(ids)), plain)


def test_a_forward_that_fails_is_the_reason() -> None:
    class Failing(Stack):
        def __call__(self, inputs: mx.array, cache: Any = None) -> Any:
            raise RuntimeError("no such kernel\nand more")

    with pytest.raises(LensError, match=r"a forward pass fails: no such kernel\)"):
        find_decoder(Failing("plain"))


def test_the_proof_draws_nothing_from_mlx_random() -> None:
    model = tiny.llama()
    mx.random.seed(5)
    expected = np.array(mx.random.normal((4,)))
    mx.random.seed(5)
    find_decoder(model)
    np.testing.assert_array_equal(np.array(mx.random.normal((4,))), expected)
