"""What a verb prints: JSON for programs, plain sanitised text for people, one sentence for an error.

``docs/command-line.md`` says what a script may rely on: exit statuses, streams, the shapes of ``--json``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar

from rich.cells import cell_len

from lens_tui.records import paths
from lens_tui.records.errors import LensError, LensWarning
from lens_tui.records.machine import launched_rank
from lens_tui.records.sanitise import finite, json_escaped, one_line, sanitise
from lens_tui.tui.format import bar, fit, size
from lens_tui.tui.preferences import preferences

if TYPE_CHECKING:
    from rich.style import Style

    from lens_tui.records.run import MadeWith

_P = ParamSpec("_P")
_R = TypeVar("_R")

USER_ERROR = 2
DEFECT = 70
INTERRUPTED = 130

_ARGUMENT = re.compile(r"\b(?P<name>[a-z][a-z_]*)=(?:True|'(?P<value>[^']*)'|(?! in Python|[\w'\"]))")
_BEFORE_A_VERB = ("dequantize", "adapter", "shard")

_BAR = 20
_REPORTS_ITSELF, _REPORTED_ELSEWHERE = 6.0, 3.0
"""Seconds that a process which does not speak waits before it reports an error, or ends silently where rank 0 reports
it: the launcher, which looks once a second, ends all when one has ended, and rank 0 is to have said it by then."""
_ON_A_TERMINAL = 0.2
_ON_A_PIPE = 10.0
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def prepare_streams() -> None:
    """Make the standard streams ones that can be written to, whatever the shell made of them.

    What an ASCII terminal cannot show is escaped. A stream that is closed would leave its number to the next file that
    is opened; so stdin and stderr become the null device, and stdout stays ``None``, which no verb begins with.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if launched_rank():  # one of several processes speaks
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _warned


def _warned(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
    """What the library warns of as a sentence; others' warnings as Python writes them, safe for a terminal."""
    if issubclass(category, LensWarning):
        note(f"mlx-lens-tui: {message}")
    else:
        note(warnings.formatwarning(message, category, str(place[0]), place[1]).rstrip())


def print_json(data: Any) -> None:
    """One JSON value on standard output, as a line.

    What is not a number is null, never the invalid ``NaN``; what acts on a terminal, hides or reorders is ``\\uXXXX``.
    """
    _write(json_escaped(json.dumps(finite(data), ensure_ascii=not _utf8())) + "\n")
    _flush()


def say(text: str = "") -> None:
    """A line for people on standard output, safe for a terminal."""
    _write(sanitise(text) + "\n")


def in_terminal() -> bool:
    """Whether standard output is a terminal: elsewhere nothing is written but the text itself."""
    return sys.stdout is not None and sys.stdout.isatty()


def terminal_width() -> int:
    """The columns of the terminal that standard output is, 0 where it is none."""
    return shutil.get_terminal_size().columns if in_terminal() else 0


def say_row(text: str) -> None:
    """A row of a table: on a terminal it is cut at the edge, elsewhere every letter of it is written."""
    width, text = terminal_width(), sanitise(text)
    say(fit(text, width).rstrip() if width else text)


def say_parts(before: str, parts: Sequence[str], between: str = "  ") -> None:
    """Parts behind a heading on one line, or on a terminal on as many as it needs, each below the first part."""
    width, before = terminal_width(), sanitise(before)
    line, indent = before, " " * cell_len(before)
    for place, part in enumerate(map(sanitise, parts)):
        longer = line + between * (place > 0) + part
        if width and place and cell_len(longer) > width:
            say(line.rstrip())
            longer = indent + part
        line = longer
    say(line)


def say_shaded(pieces: Sequence[tuple[str, int]]) -> None:
    """Pieces of one text, each with a level from 0 (plain) to 7, shaded where the terminal has colours."""
    if in_terminal():
        from rich.console import Console
        from rich.text import Text

        console = Console(file=sys.stdout, highlight=False)
        if console.color_system and not console.no_color:
            colors, text = _theme_colors(), Text()
            for piece, level in pieces:
                text.append(sanitise(piece), colors[level] if level else "")
            with console.capture() as shaded:
                console.print(text, soft_wrap=True)
            _write(shaded.get())
            return
    say("".join(piece for piece, _ in pieces))


@cache
def _theme_colors() -> list[Style]:
    """The steps of the theme that the settings name, which suits the background of the user's terminal."""
    from rich.style import Style
    from textual.color import Color

    from lens_tui.tui.themes import HEAT_STEPS, bundled_dir, default_variables, load_themes

    theme = load_themes((bundled_dir(), paths.themes_folder()))[0].get(preferences().theme)
    colors = default_variables() if theme is None else theme.variables
    shown = {name: Color.parse(color).rich_color for name, color in colors.items() if name.startswith("heat-")}
    return [Style(color=shown[f"heat-text-{step}"], bgcolor=shown[f"heat-{step}"]) for step in range(HEAT_STEPS)]


def note(text: str) -> None:
    """A line for people on standard error, so that standard output stays what was asked for."""
    if launched_rank():
        return
    _report(text)


def _report(text: str) -> None:
    with suppress(OSError, ValueError):  # there is nowhere left to report it
        sys.stderr.write(sanitise(text) + "\n")


def agreed(question: str) -> bool:
    """Whether somebody says yes; an end of input, or ctrl+c, is a no."""
    import typer  # not at the top: the app's usual starts need no parser of options

    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        note("")
        return False


def confirm(question: str, refused: str, undone: str, *, as_json: bool) -> None:
    """Go on only where somebody at a terminal says yes.

    Args:
        question: What is asked.
        refused: The sentence where nobody can be asked: in a pipe, and with ``--json``.
        undone: The sentence after a no.
        as_json: Whether the verb prints JSON.

    Raises:
        LensError: With one of the two.
    """
    if as_json or not asked_in_person():
        raise LensError(refused, "Say --yes.")
    if not agreed(question):
        raise LensError(undone, "Say yes, or give --yes.")


def kept_when(created: float) -> str:
    """When a kept run, map or graph was made, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(created))


def print_none(key: str, nothing: LensError, *, as_json: bool) -> None:
    """Print the list under ``key`` where nothing was ever kept: it is empty, which is no error; a remark says why."""
    if as_json:
        print_json({"model": None, key: []})
    else:
        note(str(nothing))


def note_none(noun: str, words: str, any_kept: Callable[[], object]) -> None:
    """Say why a list is empty: nothing of what is kept has the words, or nothing is kept."""
    note(f"No {noun} has these words." if words and any_kept() else f"No {noun} has been kept yet.")


def say_made_with(made: MadeWith) -> None:
    """What a kept run, map or graph was made with, where that is known."""
    if made.version:
        say(f"mlx-lens-tui {made.version}, MLX {made.mlx}, {made.device}, {made.weights or made.dtype}")


def print_written(facts: Mapping[str, Any], files: Sequence[Path], *, as_json: bool) -> None:
    """The files that an export wrote, a line each; with ``as_json`` beside ``facts`` of what they are."""
    if as_json:
        print_json({**facts, "files": [str(file) for file in files]})
        return
    for file in files:
        say(str(file))


def check_target(out: str, single: str, formats: Sequence[str], name: str, *, example: str, as_json: bool) -> None:
    """An export's options have to agree on where it goes.

    Args:
        out: What ``--out`` says: a folder, a file, or ``-`` for standard output.
        single: The format of the one file that ``out`` is, or nothing.
        formats: Those to be written.
        name: What ``--name`` says.
        example: A format to name in the hint for standard output.
        as_json: Whether the verb prints JSON.

    Raises:
        LensError: For options that contradict each other.
    """
    if single and (tuple(formats) != (single,) or name):
        said = f"--name {one_line(name, 60)}" if name else f"--format {' '.join(formats)}"
        raise LensError(f"--out {one_line(out, 120)} is one {single} file, and {said} says otherwise.", "Give one.")
    if out == "-" and (len(formats) != 1 or as_json):
        raise LensError("Standard output takes one format.", f"Name it: --format {example}.")


def asked_in_person() -> bool:
    """Whether standard input is a terminal, at which somebody may answer."""
    return sys.stdin is not None and sys.stdin.isatty()


def sentences(verb: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn what the user can put right into one sentence and exit status 2, and ctrl+c into 130.

    With the option ``json`` the sentence is on standard output too, as ``{"error": {"message": ..., "hint": ...}}``.
    """

    @wraps(verb)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        as_json = bool(kwargs.get("json"))
        try:
            _check(kwargs)
            try:
                return verb(*args, **kwargs)
            finally:
                _flush()
        except LensError as error:
            fail(
                error.message,
                _as_options(error.hint, kwargs),
                as_json=as_json,
                reported_elsewhere=error.reported_elsewhere,
            )
        except KeyboardInterrupt:
            fail("Stopped.", as_json=as_json, status=INTERRUPTED)
        except BrokenPipeError:
            # The reader went away (`| head`); point stdout elsewhere so that the interpreter's flush at exit is quiet.
            sys.stdout = None
            raise SystemExit(0) from None
        except Exception as error:
            _explain(error, as_json)

    return guarded


def _as_options(hint: str, asked: Mapping[str, object]) -> str:
    """A hint of the library's, with the arguments it names (``raw=True``) as the options that the verb has of them."""

    def option(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if name not in asked and name not in _BEFORE_A_VERB:
            return found[0]
        return f"--{name.replace('_', '-')}" + ("" if value is None else f" {shlex.quote(value)}")

    return _ARGUMENT.sub(option, hint)


def fail(
    message: str, hint: str = "", *, as_json: bool = False, status: int = USER_ERROR, reported_elsewhere: bool = False
) -> NoReturn:
    """Say what is wrong on standard error, with ``as_json`` on standard output as well, and end with ``status``.

    ``reported_elsewhere``: rank 0 of the processes that share a model says it, and this is another.
    """
    if rank := launched_rank():
        # Rank 0 mostly says the same and ends, and the launcher then ends this process; what failed here alone is said.
        time.sleep(_REPORTED_ELSEWHERE if reported_elsewhere else _REPORTS_ITSELF)
        if not reported_elsewhere:
            _report(f"mlx-lens-tui: process {rank}: {message} {hint}".rstrip())
        raise SystemExit(status) from None
    note(f"mlx-lens-tui: {message} {hint}".rstrip())
    if as_json:
        with suppress(LensError, OSError):
            print_json({"error": {"message": sanitise(message), "hint": sanitise(hint)}})
    raise SystemExit(status) from None


def _explain(error: Exception, as_json: bool) -> NoReturn:
    """End with a sentence for what the system refused, and with a traceback for a defect."""
    from lens_tui.worker.thread import explain

    found = explain(error)
    if isinstance(error, (OSError, MemoryError, ImportError)) or "not enough memory" in found.message:
        fail(found.message, found.hint, as_json=as_json)
    note(found.detail.rstrip())
    fail(found.message, "This is a defect, please report it with the lines above.", as_json=as_json, status=DEFECT)


def _check(options: Mapping[str, Any]) -> None:
    if sys.stdout is None:
        raise LensError("Standard output is closed.", "Redirect it, for example to /dev/null.")
    for text in _texts(options.values()):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise LensError(
                f"The argument {one_line(text, 80)!r} is not UTF-8.", "Write it in UTF-8; rename the file if it is one."
            ) from None


def _texts(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, (str, Path)):
            yield str(value)
        elif isinstance(value, (list, tuple)):
            yield from _texts(value)


def _write(text: str) -> None:
    if sys.stdout is None:
        raise LensError("Standard output is closed.")
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        _lost(error)


def _flush() -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _lost(error)


def _lost(error: OSError) -> NoReturn:
    sys.stdout = None  # or the interpreter tries again at its exit, and complains
    raise LensError(f"Standard output cannot be written: {error.strerror or error}.") from None


def _utf8() -> bool:
    return (getattr(sys.stdout, "encoding", "") or "").lower().replace("-", "") == "utf8"


class Meter:
    """How far work is, while a ``with`` lasts: one line written over in a terminal; piped, a line every ten seconds.

    Not ``rich.progress``: its thread writes to a terminal that has gone and its cursor stays hidden then, where work
    that is stopped by that (SIGHUP) has yet to save what it did; and what is piped would need lines of its own anyway.
    """

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last, self._stage, self._width = 0.0, "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            with suppress(OSError):
                sys.stderr.write("\n")

    def fetched(self, done: int, total: int) -> None:
        """Show how much of a download is here, in bytes; nobody knows of how much where ``total`` is 0."""
        self.say("download", f"{size(done)} of {size(total)}" if total else size(done), done / total if total else None)

    def say(self, stage: str, rest: str = "", share: float | None = None) -> None:
        """Show ``stage``, a bar of ``share`` (0 to 1) and the rest, unless something was shown a moment ago."""
        now = time.monotonic()
        if stage == self._stage and now - self._last < (_ON_A_TERMINAL if self._live else _ON_A_PIPE):
            return
        self._last, self._stage = now, stage
        if not self._live:
            note(f"{stage}  {rest}".rstrip())
            return
        shown = "" if share is None else f"{bar(share, _BAR).ljust(_BAR)}▏ "
        line = f"{stage}  {shown}{rest}".rstrip()[: shutil.get_terminal_size().columns - 1]
        with suppress(OSError):  # the terminal may be gone; the work is not for it alone
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()
        self._width = len(line)


class Asked:
    """Whether a signal asked to stop: called, it says so. ``status`` is the exit status that tells which, or 0."""

    def __init__(self) -> None:
        self.status = 0

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.status != 0

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        # A terminal that closes and the shell in it both say so, and supervisors repeat themselves: who insists is
        # somebody at a keyboard.
        if self.status and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.status and number == signal.SIGQUIT:
            raise SystemExit(128 + number)
        self.status = self.status or 128 + number
        note("\nmlx-lens-tui: stopping; ctrl+c again to stop without saving.")


@contextmanager
def interruptible() -> Iterator[Asked]:
    """Inside, the first ctrl+c, SIGTERM, SIGHUP or SIGQUIT only makes the object given say true.

    The second ctrl+c ends the process as ever. A signal that is ignored from the start (``nohup``, a job in the
    background of a script) stays ignored.
    """
    asked = Asked()
    before = {number: signal.getsignal(number) for number in _ENDINGS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, asked._heard)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
