"""What one request, and all of them together, may ask of the server; and the error that says so."""

from __future__ import annotations

from dataclasses import dataclass

from lens_tui.records import LensError


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """Bounds of the server. ``rows`` are decoded side by side, ``queue`` more may wait; sizes in bytes, times in s."""

    rows: int = 32
    queue: int = 128
    prompt_tokens: int = 8192
    max_tokens: int = 4096
    default_tokens: int = 256
    body: int = 8 << 20
    steering: int = 64
    choices: int = 16
    captured: int = 16 << 20
    body_seconds: float = 30.0
    connections: int = 512

    @property
    def prompt_characters(self) -> int:
        """Texts longer than this are refused before they are cut into tokens, which takes the model's thread."""
        return 16 * self.prompt_tokens


class Refused(LensError):
    """A request that is not done. ``status`` is HTTP's, ``kind`` and ``param`` are OpenAI's ``type`` and ``param``."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status, self.kind, self.param = status, kind, param


def error_body(error: LensError) -> dict[str, object]:
    """The error as OpenAI writes one."""
    kind = error.kind if isinstance(error, Refused) else "invalid_request_error"
    param = error.param if isinstance(error, Refused) else None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": None}}


def status_of(error: LensError) -> int:
    """HTTP's status of an error: what a request said wrongly is 400."""
    return error.status if isinstance(error, Refused) else 400
