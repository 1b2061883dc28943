"""Features: a text as tokens, what an SAE sees in each, and the page of one feature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.content import Content

from lens_tui.records import FloatArray
from lens_tui.records.training import FitReport
from lens_tui.records.wording import many
from lens_tui.tui.bindings import bindings
from lens_tui.tui.host import LensHost
from lens_tui.tui.reading_text import rough_activations, sources
from lens_tui.tui.session import Session
from lens_tui.tui.widgets.frame import Hairline, LensScreen
from lens_tui.tui.widgets.lane import Line
from lens_tui.worker.events import Event, JobDone
from lens_tui.worker.jobs import LoadSAE

from .feature_list_pane import ListPane, ask_contrast, ask_name, open_lists
from .feature_panes import FeaturePane, TextPane


def fit_words(report: FitReport | None) -> list[tuple[str, str]]:
    """Whether an SAE fits the model, in a few words and a colour; nothing where nothing was measured."""
    if report is None:
        return []
    if report.fits:
        return [(" · ✓ fits", "$muted")]
    if report.better is not None:
        return [(f" · ! fits {report.better[1]} {report.better[0]} better", "$warning")]
    return [(" · ! does not fit", "$warning")]


def _read_of(session: Session) -> tuple[object, ...]:
    """What of a session another reading follows from."""
    return session.sae, session.saes, session.sae is None and session.loading, sources(session), session.question


class FeaturesScreen(LensScreen):
    """Text, the features of the token under the cursor, and the page of the chosen feature.

    The list knows which feature is chosen; text and page show that one.
    """

    mode: ClassVar[str] = "features"
    CSS_PATH = "features_screen.tcss"
    AUTO_FOCUS = ""
    BINDINGS = [
        *bindings("features"),
        *(item for item in bindings("move") if isinstance(item, Binding) and item.id in ("move.left", "move.right")),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.text = TextPane()
        self.page = FeaturePane(lambda: self.list.features)
        self.list = ListPane(self.page.name_of)

    def body(self) -> ComposeResult:
        """Which text and SAE; then text, list and page."""
        yield Line(id="which")
        yield Hairline()
        yield Horizontal(self.text, self.list, self.page, id="panes")

    def on_mount(self) -> None:
        """Follow the way values are shown."""
        self.watch(self.lens, "tint", self._tint_changed, init=True)

    def focus_first(self) -> None:
        """Begin in the list: ``j k`` go through features, ``h l`` through tokens."""
        self.set_focus(self.list.list)

    def _tint_changed(self, tint: str) -> None:
        self.text.view.mode = tint  # type: ignore[assignment]
        self.page.card.mode = tint  # type: ignore[assignment]

    # -- which text, which SAE

    def session_changed(self, old: Session, new: Session) -> None:
        """Another SAE, prompt or run: read the text again, if the screen shows."""
        if old.sae != new.sae:
            self.list.forget()
            # A number means another feature now, and may be none: the text is read on coming back, also where the same
            # SAE was only away while its model was loaded again.
            if not self.is_current:
                self.text.forget()
                self.page.show(None)
        if old.fits != new.fits:
            self._show_which()
        if old.work_done != new.work_done:
            self.page.read_again()
        if _read_of(old) != _read_of(new):
            self.text.place = min(self.text.place, len(sources(new)) - 1)
            if self.is_current:
                self.text.read()
            self._show_which()

    def on_screen_resume(self) -> None:
        """Read what changed while the screen was away."""
        self.text.read()
        self._show_which()

    def _show_which(self) -> None:
        sae = self.session.sae_in_use
        parts: list[str | tuple[str, str]] = []
        for place, source in enumerate(sources(self.session)):
            here = place == self.text.place
            parts.append((f"▐{source.name}▌" if here else f" {source.name} ", "bold" if here else "$muted"))
        if self.text.place:  # before the facts of the SAE, of which a narrow screen cuts the end
            parts.append(("   read with steering off", "$muted"))
        if sae is not None:
            facts = f"   SAE {sae.name} · {sae.site} {sae.layer} · {many(sae.width, 'feature')}"
            parts.append((facts, "$muted"))
            parts += fit_words(self.session.fit(sae.id))
        self.query_one("#which", Line).content = Content.assemble(*parts)

    # -- what one pane tells another

    def on_text_pane_read(self) -> None:
        """Another text, or none: the features of its token, and the chosen one's shade on it."""
        self._show_chosen()
        self._show_token()

    def on_token_view_cursor_moved(self) -> None:
        """Another token: its features."""
        self._show_token()

    def _show_token(self) -> None:
        self.list.show_token(self.text.encoded, self.text.view.cursor, self.text.awaited)

    def on_list_pane_changed(self) -> None:
        """Another feature, perhaps: its page, and its shade on the text."""
        self._show_chosen()

    def _show_chosen(self) -> None:
        """Shade the text by the chosen feature at once, by what is known; the page reads the rest after a rest."""
        feature, encoded = self.list.chosen, self.text.encoded
        if feature is not None and encoded is not None:
            self._shade(feature, rough_activations(encoded, feature))
        self.page.show(feature if encoded is not None else None, pinned=self.list.pinned is not None)

    def on_feature_pane_activations_read(self, event: FeaturePane.ActivationsRead) -> None:
        """The chosen feature's activations, exactly."""
        if event.feature == self.list.chosen:
            self._shade(event.feature, event.values)

    def _shade(self, feature: int, values: FloatArray) -> None:
        self.text.shade(values)
        self.page.set_here(feature, float(values.max(initial=0.0)))

    def on_feature_pane_named(self) -> None:
        """Names came: show them in the list."""
        self.list.list.refresh()

    def on_feature_pane_wanted(self, event: FeaturePane.Wanted) -> None:
        """Another feature's page is wanted."""
        self.list.go(event.feature)

    # -- keys

    def action_cursor_left(self) -> None:
        """The token before."""
        self.text.view.action_cursor_left()

    def action_cursor_right(self) -> None:
        """The token after."""
        self.text.view.action_cursor_right()

    def action_source(self, step: int) -> None:
        """The text before or after."""
        self._go_to(self.text.place + step)

    def action_sae(self, step: int) -> None:
        """Load the SAE before or after."""
        saes, sae = self.session.saes, self.session.sae_in_use
        if not saes or (len(saes) == 1 and sae is not None):
            self.lens.say("There is no other SAE for this model.")
            return
        place = saes.index(sae) + step if sae is not None else 0
        self.lens.opening.load_sae(saes[place % len(saes)].path)

    def offers(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Each SAE beside the model can be read with, and each text read."""
        for sae in self.session.saes:
            yield f"Read with the SAE {sae.name}", partial(self.lens.opening.load_sae, sae.path)
        for place, source in enumerate(sources(self.session)):
            yield f"Read the text: {source.name}", partial(self._go_to, place)

    def _go_to(self, place: int) -> None:
        self.text.go_to(place)
        self._show_which()

    def action_active(self, step: int) -> None:
        """The next token on which the chosen feature is active."""
        self.text.move_to_active(step)

    def action_find(self) -> None:
        """Type words, or a feature's number."""
        self.list.ask()

    def action_feature(self, step: int) -> None:
        """The feature after or before, by number, going round."""
        feature, sae = self.list.chosen, self.session.sae_in_use
        if feature is not None and sae is not None:
            self.list.go((feature + step) % sae.width)
        else:
            self.lens.say("Choose a feature first.")

    def action_pin(self) -> None:
        """Keep the chosen feature while the cursor moves, or let it go; among those like it, go to the one there."""
        if not (self.page.near.has_focus and self.page.go_near()):
            self.list.pin()

    def action_section(self, step: int) -> None:
        """The next list of the page, or the one before."""
        self.page.turn(step)

    def action_steer(self) -> None:
        """Put the chosen feature's direction on the bench."""
        self.page.send(self.list.chosen)

    def action_scale(self, steps: int) -> None:
        """Scale of the chosen feature on the bench, by steps."""
        self.page.scale(self.list.chosen, steps)

    def action_mark(self) -> None:
        """Mark the chosen feature, or take its mark away."""
        self.list.mark()

    def action_dense(self) -> None:
        """Leave dense features out of the list, or show them."""
        self.list.toggle_dense()

    def action_contrast(self) -> None:
        """Ask for two sets of texts, and list the features that tell them apart."""
        ask_contrast(self.list)

    def action_keep(self) -> None:
        """Keep the marked features as a list, by name."""
        ask_name(self.list)

    def action_work(self) -> None:
        """Index a text, train, or go on with either."""
        from .work_forms import ask_work

        ask_work(self.lens)

    def action_lists(self) -> None:
        """The lists that were kept."""
        open_lists(self.list)

    def action_label(self) -> None:
        """Write your label of the chosen feature."""
        self.page.label(self.list.chosen)

    def action_copy(self) -> None:
        """Copy the feature's page as text."""
        self.page.copy()

    def action_copy_command(self) -> None:
        """Copy the command that shows these features."""
        self.text.copy_command()

    def on_key(self, event: events.Key) -> None:
        """Escape closes the number, then lets a found or pinned feature go."""
        if event.key == "escape" and self.list.let_go():
            event.stop()
            event.prevent_default()


def open_feature(lens: LensHost, path: str, feature: int) -> None:
    """Show the page of a feature: the SAE or transcoder at the path is loaded, and the feature is chosen there."""
    lens.action_show("features")
    screen = lens.get_screen_stack("features")[0]

    def go() -> None:
        if isinstance(screen, FeaturesScreen):
            screen.list.go(feature)
            screen.list.pin()  # the list that comes with the text would go to its first feature

    def take(event: Event) -> None:
        if isinstance(event, JobDone) and not event.stopped:
            screen.call_after_refresh(go)

    sae = lens.store.session.sae_in_use
    if sae is not None and sae.path == path:
        screen.call_after_refresh(go)
    else:
        lens.submit(LoadSAE(path), "page", take)
