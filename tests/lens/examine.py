"""What the library does on one tiny model, held against code that knows nothing of it.

The blocks are known here from mlx-lm's own ``model.layers``, and read and steered
by patching their classes: no proxy, no registry, no site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from lens_tui import LensModel
from lens_tui.records import EditPattern, LensError, Positions
from lens_tui.records.info import SITES

from . import architectures, metal_kernels, tiny

IDS = tiny.IDS
STREAM = {"gemma3n": 0}
"""Models of several residual streams, and the active one."""
RESIDUAL: dict[str, int | str] = {"talkie": 1, "gptj": "inputs"}
"""Where a block's argument that is the residual is not the first."""
NORMED = ("muse_spark",)
"""Models whose blocks give the next one its normed input besides; without it, it norms for itself."""
SCALE = 3.0
Change = Callable[[int, mx.array], mx.array]


@dataclass
class Recorded:
    """Each call's residual before and after, in order; as numpy float32 once they are asked for."""

    inputs: list[mx.array] = field(default_factory=list)
    outputs: list[mx.array] = field(default_factory=list)

    @cached_property
    def before(self) -> list[np.ndarray[Any, Any]]:
        return [numbers(each) for each in self.inputs]

    @cached_property
    def after(self) -> list[np.ndarray[Any, Any]]:
        return [numbers(each) for each in self.outputs]


@contextmanager
def patched(name: str, model: Any, change: Change | None = None, before: Change | None = None) -> Iterator[Recorded]:
    """Record every call of a block, and change what it gives or (``before``) is given, by patching its class."""
    seen, blocks = Recorded(), {id(block) for block in model.layers}
    classes = {type(block): type(block).__call__ for block in model.layers}

    def patch(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if id(self) not in blocks:
                return original(self, *args, **kwargs)
            where = RESIDUAL.get(name, 0)
            given = kwargs[where] if isinstance(where, str) else args[where]
            seen.inputs.append(stream_of(name, given))
            if before is not None:
                hidden = stream_of(name, given)
                changed = before(len(seen.inputs) - 1, hidden)
                if changed is not hidden:
                    args, kwargs = given_instead(name, args, kwargs, with_stream(name, given, changed))
            output = original(self, *args, **kwargs)
            first = output[0] if isinstance(output, tuple) else output
            seen.outputs.append(stream_of(name, first))
            hidden = stream_of(name, first)
            changed = hidden if change is None else change(len(seen.outputs) - 1, hidden)
            if changed is hidden:
                return output
            new = with_stream(name, first, changed)
            if name in NORMED:
                return new, None
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return call

    for kind, original in classes.items():
        setattr(kind, "__call__", patch(original))  # noqa: B010
    try:
        yield seen
    finally:
        for kind, original in classes.items():
            setattr(kind, "__call__", original)  # noqa: B010


def given_instead(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], new: mx.array) -> tuple[Any, Any]:
    where = RESIDUAL.get(name, 0)
    if name in NORMED:
        kwargs = {**kwargs, "attn_input": None}
    if isinstance(where, str):
        return args, {**kwargs, where: new}
    return (*args[:where], new, *args[where + 1 :]), kwargs


def stream_of(name: str, value: mx.array) -> mx.array:
    return value[STREAM[name]] if name in STREAM else value


def with_stream(name: str, value: mx.array, new: mx.array) -> mx.array:
    if name not in STREAM:
        return new
    return mx.stack([new if index == STREAM[name] else value[index] for index in range(value.shape[0])])


def whole(model: Any, ids: tuple[int, ...] = IDS, *, cached: bool | None = None) -> np.ndarray[Any, Any]:
    """A model's logits (1, tokens, vocabulary) of one text, as generation computes them.

    Where layers share keys (Gemma 3n) that is with a cache.
    """
    cached = type(model).__module__.endswith("gemma3n") if cached is None else cached
    logits = model(mx.array([ids]), cache=make_prompt_cache(model)) if cached else model(mx.array([ids]))
    return numbers(logits)


def numbers(array: mx.array) -> np.ndarray[Any, Any]:
    return np.array(array.astype(mx.float32))


def row(name: str, lens: LensModel | None = None) -> str:
    """An architecture's line in docs/architectures.md, from the library on its model, or on one made here."""
    try:
        with metal_kernels.stand_ins():
            return _row(name, lens or LensModel.from_model(architectures.make(name)))
    except SystemExit:
        return f"| {name} | no | | | | | mlx-lm leaves the process on import without a package that it does not bring |"
    except LensError as error:
        text = error.message
        return f"| {name} | no | | | | | {text[text.index('(') + 1 : text.rindex(')')]} |"


def _row(name: str, lens: LensModel) -> str:
    decoder = lens.registry.decoder
    found = [set(lens.sites(layer)) for layer in range(lens.n_layers)]
    inside = [site for site in SITES if site not in ("resid_pre", "resid_post", "mlp_normed")]  # no array of a model
    parts = [
        site if all(site in sites for sites in found) else f"({site})"
        for site in inside
        if any(site in sites for sites in found)
    ]
    sums = "yes" if adds_up(lens, found) else "no"
    edited = edited_patterns(lens, [layer for layer, sites in enumerate(found) if "attn_z" in sites])
    patterns = "yes" if edited == lens.n_layers else f"{edited} of {lens.n_layers} layers" if edited else "no"
    return f"| {name} | yes | `{decoder.path}` | {' '.join(parts)} | {sums} | {patterns} | {_remarks(name, decoder)} |"


def adds_up(lens: LensModel, found: list[set[str]]) -> bool:
    """Whether each block's change is what its attention and its MLP give, through their norms where there are any."""
    terms = [
        [normed if (normed := f"{part}_out_normed") in sites else f"{part}_out" for part in ("attn", "mlp")]
        for sites in found
    ]
    terms = [[term for term in its if term in sites] for its, sites in zip(terms, found, strict=True)]
    with ExitStack() as stack:
        every = [
            stack.enter_context(lens.capture(layer, site=["resid_pre", "resid_post", *its]))
            for layer, its in enumerate(terms)
        ]
        lens.forward(list(IDS))
    for layer, (captured, its) in enumerate(zip(every, terms, strict=True)):
        change = numbers(captured[layer, "resid_post"]) - numbers(captured[layer, "resid_pre"])
        total = sum((numbers(captured[layer, term]) for term in its), np.zeros_like(change))
        if not np.allclose(change, total, rtol=1e-4, atol=1e-4):
            return False
    return True


def edited_patterns(lens: LensModel, layers: list[int]) -> int:
    """In how many layers a head can be cut from a token.

    There what is before that token stays as it is, and the layer's heads do not.
    """
    if not layers:
        return 0
    with lens.capture(layers, site="attn_z") as plain:
        lens.forward(list(IDS))
    edited = 0
    for layer in layers:
        cut = EditPattern(id="cut", layer=layer, heads=(0,), sources=Positions("indices", (1,)))
        try:
            with lens.intervene(cut), lens.capture(layer, site="attn_z") as captured:
                lens.forward(list(IDS))
        except LensError:
            continue
        moved = np.abs(numbers(captured[layer, "attn_z"]) - numbers(plain[layer, "attn_z"]))[0].max(axis=-1)
        edited += bool(moved[0] == 0.0 and (moved[1:] > 0.0).any())
    return edited


def _remarks(name: str, decoder: Any) -> str:
    said = []
    if name in metal_kernels.MODELS:
        said.append("runs on Metal only; checked with plain arithmetic in place of its kernels")
    if decoder.tuple_output:
        said.append("blocks give tuples: the first element")
    if decoder.passes > 1:
        said.append(f"{decoder.passes} passes over its blocks: that many times as many layers")
    if decoder.stream is not None:
        said.append(f"several residual streams: the active one, {decoder.stream}")
    if decoder.argument != 0:
        said.append(f"the residual is the blocks' argument {decoder.argument!r}")
    if decoder.view is not None:
        said.append("a changed residual is normed by the next block itself")
    if decoder.shares_keys:
        said.append("layers share keys: texts are read with a cache, as generation computes them")
    if decoder.window is not None:
        said.append("texts up to its window only: mlx-lm's mask and its cache disagree beyond")
    if not decoder.closed:
        said.append("the logits depend on more than the last residual: no readout")
    return "; ".join(said)
