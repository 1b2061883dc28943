"""Find a model's decoder blocks, and prove that they are what they seem.

A model's blocks are looked for in the places where mlx-lm's architectures keep
them, then anywhere in the module tree. A candidate counts only when a tiny
forward pass proves it: every block is called exactly once, in order, and gives
a tensor (or a tuple that begins with one) of shape (batch, tokens, d_model).
The pass is never evaluated, so it costs no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from lens_tui.records import LensError

from .proxy import Call, first_of, input_of, install, uninstall

PROBE_SHAPE = (2, 3)

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
    """A model's decoder blocks, proved by a forward pass.

    ``root`` is the module that is called with token ids, ``owners`` the modules
    on the way from it to the blocks (calls of any of them are forwards),
    ``layers`` the blocks in order, ``d_model`` and ``dtype`` what they give,
    ``path`` where they were found.
    """

    root: Module
    owners: tuple[Module, ...]
    layers: tuple[Module, ...]
    path: str
    d_model: int
    vocab_size: int
    dtype: mx.Dtype
    tuple_output: bool = False

    @property
    def n_layers(self) -> int:
        """How many decoder blocks there are."""
        return len(self.layers)

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


@dataclass
class _Call:
    index: int
    given: Any
    output: Any


@dataclass
class _Proof:
    calls: list[_Call] = field(default_factory=list)
    logits: Any = None


def find_decoder(model: Module) -> Decoder:
    """The decoder blocks of an mlx-lm model (text, or a multimodal wrapper's language model).

    Raises :class:`LensError` with the reason if no candidate can be proved.
    """
    reasons: list[str] = []
    for path, owners, layers in _candidates(model):
        proof = observe(model, layers)
        reason = _objection(proof, len(layers))
        if reason is None:
            return _decoder(model, path, owners, layers, proof)
        reasons.append(f"{path}: {reason}")
    detail = "; ".join(dict.fromkeys(reasons)) or "it has no list of blocks"
    raise LensError(
        f"The decoder blocks of this {type(model).__module__.rpartition('.')[2]} model cannot be proved ({detail}).",
        "It can be generated from with mlx-lm, but not be steered or read here.",
    )


def observe(model: Module, layers: Sequence[Module]) -> _Proof:
    """Run a tiny forward pass, unevaluated, and note each call of a block with its input and output."""
    proof = _Proof()
    with ExitStack() as stack:
        for index, layer in enumerate(layers):

            def tap(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> Any:
                output = call(*args, **kwargs)
                proof.calls.append(_Call(index, input_of(args, kwargs), output))
                return output

            install(layer, tap)
            stack.callback(uninstall, layer, tap)
        proof.logits = first_of(model(mx.zeros(PROBE_SHAPE, dtype=mx.int32)))
    return proof


def _objection(proof: _Proof, count: int) -> str | None:
    """Why the blocks are not what they seem, or ``None``."""
    order = [call.index for call in proof.calls]
    if order != list(range(count)):
        if len(order) > count:
            return f"a forward pass calls the {count} blocks {len(order)} times"
        return f"a forward pass calls {len(order)} of {count} blocks, or not in order"
    for call in proof.calls:
        output = first_of(call.output)
        shape = tuple(output.shape) if isinstance(output, mx.array) else type(output).__name__
        if not isinstance(shape, tuple) or len(shape) != 3 or shape[:2] != PROBE_SHAPE:
            return f"block {call.index} gives {shape}, not (batch, tokens, d_model)"
    widths = {first_of(call.output).shape[-1] for call in proof.calls}
    if len(widths) != 1:
        return f"the blocks give different widths: {sorted(widths)}"
    if not isinstance(proof.logits, mx.array) or proof.logits.ndim != 3:
        return "the model does not give logits (batch, tokens, vocabulary)"
    return None


def _decoder(
    model: Module, path: str, owners: tuple[Module, ...], layers: tuple[Module, ...], proof: _Proof
) -> Decoder:
    last = proof.calls[-1].output
    hidden = first_of(last)
    return Decoder(
        root=model,
        owners=owners,
        layers=layers,
        path=path,
        d_model=int(hidden.shape[-1]),
        vocab_size=int(proof.logits.shape[-1]),
        dtype=hidden.dtype,
        tuple_output=isinstance(last, (tuple, list)),
    )


def _candidates(model: Module) -> Iterator[tuple[str, tuple[Module, ...], tuple[Module, ...]]]:
    """Every list of modules that may be the decoder: the known places first, then all, longest first."""
    seen: set[tuple[int, ...]] = set()
    found = [(path, *walk) for path in LAYER_PATHS if (walk := _walk(model, path)) is not None]
    for path, owners, layers in [*found, *_lists(model)]:
        key = tuple(id(layer) for layer in layers)
        if key not in seen:
            seen.add(key)
            yield path, owners, layers


def _walk(model: Module, path: str) -> tuple[tuple[Module, ...], tuple[Module, ...]] | None:
    owners: list[Module] = [model]
    here: Any = model
    *way, name = path.split(".")
    for part in way:
        here = getattr(here, part, None)
        if not isinstance(here, Module):
            return None
        owners.append(here)
    layers = getattr(here, name, None)
    if not isinstance(layers, (list, tuple)) or not layers or not all(isinstance(x, Module) for x in layers):
        return None
    return tuple(owners), tuple(layers)


def _lists(model: Module) -> list[tuple[str, tuple[Module, ...], tuple[Module, ...]]]:
    found: list[tuple[str, tuple[Module, ...], tuple[Module, ...]]] = []

    def visit(module: Module, path: str, owners: tuple[Module, ...], depth: int) -> None:
        for name, value in module.items():
            where = f"{path}.{name}".lstrip(".")
            if isinstance(value, Module) and depth < 4:
                visit(value, where, (*owners, value), depth + 1)
            elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Module) for item in value):
                found.append((where, owners, tuple(value)))

    visit(model, "", (model,), 0)
    return sorted(found, key=lambda item: -len(item[2]))
