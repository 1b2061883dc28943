"""The maps and graphs of this session and those kept on disk, to be opened again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from textual.content import Content

from lens_tui.records import ModelInfo
from lens_tui.records.cause_plan import GraphFound
from lens_tui.records.cause_store import CauseSummary, Found, model_of
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import has_words
from lens_tui.tui.format import fit, model_name

from .history_dialog import HistoryDialog

Opened = tuple[Found, str]
"""What was found, and what has changed since it was made, in a few words."""


@dataclass(frozen=True, slots=True, eq=False)
class PastCause:
    """A line of the history; texts are safe to show. ``found`` is there for those of this session, ``kept`` on disk."""

    asked: str
    title: str
    model: str
    kept: int = 0
    created: float | None = None
    found: Found | None = None


def of_session(found: Found) -> PastCause:
    """One of this session."""
    return PastCause(*_safe(*_texts(found)), found.kept, None, found)


def of_disk(row: CauseSummary) -> PastCause:
    """One of the disk."""
    return PastCause(*_safe(row.asked, row.title, row.model), row.id, row.created)


def _texts(found: Found) -> tuple[str, str, str]:
    asked = (found.file or found.plan.prompt) if isinstance(found, GraphFound) else found.plan.asked
    return asked, found.plan.title, model_of(found)


def _safe(asked: str, title: str, model: str) -> tuple[str, str, str]:
    return one_line(asked, 400), one_line(title, 120), one_line(model_name(model), 60)


class CauseHistoryScreen(HistoryDialog[PastCause, Opened, "Opened | None"]):
    """Dismisses with what was opened and what has changed since, or with ``None``.

    Args:
        here: Those of this session.
        database: Where they are kept, ``None`` where nothing is.
        model: The model that is loaded, which what was kept is held against.
    """

    SEARCHED = "words of the prompt, the model or what was asked"
    NOUN = "one"

    def __init__(self, here: Sequence[Found], database: Path | None, model: ModelInfo | None) -> None:
        super().__init__(database)
        self._here, self._model = here, model

    def heading(self) -> Content:
        """The title."""
        return Content("Maps and graphs")

    def nothing(self, words: str) -> str:
        """What stands where there is no row, or none with the words."""
        return "none has these words" if words.strip() else "nothing was patched or traced yet"

    def session_rows(self, words: str) -> list[PastCause]:
        """This session's, newest first."""
        return [of_session(each) for each in self._here if has_words(" ".join(_texts(each)), words)]

    def session_numbers(self) -> frozenset[int]:
        """Their numbers on disk."""
        return frozenset(each.kept for each in self._here if each.kept)

    def disk_rows(self, database: Path, words: str, without: frozenset[int]) -> list[PastCause]:
        """Those of the disk, newest first."""
        from lens_tui.tasks.causes import kept_causes

        return [of_disk(each) for each in kept_causes(database, words, without)]

    def read_kept(self, database: Path, number: int) -> Opened | None:
        """One of the disk, with what has changed since it was made."""
        from lens_tui.tasks.causes import open_cause

        opened = open_cause(database, number, self._model)
        return None if opened is None else (opened[0].found, opened[1])

    def draw(self, row: PastCause, width: int) -> list[Content]:
        """Number and question; when, what and of which model."""
        number = f"{row.kept or '–':>5}  "
        facts = f"{' ' * len(number)}{self.when(row)}{row.title} · {row.model}"
        return [
            Content.assemble((number, "$muted"), fit(row.asked, max(8, width - len(number)))),
            Content.styled(fit(facts, width), "$muted"),
        ]

    def action_choose(self) -> None:
        """Give back the one under the cursor."""
        row = self.rows.row
        if row is None:
            self.dismiss(None)
        elif row.found is not None:
            self.dismiss((row.found, ""))
        else:
            self.with_kept(row.kept, self.dismiss)
