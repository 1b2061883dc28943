"""Find a model's decoder blocks, and prove that they are what they seem.

A model's blocks are looked for where mlx-lm itself looks (the model's
``layers``), then in the places where its architectures keep them, then anywhere
in the module tree. A candidate counts only when tiny forward passes prove it
(:mod:`lens_tui.lens.proof`): the blocks are called in order, each reads what the
one before it gave, and the logits follow from the last one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from lens_tui.records import LensError

from .proof import PROBE_SHAPE, Proof, observe, prove
from .proxy import Argument, first_of, named

__all__ = ["PROBE_SHAPE", "Decoder", "find_decoder", "observe"]

# Where mlx-lm's architectures keep their blocks, most telling first.
LAYER_PATHS: tuple[str, ...] = (
    "language_model.model.layers",
    "model.language_model.layers",
    "model.layers",
    "model.model.layers",
    "model.decoder.layers",
    "transformer.h",
    "transformer.blocks",
    "transformer.layers",
    "backbone.layers",
    "model.h",
    "layers",
)


WRONG_IN_MLX_LM = {"phi3small": "its block-sparse attention lets a token read those behind it"}
"""Architectures that mlx-lm 0.32.2 computes wrongly, and what is wrong; the tests show that it still is."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """A model's decoder layers, proved by forward passes.

    ``root`` is the module that is called with token ids, ``owners`` the modules
    on the way from it to the blocks (calls of any of them are forwards),
    ``layers`` the blocks in the order they are called, ``d_model`` and ``dtype``
    what they give, ``path`` where they were found.

    A model that goes through its blocks ``passes`` times in each forward has that
    many times as many layers: layer L is block ``L % n`` in pass ``L // n``.
    Where a residual is several streams (streams, batch, tokens, d_model),
    ``stream`` is the active one, which is what is read and steered. ``argument``
    is the one of a block's arguments that is the residual; ``view`` another one,
    optional, in which the block before hands it the same residual normed (it is
    left out where the residual is changed, and the block norms it itself).
    ``closed`` says that the logits follow from the last layer's residual alone,
    ``shares_keys`` that layers read the keys and values of other layers out of the
    cache (Gemma 3n), so that a forward without one is another function.
    ``window`` is the length up to which mlx-lm computes the model as its makers do,
    where a sliding window of theirs is not computed, or not alike with a cache and without.
    ``hide`` (vocabulary,) is minus infinity for ids that stand for no token, 0 for the others; ``None`` without any.
    """

    root: Module
    owners: tuple[Module, ...]
    layers: tuple[Module, ...]
    path: str
    d_model: int
    vocab_size: int
    dtype: mx.Dtype
    tuple_output: bool = False
    passes: int = 1
    stream: int | None = None
    argument: Argument = 0
    view: Argument | None = None
    closed: bool = True
    shares_keys: bool = False
    window: int | None = None
    hide: mx.array | None = None

    @property
    def n_layers(self) -> int:
        """How many decoder blocks there are."""
        return len(self.layers)

    def forward(self, ids: mx.array) -> mx.array:
        """Logits ``(batch, tokens, vocabulary)`` of token ids ``(batch, tokens)``, the same as with an empty cache.

        A model whose layers share keys gets a cache for this one forward.
        """
        root: Any = self.root
        logits: mx.array = first_of(root(ids, cache=new_cache(self.root)) if self.shares_keys else root(ids))
        return logits

    def choosable(self, values: mx.array) -> mx.array:
        """Values ``(..., vocabulary)`` to choose tokens by: minus infinity for ids that stand for none.

        Embeddings are padded to a round number of rows, which a model gives logits for too.
        """
        return values if self.hide is None else values + self.hide

    @cached_property
    def n_positions(self) -> int | None:
        """How many positions a model with learnt ones (GPT-2's ``wpe``) has; ``None`` where there is no such table."""
        tables = [module for owner in self.owners if isinstance(module := getattr(owner, "wpe", None), Module)]
        return int(tables[0].weight.shape[0]) if tables else None

    def check_positions(self, count: int) -> None:
        """Raise :class:`LensError` if the model's table of positions is shorter: MLX would read beyond its end."""
        if self.n_positions is not None and count > self.n_positions:
            raise LensError(
                f"This takes {count} positions, and the model has {self.n_positions}.",
                "Give a shorter text, or fewer max_tokens.",
            )
        if self.window is not None and count > self.window:
            raise LensError(
                f"This takes {count} positions; mlx-lm gets this model right for {self.window} only,"
                " because it does not compute its sliding window.",
                "Give a shorter text, or fewer max_tokens.",
            )

    def index(self, layer: int) -> int:
        """A layer number counted from 0; negative numbers count from the end. Raises ``LensError``."""
        try:
            layer = operator.index(None if isinstance(layer, bool) else layer)  # type: ignore[arg-type]
        except TypeError:
            raise LensError(f"The layer is {layer!r}.", "Give a whole number.") from None
        if not -self.n_layers <= layer < self.n_layers:
            raise LensError(
                f"There is no layer {layer}: this model has {self.n_layers} decoder blocks.",
                f"Choose 0 to {self.n_layers - 1}, or -1 for the last.",
            )
        return layer % self.n_layers

    def indices(self, layers: Any) -> list[int]:
        """One layer or several, each counted from 0, in the order given. Raises ``LensError``."""
        several = isinstance(layers, Iterable) and not isinstance(layers, str)
        return [self.index(layer) for layer in (layers if several else [layers])]


def find_decoder(model: Module, window: int | None = None) -> Decoder:
    """The decoder layers of an mlx-lm model (text, or a multimodal wrapper's language model).

    ``window`` is :attr:`Decoder.window`, where the model's files say that there is one.
    Raises :class:`LensError` with the reason if no candidate can be proved.
    """
    kind = type(model).__module__.rpartition(".")[2]
    if kind in WRONG_IN_MLX_LM:
        raise LensError(
            f"mlx-lm gets {kind} models wrong ({WRONG_IN_MLX_LM[kind]}).",
            "What it computes is not the model, and is not shown here as if it were.",
        )
    reasons: list[str] = []
    for path, owners, layers in _candidates(model):
        found = prove(model, layers)
        if not isinstance(found, str):
            made = _decoder(model, path, owners, layers, found)
            return replace(made, window=_narrower(window, _unlike_window(kind, model)))
        reasons.append(f"{path}: {found}")
    detail = reasons[0] if reasons else "it has no list of blocks"
    raise LensError(
        f"The decoder blocks of this {kind} model cannot be proved ({detail}).",
        "It can be generated from with mlx-lm, but not be steered or read here.",
    )


def _unlike_window(kind: str, model: Any) -> int | None:
    """PLaMo 3's window: mlx-lm's mask is one token wider than its cache."""
    return int(model.config.window_size) if kind == "plamo3" else None


def _narrower(one: int | None, other: int | None) -> int | None:
    return min((size for size in (one, other) if size is not None), default=None)


def _decoder(model: Module, path: str, owners: tuple[Module, ...], layers: tuple[Module, ...], proof: Proof) -> Decoder:
    return Decoder(
        root=model,
        owners=owners,
        layers=layers * proof.passes,
        path=path,
        d_model=proof.d_model,
        vocab_size=proof.vocab_size,
        dtype=proof.dtype,
        tuple_output=proof.tuple_output,
        passes=proof.passes,
        stream=proof.stream,
        argument=proof.argument,
        view=proof.view,
        closed=proof.closed,
        shares_keys=_shares_keys(model, layers),
    )


def _shares_keys(model: Module, layers: Sequence[Module]) -> bool:
    """Whether a forward without a cache is not what one with an empty cache is; tried where caches are fewer."""
    called: Any = model
    cache = new_cache(model)
    if len(cache) >= len(layers):
        return False
    ids = mx.array([[(7 * at + 3) % 64 for at in range(5)]])
    plain, cached = first_of(called(ids)), first_of(called(ids, cache=cache))
    return not bool(mx.allclose(plain, cached, rtol=1e-2, atol=1e-2 * float(mx.abs(plain).max()), equal_nan=True))


def new_cache(model: Module) -> list[Any]:
    """mlx-lm's own empty cache of a model."""
    from mlx_lm.models.cache import make_prompt_cache

    made: list[Any] = make_prompt_cache(model)
    return made


def _candidates(model: Module) -> Iterator[tuple[str, tuple[Module, ...], tuple[Module, ...]]]:
    """Every list of modules that may be the decoder: mlx-lm's own, the known places, then all, longest first."""
    seen: set[tuple[int, ...]] = set()
    known = [_walk(model, path) for path in LAYER_PATHS]
    for layers in [_modules(getattr(model, "layers", None)), *known, *_lists(model)]:
        key = tuple(id(layer) for layer in layers)
        if layers and key not in seen:
            seen.add(key)
            yield _place(model, layers), _owners(model, layers), layers


def _walk(model: Module, path: str) -> tuple[Module, ...]:
    here: Any = model
    for part in path.split("."):
        here = getattr(here, part, None)
    return _modules(here)


def _modules(value: Any) -> tuple[Module, ...]:
    """The value as a tuple if it is a list of modules, else nothing."""
    listed = isinstance(value, (list, tuple)) and all(isinstance(item, Module) for item in value)
    return tuple(value) if listed else ()


def _lists(model: Module) -> list[tuple[Module, ...]]:
    found: list[tuple[Module, ...]] = []

    def visit(module: Module, depth: int) -> None:
        for value in module.values():
            if isinstance(value, Module) and depth < 4:
                visit(value, depth + 1)
            else:
                found.append(_modules(value))

    visit(model, 0)
    return sorted(found, key=lambda item: -len(item))


def _owners(model: Module, layers: Sequence[Module]) -> tuple[Module, ...]:
    """The modules that hold every one of the blocks, the outermost first."""
    wanted = {id(layer) for layer in layers}
    holders = [module for _, module in named(model) if wanted < {id(inner) for _, inner in named(module)}]
    return tuple(sorted(holders, key=lambda module: -len(named(module))))


def _place(model: Module, layers: Sequence[Module]) -> str:
    """Where the blocks are in the module tree: the path of each list that they come from."""
    paths = {id(module): path for path, module in named(model)}
    return " + ".join(dict.fromkeys(paths.get(id(layer), "layers").rpartition(".")[0] for layer in layers))
