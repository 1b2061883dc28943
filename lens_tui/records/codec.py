"""Records to plain data (JSON, TOML) and back, exactly, by the annotations of their fields.

Arrays become base64 of little-endian float32, so a vector comes back bit for
bit. What comes in is checked: a wrong key, type or value is a
:class:`LensError` that names it, whoever wrote the file.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from .errors import LensError
from .interventions import (
    Ablate,
    AblateHeads,
    Add,
    CapProjection,
    ClampFeature,
    Intervention,
    NormMatch,
    ProjectOut,
    SetProjection,
    Swap,
)
from .pattern_record import EditPattern
from .run import Candidate
from .sanitise import one_line
from .steering_vector import FloatArray, SteeringVector, TokenWeight

Record = TypeVar("Record")

_MODES: dict[str, type[Intervention]] = {
    **{
        kind.mode: kind
        for kind in (
            Add,
            NormMatch,
            ProjectOut,
            SetProjection,
            Swap,
            ClampFeature,
            Ablate,
            AblateHeads,
            EditPattern,
        )
    },
    **dict.fromkeys(("at_most", "at_least", "between"), CapProjection),
    "set_projection": SetProjection,  # the names that older files have
    "cap_projection": CapProjection,
}
_ROWS = (Candidate, TokenWeight)
"""Records that come in their hundreds: written as their values alone, in the order of the fields."""
_MAX_ARRAY = 1 << 24
_UNIT_TOLERANCE = 1e-3


class Mismatch(LensError):
    """A value that its field cannot have. ``what`` says what it can have; ``""``: there is no such field.

    ``kind`` is the type of the record, ``name`` the field's, with ``.KEY`` behind it for a value of a mapping.
    """

    def __init__(self, kind: type, name: str, value: object, what: str = "") -> None:
        self.kind, self.name, self.value, self.what = kind, name, value, what
        if what:
            super().__init__(f"{kind.__name__}.{one_line(name, 80)} is {repr(value)[:40]}, which is not {what}.")
        else:
            known = ", ".join(field.name for field in fields(kind))
            message = f"A record of type {kind.__name__} has an unknown key {one_line(name, 80)!r}."
            super().__init__(message, f"Known: {known}.")


def to_json(record: Any) -> Any:
    """``record`` as plain JSON data. An intervention carries its ``mode``."""
    if type(record).__module__ == "numpy":  # not imported: a settings file is read before the first frame
        return base64.b64encode(record.astype("<f4").tobytes()).decode("ascii") if record.ndim else record.item()
    if isinstance(record, tuple | list):
        return [to_json(item) for item in record]
    if isinstance(record, Mapping):
        return {str(key): to_json(value) for key, value in record.items()}
    if not is_dataclass(record):
        return record
    values = {field.name: to_json(getattr(record, field.name)) for field in fields(record)}
    if isinstance(record, _ROWS):
        return list(values.values())
    return {"mode": record.mode, **values} if isinstance(record, Intervention) else values


def from_json(kind: type[Record], data: Any) -> Record:
    """The record of type ``kind`` that ``data`` describes; what is missing keeps its default.

    An :class:`Intervention` is of the kind its ``mode`` names. A direction is unchanged to the last bit.

    Raises:
        Mismatch: for an unknown key, or a value that its field cannot have.
        LensError: for a missing key, or a vector that is not a unit direction.
    """
    return cast("Record", _record(kind, data, _title(kind)))


def _title(kind: type) -> str:
    return f"A record of type {kind.__name__}"


def _record(kind: Any, data: Any, where: str) -> Any:
    known = {field.name: field for field in fields(kind)}
    if kind in _ROWS and isinstance(data, list) and len(data) == len(known):
        data = dict(zip(known, data, strict=True))
    if not isinstance(data, Mapping):
        raise LensError(f"{where} is {type(data).__name__}, not an object with named values.")
    if kind is Intervention:
        mode = data.get("mode", "")
        if not isinstance(mode, str) or mode not in _MODES:
            said = one_line(repr(mode), 60)
            raise LensError(f"An intervention has an unknown mode {said}.", f"Known: {', '.join(_MODES)}.")
        return _record(_MODES[mode], {name: value for name, value in data.items() if name != "mode"}, where)
    if unknown := sorted(set(data) - set(known)):
        raise Mismatch(kind, unknown[0], data[unknown[0]])
    for name, field in known.items():
        if name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise LensError(f"{_title(kind)} lacks the key {name!r}.")
    hints = _hints(kind)
    values = {name: _value(hints[name], value, kind, name) for name, value in data.items()}
    for name, value in values.items():
        limits = known[name].metadata.get("limits")
        if limits and not limits[0] <= value <= limits[1]:
            raise Mismatch(kind, name, value, "from {:,} to {:,}".format(*limits))
    made = kind(**values)
    if isinstance(made, SteeringVector):
        _check_unit(made)
    return made


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(hint: Any, value: Any, kind: type, name: str) -> Any:
    """``value`` checked against the annotation of its field, and built where that is a record."""
    if NoneType in get_args(hint):
        if value is None:
            return None
        (hint,) = (option for option in get_args(hint) if option is not NoneType)
    if hint is FloatArray:
        return _array(value, f"{kind.__name__}.{name}")
    if is_dataclass(hint):
        if not isinstance(value, Mapping | list if hint in _ROWS else Mapping):
            raise Mismatch(kind, name, value, "an object with named values")
        return _record(hint, value, f"{kind.__name__}.{name}")
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise Mismatch(kind, name, value, "a list")
        return tuple(_value(inner[0], item, kind, name) for item in value)
    if origin is Literal:
        if not isinstance(value, str) or value not in inner:
            raise Mismatch(kind, name, value, " or ".join(map(repr, inner)))
        return value
    if origin is not None:  # a mapping
        if not isinstance(value, Mapping):
            raise Mismatch(kind, name, value, "an object with named values")
        return {key: _value(inner[1], item, kind, f"{name}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        value = _as_float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise Mismatch(kind, name, value, hint.__name__)
    return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _array(value: Any, where: str) -> FloatArray:
    import numpy as np

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


def _check_unit(vector: SteeringVector) -> None:
    import numpy as np

    length = float(np.linalg.norm(vector.direction.astype(np.float64)))
    if not np.isfinite(vector.direction).all() or abs(length - 1.0) > _UNIT_TOLERANCE:
        raise LensError(f"The vector {vector.name!r} is not a unit direction (norm {length:.4g}).", "Make it again.")
