"""Run a kept run again, token for token, and say where it parts from what it was and what may be the cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from lens_tui.records import Arm, ArmEnd, Gate, Intervention, LensError, Monitor, Sampling, Token
from lens_tui.records.chat import Turn
from lens_tui.records.gates import Watched
from lens_tui.records.run import ArmRecord, RunRecord, first_difference
from lens_tui.records.wording import many

from .made_with import attached_saes, made_with

if TYPE_CHECKING:
    from lens_tui.lens.decode.compare import Comparison
    from lens_tui.lens.model import LensModel
    from lens_tui.records import SAEInfo
    from lens_tui.sae.load_sae import SAE

Changes = Mapping[tuple[int, int], tuple[Intervention, ...]]
"""What an arm is changed to while it writes: by arm and by the first token that is made under it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an arm of two runs parts: the first token that is another.

    ``was`` and ``now`` are ``None`` where that run has no token there. ``margin`` is how many nats apart the two tokens
    are in the run that noted both as candidates, ``None`` where none did.
    """

    arm: str
    index: int
    was: Token | None
    now: Token | None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """Two runs held against each other.

    ``prompt_at`` is the first place at which their prompts are other tokens, ``None`` where they are the same.
    ``causes`` are sentences, likeliest first: what the second was made with that the first was not.
    """

    differences: tuple[Difference, ...] = ()
    prompt_at: int | None = None
    causes: tuple[str, ...] = ()
    n_tokens: int = 0

    @property
    def same(self) -> bool:
        """Whether every token is the same."""
        return not self.differences and self.prompt_at is None

    def sentence(self) -> str:
        """What came of it, in words; names and tokens are not made safe."""
        if self.same:
            same = many(self.n_tokens, "token")
            return f"The same {same}." if self.n_tokens else "There were no tokens to compare with."
        if self.prompt_at is not None:
            found = f"The prompt has become other tokens, the first at place {self.prompt_at}."
        else:
            first = min(self.differences, key=lambda item: item.index)
            was, now = (f"“{t.token}”" if t is not None else "its end" for t in (first.was, first.now))
            near = "" if first.margin is None else f", {first.margin:.3f} nat apart"
            found = f"{first.arm} differs from token {first.index} on: {now} in place of {was}{near}."
        return " ".join([found, *self.causes[:2]])


def held_against(old: RunRecord, new: RunRecord) -> Replay:
    """Compare the tokens of two runs, arm by arm in their order.

    Of an arm that was cut off in either run (stopped, killed) what both have is compared. Raises :class:`LensError` if
    they have not as many arms.
    """
    if len(old.arms) != len(new.arms):
        arms = many(len(old.arms), "arm")
        raise LensError(f"The one run has {arms} and the other {len(new.arms)}.", "Compare them by eye.")
    prompt_at = None
    if old.prompt_ids != new.prompt_ids:
        pairs = enumerate(zip(old.prompt_ids, new.prompt_ids, strict=False))
        shorter = min(len(old.prompt_ids), len(new.prompt_ids))
        prompt_at = next((place for place, (a, b) in pairs if a != b), shorter)
    found = [_difference(a, b, old.is_whole, new.is_whole) for a, b in zip(old.arms, new.arms, strict=True)]
    differences = tuple(item for item in found if item is not None)
    count = sum(min(len(a.tokens), len(b.tokens)) for a, b in zip(old.arms, new.arms, strict=True))
    causes = tuple(_causes(old, new, differences, prompt_at)) if differences or prompt_at is not None else ()
    return Replay(differences, prompt_at, causes, count)


def _difference(old: ArmRecord, new: ArmRecord, old_whole: bool, new_whole: bool) -> Difference | None:
    place = first_difference(old.tokens, new.tokens)
    if place is None:
        place = min(len(old.tokens), len(new.tokens))
        cut = len(new.tokens) > place and not (old_whole and old.reason != "stopped")
        cut = cut or (len(old.tokens) > place and not (new_whole and new.reason != "stopped"))
        if cut or len(old.tokens) == len(new.tokens):
            return None
    was, now = (arm.tokens[place] if place < len(arm.tokens) else None for arm in (old, new))
    return Difference(old.arm.name, place, was, now, _margin(was, now))


def _margin(was: Token | None, now: Token | None) -> float | None:
    if was is None or now is None:
        return None
    for one, other in ((was, now), (now, was)):
        for candidate in one.top:
            if candidate.token_id == other.token_id:
                return abs(one.logprob - candidate.logprob)
    return None


_TIE = 0.05
"""Nats: closer than this, two tokens may change places by rounding alone."""

_SETTINGS = {"temp": "temperature", "max_tokens": "limit of tokens"}

_FACTS = (
    ("adapter", "Its model had another LoRA: {was} then, {now} now (see --adapter)."),
    ("weights", "It was computed with weights held another way: {was} then, {now} now (see --dequantize)."),
    ("dtype", "The model's dtype was {was} and is {now}."),
    ("mlx", "It was made with MLX {was}, this is {now}."),
    ("device", "It was made on {was}, this is {now}."),
    ("machine", "It was made on {was}, this is {now}."),
    ("mlx_lm", "It was made with mlx-lm {was}, this is {now}."),
    ("version", "It was made with mlx-lens-tui {was}, this is {now}."),
    ("batch_rows", "Its forwards had {was} rows and these have {now}, which may round differently."),
)


def _causes(old: RunRecord, new: RunRecord, differences: Sequence[Difference], prompt_at: int | None) -> Iterator[str]:
    """What is another now, likeliest first."""
    if old.model != new.model:
        yield f"It was made with the model {old.model}, this is {new.model}."
    if prompt_at is not None:
        yield "The tokenizer or the chat template of the model has changed."
    asked = list(_asked_otherwise(old, new))
    yield from asked
    noted, others = bool(old.made_with.version), 0
    for name, words in _FACTS if noted else ():
        was, now = getattr(old.made_with, name), getattr(new.made_with, name)
        if was != now:
            others += 1
            none = "none" if name == "adapter" else "as in the files"
            yield words.format(was=was or none, now=now or none)
    if asked:
        return
    if not noted:
        yield "What it was made with was not noted: an older version wrote it."
    elif any(item.margin is not None and item.margin < _TIE for item in differences):
        yield "The two tokens are all but tied, so that rounding decides."
    elif not others and prompt_at is None and old.model == new.model:
        yield "Versions, machine and weights' form are the same: the files of the model or of an SAE have changed."


def _asked_otherwise(old: RunRecord, new: RunRecord) -> Iterator[str]:
    """What was asked for that is not the same in both: enough of a cause, so that none is guessed beside it."""
    drawn = old.sampling.temp or new.sampling.temp
    for name in (setting.name for setting in fields(Sampling)):
        was, now = getattr(old.sampling, name), getattr(new.sampling, name)
        if was != now and (drawn or name != "seed"):
            none = "none" if isinstance(was, tuple) else 0
            yield f"The {_SETTINGS.get(name, name)} was {was or none} and is {now or none}."
    if _interventions(old) != _interventions(new):
        yield "What acts on its arms is not the same."


def _interventions(run: RunRecord) -> list[list[tuple[object, ...]]]:
    def facts(item: Intervention) -> tuple[object, ...]:
        vector = getattr(item, "vector", None)
        direction = vector.direction.tobytes() if vector is not None else getattr(item, "feature", b"")
        amount = tuple(getattr(item, name, None) for name in ("scale", "value", "low", "high"))
        return (item.mode, item.layer, item.site, item.positions, item.precision, direction, amount, *_gate(item.gate))

    return [[facts(item) for item in kept.arm.interventions if item.enabled] for kept in run.arms]


def _gate(gate: Gate | None) -> tuple[object, ...]:
    if gate is None:
        return ()
    read = gate.monitor
    direction = b"" if read.vector is None else read.vector.direction.tobytes()
    return (read.layer, read.site, direction, read.scale, read.bias, read.sae, read.feature, gate.threshold, gate.side)


def changes_of(run: RunRecord) -> Changes:
    """The changes of scale of a run's arms, to be made again at the same tokens."""
    return {(arm, index): items for arm, kept in enumerate(run.arms) for index, items in kept.changes}


def follow(comparison: Comparison, changes: Changes, event: Token | ArmEnd) -> None:
    """After an event of a comparison: make the changes that fall to the token after the one that is under way."""
    if isinstance(event, Token) and (items := changes.get((event.arm, event.index + 2))) is not None:
        comparison.dial(event.arm, items)


def attach(
    lens: LensModel, arms: Sequence[Arm], find: Callable[[str], SAE | None], monitors: Sequence[Monitor] = ()
) -> list[SAE]:
    """Give the model the SAEs whose features are clamped in these arms, or read by gates or monitors; returns them.

    Raises :class:`LensError` naming one that ``find`` does not have.
    """
    found = []
    acting = (name for arm in arms for item in arm.interventions for name in attached_saes(item))
    for name in dict.fromkeys((*acting, *(item.sae for item in monitors if item.vector is None))):
        sae = find(name)
        if sae is None:
            raise LensError(f"A feature of the SAE {name!r} is needed, which is not loaded.", "Load it first.")
        lens.attach_sae(name, sae)
        found.append(sae)
    return found


@dataclass
class Gathered:
    """What comes of a comparison, gathered as a record."""

    prompt: str
    arms: Sequence[Arm]
    comparison: Comparison
    raw: bool = False
    turns: tuple[Turn, ...] = ()
    monitors: tuple[Watched, ...] = ()
    tokens: list[list[Token]] = field(default_factory=list)
    ends: dict[int, ArmEnd] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = self.tokens or [[] for _ in self.comparison.arms]

    def take(self, event: Token | ArmEnd) -> None:
        """The next event."""
        if isinstance(event, Token):
            self.tokens[event.arm].append(event)
        else:
            self.ends[event.arm] = event

    def record(self, lens: LensModel, saes: Sequence[SAEInfo] = ()) -> RunRecord:
        """The run as far as it came."""
        whole = len(self.ends) == len(self.tokens) and all(end.reason != "stopped" for end in self.ends.values())
        kept = [
            ArmRecord(
                arm,
                tuple(tokens),
                "".join(t.text for t in tokens),
                *_ended(self.ends.get(number)),
                last_readings(self.comparison, number, len(tokens)),
            )
            for number, (arm, tokens) in enumerate(zip(self.arms, self.tokens, strict=True))
        ]
        return RunRecord(
            model=lens.info.name,
            prompt=self.prompt,
            arms=tuple(kept),
            sampling=self.comparison.sampling,
            raw=self.raw,
            prompt_ids=self.comparison.prompt_ids,
            state="done" if whole else "stopped",
            made_with=made_with(lens.info, self.arms, saes, self.comparison.batch_rows, self.monitors),
            turns=self.turns,
            monitors=self.monitors,
        )


def last_readings(comparison: Comparison, arm: int, count: int) -> tuple[float, ...]:
    """What each monitor read at the last of an arm's ``count`` tokens; nothing where that did not go in."""
    if not comparison.monitors:
        return ()
    read = comparison.readings(arm)
    whole = count and read.shape[1] >= len(comparison.prompt_ids) + count
    return tuple(read[:, len(comparison.prompt_ids) + count - 1].tolist()) if whole else ()


def _ended(end: ArmEnd | None) -> tuple[str, float | None]:
    return ("stopped", None) if end is None else (end.reason, end.dose)


def run_again(
    lens: LensModel,
    run: RunRecord,
    find: Callable[[str], SAE | None] = lambda _: None,
    *,
    heard: Callable[[Token | ArmEnd], bool] = lambda _: True,
    progress: Callable[[int, int], None] | None = None,
) -> RunRecord:
    """Run it again: the same prompt, arms and settings, and the same changes of scale at the same tokens.

    Args:
        lens: The model.
        run: What was kept; one that was cut off goes as far as it came.
        find: Gives the SAE of an id, for arms that clamp a feature.
        heard: Told of each event; false ends it there.
        progress: Told of the prompt's tokens as they are read, and their number.

    Raises:
        LensError: for what the model refuses, or an SAE that is not there.
    """
    arms = [kept.arm for kept in run.arms]
    monitors = [watched.monitor for watched in run.monitors]
    saes = attach(lens, arms, find, monitors)
    changes, asked = changes_of(run), run.sampling_again
    comparison = lens.compare(run.asked, arms, asked, raw=run.raw, top=5, progress=progress, monitors=monitors)
    gathered = Gathered(run.prompt, arms, comparison, run.raw, run.turns, run.monitors)
    for event in comparison:
        gathered.take(event)
        follow(comparison, changes, event)
        if not heard(event):
            comparison.close()
            break
    return gathered.record(lens, [sae.info for sae in saes])
