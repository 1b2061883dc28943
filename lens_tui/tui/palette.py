"""The command palette: every action of the key table that works here, the screens and the themes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial

from textual.command import CommandPalette, DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from .host import host
from .keys import by_id
from .screens.form import Once

_SKIP = ("move.", "app.commands", "app.next_pane", "app.previous_pane", "app.interrupt")


class Palette(CommandPalette, Once[None]):
    """Textual's palette, closed once."""

    def _action_command_list(self, action: str) -> None:
        with suppress(KeyError):  # keys that come before the list has been laid out
            super()._action_command_list(action)


class LensCommands(Provider):
    """Commands for where the palette was opened: what the keys do, by name, and each theme."""

    def _commands(self) -> Iterator[tuple[str, str, Callable[[], object]]]:
        app = host(self.screen)
        seen: set[str] = set()
        for active in self.screen.active_bindings.values():
            key = by_id().get(active.binding.id or "")
            if key is None or key.id in seen or key.id.startswith(_SKIP):
                continue
            seen.add(key.id)
            cap = app.get_key_display(active.binding)
            run = partial(app.run_action, active.binding.action, active.node)
            yield f"{key.group}: {key.description}", cap, run
        for name in app.themes:
            yield f"Theme: {name}", "", partial(app.keep_theme, name)

    async def discover(self) -> Hits:
        """Everything, before a letter is typed."""
        for name, cap, run in self._commands():
            yield DiscoveryHit(_shown(Content(name), cap), run, text=name)

    async def search(self, query: str) -> AsyncIterator[Hit]:
        """What matches, best first."""
        matcher = self.matcher(query)
        for name, cap, run in self._commands():
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, _shown(matcher.highlight(name), cap), run, text=name)


def _shown(name: Content, cap: str) -> Content:
    return Content.assemble(name, (f"   {cap}", "$muted not bold not underline")) if cap else name
