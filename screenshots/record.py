"""Record a session of the real app on a pseudo-terminal as an animated picture.

    python screenshots/record.py            # writes screenshots/demo.svg

A shell is opened, ``mlx-lens-tui --demo`` is typed into it, then the keys of ``SESSION`` one after another, each
when the one before has done its work. What the terminal showed is what is drawn; only the pace is ours: each step has
the seconds that reading it takes, so that a slow machine gives the same picture as a fast one.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyte

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from screenshots.animate import GROUND, Frame, Row, Run, animated_svg  # noqa: E402
from tests.terminals import Terminal  # noqa: E402

COLUMNS, ROWS = 100, 34
QUIET = 1.0
"""Seconds without a change after which a step has done its work."""
MOST_BYTES = 1_500_000
_HEX = re.compile("[0-9a-f]{6}")


@dataclass(frozen=True, slots=True)
class Step:
    """Keys that are typed, what must then be on the screen, and how the step is told.

    ``seconds`` is what it takes in the picture and ``frames`` how many of its changes are kept; the last of them
    stands for a third of the time.
    """

    typed: str
    until: str
    seconds: float
    key: str
    says: str
    frames: int = 1


SESSION = (
    Step("mlx-lens-tui --demo", "--demo", 1.2, "", "a clone, one install, nothing to download", 8),
    Step("\r", "dialogue", 1.6, "", "the bundled model, with two arms ready: a feature and a vector", 3),
    Step("r", "tok/s", 5.0, "r", "three lanes in lock step: the baseline and two steered arms", 16),
    Step(
        "+++", "tok/s", 4.5, "+ + +", "a stronger push on cookery: the arms are written again, from the same seed", 14
    ),
    Step("4", "Top features", 1.5, "4", "which features are active on each token", 1),
    Step("]]", "density", 1.4, "] ]", "of the text that an arm wrote", 2),
    Step("hhh", "density", 1.5, "h h h", "token by token", 3),
    Step("/bible", "bible", 1.4, "/ bible", "or find one by words", 6),
    Step("\r", "density", 2.2, "enter", "what it is, how often it is active, what it promotes", 1),
    Step("s", "bench", 1.4, "s", "steer with it", 1),
    Step("2jj", "arm 3", 1.4, "2  j j", "the vector bench", 3),
    Step("===", "arm 3", 1.6, "= = =", "and five steps up at a time", 3),
    Step("3", "Generate", 0.6, "3", "back to the lanes", 1),
    Step("r", "tok/s", 4.5, "r", "a fourth lane with the feature just found", 12),
)
POSTER = 2
"""The step whose end stands where nothing moves."""


class Session:
    """The terminal's screen as it is written, and every picture of it that differs from the one before."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        self.read = 0
        self.pictures: list[tuple[Row, ...]] = []
        self.changed = time.monotonic()

    def look(self) -> None:
        """Take in what was written since the last look."""
        new = self.terminal.written[self.read :]
        if not new:
            return
        self.read += len(new)
        self.stream.feed(new)
        picture = tuple(row_of(self.screen.buffer[line]) for line in range(ROWS))
        if picture not in self.pictures[-2:]:  # a cursor that blinks gives the same two over and over
            self.pictures.append(picture)
            self.changed = time.monotonic()

    def do(self, step: Step) -> list[Frame]:
        """Type, wait until the step has done its work, and give its frames."""
        before = self.pictures[-1:]
        self.pictures = []
        self.changed = time.monotonic()
        for char in step.typed if step.frames > 1 else [step.typed]:
            self.terminal.send(char.encode())
            pause = time.monotonic() + 0.15
            self.terminal.wait(lambda until=pause: self.look() or time.monotonic() > until, "the keys")  # type: ignore[misc]
        self.terminal.wait(lambda: self.look() or self.settled(step.until), step.until)
        return paced(self.pictures or before, step)

    def settled(self, text: str) -> bool:
        """Whether the text is on the screen and nothing has changed for a while."""
        there = any(text in line for line in self.screen.display)
        return there and time.monotonic() - self.changed > QUIET


def paced(pictures: list[tuple[Row, ...]], step: Step) -> list[Frame]:
    """At most ``step.frames`` of the pictures, evenly chosen and the last among them, over the step's seconds."""
    count = min(step.frames, len(pictures))
    chosen = [pictures[round((number + 1) * len(pictures) / count) - 1] for number in range(count)]
    last = step.seconds / 3 if count > 1 else step.seconds
    each = (step.seconds - last) / max(count - 1, 1)
    return [
        Frame(rows, each if number < count - 1 else last, step.key, step.says) for number, rows in enumerate(chosen)
    ]


def row_of(line: dict[int, pyte.screens.Char]) -> Row:
    """One line of the screen as runs of one style."""
    runs: list[Run] = []
    for column in range(COLUMNS):
        cell = line[column]
        fg, bg = colour(cell.fg), colour(cell.bg)
        if cell.reverse:
            fg, bg = bg or GROUND, fg or "#e4e6ea"
        bg = "" if bg == GROUND else bg
        style = (fg, bg, cell.bold, cell.italics, cell.underscore)
        if runs and style == (runs[-1].fg, runs[-1].bg, runs[-1].bold, runs[-1].italic, runs[-1].underline):
            runs[-1] = Run(runs[-1].text + cell.data, *style)
        else:
            runs.append(Run(cell.data, *style))
    return tuple(runs)


def colour(name: str) -> str:
    """pyte's colour (six hexadecimal digits, or ``default``) as SVG has it."""
    return "" if name == "default" else f"#{name}" if _HEX.fullmatch(name) else name


def main() -> None:
    """Record, and write the picture."""
    os.environ.pop("NO_COLOR", None)
    os.environ |= {"COLORTERM": "truecolor", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as home, Terminal(["sh"], Path(home), size=(COLUMNS, ROWS)) as terminal:
        session = Session(terminal)
        terminal.wait(lambda: session.look() or session.settled("$"), "the shell")
        frames: list[Frame] = []
        poster = 0
        for number, step in enumerate(SESSION):
            frames += session.do(step)
            poster = len(frames) - 1 if number == POSTER else poster
            print(f"{step.key or step.typed.strip():20} {len(session.pictures):4} pictures")
        terminal.send(b"\x11")
    picture = animated_svg(frames, COLUMNS, "mlx-lens-tui", poster)
    if len(picture.encode()) > MOST_BYTES:
        sys.exit(f"The picture has {len(picture.encode()):,} bytes, more than {MOST_BYTES:,}: keep fewer frames.")
    (HERE / "demo.svg").write_text(picture, encoding="utf-8")
    print(f"screenshots/demo.svg: {sum(frame.seconds for frame in frames):.0f} s, {len(picture) // 1024} kB")


if __name__ == "__main__":
    main()
