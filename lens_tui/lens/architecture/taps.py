"""Layer proxies: put in front of a module without moving it.

A proxy is installed by giving the module *instance* a subclass of its own class
whose ``__call__`` goes through taps. The object stays the same object in the
same container with the same attributes, parameters and parameter paths;
uninstalling gives the instance its class back. Copies and pickles are made of
the original class.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

Call = Callable[..., Any]
Argument = int | str
"""Which argument of a call: its place, or its name if it was given by name."""
Tap = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]
"""``tap(call, args, kwargs)``: calls ``call(*args, **kwargs)`` and returns its output, changed or not."""


_TAPS: dict[int, tuple[Tap, ...]] = {}
"""The taps around each proxied module, innermost first, by the module's id: gone when it is of its own class again."""
_PROXIES: dict[type[Module], type[Module]] = {}
"""The proxy of each class. Making a class costs more than a layer's Python does, so each is made once."""
_ORIGINALS: dict[type[Module], type[Module]] = {}
"""The class that each proxy stands for."""
Sink = Callable[[mx.array], None]
"""Takes the tensor of one site."""


class _Now(threading.local):
    sinks: Mapping[int, Sink] = {}


now = _Now()
"""``now.sinks``: of modules with a single tap, which would only look at the output, what takes it in the forward that
this thread is in, by the module's id. A tap costs a call of Python more, five microseconds a layer on a GPU's host."""
_set: Callable[[Module, str, Any], None] = object.__setattr__
"""Sets a module's class: MLX's own setter looks through parameters first, which costs as much as all the rest."""


def install(module: Module, tap: Tap) -> None:
    """Put ``tap`` around every call of ``module``; the tap installed last is outermost."""
    install_all(((module, tap),))


def install_all(pairs: Iterable[tuple[Module, Tap]]) -> None:
    """:func:`install` of several, in one sweep: a capture of every layer begins and ends with one."""
    for module, tap in pairs:
        kind = type(module)
        if kind in _ORIGINALS:
            _TAPS[id(module)] = (*_TAPS[id(module)], tap)
        else:
            _TAPS[id(module)] = (tap,)
            _set(module, "__class__", _PROXIES.get(kind) or _proxy_of(kind))


def uninstall(module: Module, tap: Tap) -> None:
    """Take ``tap`` away, in any order; without taps the module is of its original class again."""
    uninstall_all(((module, tap),))


def uninstall_all(pairs: Iterable[tuple[Module, Tap]]) -> None:
    """:func:`uninstall` of several, in one sweep."""
    for module, tap in pairs:
        original = _ORIGINALS.get(type(module))
        if original is None:
            continue
        held = _TAPS[id(module)]
        taps = () if held == (tap,) else tuple([item for item in held if item != tap])
        if taps:
            _TAPS[id(module)] = taps
        else:
            del _TAPS[id(module)]
            _set(module, "__class__", original)


def taps_of(module: Module) -> tuple[Tap, ...]:
    """The taps around a module, innermost first; empty for a module that is not proxied."""
    return _TAPS.get(id(module), ()) if type(module) in _ORIGINALS else ()


def original_class(module: Module) -> type[Module]:
    """The class a module has when nothing is installed on it."""
    return _ORIGINALS.get(type(module), type(module))


def _proxy_of(original: type[Module]) -> type[Module]:
    if original not in _PROXIES:
        proxy = _PROXIES[original] = _make_proxy(original)
        _ORIGINALS[proxy] = original
    return _PROXIES[original]


def _make_proxy(original: type[Module]) -> type[Module]:
    inner: Any = original

    def call(self: Module, *args: Any, **kwargs: Any) -> Any:
        sink = now.sinks.get(id(self))
        if sink is not None:
            output = inner.__call__(self, *args, **kwargs)
            # An alias: models may change it in place afterwards.
            sink((output if type(output) is mx.array else first_of(output))[...])
            return output
        taps = _TAPS[id(self)]
        forward: Call = partial(inner.__call__, self)
        if len(taps) > 1:
            for tap in taps[:-1]:
                forward = partial(_through, tap, forward)
        return taps[-1](forward, args, kwargs)

    def reduce_ex(self: Module, protocol: Any) -> Any:
        # A copy or pickle must not know of the proxy: make it of the original class, by dict's own
        # constructor (pickle refuses the usual one for a class that is not the object's).
        _, made_with, *rest = inner.__reduce_ex__(self, protocol)
        return (dict.__new__, tuple(original if part is proxy else part for part in made_with), *rest)

    space = {
        "__call__": call,
        "__reduce_ex__": reduce_ex,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    proxy = type(original.__name__, (original,), space)
    return proxy


def _through(tap: Tap, forward: Call, *args: Any, **kwargs: Any) -> Any:
    return tap(forward, args, kwargs)


def named(module: Any) -> list[tuple[str, Module]]:
    """Every module at and below ``module`` with its path (MLX's own method has no types)."""
    return list(module.named_modules())


def first_of(value: Any) -> Any:
    """A block's hidden state: the output itself, or the first element of a tuple or list."""
    return value[0] if isinstance(value, (tuple, list)) and value else value


def replace_first(value: Any, new: Any) -> Any:
    """``value`` with its hidden state replaced, in the container it came in."""
    if isinstance(value, tuple):
        rest = value[1:]
        return type(value)(new, *rest) if hasattr(value, "_fields") else (new, *rest)
    return [new, *value[1:]] if isinstance(value, list) else new


def replace_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], new: Any, argument: Argument = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with one of them replaced.

    Args:
        args: Those by position.
        kwargs: Those by name.
        new: What takes its place.
        argument: Which one: its place or its name.
    """
    if isinstance(argument, int) and args:
        return (*args[:argument], new, *args[argument + 1 :]), kwargs
    name = argument if isinstance(argument, str) else next(iter(kwargs))
    return args, {**kwargs, name: new}


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any], argument: Argument = 0) -> Any:
    """An argument of a call, by default the first one, positional or by name; ``None`` if there is none."""
    if isinstance(argument, str):
        return kwargs.get(argument)
    if args:
        return args[argument] if argument < len(args) else None
    return next(iter(kwargs.values()), None)
