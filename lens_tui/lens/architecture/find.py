"""Prove by tiny forward passes that a list of modules is a model's decoder.

Blocks are not computed. The first pass only notes who is called with what, all
of it lazy. The others put numbers in place of what each block gives, so what
the next block reads, and the logits, are a few operations away: enough to see
that each block reads what the one before it gave and that nothing but the last
one's output makes the logits.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import LensError
from lens_tui.records.machine import SMALL, free_memory

from .ranks import Shared, agreed_memory
from .taps import Argument, Call, first_of, install, named, original_class, replace_first, uninstall

PROBE_SHAPE = (2, 3)
STUB_SHAPE = (1, 2)
"""Smaller than the probe: these passes compute the logits, and a CPU takes its time over a large vocabulary."""
Give = Callable[[int, mx.array], mx.array]


@dataclass
class Seen:
    """A call of a block: its number in the list, the arrays it was given by place or name, its output.

    ``arguments`` and ``output`` hold the very objects, ``given`` and ``hidden`` aliases: a model may afterwards
    change an array in place.
    """

    index: int
    arguments: dict[Argument, Any]
    given: dict[Argument, mx.array]
    output: Any
    hidden: Any


@dataclass
class Observation:
    """The calls of a forward pass, in order, and its logits; nothing is evaluated."""

    calls: list[Seen] = field(default_factory=list)
    logits: Any = None


@dataclass(frozen=True)
class Proof:
    """What was proved of a list of blocks; the fields are those of :class:`Decoder`."""

    d_model: int
    vocab_size: int
    dtype: mx.Dtype
    tuple_output: bool
    passes: int
    stream: int | None
    argument: Argument
    view: Argument | None
    closed: bool


def observe(
    model: Module, layers: Sequence[Module], give: Give | None = None, shape: tuple[int, int] = PROBE_SHAPE
) -> Observation:
    """Run a tiny forward pass, unevaluated, and note each call of a block with its input and output.

    Args:
        model: The model.
        layers: The blocks.
        give: ``give(call, hidden)`` replaces the hidden state that the call with this number gave.
        shape: (batch, tokens) of the ids, all 0.
    """
    seen = Observation()
    with ExitStack() as stack:
        for index, layer in enumerate(layers):

            def tap(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> Any:
                named = _named(args, kwargs)
                given = {key: _alias(value) for key, value in named.items() if isinstance(value, mx.array)}
                output = call(*args, **kwargs)
                if give is not None:
                    output = replace_first(output, give(len(seen.calls), first_of(output)))
                seen.calls.append(Seen(index, named, given, output, _alias(first_of(output))))
                return output

            install(layer, tap)
            stack.callback(uninstall, layer, tap)
        seen.logits = first_of(model(mx.zeros(shape, dtype=mx.int32)))
    return seen


def prove(model: Module, layers: Sequence[Module]) -> Proof | str:
    """What the blocks are, or the reason why they are not a decoder."""
    try:
        seen = observe(model, layers)
        reason = _objection(seen, layers)
        return reason or _chained(model, layers, seen)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"a forward pass fails: {first}"


def _objection(seen: Observation, layers: Sequence[Module]) -> str | None:
    """Why the calls are not those of a decoder's blocks, or ``None``."""
    count, order = len(layers), [call.index for call in seen.calls]
    if not order:
        return f"a forward pass never calls the {count} blocks themselves, at most their parts"
    # A model may go through its blocks several times (looped transformers), but only in order: layer L of the model is
    # then block L % count of pass L // count.
    if order != list(range(count)) * (len(order) // count):
        return f"a forward pass calls the {count} blocks {len(order)} times, but not all in order"
    shapes = [_shape(call.hidden) for call in seen.calls]
    stream = _active(layers[0])
    for number, shape in enumerate(shapes):
        # AltUp (Gemma 3n) hands on several streams; the one that attention and MLP read is the residual.
        if len(shape) == 4 and stream is not None and shape[1:3] == PROBE_SHAPE and 0 <= stream < shape[0]:
            continue
        if len(shape) == 4:
            return f"block {order[number]} gives {shape}: several residual streams with no active one"
        if len(shape) != 3 or shape[:2] != PROBE_SHAPE:
            return f"block {order[number]} gives {shape or 'no array'}, not (batch, tokens, d_model)"
    if len({shape[-1] for shape in shapes}) != 1 or len({len(shape) for shape in shapes}) != 1:
        return f"the blocks give different shapes: {sorted(set(shapes))}"
    if not isinstance(seen.logits, mx.array) or seen.logits.ndim != 3:
        return "the model does not give logits (batch, tokens, vocabulary)"
    return None


def _chained(model: Module, layers: Sequence[Module], seen: Observation) -> Proof | str:
    """The proof, if each block reads what the one before it gave and the logits follow from the last one."""
    last = len(seen.calls) - 1
    stream = _active(layers[0]) if seen.calls[0].hidden.ndim == 4 else None

    def run(other: Callable[[int], bool]) -> Observation:
        return observe(model, layers, lambda call, hidden: _stub(hidden, call, other(call), stream), STUB_SHAPE)

    # Three passes in which every block's output is replaced by noise: the same noise in all calls (first), other noise
    # from all blocks but the last (second), other noise from the last one alone (third). What differs between two of
    # them can only have come by way of the blocks whose noise differs.
    first, second, third = run(lambda _: False), run(lambda call: call < last), run(lambda call: call == last)
    shape = first.calls[0].hidden.shape
    # The residual is the argument that changes with the block before, by the same place or name in every block:
    # masks and positions stay, so that they drop out here, however they are called.
    common = {key for key, array in first.calls[0].given.items() if array.shape == shape}
    for number in range(1, last + 1):
        common = _changed(first.calls[number], second.calls[number], common)
        if not common:
            return f"block {seen.calls[number].index} does not read what the block before it gives"
    if not common:
        return "the one block is given no residual"
    # Other noise from the last block alone has to reach the logits: else these are not the decoder's blocks (a vision
    # tower's, or an encoder's, chain just as well).
    if bool(mx.array_equal(first.logits, third.logits)):
        return "the logits do not depend on what the last block gives"
    # A block may be handed the residual twice, the second time normed by the block before it. A change of the first
    # would not reach that. Where the first block does without it, it may be left out: every block then norms itself.
    view = _second_view(seen.calls)
    if view is not None and seen.calls[0].arguments.get(view) is not None:
        return f"the blocks hand on a second view of the residual ({view}), which a change would not reach"
    hidden = seen.calls[-1].hidden
    return Proof(
        d_model=int(hidden.shape[-1]),
        vocab_size=int(seen.logits.shape[-1]),
        dtype=hidden.dtype,
        tuple_output=isinstance(seen.calls[-1].output, (tuple, list)),
        passes=len(seen.calls) // len(layers),
        stream=stream,
        argument=min(common, key=str),
        view=view,
        # The last residual says all of the logits if other noise further down does not change them.
        closed=stream is None and bool(mx.array_equal(first.logits, second.logits, equal_nan=True)),
    )


def _active(block: Module) -> int | None:
    """The active one of a block's residual streams (AltUp: Baykal et al. 2023; Gemma 3n), ``None`` without any."""
    for holder in (getattr(block, "config", None), getattr(block, "args", None), block):
        value = getattr(holder, "altup_active_idx", None)
        if isinstance(value, int):
            return value
    return None


def _stub(hidden: mx.array, call: int, other: bool, stream: int | None) -> mx.array:
    """Numbers in place of what a call gave, or other ones; of several streams only the active one differs."""

    def numbers(variant: int) -> mx.array:
        values = np.random.default_rng((call, variant)).normal(size=hidden.shape)
        return mx.array(values.astype(np.float32)).astype(hidden.dtype)

    if not other or stream is None:
        return numbers(int(other))
    one, two = numbers(0), numbers(1)
    return mx.concatenate([one[:stream], two[stream][None], one[stream + 1 :]])


def _second_view(calls: Sequence[Seen]) -> Argument | None:
    """The argument in which a block is given what the one before it made of its output for it, normed for instance.

    Only what every block makes itself counts; values that the first one makes and
    the others pass on (RWKV 7) are not a view of the residual.
    """
    for before, after in pairwise(calls[1:]):
        if not isinstance(before.output, (tuple, list)):
            return None
        alike = [item for item in before.output[1:] if _shape(item) == _shape(before.hidden)]
        fresh = [item for item in alike if not any(item is other for other in before.arguments.values())]
        for key, value in after.arguments.items():
            if any(value is item for item in fresh):
                return key
    return None


def _shape(hidden: Any) -> tuple[int, ...]:
    return tuple(hidden.shape) if isinstance(hidden, mx.array) else ()


def _changed(one: Seen, two: Seen, among: set[Argument]) -> set[Argument]:
    """The arguments that differ between two calls: the ones that carry the residual."""
    pairs = {key: (one.given.get(key), two.given.get(key)) for key in among}
    return {key for key, (a, b) in pairs.items() if a is not None and b is not None and not bool(mx.array_equal(a, b))}


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Argument, Any]:
    listed: list[tuple[Argument, Any]] = [*enumerate(args), *kwargs.items()]
    return dict(listed)


def _alias(value: Any) -> Any:
    """The same array as another object: a model may afterwards change the one it holds in place."""
    return value.astype(value.dtype) if isinstance(value, mx.array) else value


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
    ``shared`` says which part of the model this process has, ``None`` where it has all of it.
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
    shared: Shared | None = None

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

    @cached_property
    def heads(self) -> int:
        """The most query heads that an attention says it has; 0 where none says so."""
        modules = [module for block in self.layers for _, module in named(block)]
        kinds = [(original_class(module).__name__.lower(), module) for module in modules]
        return max(
            (heads_of(module) for name, module in kinds if "attention" in name and "linear" not in name), default=0
        )

    def check_room(self, rows: int, tokens: int, total: int | None = None) -> None:
        """Raise :class:`LensError` if the attention of ``tokens`` that look at ``total`` ones does not fit into memory.

        On a CPU MLX holds the scores of all heads of a layer at once, (rows, heads, tokens, total), with the weights
        made of them and the mask beside them, and crashes where there is no memory for them or where there are more
        than its 32-bit places; a GPU's kernels hold a few blocks of them.
        """
        total = tokens if total is None else total
        each = 3 * rows * self.heads * self.dtype.size
        need = each * tokens * total
        if need < SMALL or mx.default_device().type != mx.DeviceType.cpu:
            return
        free = min(free_memory() if (agreed := agreed_memory()) is None else agreed, 3 * self.dtype.size * _PLACES)
        if need > free:
            most = math.isqrt(free // max(1, each))
            text = f"{tokens:,} tokens" if rows == 1 else f"{rows} texts of {tokens:,} tokens"
            raise LensError(
                f"One forward over {text} takes {need / 1e9:,.0f} GB for the attention scores of a layer, and"
                f" {free / 1e9:,.0f} GB are free.",
                f"Give a shorter text: at most about {most:,} tokens fit.",
            )

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

    def check_whole(self, what: str) -> None:
        """Raise :class:`LensError` for what needs the whole model in this process."""
        if self.shared is not None:
            raise self.shared.refuse(what)

    def index(self, layer: int) -> int:
        """A layer number counted from 0; negative numbers count from the end. Raises ``LensError``."""
        try:
            layer = operator.index(None if isinstance(layer, bool) else layer)  # type: ignore[arg-type]
        except TypeError:
            raise LensError(f"A layer cannot be {layer!r}.", "Give a whole number.") from None
        count = len(self.layers)
        if not -count <= layer < count:
            raise LensError(
                f"There is no layer {layer}: this model has {count} decoder blocks.",
                f"Choose 0 to {count - 1}, or -1 for the last.",
            )
        return layer % count

    def indices(self, layers: Any) -> list[int]:
        """One layer or several, each counted from 0, in the order given. Raises ``LensError``."""
        several = isinstance(layers, Iterable) and not isinstance(layers, str)
        return [self.index(layer) for layer in (layers if several else [layers])]


HEAD_COUNTS = ("whole_heads", "n_heads", "q_num_heads", "num_heads", "num_attention_heads", "n_head", "n_q_heads")
"""What attentions call the number of their query heads; the first is ours, of a model that is divided."""
_PLACES = 2**31 - 1


def heads_of(attention: Any) -> int:
    """How many query heads an attention says it has; 0 if it does not."""
    return next((n for name in HEAD_COUNTS if isinstance(n := getattr(attention, name, None), int) and n > 0), 0)


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
            decoder = _decoder(model, path, owners, layers, found)
            return replace(decoder, window=_narrower(window, _unlike_window(kind, model)))
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
    if not (hasattr(model, "make_cache") or hasattr(model, "layers")):
        return False  # mlx-lm makes no cache for it: a wrapper that is handed its language model's
    cache = new_cache(model)
    if len(cache) >= len(layers):
        return False
    ids = mx.array([[(7 * at + 3) % 64 for at in range(5)]])
    plain, cached = first_of(called(ids)), first_of(called(ids, cache=cache))
    return not bool(mx.allclose(plain, cached, rtol=1e-2, atol=1e-2 * float(mx.abs(plain).max()), equal_nan=True))


def new_cache(model: Module) -> list[Any]:
    """mlx-lm's own empty cache of a model."""
    from mlx_lm.models.cache import make_prompt_cache

    cache: list[Any] = make_prompt_cache(model)
    return cache


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
    return sorted(_lists_in(model, 0), key=lambda item: -len(item))


def _lists_in(module: Module, depth: int) -> Iterator[tuple[Module, ...]]:
    # Not a function within a function: one that calls itself is in a circle with what it has found, and the blocks
    # would outlive their model until Python next looks for circles.
    for value in module.values():
        if isinstance(value, Module) and depth < 4:
            yield from _lists_in(value, depth + 1)
        else:
            yield _modules(value)


def _owners(model: Module, layers: Sequence[Module]) -> tuple[Module, ...]:
    """The modules that hold every one of the blocks, the outermost first."""
    wanted = {id(layer) for layer in layers}
    every = named(model)
    at, held, below = dict(every), {id(module): set[int]() for _, module in every}, Counter[str]()
    for path, module in every:  # what holds it has a path that this one goes on from
        above = [path[:end] for end in {0, *(dot.start() for dot in re.finditer(r"\.", path)), len(path)}]
        below.update(above)
        if id(module) in wanted:
            for holder in above:
                if holder in at:
                    held[id(at[holder])].add(id(module))
    # A block that is the only one holds itself, and counts here where something is below it.
    holders = [(path, module) for path, module in every if held[id(module)] == wanted and below[path] > len(wanted)]
    return tuple(module for _, module in sorted(holders, key=lambda found: -below[found[0]]))


def _place(model: Module, layers: Sequence[Module]) -> str:
    """Where the blocks are in the module tree: the path of each list that they come from."""
    paths = {id(module): path for path, module in named(model)}
    return " + ".join(dict.fromkeys(paths.get(id(layer), "layers").rpartition(".")[0] for layer in layers))
