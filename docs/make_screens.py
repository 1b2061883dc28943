"""Write what the pages in docs/screens/ take from the app: ``python docs/make_screens.py``.

The keys of each screen come from ``lens_tui/tui/keys.py``, the table of jobs with its counts from
``screenshots/jobs.py``. Both go between a pair of comments; the rest of a page is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from lens_tui.tui.keys import Key, in_scope, split  # noqa: E402
from screenshots.jobs import JOBS  # noqa: E402

PAGES = HERE / "screens"
SCOPES = {"steer": ("steer", "dose"), "generate": ("generate", "set"), "causes": ("causes", "graph")}
"""Pages with the keys of more than one scope; the others have that of their name."""
OWN = {
    "history": (
        *(("enter", "show the run again"), ("r", "make the run again and compare every token")),
        *(("space", "choose the run; on a second one, show both side by side"), ("/", "find runs by words")),
        *(
            ("l h", "list the runs of a set of prompts under it, fold them"),
            ("n N", "the next run found, the one before"),
        ),
        ("esc", "back to Generate"),
    )
}
"""The history is a dialogue: its keys are its own, not of the table."""
_SHORT = {
    **{"plus": "+", "minus": "-", "equals_sign": "=", "underscore": "_", "less_than_sign": "<", "slash": "/"},
    **{"greater_than_sign": ">", "left_square_bracket": "[", "right_square_bracket": "]", "comma": ","},
    **{"left_curly_bracket": "{", "right_curly_bracket": "}"},
}


def keys_of(page: str) -> str:
    """The table of the keys of a page's screen."""
    if page in OWN:
        rows = [(f"`{keys}`", words) for keys, words in OWN[page]]
    else:
        rows = [_row(key) for scope in SCOPES.get(page, (page,)) for key in in_scope(scope)]
    return "\n".join(["| key | does |", "|---|---|", *(f"| {keys} | {words} |" for keys, words in rows)])


def _row(key: Key) -> tuple[str, str]:
    shown = " ".join(f"`{_SHORT.get(part, part)}`" for part in split(key.keys))
    where = {"dose": " (in the dose table)", "set": " (in the set's table)", "graph": " (in the graph)"}
    return shown, key.description.replace("|", "\\|") + where.get(key.scope, "")


def jobs_table() -> str:
    """Every job with its keys and how many they are."""
    rows = [
        f"| [{job.screen}]({job.screen}.md) | {job.wanted} | {job.written.replace('|', chr(92) + '|')} "
        f"| {len(job.presses)} |"
        for job in JOBS
    ]
    return "\n".join(["| screen | job | keys | how many |", "|---|---|---|---|", *rows])


def filled(text: str, mark: str, inside: str) -> str:
    """A page with what is between ``<!-- mark -->`` and ``<!-- end -->`` replaced."""
    before, start, rest = text.partition(f"<!-- {mark} -->\n")
    if not start:
        raise ValueError(f"there is no <!-- {mark} --> on the page")
    return f"{before}{start}{inside}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"


def page_text(path: Path) -> str:
    """What the page should hold."""
    text = path.read_text(encoding="utf-8")
    return filled(text, "jobs", jobs_table()) if path.stem == "README" else filled(text, "keys", keys_of(path.stem))


def main() -> None:
    """Write the pages."""
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(page_text(path), encoding="utf-8")


if __name__ == "__main__":
    main()
