"""Blind judgement: the arms side by side, shuffled and without their names; a key prefers one, and a tally reveals."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

from textual import work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.records import LensError
from lens_tui.records.judgements import Contest, Judgement, JudgementStore, tally
from lens_tui.records.run_store import RunStore
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tui.format import fit
from lens_tui.tui.host import LensHost, host
from lens_tui.tui.lane_text import strength
from lens_tui.tui.run_text import RunText
from lens_tui.tui.session import Session, plan
from lens_tui.tui.set_text import SetText, bare_name
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.token_view import TokenView
from lens_tui.worker.events import Event, JobDone, JobFailed
from lens_tui.worker.jobs import Compare

from .form import Dialog, Field, FormScreen, filled

LETTERS = "ABCDE"
NARROW = 34
"""Columns below which lanes stand below each other."""


@dataclass
class Sitting:
    """What was judged in one go, and where it was left: it goes on while the arms are the same.

    Attributes:
        began: The session that it was begun in, or gone on with.
        session: That session with the prompt and the seed of the last trial.
        trials: Those of a set, empty where each trial is made.
        judged: What was judged, in its order.
        run: The last trial.
        revealed: Whether the last trial's names are known.
    """

    began: Session
    session: Session
    trials: tuple[RunText, ...]
    judged: list[tuple[RunText, Judgement]]
    run: RunText | None = None
    revealed: bool = False

    def is_of(self, session: Session, trials: Sequence[RunText]) -> bool:
        """Whether these arms, or these trials of a set, are the ones it judged."""
        if trials or self.trials:
            return [id(run) for run in trials] == [id(run) for run in self.trials]
        mine, others = ([arm.interventions for _, arm in plan(item)] for item in (self.began, session))
        return self.began.model == session.model and mine == others

    def asks_as(self, session: Session) -> bool:
        """Whether prompt and settings were left as they are."""
        return (self.began.question, self.began.sampling) == (session.question, session.sampling)


class BlindLane(Pane):
    """A text without a name, a figure or a shade."""

    DEFAULT_CSS = "BlindLane { width: 1fr; height: 1fr; } BlindLane > TokenView { margin: 1 0 0 1; }"

    def __init__(self, letter: str) -> None:
        self.view = TokenView(empty="being written")
        self.view.mode = "off"
        super().__init__(letter, self.view)


class BlindScreen(Dialog["Sitting | None"]):
    """Trials of the session's arms: each is run, shown in an order of its own, and judged before the next one.

    ``runs`` are this session's, to which the trials are added; ``database`` is where runs and judgements are kept,
    ``None`` where none are. ``run`` is the first trial if it is one of the arms as they are and has ended. ``trials``
    are those of a set of prompts, which are judged in their order, each once, and no other is made. ``before`` is what
    was judged of the same arms and left: it goes on. A trial that is left while it is being written is stopped.
    """

    BINDINGS = [
        *((f"{number}", f"prefer({number})", "prefer") for number in range(1, len(LETTERS) + 1)),
        ("0,equals_sign", "prefer(0)", "tie"),
        ("n", "next", "next seed"),
        ("i,p", "prompt", "prompt"),
        ("u", "undo", "undo"),
        ("v", "reveal", "reveal"),
        ("escape,q", "leave", "back"),
    ]
    DEFAULT_CSS = """
    BlindScreen .dialog { width: 100%; max-width: 100%; height: 100%; max-height: 100%; padding: 1 1 0 1; }
    BlindScreen #blind-lanes { height: 1fr; }
    BlindScreen #blind-lanes.-stacked { layout: vertical; }
    BlindScreen #blind-lanes.-stacked TokenView { margin-top: 0; }
    BlindScreen #blind-asked { height: 1; color: $muted; }
    BlindScreen #blind-tally { height: auto; margin-top: 1; }
    BlindScreen #blind-keys { height: 1; margin-top: 1; color: $muted; }
    """

    def __init__(
        self,
        session: Session,
        runs: list[RunText],
        database: Path | None,
        run: RunText | None = None,
        trials: Sequence[RunText] = (),
        before: Sitting | None = None,
    ) -> None:
        super().__init__()
        self._began, self._before = session, before
        self._session, self._runs, self._database, self._trials = session, runs, database, tuple(trials)
        count = len(self._trials[0].arms) if self._trials else len(plan(session))
        self._lanes = [BlindLane(letter) for letter in LETTERS[:count]]
        self._first = self._trials[0] if self._trials else run
        self._run: RunText | None = None
        self._order: list[int] = []
        self._job, self._gone = 0, False
        self._made: RunText | None = None
        self._judged: list[tuple[RunText, Judgement]] = before.judged if before is not None else []
        self._revealed = False
        self._chance = random.SystemRandom()

    @property
    def lens(self) -> LensHost:
        """The app, typed."""
        return host(self)

    def compose(self) -> ComposeResult:
        """What is asked, the lanes, the tally, the keys."""
        with Vertical(classes="dialog"):
            yield Static("Which do you prefer?", classes="dialog-title")
            yield Static("", id="blind-asked")
            yield Horizontal(*self._lanes, id="blind-lanes")
            yield Static("", id="blind-tally")
            yield Static("", id="blind-keys")

    def on_mount(self) -> None:
        """The run that is there is the first trial, else one is made; or it goes on where it was left."""
        if self._before is not None and (self._trials or self._before.asks_as(self._session)):
            self._take_up(self._before)
        elif self._first is not None:
            self._show(self._first)
        else:
            self._make(self._session.prompt, self._session.sampling.seed)

    def on_resize(self) -> None:
        """Lanes that would be too narrow stand below each other."""
        narrow = self.size.width // max(1, len(self._lanes)) < NARROW
        self.query_one("#blind-lanes").set_class(narrow, "-stacked")

    # -- leaving and coming back

    def _take_up(self, before: Sitting) -> None:
        """The trial that was left if it can still be judged, else the next one."""
        run, self._session = before.run, before.session
        if run is None or run.state != "done":
            self._make(self._session.prompt, self._session.sampling.seed)  # it was stopped, or failed
            return
        self._show(run)
        if before.revealed and not self._trials and self._session.sampling.temp:
            self.action_next()
        elif before.revealed:
            self.action_reveal()
        if self._judged:
            self.lens.say(f"Going on: {many(len(self._judged), 'trial')} {_is_or_are(len(self._judged))} judged.")

    def action_leave(self) -> None:
        """Back; what is being written for a trial that nobody will see is stopped. What was judged stays."""
        run, count = self._run, len(self._judged)
        cut = self._made is not None and self._made.going  # also behind a trial that was taken back
        if cut:
            self.lens.worker.stop(self._job)
        if cut or (count and not self._revealed):
            stopped = "The trial that was being written is stopped. " if cut else ""
            key = self.lens.key_text("generate.blind")
            self.lens.say(f"{stopped}{count} {_is_or_are(count)} judged: {key} goes on, v there reveals.")
        self._gone = True
        self.dismiss(Sitting(self._began, self._session, self._trials, self._judged, run, self._revealed))

    # -- trials

    def _make(self, prompt: str, seed: int) -> None:
        sampling = replace(self._session.sampling, seed=seed)
        self._session = replace(self._session, prompt=prompt, sampling=sampling)
        run = RunText.begin(len(self._runs) + 1, self._session)
        self._runs.append(run)
        self._made = run
        job = Compare(run.prompt, tuple(text.arm for text in run.arms), run.sampling, run.raw, turns=run.turns)
        self._job = self.lens.submit(job, "run", lambda event: self._take(run, event))
        self._show(run)

    def _take(self, run: RunText, event: Event) -> None:
        run.apply(event)
        if isinstance(event, JobDone | JobFailed) and run is self._run and not self._gone:
            self._fill()

    def _show(self, run: RunText) -> None:
        """A trial in an order of its own, which nothing on the screen tells."""
        self._run, self._revealed = run, False
        self._order = list(range(len(run.arms)))
        self._chance.shuffle(self._order)
        for lane, letter in zip(self._lanes, LETTERS, strict=False):
            lane.title, lane.note = letter, ""
            lane.view.set_tokens([])
        self._fill()

    def _fill(self) -> None:
        """Texts come when all have ended: that one ends before the others is no hint."""
        run = self._run
        if run is not None and not run.going:
            for lane, arm in zip(self._lanes, self._order, strict=True):
                lane.view.set_tokens(run.arms[arm].pieces)
        self._say()

    # -- judging

    @property
    def _open(self) -> bool:
        """Whether there is a trial to be judged."""
        run = self._run
        return run is not None and run.state in ("done", "stopped") and not self._revealed and not self._is_judged

    @property
    def _is_judged(self) -> bool:
        return any(run is self._run for run, _ in self._judged)

    def action_prefer(self, place: int) -> None:
        """Prefer the lane at a place, counted from 1; 0 is a tie. The next seed follows where there is chance."""
        if place > len(self._lanes):
            return
        if not self._open or self._run is None:
            self._remind()
            return
        chosen = self._order[place - 1] if place else None
        judgement = Judgement(self._run.kept, tuple(self._order), chosen)
        self._judged.append((self._run, judgement))
        if self._run.kept and self._database is not None:
            self._keep(len(self._judged) - 1, judgement)
        if self._trials:
            self._go_on()
        elif self._session.sampling.temp:
            self.action_next()
        else:
            self._say()

    @work(thread=True, exit_on_error=False, group="judge")
    def _keep(self, place: int, judgement: Judgement) -> None:
        assert self._database is not None
        try:
            kept = JudgementStore(RunStore(self._database)).add(judgement.run, judgement.shown, judgement.chosen)
        except LensError as error:
            self.app.call_from_thread(self.lens.say, f"This judgement is not kept: {error.message}")
        else:
            self.app.call_from_thread(self._kept, place, judgement, kept)

    def _kept(self, place: int, judgement: Judgement, number: int) -> None:
        if place < len(self._judged) and self._judged[place][1] is judgement:
            self._judged[place] = (self._judged[place][0], replace(judgement, id=number))
        else:  # it was taken back while it was being written
            self._forget(number)

    def action_undo(self) -> None:
        """Take the last judgement back and show its trial again, in another order."""
        if not self._judged:
            return
        run, judgement = self._judged.pop()
        if judgement.id:
            self._forget(judgement.id)
        self._show(run)

    @work(thread=True, exit_on_error=False, group="judge")
    def _forget(self, number: int) -> None:
        assert self._database is not None
        try:
            JudgementStore(RunStore(self._database)).remove(number)
        except LensError as error:
            self.app.call_from_thread(self.lens.say, f"It is still in the history: {error.message}")

    def _go_on(self) -> None:
        """The next prompt of the set that is not judged; behind the last one the tally, where each is judged."""
        judged = {id(run) for run, _ in self._judged}
        here = self._place()
        following = [*self._trials[here + 1 :], *self._trials[:here]]
        open_ones = [run for run in following if id(run) not in judged]
        if open_ones:
            self._show(open_ones[0])
        elif id(self._run) in judged:
            self.action_reveal()
        else:
            self.lens.say("This is the last one that is not judged.")

    def _place(self) -> int:
        return next((at for at, run in enumerate(self._trials) if run is self._run), 0)

    def action_next(self) -> None:
        """The same prompt with the next seed; of a set the next prompt, this one not judged for now."""
        if self._trials:
            self._go_on()
        elif self._run is not None and self._run.going:
            self._remind()
        elif self._session.sampling.temp:
            self._make(self._session.prompt, self._session.sampling.seed + 1)
        else:
            self.lens.say("Greedy: another seed writes the same texts. i takes another prompt.")

    def action_prompt(self) -> None:
        """Another prompt for the next trials."""
        if self._trials:
            self.lens.say(f"These are the prompts of a set: {many(len(self._trials), 'trial')}, n goes to the next.")
            return

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self._make(values["prompt"], self._session.sampling.seed)

        field = Field("prompt", "prompt", self._session.prompt, "what the arms write on from", filled)
        self.app.push_screen(FormScreen("Another prompt", [field]), take)

    def action_reveal(self) -> None:
        """Say which lane is which, and count."""
        run = self._run
        if run is None or (run.going and not self._judged):  # what was judged can be counted meanwhile
            self._remind()
            return
        self._revealed = True
        for lane, letter, arm in zip(self._lanes, LETTERS, self._order, strict=False):
            lane.note = strength(run.arms[arm].interventions)
            name = bare_name(run.arms[arm].arm.name, lane.note.partition(" · ")[0])
            lane.title = f"{letter}  {one_line(name, 60)}"
        self._say()

    # -- words

    def _remind(self) -> None:
        run = self._run
        if run is not None and run.going:
            self.lens.say("The texts are still being written.")
        elif self._is_judged or self._revealed:
            then = "n goes to the next." if self._trials else "n or i make the next."
            self.lens.say(f"This one is judged, or known: {then}")

    def _say(self) -> None:
        run, session = self._run, self._session
        count, ties = len(self._judged), sum(item.chosen is None for _, item in self._judged)
        seed, prompt = session.sampling.seed, session.prompt
        if self._trials and run is not None:
            seed, prompt = run.sampling.seed, run.prompt
        asked = f"seed {seed} · {one_line(prompt, 200)}"
        if self._trials:
            asked = f"trial {self._place() + 1} of {len(self._trials)} · {asked}"
        self.query_one("#blind-asked", Static).update(Content(fit(asked, max(10, self.size.width - 8)).rstrip()))
        counted: Content = Content.styled(f"{count} judged, {many(ties, 'tie')}", "$muted")
        if self._revealed and self._judged:
            counted = _lines(tally((judged.record(), item) for judged, item in self._judged))
        elif run is not None and run.state == "failed":
            counted = Content.styled("This run failed: n or i make another.", "$warning")
        self.query_one("#blind-tally", Static).update(counted)
        last = f"1-{len(self._lanes)}"
        keys = [(last, " prefer"), ("0", " tie"), ("n", " next prompt" if self._trials else " next seed")]
        keys += [*([] if self._trials else [("i", " prompt")]), ("u", " undo")]
        keys += [("v", " reveal"), ("esc", " back")]
        parts = [part for key, word in keys for part in ((key, "bold"), (f"{word}   ", ""))]
        self.query_one("#blind-keys", Static).update(Content.assemble(*parts))


def interval_bar(low: float, share: float | None, high: float, width: int) -> str:
    """An interval of shares as a row of cells: ``──┣━●━┫──``, the dot where the share is."""
    first, last = round(low * (width - 1)), round(high * (width - 1))
    cells = ["━" if first <= place <= last else "─" for place in range(width)]
    cells[first], cells[last] = "┣", "┫"
    if share is not None:
        cells[round(share * (width - 1))] = "●"
    return "".join(cells)


def _lines(contests: Sequence[Contest]) -> Content:
    """A row an arm: how often it was preferred, its share with the interval, and that as a bar."""
    rows: list[Content] = []
    for contest in contests:
        for arm in contest.arms:
            share = "  –  " if arm.share is None else f"{arm.share:5.0%}"
            facts = f"{arm.preferred:>3}  {share}  {arm.low:4.0%} to {arm.high:4.0%}  "
            bar = interval_bar(arm.low, arm.share, arm.high, 24)
            rows.append(Content.assemble((fit(one_line(arm.name), 24), "bold"), facts, (bar, "$heat-5")))
        over = f" over {contest.prompts} prompts" if contest.prompts > 1 else ""
        count = contest.judged - contest.ties
        said = f"share of {count} that were no tie{over}, 95 % interval; by chance {contest.chance:.0%}"
        rows.append(Content.styled(said, "$muted"))
    return Content("\n").join(rows)


def _is_or_are(count: int) -> str:
    return "is" if count == 1 else "are"


def judge_set(lens: LensHost, shown: SetText, history: list[RunText]) -> None:
    """Judge the arms of a set, one trial for each of its prompts; says why where that cannot be done yet."""
    trials = [run for _, run in sorted(shown.runs.items()) if run.state == "done"]
    if shown.going or not trials:
        lens.say(f"The texts of the set are not all there: {lens.key_text('app.stop')} stops it.")
    elif len(shown.arms) > len(LETTERS):
        lens.say(f"A blind trial shows at most {many(len(LETTERS), 'text')}; this set has {len(shown.arms)}.")
    else:
        _sit(lens, history, lambda: None, trials=trials)


def judge_arms(lens: LensHost, run: RunText | None, history: list[RunText], done: Callable[[], None]) -> None:
    """Judge the arms of the bench, in as many trials as are asked for.

    Args:
        lens: The app.
        run: The run that shows, which is the first trial if it has ended and is one of the arms as they are.
        history: The runs of the session, to which the trials are added.
        done: Called when the judging has ended.
    """
    session = lens.store.session
    if session.model is None or not session.prompt or len(plan(session)) < 2:
        lens.say("A blind judgement needs a model, a prompt and something that is steered.")
        return
    first = run if run is not None and run.state == "done" and run.is_of(RunText.begin(0, session)) else None
    _sit(lens, history, done, run=first)


_LAST: WeakKeyDictionary[LensHost, Sitting] = WeakKeyDictionary()
"""The last sitting of an app, to be gone on with."""


def _sit(
    lens: LensHost,
    history: list[RunText],
    done: Callable[[], None],
    run: RunText | None = None,
    trials: Sequence[RunText] = (),
) -> None:
    """Open the screen, on the last sitting if that was of the same arms or set."""
    session, before = lens.store.session, _LAST.get(lens)
    if before is not None and not before.is_of(session, trials):
        before = None

    def left(sitting: Sitting | None) -> None:
        if sitting is not None:
            _LAST[lens] = sitting
        done()

    lens.push_screen(BlindScreen(session, history, lens.history, run, trials, before), left)
