"""What can be done with the feature on the Features screen: onto the bench, copied. What the screen mixes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lens_tui.records import SAEInfo
from lens_tui.tui import clip
from lens_tui.tui.feature_text import Source
from lens_tui.tui.format import fit
from lens_tui.tui.run_text import model_source
from lens_tui.tui.widgets.feature_card import FeatureCard, page_lines, short_name, token_names
from lens_tui.worker.events import Event, FeaturePage, VectorMade
from lens_tui.worker.jobs import VectorFromFeature

if TYPE_CHECKING:
    from .base import LensScreen

    _Base = LensScreen
else:
    _Base = object


class FeatureActions(_Base):
    """Needs ``sae``, ``source``, ``chosen``, ``pages`` and ``card`` of the screen."""

    if TYPE_CHECKING:
        pages: dict[tuple[str, int], FeaturePage]
        card: FeatureCard

        @property
        def sae(self) -> SAEInfo | None:
            """The SAE in use."""

        @property
        def source(self) -> Source:
            """The text in use."""

        @property
        def chosen(self) -> int | None:
            """The feature that is shown."""

    def action_steer(self) -> None:
        """Put the chosen feature's direction on the bench, as a new arm."""
        feature, sae = self.chosen, self.sae
        if feature is None or sae is None:
            self.lens.say("Choose a feature first.")
            return
        self.lens.submit(VectorFromFeature(sae.id, feature), "send", self._sender(feature, self.card.here))

    def _sender(self, feature: int, here: float) -> Callable[[Event], None]:
        """Adds the vector when it comes; its scale is twice the largest activation in this text."""

        def take(event: Event) -> None:
            if not isinstance(event, VectorMade):
                return
            page = self.pages.get((self.session.sae or "", feature))
            known = short_name(page) if page is not None else token_names(event.promoted)
            vector = replace(event.vector, name=fit(f"f{feature} {known}".strip(), 28).rstrip())
            if vector.max_activation is None and here > 0:
                vector = replace(vector, max_activation=here)
            row = self.lens.store.add_steer(
                vector,
                scale=2 * here if here > 0 else None,
                residual_norm=event.residual_norm,
                promoted=event.promoted,
                suppressed=event.suppressed,
            )
            go = self.lens.key_text("app.generate")
            self.lens.say(f"f{feature} is on the bench as arm {row.arm} at {row.scale:+g}: {go} shows it.")

        return take

    def action_copy(self) -> None:
        """Copy the feature's page as text."""
        if self.card.page is not None:
            page = self.card.page
            lines = page_lines(page, 72, self.card.here, "off")
            body = "\n".join(line.plain.rstrip() for line in lines)
            clip.copy(self.app, f"f{page.feature} of {page.sae}\n{body}", f"feature {page.feature}")

    def action_copy_command(self) -> None:
        """Copy the command that shows these features."""
        from lens_tui.tui.past_runs import quoted, sae_words

        sae, model = self.sae, self.session.model
        if sae is not None and model is not None:
            words = [
                "mlx-lens-tui",
                "features",
                "--model",
                model_source(model),
                "--sae",
                sae_words(sae),
                "--",
                self.source.text,
            ]
            clip.copy(self.app, " ".join(map(quoted, words)), "the command")
