"""The features of what the arms of a run write, under each lane of Generate: listed, and one of them as the shade."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from textual.content import Content

from lens_tui.records import FloatArray, Intervention
from lens_tui.records.features import DENSE
from lens_tui.tui.format import fit, share_level
from lens_tui.tui.host import LensHost
from lens_tui.tui.lane_text import quoted
from lens_tui.tui.run_text import RunText
from lens_tui.tui.token_shades import MEASURE_NAMES, Measure
from lens_tui.tui.widgets.feature_card import FeatureMarks
from lens_tui.tui.widgets.lane import Lane, LaneRow
from lens_tui.tui.widgets.lane_foot import ROWS, ListedFeature
from lens_tui.worker.events import ArmActivation, ArmFeatures, Event
from lens_tui.worker.jobs import Compare, ReadWritten

from .form import Field, FormScreen, whole
from .run_settings import settings_parts

Changes = tuple[tuple[int, int, tuple[Intervention, ...]], ...]
LAST = 8
"""Tokens at the end of a text whose features are listed while no token is explained."""
_WAITED = "they are read once the run has ended"


@dataclass(eq=False)
class RunFeatures:
    """What is known of the features of one run under one SAE. ``arms`` holds (ids, values) of each token, by arm.

    ``live`` where they are read while the run writes.
    """

    sae: str
    live: bool = False
    arms: dict[int, list[tuple[list[int], list[float]]]] = field(default_factory=dict)
    names: dict[int, tuple[str, bool]] = field(default_factory=dict)
    dense: Mapping[int, float] = field(default_factory=dict)
    feature: int | None = None
    exact: dict[int, FloatArray] = field(default_factory=dict)

    def apply(self, event: ArmFeatures | ArmActivation) -> None:
        """Take what was read."""
        if isinstance(event, ArmActivation):
            if event.feature == self.feature:
                self.exact[event.arm] = event.values
            return
        tokens = self.arms.setdefault(event.arm, [])
        tokens[event.start :] = list(zip(event.ids.tolist(), event.values.tolist(), strict=True))
        self.names.update({feature: (name, label) for feature, name, label in event.names})
        self.dense = dict(event.dense)

    def top(self, arm: int, step: int | None, *, hide_dense: bool) -> list[tuple[int, float]]:
        """The strongest features of one token of an arm, or of its last few: each with its largest activation there."""
        tokens = self.arms.get(arm, [])
        some = tokens[-LAST:] if step is None else tokens[step : step + 1]
        best: dict[int, float] = {}
        for ids, values in some:
            for feature, value in zip(ids, values, strict=True):
                if feature >= 0 and value > 0 and not (hide_dense and feature in self.dense):
                    best[feature] = max(value, best.get(feature, 0.0))
        return sorted(best.items(), key=lambda item: (-item[1], item[0]))[:ROWS]

    def values(self, arm: int) -> FloatArray:
        """The chosen feature on every token of an arm: exactly where that was read, else as far as the top ones say."""
        if arm in self.exact:
            return self.exact[arm]
        found = [
            max((value for f, value in zip(*token, strict=True) if f == self.feature), default=0.0)
            for token in self.arms.get(arm, [])
        ]
        import numpy as np  # not before the first frame, which has no features

        return np.array(found, np.float32)


class FeatureFollower:
    """Lists features under the lanes while ``on``, and shades the lanes by the chosen one."""

    def __init__(self, lanes: LaneRow) -> None:
        self.lanes = lanes
        self.on = False
        self.hide_dense = True
        self._known: dict[tuple[int, str], tuple[RunText, RunFeatures]] = {}  # by the run itself, which is held

    def of(self, lens: LensHost, run: RunText | None) -> RunFeatures | None:
        """What is known of a run under the SAE in use."""
        sae = lens.store.session.sae
        if run is None or not sae:
            return None
        return self._of(run, sae)

    def _of(self, run: RunText, sae: str) -> RunFeatures:
        return self._known.setdefault((id(run), sae), (run, RunFeatures(sae)))[1]

    def job(self, lens: LensHost, run: RunText, changes: Changes = ()) -> Compare:
        """The job that writes a run, and reads its features while they are listed."""
        sae = lens.store.session.sae_in_use if self.on else None
        if sae is not None:
            self._of(run, sae.id).live = True
        arms, used = tuple(text.arm for text in run.arms), sae.id if sae is not None else ""
        return Compare(
            run.prompt, arms, run.sampling, run.raw, changes=changes, sae=used, turns=run.turns, monitors=run.monitors
        )

    def follow(self, lens: LensHost, run: RunText | None) -> None:
        """Another run shows, or it has ended: what is not known of it yet is read."""
        self.show(lens, run)
        if self.on:
            self.read(lens, run)

    def toggle(self, lens: LensHost, run: RunText | None) -> None:
        """List features, or no more; of a run that was not read while it was written, they are read now."""
        if not self.on and lens.store.session.sae_in_use is None:
            lens.say(f"Features need an SAE: {lens.key_text('app.features')} loads one.")
            return
        self.on = not self.on
        if run is None:
            lens.say(f"Features of what will be written are {'' if self.on else 'not '}listed under each lane.")
        if self.on:
            self.read(lens, run)
        self.show(lens, run)

    def read(self, lens: LensHost, run: RunText | None, feature: int | None = None) -> None:
        """Read what a run that has ended wrote, unless that is known; with a feature, that one on every token."""
        known = self.of(lens, run)
        if known is None or run is None or run.going:
            return
        whole = all(len(known.arms.get(at, ())) >= len(arm.tokens) for at, arm in enumerate(run.arms))
        if feature is None and whole:
            return
        if not run.job and any(arm.dials for arm in run.arms):
            lens.say("This run was changed while it wrote: its features are read by running it again.")
            return
        arms = tuple((arm.arm.interventions, tuple(token.token_id for token in arm.tokens)) for arm in run.arms)
        wanted = -1 if feature is None else feature
        job = ReadWritten(known.sae, run.job, run.prompt, arms, run.raw, wanted, run.turns)
        slot = "written" if feature is None else "shade"  # one does not take the place of the other
        lens.submit(job, slot, lambda event: self.take(lens, run, event))

    def take(self, lens: LensHost, run: RunText, event: Event) -> bool:
        """Take what was read of a run; true if it shows."""
        if not isinstance(event, ArmFeatures | ArmActivation):
            return False
        self._of(run, event.sae).apply(event)
        if any(self._arm(run, lane) >= 0 for lane in self.lanes.lanes):  # another run may show since it was asked for
            self.show(lens, run)
        return True

    def pick(self, lens: LensHost, run: RunText | None, step: int) -> bool:
        """Choose the next of the features listed in the focused lane as the shade; false where there is none."""
        known, lane = self.of(lens, run), self.lanes.focused_lane
        if not self.on or known is None or run is None or lane is None:
            lens.say(
                f"{lens.key_text('generate.features')} lists features; these keys choose one of them as the shade."
            )
            return False
        listed = [feature for feature, _ in known.top(self._arm(run, lane), lane.step, hide_dense=self.hide_dense)]
        if not listed:
            lens.say("No feature is listed at this token: none is active there, or it has not been read.")
            return False
        if listed == [known.feature]:
            lens.say("It is the only feature that is listed here.")
        at = listed.index(known.feature) + step if known.feature in listed else (0 if step > 0 else -1)
        self.choose(lens, run, listed[at % len(listed)])
        return True

    def ask(self, lens: LensHost, run: RunText | None, done: Callable[[], object]) -> None:
        """Have the number of a feature typed, and make it the shade."""
        sae = lens.store.session.sae_in_use
        if sae is None or run is None:
            lens.say("A feature shades a text that was written, under an SAE.")
            return

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self.on = True
                self.read(lens, run)
                self.choose(lens, run, int(values["feature"]))
                done()

        fields = [Field("feature", "feature", hint=f"0 to {sae.width - 1}", check=whole(0, sae.width - 1))]
        lens.push_screen(FormScreen("Shade by a feature", fields, sae.name), take)

    def choose(self, lens: LensHost, run: RunText, feature: int) -> None:
        """Make a feature the shade of every lane."""
        known = self.of(lens, run)
        if known is not None:
            known.feature, known.exact = feature, {}
            self.read(lens, run, feature)
            self.show(lens, run)

    def go_on(self, lens: LensHost, run: RunText | None, step: int) -> None:
        """Go to the next token of the lane where the chosen feature is active; ``step`` -1 goes to the one before."""
        from lens_tui.tui.reading_text import next_active  # it brings NumPy, which the first frame does without

        known, lane = self.of(lens, run), self.lanes.focused_lane
        if known is None or known.feature is None or run is None or lane is None:
            key = lens.key_text
            find, many = key("generate.find"), key("generate.set")
            lens.say(f"There is nothing to go on to: {find} shades by a feature, {many} runs a set of prompts.")
            return
        values = known.values(self._arm(run, lane))
        here = lane.view.cursor if lane.view.cursor is not None else (-1 if step > 0 else len(values))
        token = next_active(values, here, step) if len(values) else None
        if token is None:
            lens.say("The feature is active nowhere in this lane.")
        else:
            lane.view.focus()
            lane.view.move_to(token)

    def shade_name(self, lens: LensHost, run: RunText | None, measure: Measure) -> str:
        """What the shade says: the measure, or the chosen feature by its name."""
        known = self.of(lens, run)
        if measure != "feature" or known is None or known.feature is None:
            return MEASURE_NAMES[measure]
        return fit(f"f{known.feature} {known.names.get(known.feature, ('', False))[0]}", 40).rstrip()

    def settings(
        self, lens: LensHost, run: RunText | None, runs: int, stale: bool, measure: Measure, shade: str = ""
    ) -> list[tuple[str, str]]:
        """The line of settings, with the shade by its name, which a monitor has from elsewhere."""
        shade = shade or self.shade_name(lens, run, measure)
        return settings_parts(lens.store.session, run, runs, stale, shade, lens.key_text)

    def toggle_dense(self, lens: LensHost, run: RunText | None) -> None:
        """Leave dense features out of the lists, or show them."""
        self.hide_dense = not self.hide_dense
        what = "are left out" if self.hide_dense else "are listed, marked ≋"
        lens.say(f"Features active on more than {DENSE:.0%} of the index's tokens {what}.")
        self.show(lens, run)

    @staticmethod
    def _arm(run: RunText, lane: Lane) -> int:
        return next((at for at, arm in enumerate(run.arms) if arm is lane.text), -1)

    def show(self, lens: LensHost, run: RunText | None) -> None:
        """Draw the lists and the shade again from what is known."""
        known = self.of(lens, run) if self.on else None
        if known is not None and run is not None:
            values = {at: known.values(at) for at in range(len(run.arms))} if known.feature is not None else {}
            top = max((float(some.max(initial=0.0)) for some in values.values()), default=0.0)
            for at, some in values.items():
                run.arms[at].shade = [share_level(value, top) for value in some.tolist()]
        for lane in self.lanes.lanes:
            lane.set_class(known is not None, "-features")
            if known is not None and run is not None:
                lane.features.listed = self._listed(known, run, lane)
            if lane.measure == "feature":
                lane.shade_again()

    def _listed(self, known: RunFeatures, run: RunText, lane: Lane) -> tuple[str, tuple[ListedFeature, ...], str]:
        arm, step = self._arm(run, lane), lane.step
        tokens = run.arms[arm].tokens if arm >= 0 else []
        if step is None:
            heading = f"features of the last {LAST} tokens"
        elif step < len(tokens):
            heading = f"features of {step} {quoted(tokens[step].token)}"
        else:
            heading = "no token here"
        rows = []
        for feature, value in known.top(arm, step, hide_dense=self.hide_dense):
            text, label = known.names.get(feature, ("", True))
            name = Content(text) if label else Content.styled(f"→ {text}", "$muted italic")
            marks = FeatureMarks(feature == known.feature, False, known.dense.get(feature))
            rows.append(ListedFeature(feature, value, name, marks))
        if arm < 0 or len(known.arms.get(arm, ())) >= len(tokens):
            return heading, tuple(rows), "none is active" if tokens else "nothing is written yet"
        return heading, tuple(rows), _WAITED if run.going and not known.live else "they are being read"
