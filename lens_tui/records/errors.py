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


class NotFinite(LensError):
    """NaN or infinity where there should be numbers: a model, a steering or a file that overflows."""


class LensWarning(UserWarning):
    """Something that is done as asked, but is probably not meant; ``warnings`` hears of it.

    The command line writes it to standard error, the app shows it; each text is said once a process.
    """


def warn(message: str) -> None:
    """Say that something asked for is probably not meant."""
    import warnings

    warnings.warn(message, LensWarning, stacklevel=3)
