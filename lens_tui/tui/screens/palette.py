"""The palette: every command of the app by name, on every screen.

Two providers: :class:`ScreenCommands` has what can be done on the screen below and what that screen offers by name
(models, SAEs); :class:`AppCommands` has the commands of the other screens, the themes and the glossary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from textual.command import CommandPalette, Hit, Hits, Provider
from textual.content import Content
from textual.screen import Screen

from lens_tui.records import glossary
from lens_tui.records.glossary_terms import GlossaryTerm
from lens_tui.records.sanitise import one_line
from lens_tui.tui.host import LensHost, host
from lens_tui.tui.keys import KEYS, SCREENS, Key, by_id
from lens_tui.tui.screens.everywhere import HelpScreen
from lens_tui.tui.screens.form import Once

_SKIP = ("move.", "app.commands", "app.next_pane", "app.previous_pane", "app.interrupt")
_WITHOUT_CURSOR = {
    "load": "filter add sort rescan unload work",
    "steer": "add",
    "generate": "prompt diff measure sampling set blind history copy_command export",
    "features": "find contrast lists",
    "lens": "find measure",
    "causes": "patch ask maps",
}
_CALLED = {"causes.maps": "history", "graph.graphs": "history"}
WITHOUT_CURSOR = frozenset(f"{scope}.{name}" for scope, names in _WITHOUT_CURSOR.items() for name in names.split())
"""Commands that can be done from another screen, for they act on nothing that only a look at theirs would show."""


@dataclass(frozen=True, slots=True)
class Command:
    """One line of the palette: its name, what else finds it, its key, what it does, and where it is (0 is here)."""

    name: str
    words: str
    cap: str
    run: Callable[[], object]
    distance: int = 0


def rank(query: str, command: Command) -> float:
    """How well a command fits what was typed: 0 unless every word of it is in the command's words.

    A whole word counts more than a beginning, that more than the middle of a word, and the name more than what else
    finds it; of equals the nearer command is first.
    """
    name, more = command.name.casefold(), f"{command.name} {command.words}".casefold()
    score = 0.0
    for word in query.casefold().split():
        found = max(_place(word, name), 0.7 * _place(word, more))
        if not found:
            return 0.0
        score += found
    return score - 0.01 * command.distance


def _place(word: str, text: str) -> float:
    parts = "".join(letter if letter.isalnum() else " " for letter in text).split()
    if word in parts:
        return 3.0
    if any(part.startswith(word) for part in parts):
        return 2.0
    return 1.0 if word in text else 0.0


class Palette(CommandPalette, Once[None]):
    """Textual's palette, closed once."""

    DEFAULT_CSS = """
    Palette {
        layers: base cover;
        &.-covered #--results { display: none; }  /* it lies over all layers */
    }
    """

    def _action_command_list(self, action: str) -> None:
        with suppress(KeyError):  # keys that come before the list has been laid out
            super()._action_command_list(action)


class _Commands(Provider):
    """Commands shown and found by their words."""

    def commands(self) -> Iterator[Command]:
        """All of them, in the order they are shown before a letter is typed."""
        yield from ()

    async def discover(self) -> Hits:
        """Everything, before a letter is typed: what is here first, for Textual asks its providers in any order."""
        for command in self.commands():
            yield Hit(
                1 / (1 + command.distance), _with_key(Content(command.name), command.cap), command.run, command.name
            )

    async def search(self, query: str) -> AsyncIterator[Hit]:
        """What matches, with how well it does."""
        for command in self.commands():
            score = rank(query, command)
            if score > 0:
                found = _with_key(_marked(command.name, query.split()), command.cap)
                yield Hit(score, found, command.run, text=command.name)


class ScreenCommands(_Commands):
    """What can be done where the palette was opened: what the keys do, and what the screen offers by name."""

    def commands(self) -> Iterator[Command]:
        """The live keys in the order of the table's groups, then the screen's own."""
        app = host(self.screen)
        seen: set[str] = set()
        for active in self.screen.active_bindings.values():
            key = by_id().get(active.binding.id or "")
            if key is None or key.id in seen or key.id.startswith(_SKIP):
                continue
            seen.add(key.id)
            run = partial(app.run_action, active.binding.action, active.node)
            yield Command(_named(key), _words(key), app.get_key_display(active.binding), run)
        offers: Callable[[], Iterator[tuple[str, Callable[[], object]]]] | None = getattr(self.screen, "offers", None)
        for name, do in offers() if offers is not None else ():
            yield Command(one_line(name, 120), "", "", do)


class AppCommands(_Commands):
    """What can be done from everywhere: the other screens' commands, the themes, and what a number is."""

    def commands(self) -> Iterator[Command]:
        """The screens in their order, then themes, then the glossary."""
        app, here = host(self.screen), str(getattr(self.screen, "mode", ""))
        modes = [mode for mode, _ in SCREENS if mode != here]
        for key in KEYS:
            if key.scope in modes:
                yield Command(_named(key), _words(key), "", partial(_elsewhere, app, key), 1)
        for name in app.looks.names:
            yield Command(f"Theme: {name}", "colours", "", partial(app.keep_theme, name), 2)
        names = [term.name for term in glossary.TERMS]
        for term in glossary.TERMS:
            show = partial(_explain, app, self.screen, term)
            where = f" ({term.where[0]})" if names.count(term.name) > 1 and term.where else ""
            yield Command(f"What is {term.name}{where}?", f"glossary {' '.join((term.id, *term.also))}", "", show, 3)


def _named(key: Key) -> str:
    return f"{key.group}: {key.description}"


def _words(key: Key) -> str:
    """What else finds a key's command: its word in the footer, its id, and what people call it besides."""
    return f"{key.footer} {key.id.replace('.', ' ').replace('_', ' ')} {_CALLED.get(key.id, '')}"


def _elsewhere(app: LensHost, key: Key) -> None:
    """Go to a command's screen; what needs no cursor is done there at once, else its key is said."""
    app.go_to(key.scope)
    there: Screen[Any] = app.get_screen_stack(key.scope)[0]
    if key.id in WITHOUT_CURSOR:
        there.call_after_refresh(partial(app.run_action, key.action, there))
    else:
        app.say(f"{app.key_text(key.id)} here: {key.description}")


def _explain(app: LensHost, below: Screen[Any], term: GlossaryTerm) -> None:
    app.push_screen(HelpScreen(below, term.name))


def _marked(name: str, words: Sequence[str]) -> Content:
    """The name with what was typed underlined in it."""
    content, lower = Content(name), name.casefold()
    for word in words:
        start = lower.find(word.casefold())
        if start >= 0:
            content = content.stylize("bold underline", start, start + len(word))
    return content


def _with_key(name: Content, cap: str) -> Content:
    return Content.assemble(name, (f"   {cap}", "$muted not bold not underline")) if cap else name
