"""Find a model's decoder blocks, and prove that they are what they seem.

A model's blocks are looked for where mlx-lm itself looks (the model's
``layers``), then in the places where its architectures keep them, then anywhere
in the module tree. A candidate counts only when tiny forward passes prove it
(:mod:`lens_tui.lens.proof`): the blocks are called in order, each reads what the
one before it gave, and the logits follow from the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from lens_tui.records import LensError

from .proof import PROBE_SHAPE, Proof, observe, prove
from .proxy import Argument, named

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
    ``closed`` says that the logits follow from the last layer's residual alone.
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

    @property
    def n_layers(self) -> int:
        """How many decoder blocks there are."""
        return len(self.layers)

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

    def index(self, layer: int) -> int:
        """A layer number counted from 0; negative numbers count from the end. Raises ``LensError``."""
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise LensError(f"The layer is {layer!r}.", "Give a whole number.")
        if not -self.n_layers <= layer < self.n_layers:
            raise LensError(
                f"There is no layer {layer}: this model has {self.n_layers} decoder blocks.",
                f"Choose 0 to {self.n_layers - 1}, or -1 for the last.",
            )
        return layer % self.n_layers


def find_decoder(model: Module) -> Decoder:
    """The decoder layers of an mlx-lm model (text, or a multimodal wrapper's language model).

    Raises :class:`LensError` with the reason if no candidate can be proved.
    """
    reasons: list[str] = []
    for path, owners, layers in _candidates(model):
        found = prove(model, layers)
        if not isinstance(found, str):
            return _decoder(model, path, owners, layers, found)
        reasons.append(f"{path}: {found}")
    detail = reasons[0] if reasons else "it has no list of blocks"
    raise LensError(
        f"The decoder blocks of this {type(model).__module__.rpartition('.')[2]} model cannot be proved ({detail}).",
        "It can be generated from with mlx-lm, but not be steered or read here.",
    )


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
    )


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
