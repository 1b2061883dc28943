"""The one exception users meet: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations


class LensError(ValueError):
    """Something the user can put right.

    ``str(error)`` is one sentence saying what is wrong and where; ``hint`` says
    what to do about it. Everything this package refuses is refused with a
    ``LensError``; anything else that escapes is a defect.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip() if self.hint else self.message
