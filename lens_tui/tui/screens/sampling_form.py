"""Sampling settings as a form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from lens_tui.records import Sampling
from lens_tui.records.run import LIMITS
from lens_tui.tui.host import LensHost

from .form import Check, Field, FormScreen, number, optional, whole

_OFF = {"temp": "0: greedy", "top_p": "off", "top_k": "off", "min_p": "off", "repetition_penalty": "off"}
"""What an empty field means."""
_STOP_HINT = "no text; several with | between, a line break as \\n"
_LABELS = {
    "max_tokens": "max tokens",
    "seed": "seed",
    "temp": "temperature",
    "top_p": "top-p",
    "top_k": "top-k",
    "min_p": "min-p",
    "repetition_penalty": "rep. penalty",
}


def _check(name: str) -> Check:
    low, high = LIMITS[name]
    check = whole(low, high) if isinstance(low, int) and isinstance(high, int) else number(low, high)
    return optional(check) if name in _OFF else check


def sampling_fields(sampling: Sampling) -> list[Field]:
    """The form's fields with the settings as they are; what is off is empty."""
    scalars = [
        Field(name, label, _value(sampling, name), _OFF.get(name, ""), _check(name)) for name, label in _LABELS.items()
    ]
    return [*scalars, Field("stop", "stop at", "|".join(map(_typed, sampling.stop)), _STOP_HINT, between="|")]


def _value(sampling: Sampling, name: str) -> str:
    value = getattr(sampling, name)
    return "" if name in _OFF and not value else f"{value}"


def _typed(text: str) -> str:
    """A stop text in one line: a backslash before a backslash, a ``|``, and the n that stands for a line break."""
    return re.sub(r"[\\|]", r"\\\g<0>", text).replace("\n", "\\n")


def _stops(typed: str) -> tuple[str, ...]:
    parts = re.findall(r"(?:\\.|[^|\\])+", typed)
    return tuple(re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], part) for part in parts)


def read_sampling(values: Mapping[str, str], before: Sampling) -> Sampling:
    """The settings that a form whose every field is right means."""
    kinds = {name: type(getattr(before, name)) for name in _LABELS}
    scalars = {name: kinds[name](values[name].strip() or 0) for name in _LABELS}
    return replace(before, **scalars, stop=_stops(values["stop"]))


def ask_sampling(lens: LensHost) -> None:
    """Ask how tokens are drawn; the session has it then."""
    sampling = lens.store.session.sampling

    def take(values: dict[str, str] | None) -> None:
        if values is not None:
            lens.store.update(sampling=read_sampling(values, lens.store.session.sampling))

    lens.push_screen(FormScreen("Sampling", sampling_fields(sampling)), take)
