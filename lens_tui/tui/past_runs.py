"""Runs of the history on disk, as the screens know runs; and one list of these and of this session's."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens_tui import demo
from lens_tui.records import ALL, Arm, Intervention, LensError, SAEInfo, Sampling, SteeringVector, Token
from lens_tui.records.bench import POSITIONS, BenchRow, amount_of, mode_of
from lens_tui.records.codec import to_json
from lens_tui.records.sanitise import json_escaped, one_line, sanitise, sanitise_token

from .run_text import ArmText, RunText
from .widgets.lane import strength

if TYPE_CHECKING:
    from lens_tui.records.run_store import ArmRecord, RunRecord, RunSummary


Interventions = tuple[Intervention, ...]
MOST = 200
"""How many runs of the disk are listed; a filter finds older ones."""


@dataclass(frozen=True, slots=True, eq=False)
class PastRun:
    """A line of the history. ``run`` is there for runs of this session, ``kept`` is the number on disk (0: none).

    ``created`` is seconds since 1970, ``None`` for this session's. Strings are safe to show.
    """

    prompt: str
    arms: str
    facts: str
    kept: int = 0
    created: float | None = None
    run: RunText | None = None


def of_session(runs: Sequence[RunText], words: str = "") -> list[PastRun]:
    """This session's runs, newest first; with ``words``, those whose prompt, arms or texts hold them all."""
    wanted = words.lower().split()
    return [_of_session(run) for run in reversed(runs) if all(word in _searched(run) for word in wanted)]


def _searched(run: RunText) -> str:
    parts = [run.prompt, *(part for arm in run.arms for part in (arm.arm.name, arm.text))]
    return "\n".join(parts).lower()


def _of_session(run: RunText) -> PastRun:
    arms = ", ".join(f"{arm.arm.name} {strength(arm.interventions)}" for arm in run.arms[1:]) or "baseline alone"
    most = max((len(arm.tokens) for arm in run.arms), default=0)
    facts = f"{most} tokens · seed {run.sampling.seed} · {run.state}"
    return PastRun(one_line(run.prompt), arms, facts, run.kept, None, run)


def from_disk(database: Path, words: str = "", without: Sequence[int] = ()) -> list[PastRun]:
    """The newest runs on disk but those of ``without``, or those that hold the words. Reads the disk: not for the UI.

    Runs whose process died under them are marked as killed. Raises ``LensError`` if the history cannot be read.
    """
    from lens_tui.records.run_store import RunStore

    if not database.exists():
        return []
    store = RunStore(database)
    store.broken()
    return [_of_disk(row) for row in store.list(words, MOST) if row.id not in without]


def _of_disk(row: RunSummary) -> PastRun:
    arms = ", ".join(one_line(name, 60) for name in row.arms[1:]) or "baseline alone"
    ended = {"killed": "killed: what came is kept", "running": "running elsewhere"}.get(row.state, row.state)
    return PastRun(one_line(row.prompt), arms, f"{one_line(row.model, 60)} · {ended}", row.id, row.created)


def load(database: Path, number: int) -> RunText | None:
    """A run of the disk with every token, ``None`` if it is gone. Raises ``LensError`` if it cannot be read."""
    from lens_tui.records.run_store import RunStore

    record = RunStore(database).get(number)
    return None if record is None else run_text(record)


def run_text(record: RunRecord) -> RunText:
    """A kept run as a run of the screens: names made safe, texts as they were, the bench as far as it can hold it.

    The bench holds steering vectors that are added; what else was done to an arm shows in the arm alone.
    """
    arms = tuple(_arm(number, kept) for number, kept in enumerate(record.arms))
    for arm in arms:
        arm.compare_with(arms[0])
    model = one_line(record.model)
    made = RunText(0, record.prompt, record.sampling, arms, _steers(record), model, model, record.raw)
    made.state = _STATES.get(record.state, "stopped")
    made.prompt_ids, made.kept = record.prompt_ids, record.id
    return made


_STATES: dict[str, Literal["done", "stopped", "failed"]] = {"done": "done", "failed": "failed"}


def _arm(number: int, kept: ArmRecord) -> ArmText:
    arm = replace(kept.arm, name=one_line(kept.arm.name, 80))
    text = ArmText(number, arm, dials=_dials(arm.interventions, kept.tokens), reason=kept.reason, dose=kept.dose)
    for token in kept.tokens:
        text.add(_showable(token))
    return text


def _showable(token: Token) -> Token:
    """A token of the disk with its display forms made safe; its text stays as it came."""
    top = tuple(replace(item, text=sanitise_token(item.text)) for item in token.top)
    return replace(token, token=sanitise_token(token.token), top=top)


def _dials(interventions: Interventions, tokens: Sequence[Token]) -> list[tuple[int, Interventions]]:
    """The changes of scale while an arm wrote, from what each token was computed under."""
    dials: list[tuple[int, Interventions]] = []
    now = interventions
    for token in tokens:
        scales = dict(token.scales)
        new = tuple(_at(item, scales[item.id]) if item.id in scales else item for item in now)
        if _scales(new) != _scales(now):
            dials.append((token.index, new))
        now = new
    return dials


def _at(item: Intervention, amount: float) -> Intervention:
    changes: dict[str, Any] = {name: amount for name in ("scale", "value") if hasattr(item, name)}
    return replace(item, **changes)


def _scales(interventions: Interventions) -> list[float]:
    return [getattr(item, "scale", getattr(item, "value", 0.0)) for item in interventions]


def _steers(record: RunRecord) -> tuple[BenchRow, ...]:
    found = [
        (number, item, vector, amount)
        for number, kept in enumerate(record.arms)
        for item in kept.arm.interventions
        if number and (amount := amount_of(item)) is not None and (vector := getattr(item, "vector", None)) is not None
    ]
    return tuple(
        BenchRow(
            f"k{record.id}-{place}",
            replace(vector, name=one_line(vector.name, 60)),
            item.layer,
            amount,
            item.enabled,
            number,
            mode=item.mode,
            positions=None if item.positions == ALL else item.positions,
        )
        for place, (number, item, vector, amount) in enumerate(found)
    )


SCHEMA = "mlx-lens-tui/run/2"


KL_WORDS = (
    "logp and ppl: to the arm's own model; plain ppl: to the plain model. "
    "KL: D(arm ‖ plain) of the next token, both models on the arm's own text."
)


def as_data(run: RunText) -> dict[str, Any]:
    """The whole run as JSON data: prompt, settings, and every token of every arm with its figures.

    ``kl`` is D(arm || plain) and ``reverse_kl`` D(plain || arm) of the next token in nats, both models on the arm's own
    text; ``logprob`` and ``perplexity`` are to the arm's own model, those with ``plain_`` to the plain model.
    """
    return {
        "schema": SCHEMA,
        "model": run.model,
        "prompt": run.prompt,
        "prompt_ids": list(run.prompt_ids),
        "sampling": to_json(run.sampling),
        "state": run.state,
        "arms": [_arm_in_words(arm) for arm in run.arms],
    }


def _arm_in_words(arm: ArmText) -> dict[str, Any]:
    return {
        "name": arm.arm.name,
        "interventions": to_json(arm.arm)["interventions"],
        "changed_while_running": [
            {"from_token": index, "interventions": to_json(Arm(arm.arm.name, items))["interventions"]}
            for index, items in arm.dials
        ],
        "text": arm.text,
        "finish_reason": arm.reason,
        "dose": arm.dose,
        "mean_logprob": arm.mean_logprob,
        "perplexity": arm.perplexity,
        "plain_perplexity": arm.plain_perplexity,
        "mean_kl": arm.mean_kl,
        "mean_reverse_kl": arm.mean_reverse_kl,
        "parts_at": arm.parted,
        "tokens": [
            {
                "id": token.token_id,
                "token": token.token,
                "logprob": token.logprob,
                "plain_logprob": token.plain_logprob,
                "kl": token.kl,
                "reverse_kl": token.reverse_kl,
            }
            for token in arm.tokens
        ],
    }


def as_markdown(run: RunText) -> str:
    """The run to be read: a table of figures, then every arm's text."""
    sampling = run.sampling
    lines = [
        f"# {run.model or 'model'}: {len(run.arms)} arms",
        "",
        f"Seed {sampling.seed}, temperature {sampling.temp:g}, at most {sampling.max_tokens} tokens.",
        "",
        "Prompt:",
        "",
        *_quote(run.prompt),
        "",
        "| arm | tokens | mean logp | ppl | plain ppl | mean KL (nat) | moved | parts at |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for arm in run.arms:
        to_plain = (arm.plain_perplexity, arm.mean_kl) if arm.number else (None, None)
        figures = (arm.mean_logprob, arm.perplexity, *to_plain, arm.dose)
        cells = [
            arm.arm.name.replace("|", "\\|"),
            str(len(arm.tokens)),
            *("" if f is None else f"{f:.3f}" for f in figures),
        ]
        lines.append(f"| {' | '.join(cells)} | {'' if arm.parted is None else arm.parted} |")
    lines += ["", KL_WORDS]
    for arm in run.arms:
        lines += ["", f"## {arm.arm.name}", "", *_quote(arm.text)]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in sanitise(text).split("\n")]


@dataclass
class _Command:
    """A ``mlx-lens-tui compare`` as it is put together: the SAE its features are of, and what it cannot say."""

    model: str
    saes: Sequence[SAEInfo]
    keep: Callable[[SteeringVector], Path] | None
    sae: SAEInfo | None = None
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def arm(self, number: int, arm: ArmText) -> list[str]:
        """``--arm`` and what stands behind it; nothing where nothing of the arm can be said."""
        terms = [self._term(item) for item in arm.arm.interventions if item.enabled]
        if arm.dials:
            self.left_out.append(f"what was dialled in {arm.arm.name}")
        known = "+".join(term for term in terms if term)
        if not known:
            return []
        name = arm.arm.name
        plain = name.strip() and not set("=*@") & set(name)
        # Without a name the first '=' of a path would end one.
        named = f"{name}={known}" if plain else f"arm {number}={known}" if "=" in known else known
        return ["--arm", named]

    def _term(self, item: Intervention) -> str:
        amount, vector = amount_of(item), getattr(item, "vector", None)
        source = ""
        if amount is not None and vector is not None and item.positions.kind in POSITIONS:
            source = self._source(vector, item.layer)
        if not source or amount is None:
            self.left_out.append(getattr(vector, "name", item.id))
            return ""
        where = f"@{item.layer}" + (f"*{_number(amount)}" if mode_of(item.mode).amount else "")
        where += f":{item.mode}" if item.mode != "add" else ""
        return source + where + (f":{item.positions.kind}" if item.positions.kind != "all" else "")

    def _source(self, vector: SteeringVector, layer: int) -> str:
        """How the command line finds this vector: a feature, a seed, a file that is there or is written for it."""
        facts = vector.origin.facts
        if vector.origin.kind == "feature" and self._is_of(facts.get("sae")):
            return f"f{facts['feature']}"
        if vector.origin.kind == "random" and "seed" in facts and vector.site == "resid_post":
            return f"random:{facts['seed']}"
        if file := _file_of(vector, layer, self.model):
            return file
        if self.keep is not None:
            try:
                return str(self.keep(vector))
            except LensError as error:
                self.remarks.append(str(error))
        elif vector.origin.kind == "feature":
            self.remarks.append(f"the SAE {facts.get('sae')} is not available")
            return f"f{facts['feature']}"
        return ""

    def _is_of(self, sae: object) -> bool:
        """Whether a feature of this SAE can be named: a command has one SAE, the first that it needs."""
        if self.sae is None:
            self.sae = next((info for info in self.saes if info.id == sae), None)
        return self.sae is not None and self.sae.id == sae


def as_command(run: RunText, saes: Sequence[SAEInfo] = (), keep: Callable[[SteeringVector], Path] | None = None) -> str:
    """The ``mlx-lens-tui compare`` command that makes the run again.

    ``saes`` are those available, by whose id a feature's is known. A vector that the command line has no words for (of
    texts, of tokens, of arithmetic, of a second SAE) is named by its file: the one it was read from, or the one that
    ``keep`` writes. What is left then is named in a comment at the end.
    """
    words = ["mlx-lens-tui", "compare", "--model", run.source or run.model or "demo"]
    made = _Command(run.source or run.model, saes, keep)
    for number, arm in enumerate(run.arms[1:], 1):
        words += made.arm(number, arm)
    if made.sae is not None:
        words += ["--sae", sae_words(made.sae)]
    words += _options(run.sampling) + (["--raw"] if run.raw else [])
    remarks = ([f"without {', '.join(made.left_out)}"] if made.left_out else []) + made.remarks
    command = " ".join(map(quoted, [*words, "--", run.prompt]))
    return command + (f"  # {one_line('; '.join(remarks), 400)}" if remarks else "")


def sae_words(sae: SAEInfo) -> str:
    """How the command line finds an SAE: its bundled name or its path, and the place it reads if that was given."""
    path = Path(sae.path)
    bundled = next((name for name, place in demo.sae_paths().items() if place == path), None)
    given = "given by the caller" in (sae.provenance.get("layer"), sae.provenance.get("site"))
    return bundled or os.path.abspath(path) + (f"@{sae.layer}:{sae.site}" if given else "")


def quoted(word: str) -> str:
    """A word for a shell, in plain characters alone: what acts on a terminal or hides is ``$'\\xNN'``."""
    if sanitise(word) == word:
        return shlex.quote(word)
    shown = (
        "\\" + letter if letter in "\\'" else letter if sanitise(letter) == letter else _bytes_in_shell(letter)
        for letter in word
    )
    return f"$'{''.join(shown)}'"


def _bytes_in_shell(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))


def _file_of(vector: SteeringVector, layer: int, model: str) -> str:
    """The bundled vector's name or the file that a vector is from, as ``--arm`` names it; ``""`` if there is none."""
    facts = vector.origin.facts
    path = str(facts.get("path", ""))
    if (ready := demo.ready_vector(path)) is not None and model in (demo.NAME, ""):
        return ready.name
    words = [str(facts[key]) for key in ("name", "position") if facts.get(key) is not None]
    # Of a file with several layers @LAYER picks: a row that was moved to another layer has to be written by itself.
    if not Path(path).is_file() or (layer != vector.layer and "row" in facts) or any(":" in word for word in words):
        return ""
    return ":".join([path, *words])


def _number(value: float) -> str:
    """As short as can be and exactly this number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _options(sampling: Sampling) -> list[str]:
    plain = Sampling()
    out = ["--max-tokens", str(sampling.max_tokens), "--seed", str(sampling.seed)]
    for name in ("temp", "top_p", "min_p", "top_k", "repetition_penalty"):
        value = getattr(sampling, name)
        if value != getattr(plain, name):
            out += [f"--{name.replace('_', '-')}", _number(value)]
    return out + [word for text in sampling.stop for word in ("--stop", text)]


def write(run: RunText, folder: Path) -> Path:
    """Write a run as JSON and Markdown under the next free name; returns it without suffix. Raises ``OSError``."""
    stems = (folder / f"lens-run-{number}" for number in range(1, 10_000))
    stem = next(stem for stem in stems if not stem.with_suffix(".json").exists())
    data = json_escaped(json.dumps(as_data(run), ensure_ascii=False, indent=1))
    stem.with_suffix(".json").write_text(data, encoding="utf-8")
    stem.with_suffix(".md").write_text(as_markdown(run), encoding="utf-8")
    return stem
