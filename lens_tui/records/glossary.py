"""What every number of the app and of the command line is: the one glossary, plain data.

``?`` on a screen, the verb ``glossary`` and ``docs/glossary.md`` show these entries and have no words of their own.
"""

from __future__ import annotations

from .glossary_readings import READING
from .glossary_terms import ACTING, GlossaryTerm

TERMS: tuple[GlossaryTerm, ...] = (*ACTING, *READING)
"""In the order of the screens."""


def by_id(name: str) -> GlossaryTerm:
    """The entry of that id. Raises ``KeyError`` where there is none."""
    return {term.id: term for term in TERMS}[name]


def on_screen(title: str) -> tuple[GlossaryTerm, ...]:
    """The entries for the numbers of a screen, by its title."""
    return tuple(term for term in TERMS if title in term.where)


def find(words: str) -> list[GlossaryTerm]:
    """The entries that ``words`` name, best first: by id or name, then by another way of writing, then by any part."""
    wanted = words.strip().casefold()
    ranked = [(rank, place, term) for place, term in enumerate(TERMS) if (rank := _rank(term, wanted)) is not None]
    best = min((rank for rank, _, _ in ranked), default=None)
    named = best is not None and best < 2
    return [term for rank, _, term in sorted(ranked, key=lambda item: item[:2]) if rank < 2 or not named]


def _rank(term: GlossaryTerm, wanted: str) -> int | None:
    if wanted in (term.id, term.name.casefold()):
        return 0
    if wanted in (other.casefold() for other in term.also):
        return 1
    if wanted and wanted in " ".join((term.id, term.name, *term.also)).casefold():
        return 2
    return 3 if wanted and wanted in term.means.casefold() else None


def as_markdown() -> str:
    """The glossary as ``docs/glossary.md`` has it."""
    lines = [
        "# Glossary",
        "",
        "Every number that the app and the command line show. `?` on a screen lists those of that screen, "
        "`mlx-lens-tui glossary TERM` prints one. Written by `docs/make_glossary.py` from "
        "`lens_tui/records/glossary.py`.",
    ]
    for title in dict.fromkeys(term.where[0] for term in TERMS):
        lines += ["", f"## {title}", "", "| number | what it is | unit | source |", "|---|---|---|---|"]
        for term in TERMS:
            if term.where[0] == title:
                cells = (f"**{term.name}** (`{term.id}`)", term.means, term.unit, term.source)
                lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
