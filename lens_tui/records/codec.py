"""Records to plain JSON data and back, exactly.

Arrays become base64 of little-endian float32, so a vector comes back bit for
bit. What comes in is checked: a wrong key, type or value is a
:class:`LensError` that names it, whoever wrote the file.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, get_args, get_type_hints

import numpy as np

from .errors import LensError
from .interventions import (
    Ablate,
    Add,
    Arm,
    CapProjection,
    ClampFeature,
    Intervention,
    NormMatch,
    Positions,
    ProjectOut,
    SetProjection,
)
from .run import Sampling
from .vectors import FloatArray, Origin, SteeringVector

Json = dict[str, Any]

_MODES: dict[str, type[Intervention]] = {
    **{kind.mode: kind for kind in (Add, NormMatch, ProjectOut, SetProjection, ClampFeature, Ablate)},
    **dict.fromkeys(("at_most", "at_least", "between"), CapProjection),
    "set_projection": SetProjection,  # so they were called in files of before
    "cap_projection": CapProjection,
}
_MAX_ARRAY = 1 << 24
_UNIT_TOLERANCE = 1e-3


def to_json(record: Any) -> Any:
    """``record`` as plain JSON data. An intervention carries its ``mode``."""
    if isinstance(record, np.ndarray):
        return base64.b64encode(record.astype("<f4").tobytes()).decode("ascii")
    if isinstance(record, tuple | list):
        return [to_json(item) for item in record]
    if isinstance(record, Mapping):
        return {str(key): to_json(value) for key, value in record.items()}
    if isinstance(record, Intervention | Positions | SteeringVector | Origin | Sampling | Arm):
        made = {field.name: to_json(getattr(record, field.name)) for field in fields(record)}
        return {"mode": record.mode, **made} if isinstance(record, Intervention) else made
    if isinstance(record, np.generic):
        return record.item()
    return record


def intervention_from_json(data: Any) -> Intervention:
    """An intervention of the kind its ``mode`` names."""
    values = dict(_mapping(data, "An intervention"))
    kind = _MODES.get(str(values.pop("mode", "")))
    if kind is None:
        raise LensError(f"An intervention has an unknown mode {data.get('mode')!r}.", f"Known: {', '.join(_MODES)}.")
    made: Intervention = _build(kind, values)
    return made


def arm_from_json(data: Any) -> Arm:
    """An arm with its interventions."""
    arm: Arm = _build(Arm, _mapping(data, "An arm"))
    return arm


def vector_from_json(data: Any) -> SteeringVector:
    """A steering vector, its direction unchanged to the last bit. NaN or a direction that is not unit is refused."""
    vector: SteeringVector = _build(SteeringVector, _mapping(data, "A vector"))
    length = float(np.linalg.norm(vector.direction.astype(np.float64)))
    if not np.isfinite(vector.direction).all() or abs(length - 1.0) > _UNIT_TOLERANCE:
        raise LensError(f"The vector {vector.name!r} is not a unit direction (norm {length:.4g}).", "Make it again.")
    return vector


def positions_from_json(data: Any) -> Positions:
    """Token positions."""
    positions: Positions = _build(Positions, _mapping(data, "Positions"))
    return positions


def sampling_from_json(data: Any) -> Sampling:
    """Sampling settings; what is missing keeps its default."""
    sampling: Sampling = _build(Sampling, _mapping(data, "Sampling"))
    return sampling


def _build(kind: Any, data: Mapping[str, Any]) -> Any:
    hints = _hints(kind)
    known = {field.name: field for field in fields(kind)}
    what = f"A record of type {kind.__name__}"
    if unknown := sorted(set(data) - set(known)):
        raise LensError(f"{what} has an unknown key {unknown[0]!r}.", f"Known: {', '.join(known)}.")
    for name, field in known.items():
        if name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise LensError(f"{what} lacks the key {name!r}.")
    values = {name: _value(hints[name], value, f"{kind.__name__}.{name}") for name, value in data.items()}
    return kind(**values)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` checked against the annotation of its field and built where it is a record."""
    if hint is SteeringVector:
        return vector_from_json(value)
    if hint in (Positions, Origin):
        return _build(hint, _mapping(value, where))
    if "FloatArray" in str(hint) or "ndarray" in str(hint):
        return None if value is None and type(None) in get_args(hint) else _array(value, where)
    if hint == tuple[Intervention, ...]:
        return tuple(intervention_from_json(item) for item in _list(value, where))
    if hint in (tuple[int, ...], tuple[str, ...]):
        return tuple(_value(get_args(hint)[0], item, where) for item in _list(value, where))
    if "Mapping" in str(hint):
        return dict(_mapping(value, where))
    return _plain(hint, value, where)


def _plain(hint: Any, value: Any, where: str) -> Any:
    options = get_args(hint) or (hint,)
    if type(value) is int and float in options and int not in options:
        value = float(value)
    allowed = tuple(option for option in options if isinstance(option, type))
    literal = [option for option in options if not isinstance(option, type)]
    good = type(value) in allowed or (isinstance(value, str) and value in literal)
    if not good or (isinstance(value, float) and not math.isfinite(value)):
        names = " or ".join(getattr(option, "__name__", repr(option)) for option in options)
        raise LensError(f"{where} is {repr(value)[:40]}, which is not {names}.")
    return value


def _array(value: Any, where: str) -> FloatArray:
    try:
        if not isinstance(value, str) or len(value) > _MAX_ARRAY:
            raise ValueError("not base64 text")
        array = np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
    except (ValueError, binascii.Error):
        raise LensError(f"{where} is not an array (base64 of float32).") from None
    if array.size < 2:
        raise LensError(f"{where} has {array.size} values, so it is not a direction.")
    array.setflags(write=False)
    return array


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise LensError(f"{where} is {type(data).__name__}, not an object with named values.")
    return data


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise LensError(f"{where} is {type(data).__name__}, not a list.")
    return data
