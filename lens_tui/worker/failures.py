"""What went wrong, in one sentence, and what to do about it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line, sanitise

_NO_MEMORY = ("unable to allocate", "malloc", "out of memory", "insufficient memory", "attempting to allocate")


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a screen shows it (``message``, ``hint``) and as the log keeps it (``detail``). All sanitised."""

    message: str
    hint: str
    detail: str


def explain(error: BaseException) -> Failure:
    """The sentence for any error a job can end with."""
    message, hint = _sentence(error)
    detail = "".join(traceback.format_exception(error))
    return Failure(one_line(message, 400), one_line(hint, 400), sanitise(detail))


def _sentence(error: BaseException) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, LensError):
        return error.message, error.hint
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text.lower() for sign in _NO_MEMORY)
    ):
        return (
            "There is not enough memory for this.",
            "Use a smaller or more quantised model, a shorter text or fewer arms.",
        )
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in {"mlx", "mlx_lm"}:
        return f"MLX could not be imported: {text}.", "On Linux install mlx[cpu] or mlx[cuda13]; on a Mac, mlx."
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"The system refused: {error.strerror}{where}.", "Check the path, free space and permissions."
    name = type(error).__name__
    return (
        f"Something failed inside: {name}: {text}" if text else f"Something failed inside: {name}.",
        "The log has more.",
    )
