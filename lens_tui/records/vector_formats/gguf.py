"""repeng's control vectors: a GGUF file of architecture ``controlvector``, a float32 tensor ``direction.{layer}`` each.

``direction.L`` is the output of block L, counted from 0: repeng takes it from
``hidden_states[L + 1]`` and adds it to the output of block L (repeng
``extract.batched_get_hiddens``, ``control.ControlModule``). repeng itself leaves
out block 0, and llama.cpp refuses ``direction.0``. GGUF is read here by hand, not by the ``gguf`` package: that one
makes Python objects of every value of every array in the header before anything can be looked at, with no bound
on how many, so that a hostile file of some hundred megabytes (sparse: of none) takes minutes and gigabytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LensError
from ..read_files import AGAIN, short_path
from ..sanitise import one_line
from ..steering_vector import SteeringVector
from .common import Found, NamedArray, by_layer, raw, read_whole

MAGIC = b"GGUF"
_ALIGN = 32
_MAX_ITEMS = 1 << 16
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8"), 30: np.dtype("<u2")}
_BF16 = 30


@dataclass
class _Cursor:
    data: bytes
    at: int = 0
    items: int = 0

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise ValueError("cut short")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.skip_array()
        return self.number(_SCALARS[kind])

    def skip_array(self) -> None:
        """Arrays are nothing that a control vector is described by."""
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            self.take(count * struct.calcsize(_SCALARS[inner]))
            return
        self.items += count
        if inner != _STRING or self.items > _MAX_ITEMS:
            raise ValueError("arrays without end")
        for _ in range(count):
            self.take(self.number("Q"))


def read(path: Path) -> Found:
    """The directions of a control vector file. Raises ``LensError`` for any other GGUF."""
    try:
        return _parse(path, _Cursor(read_whole(path)))
    except LensError:
        raise
    except (ValueError, KeyError, struct.error, OverflowError) as error:
        raise LensError(
            f"{short_path(path)} is not a complete GGUF file ({one_line(str(error), 40)}).", AGAIN
        ) from error


def write(path: Path, vectors: Sequence[SteeringVector]) -> bytes:
    """The bytes of a control vector file; ``model_hint`` is the model type that the vectors came with, if any."""
    by_layer(vectors, "GGUF")
    hint = str(vectors[0].origin.facts.get("model_hint", vectors[0].model))
    head = [MAGIC, struct.pack("<IQQ", 3, len(vectors), 3)]
    head.append(_text("general.architecture") + struct.pack("<I", _STRING) + _text("controlvector"))
    head.append(_text("controlvector.model_hint") + struct.pack("<I", _STRING) + _text(hint))
    head.append(_text("controlvector.layer_count") + struct.pack("<II", _UINT32, len(vectors)))
    body = b""
    for vector in vectors:
        head.append(_text(f"direction.{vector.layer}") + struct.pack("<IQIQ", 1, vector.d_model, 0, len(body)))
        data = raw(vector).astype("<f4").tobytes()
        body += data + b"\0" * (-len(data) % _ALIGN)
    start = b"".join(head)
    return start + b"\0" * (-len(start) % _ALIGN) + body


def _parse(path: Path, cursor: _Cursor) -> Found:
    if cursor.take(4) != MAGIC or cursor.number("I") not in (2, 3):
        raise ValueError("not GGUF 2 or 3")
    n_tensors, n_values = cursor.number("Q"), cursor.number("Q")
    if max(n_tensors, n_values) > _MAX_ITEMS:
        raise ValueError("too many entries")
    values = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(n_values)}
    kind = values.get("general.architecture")
    if kind != "controlvector":
        raise LensError(f"{short_path(path)} is a GGUF of {one_line(str(kind), 40)}, not a control vector.")
    infos = [_info(cursor) for _ in range(n_tensors)]
    align = values.get("general.alignment", _ALIGN)
    if type(align) is not int or not 1 <= align <= 1 << 16:
        raise ValueError("alignment")
    base = cursor.at + -cursor.at % align
    entries = [
        NamedArray("", _layer(path, name), _tensor(cursor.data, base, shape, code, offset))
        for name, shape, code, offset in infos
        if name.startswith("direction.")
    ]
    facts = {"model_hint": one_line(str(values.get("controlvector.model_hint", "")), 120)}
    return Found(entries, counted=True, facts=facts)


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, count = cursor.text(), cursor.number("I")
    if count > 4:
        raise ValueError("tensor of more than four dimensions")
    shape = tuple(cursor.number("Q") for _ in range(count))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _layer(path: Path, name: str) -> int:
    number = name.removeprefix("direction.")
    if not (number.isascii() and number.isdigit() and len(number) < 6):
        raise LensError(f"{short_path(path)} has a tensor {one_line(name, 40)!r} that names no layer.", AGAIN)
    return int(number)


def _tensor(data: bytes, base: int, shape: tuple[int, ...], code: int, offset: int) -> Any:
    if code not in _TYPES:
        raise ValueError(f"tensor type {code}")
    start, count = base + offset, math.prod(shape)
    if start + count * _TYPES[code].itemsize > len(data):
        raise ValueError("cut short")
    flat = np.frombuffer(data, _TYPES[code], count, start)
    if code == _BF16:
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(shape[::-1])


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
