"""What a verb prints: JSON for programs, plain sanitised text for people, one sentence for an error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from lens_tui.records.errors import LensError

_P = ParamSpec("_P")
_R = TypeVar("_R")

USER_ERROR = 2
INTERRUPTED = 130


def print_json(data: Any) -> None:
    """One JSON value on standard output; what is not a number is null, never the invalid ``NaN``."""
    sys.stdout.write(json.dumps(_finite(data), ensure_ascii=not _utf8()) + "\n")


def say(text: str = "") -> None:
    """A line for people on standard output, safe for a terminal."""
    from lens_tui.records.sanitise import sanitise

    sys.stdout.write(sanitise(text) + "\n")


def note(text: str) -> None:
    """A line for people on standard error, so that standard output stays what was asked for."""
    from lens_tui.records.sanitise import sanitise

    sys.stderr.write(sanitise(text) + "\n")


def sentences(verb: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn what the user can put right into one sentence and exit status 2, and ctrl+c into 130."""

    @wraps(verb)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return verb(*args, **kwargs)
        except LensError as error:
            note(f"mlx-lens-tui: {error}")
            raise SystemExit(USER_ERROR) from None
        except KeyboardInterrupt:
            note("mlx-lens-tui: stopped.")
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader went away (`| head`); point stdout elsewhere so that the interpreter's flush at exit is quiet.
            sys.stdout = None
            raise SystemExit(0) from None

    return guarded


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return data


def _utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
