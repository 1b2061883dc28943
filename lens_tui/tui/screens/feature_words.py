"""Words on the Features screen: features found by them, and the label of one. What the screen mixes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_tui.records import SAEInfo
from lens_tui.records.fit import FitReport
from lens_tui.tui.format import fit
from lens_tui.worker.events import Event, FeaturePage, FeaturesFound, LabelSet
from lens_tui.worker.jobs import FindFeatures, SetLabel

from .form import Field, FormScreen

if TYPE_CHECKING:
    from .base import LensScreen

    _Base = LensScreen
else:
    _Base = object

MAX_LABEL = 2000


def fit_words(report: FitReport | None) -> list[tuple[str, str]]:
    """Whether an SAE fits the model, in a few words and a colour; nothing where nothing was measured."""
    if report is None:
        return []
    if report.fits:
        return [(" · ✓ fits", "$muted")]
    if report.better is not None:
        return [(f" · ! fits {report.better[1]} {report.better[0]} better", "$warning")]
    return [(" · ! does not fit", "$warning")]


class FeatureWords(_Base):
    """Needs ``sae``, ``chosen`` and ``pages`` of the screen; calls back ``_results_changed`` and ``_label_changed``."""

    results: FeaturesFound | None = None

    if TYPE_CHECKING:
        pages: dict[tuple[str, int], FeaturePage]

        @property
        def sae(self) -> SAEInfo | None:
            """The SAE in use."""

        @property
        def chosen(self) -> int | None:
            """The feature that is shown."""

        def _results_changed(self) -> None: ...
        def _label_changed(self, feature: int) -> None: ...

    def find_words(self, words: str) -> None:
        """Ask for the features that words lead to."""
        sae = self.sae
        if sae is not None:
            self.lens.submit(FindFeatures(sae.id, words), "find", self._take_found)

    def _take_found(self, event: Event) -> None:
        if not isinstance(event, FeaturesFound):
            return
        if event.found:
            self.results = event
            self._results_changed()
            return
        without = "" if event.indexed else " There is no index of this SAE: only labels were searched."
        self.lens.say(f"No feature is labelled with “{fit(event.words, 40).rstrip()}” or promotes it.{without}")

    def forget_results(self) -> bool:
        """Let go of what was found; whether there was anything."""
        had, self.results = self.results is not None, None
        return had

    def found_name(self, feature: int) -> str:
        """What the search called a feature."""
        found = self.results.found if self.results is not None else ()
        return next((item.name for item in found if item.feature == feature), "")

    def action_label(self) -> None:
        """Write your label of the chosen feature."""
        feature, sae = self.chosen, self.sae
        if feature is None or sae is None:
            self.lens.say("Choose a feature first.")
            return
        page = self.pages.get((sae.id, feature))
        extras = page.extras if page is not None else {}
        mine = str(extras.get("label") or "") if extras.get("label_source") == "mine" else ""
        note = "Blank takes it away; labels before stay in the history."

        def done(values: dict[str, str] | None) -> None:
            if values is not None:
                self.lens.submit(SetLabel(sae.id, feature, values["label"][:MAX_LABEL]), "label", self._take_label)

        fields = [Field("label", "label", mine, "what the feature stands for", between=" ")]
        self.app.push_screen(FormScreen(f"Your label of feature {feature}", fields, note), done)

    def _take_label(self, event: Event) -> None:
        if isinstance(event, LabelSet):
            self.pages.pop((event.sae, event.feature), None)
            self.lens.say(f"f{event.feature}: {event.label or 'no label of yours'}")
            self._label_changed(event.feature)
