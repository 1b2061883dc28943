"""Where a tensor can be read or changed: sites, and the module call that each one is.

A site of a block is the input or the output of one module call. Which one is
not taken from names alone: a tiny forward pass (never evaluated) notes every
call inside a block, and a site is accepted only if its module is called exactly
once and the tensors are the same objects where the definition says so (the
post-attention norm of Gemma takes the very array that attention gave; Llama's
module of the same name does not, and is none).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
from mlx.nn.layers.base import Module

from lens_tui.records import LensError
from lens_tui.records.info import SITES

from ..architecture.find import PROBE_SHAPE, Decoder
from ..architecture.taps import (
    Argument,
    Call,
    first_of,
    input_of,
    install,
    named,
    replace_first,
    replace_input,
    uninstall,
)

Port = Literal["input", "output"]

ATTENTION_NAMES = (
    "self_attn",
    "attn.attention",
    "norm_attn_norm.attn",
    "attn",
    "attention",
    "self_attention",
    "linear_attn",
    "temporal_block",
    "mixer",
    "conv",
    "mamba",
    "time_mixer",
)
MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe", "mlp_block", "channel_mixer", "feedforward")
PROJECTION_NAMES = ("o_proj", "out_proj", "wo", "dense", "c_proj", "proj_out", "attn_out", "output_proj")


@dataclass(frozen=True, eq=False)
class Point:
    """A site of one block: the module whose ``input`` or ``output`` it is, and its width.

    ``stream`` is the one of several residual streams (streams, batch, tokens, width)
    that the site is, ``None`` where the tensor is the residual itself. ``argument``
    says which of the module's arguments an ``input`` is, ``view`` which other one,
    or which other part of an output, is made from the residual and stale once that is changed.
    """

    module: Module
    port: Port
    width: int
    stream: int | None = None
    argument: Argument = 0
    view: Argument | None = None

    def read(self, value: Any) -> Any:
        """The tensor of the site (batch, tokens, width) in what the module was given or gave."""
        hidden = first_of(value)
        return hidden if self.stream is None else hidden[self.stream]

    def give(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], new: mx.array
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The module's arguments with the site's tensor replaced."""
        value = self._put(input_of(args, kwargs, self.argument), new)
        args, kwargs = replace_input(args, kwargs, value, self.argument)
        return (args, kwargs) if self.view is None else replace_input(args, kwargs, None, self.view)

    def write(self, output: Any, new: mx.array) -> Any:
        """What the module gave, with the site's tensor replaced."""
        written = replace_first(output, self._put(first_of(output), new))
        return written if self.view is None else (written[0], *[None for _ in written[1:]])

    def _put(self, value: mx.array, new: mx.array) -> mx.array:
        if self.stream is None:
            return new
        return mx.concatenate([value[: self.stream], new[None], value[self.stream + 1 :]])


@dataclass(frozen=True, eq=False)
class _Seen:
    """One module call inside a block: path of the module from the block, what went in, what came out."""

    path: str
    module: Module
    given: Any
    output: Any


class SiteMap:
    """The sites of every block of a decoder; looked at once, when a site inside a block is first asked for."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._inside: list[list[_Seen]] | None = None

    def point(self, layer: int, site: str) -> Point:
        """The module call that is ``site`` of block ``layer``. Raises :class:`LensError` where there is none."""
        if site not in SITES:
            raise LensError(f"There is no site {site!r}.", f"The sites are {', '.join(SITES)}.")
        block = self._decoder.layers[layer]
        if site in ("resid_pre", "resid_post"):
            port: Port = "input" if site == "resid_pre" else "output"
            decoder = self._decoder
            return Point(block, port, decoder.d_model, decoder.stream, decoder.argument, decoder.view)
        if self._inside is None:
            self._inside = _look_inside(self._decoder)
        found = _resolve(site, self._inside[layer])
        if isinstance(found, str):
            raise LensError(f"Layer {layer} of this model has no {site} that can be proved: {found}.")
        return found

    def available(self, layer: int) -> tuple[str, ...]:
        """The sites that block ``layer`` has."""
        return tuple(site for site in SITES if self._has(layer, site))

    def _has(self, layer: int, site: str) -> bool:
        try:
            self.point(layer, site)
        except LensError:
            return False
        return True


def _look_inside(decoder: Decoder) -> list[list[_Seen]]:
    """Every module call in every layer during one unevaluated forward pass."""
    seen: list[list[_Seen]] = []

    def enter(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append([])
        return call(*args, **kwargs)

    with ExitStack() as stack:
        for block in decoder.layers[: decoder.n_layers // decoder.passes]:
            install(block, enter)
            stack.callback(uninstall, block, enter)
            for path, module in _named(block):

                def tap(
                    call: Call,
                    args: tuple[Any, ...],
                    kwargs: dict[str, Any],
                    path: str = path,
                    module: Module = module,
                ) -> Any:
                    output = call(*args, **kwargs)
                    seen[-1].append(_Seen(path, module, input_of(args, kwargs), first_of(output)))
                    return output

                install(module, tap)
                stack.callback(uninstall, module, tap)
        decoder.forward(mx.zeros(PROBE_SHAPE, dtype=mx.int32))
    return seen


def _named(block: Module) -> list[tuple[str, Module]]:
    return [(path, module) for path, module in named(block) if path and path.count(".") <= 2]


def _resolve(site: str, calls: list[_Seen]) -> Point | str:
    """The point of a site among a block's calls, or the reason why there is none."""
    names = MLP_NAMES if site.startswith("mlp") else ATTENTION_NAMES
    main = _only(calls, names)
    if isinstance(main, str):
        return main
    if site in ("attn_out", "mlp_out"):
        return _point(main.module, "output", main.output)
    if site == "mlp_in":
        return _point(main.module, "input", main.given)
    if site == "attn_z":
        projection = _only(calls, tuple(f"{main.path}.{name}" for name in PROJECTION_NAMES))
        return projection if isinstance(projection, str) else _point(projection.module, "input", projection.given)
    after = [call for call in calls if call.given is main.output and "." not in call.path and _is_norm(call)]
    if len(after) != 1:
        return f"nothing in the block norms the output of {main.path}"
    return _point(after[0].module, "output", after[0].output)


def _only(calls: list[_Seen], paths: tuple[str, ...]) -> _Seen | str:
    found = [call for call in calls if _named_as(call, paths)]
    if not found:
        return f"none of its parts is called {', '.join(paths[:4])} or the like"
    if len(found) > 1:
        return f"{found[0].path} is called {len(found)} times, or has a twin"
    return found[0]


def _named_as(call: _Seen, paths: tuple[str, ...]) -> bool:
    """Whether a call has one of the names; Nemotron-H calls whatever a block has its mixer, an MLP too."""
    if call.path == "mixer" and paths in (ATTENTION_NAMES, MLP_NAMES):
        is_mlp = type(call.module).__name__.lower().endswith(("mlp", "moe"))
        return is_mlp == (paths == MLP_NAMES)
    return call.path in paths


def _is_norm(call: _Seen) -> bool:
    return "norm" in call.path.lower() or "norm" in type(call.module).__name__.lower()


def _point(module: Module, port: Port, tensor: Any) -> Point | str:
    if not isinstance(tensor, mx.array) or tensor.ndim != 3 or tuple(tensor.shape[:2]) != PROBE_SHAPE:
        shape = tuple(tensor.shape) if isinstance(tensor, mx.array) else type(tensor).__name__
        return f"the tensor is {shape}, not (batch, tokens, width)"
    return Point(module, port, int(tensor.shape[-1]))
