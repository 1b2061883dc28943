"""The command that makes a run again: ``mlx-lens-tui compare`` where it has words for every arm, else ``replay``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lens_tui import demo
from lens_tui.records import AblateHeads, Arm, EditPattern, Intervention, LensError, Sampling, SteeringVector
from lens_tui.records.arm_syntax import GateTerm, Term, edge_term, exact, written_arm
from lens_tui.records.chat import Turn
from lens_tui.records.gates import Gate, Watched, monitor_of
from lens_tui.records.interventions import HEADS_OFF, amount_of, positions_name
from lens_tui.records.prompt_set import PromptItem
from lens_tui.records.run import ArmRecord, MadeWith, RunRecord
from lens_tui.records.sanitise import one_line, sanitise
from lens_tui.records.vector_sets import grouped, multiplier, place_of

KeepVector = Callable[[SteeringVector], Path]
KeepRun = Callable[[RunRecord], Path]
KeepChat = Callable[[Sequence[Turn]], Path]
KeepPrompts = Callable[[Sequence[PromptItem]], Path]


@dataclass
class _Command:
    """A ``mlx-lens-tui compare`` as it is put together: the SAE its features are of, and what it cannot say."""

    source: str
    made_with: MadeWith
    keep: KeepVector | None
    sae: str = ""
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def arm(self, number: int, kept: ArmRecord) -> list[str]:
        """``--arm`` and its value; nothing where the arm cannot be written as one."""
        arm: Arm = kept.arm
        groups = grouped([item for item in arm.interventions if item.enabled])
        terms = [term for group in groups for term in self._terms(group)]
        if kept.changes:
            self.left_out.append(f"what was dialled in {arm.name}")
        if not terms:
            self.left_out.append(f"the arm {arm.name}")
        known = [term for term in terms if term is not None]
        return ["--arm", written_arm(arm.name, known, f"arm {number}")] if known else []

    def _terms(self, items: Sequence[Intervention]) -> list[Term | None]:
        """A set as one term, where a file or folder holds it; else each record by itself."""
        if len(items) > 1 and (place := place_of([getattr(item, "vector") for item in items])):  # noqa: B009
            first, scale, gate = items[0], multiplier(items), self._gate(items[0].gate)
            where = positions_name(first.positions)
            sayable = where and scale is not None and first.precision == "model" and first.site == "resid_post"
            if sayable and scale is not None and (gate is not None or first.gate is None):
                return [Term("file", place, None, scale, first.mode, where, gate=gate, every=True)]
        return [self._term(item) for item in items]

    def _term(self, item: Intervention) -> Term | None:
        amount, vector, where = amount_of(item), getattr(item, "vector", None), positions_name(item.positions)
        if isinstance(item, AblateHeads) and item.mean is None and where and item.precision == "model":
            gate, source = self._gate(item.gate), f"{item.layer}.{','.join(map(str, item.heads))}"
            if gate is not None or item.gate is None:
                return Term("head", source, None, 0.0, HEADS_OFF.id, where, gate=gate)
        if isinstance(item, EditPattern) and item.precision == "model":
            gate = self._gate(item.gate)
            found = edge_term(item, gate) if gate is not None or item.gate is None else None
            if found is not None:
                return found
        sayable = bool(where) and item.precision == "model" and amount is not None
        if vector is not None and sayable and item.site == vector.site:
            term, gate = self._source(vector, item.layer), self._gate(item.gate)
            if term is not None and amount is not None and (gate is not None or item.gate is None):
                return replace(term, scale=amount, mode=item.mode, positions=where, gate=gate)
        self.left_out.append(getattr(vector, "name", item.id))
        return None

    def _gate(self, gate: Gate | None) -> GateTerm | None:
        """How the command line writes a gate: of a feature of the command's SAE, or of a vector that it can name."""
        if gate is None:
            return None
        read = gate.monitor
        if read.vector is None:
            if not self._is_of(read.sae):
                return None
            return GateTerm("feature", str(read.feature), read.layer, gate.threshold, gate.side)
        plain = monitor_of(read.vector)
        if (read.site, read.scale, read.bias) != (plain.site, plain.scale, plain.bias):
            return None
        term = self._source(read.vector, read.layer)
        if term is None or set("?<>") & set(term.source):
            return None
        return GateTerm(term.kind, term.source, read.layer, gate.threshold, gate.side)

    def monitor(self, watched: Watched) -> list[str]:
        """``--monitor`` and its value; nothing where the command line has no words for it."""
        term = self._gate(Gate(watched.monitor, watched.threshold))
        if term is None:
            self.left_out.append(f"the monitor {watched.monitor.name}")
        return [] if term is None else ["--monitor", term.written.removeprefix("?")]

    def _source(self, vector: SteeringVector, layer: int) -> Term | None:
        """How the command line finds this vector: a feature, a seed, a file that is there or is written for it."""
        facts = vector.origin.facts
        if vector.origin.kind == "feature" and self._is_of(str(facts.get("sae"))):
            return Term("feature", str(facts["feature"]), layer, 0.0)
        if vector.origin.kind == "random" and "seed" in facts and vector.site == "resid_post":
            return Term("random", str(facts["seed"]), layer, 0.0)
        if file := _file_of(vector, layer, self.source):
            return Term("file", file, layer, 0.0)
        if self.keep is not None:
            try:
                return Term("file", str(self.keep(vector)), layer, 0.0)
            except LensError as error:
                self.remarks.append(str(error))
        elif vector.origin.kind == "feature":
            self.remarks.append(f"the SAE {facts.get('sae')} is not available")
        return None

    def _is_of(self, sae: str) -> bool:
        """Whether a feature of this SAE can be named: a command has one SAE, the first that it needs."""
        if not self.sae and sae in self.made_with.saes:
            self.sae = sae
        return bool(sae) and self.sae == sae


def vector_words(vector: SteeringVector, model: str, saes: Mapping[str, str], keep: KeepVector | None) -> list[str]:
    """``--direction`` with the vector, and the SAE where that is a feature; nothing where the vector has no name."""
    made = _Command(model, MadeWith(source=model, saes=saes), keep)
    term = made._source(vector, vector.layer)
    if term is None:
        return []
    named = replace(term, layer=term.layer if term.kind == "random" else None, scale=1.0).written.removesuffix("*1")
    return ["--direction", named, *(["--sae", saes[made.sae]] if made.sae else [])]


def as_command(
    run: RunRecord,
    keep: KeepVector | None = None,
    keep_run: KeepRun | None = None,
    keep_chat: KeepChat | None = None,
) -> str:
    """The command that makes the run again.

    It is a ``compare`` that says all of it where it can. A vector that the command line has no words for (of texts, of
    tokens, of arithmetic, of a second SAE) is named by its file: the one it was read from, or the one that ``keep``
    writes, and a conversation by the file that ``keep_chat`` writes. A run with something else (a scale that was
    dialled while it was written, positions by number, an ablation) is named by its number in the history, or by the
    file that ``keep_run`` writes: ``mlx-lens-tui replay``. What cannot be kept either is named in a comment at the end.
    """
    made, words = _begun(run, keep)
    for watched in run.monitors:
        words += made.monitor(watched)
    said = _said(run, made, keep_chat)
    if made.left_out and (named := _replay_words(run, keep_run, made.remarks)):
        return " ".join(map(quoted, named))
    return _whole(run, made, words, said)


def set_command(
    run: RunRecord,
    prompts: Sequence[PromptItem],
    path: str,
    first: int | None,
    seeds: Sequence[int],
    keep: KeepVector | None = None,
    keep_prompts: KeepPrompts | None = None,
) -> str:
    """The command that makes a set of prompts again: ``compare --prompts``, or ``--seeds`` on a prompt that is alone.

    Args:
        run: The arms, settings and model of the set; its prompt is not looked at.
        prompts: What was typed, where it was; written to a file by ``keep_prompts`` where it is more than one.
        path: The file of the prompts, or ``"bundled"``; ``""`` where they were typed.
        first: Of the prompts the first so many, all of them for ``None``.
        seeds: A text is made from each; none: from the one of the settings.
        keep: As of :func:`as_command`.
        keep_prompts: Writes prompts to a file.

    Returns:
        The command. What it cannot say is named in a comment at its end, as sets have no number to be replayed by.
    """
    made, words = _begun(run, keep)
    after = ["--first", str(first)] if first is not None else []
    if len(prompts) == 1 and not path:
        seeds, said = seeds or (run.sampling.seed,), ["--", prompts[0].text]
    else:
        said = []
        try:
            file = path or (str(keep_prompts(prompts)) if keep_prompts is not None else "")
        except LensError as error:
            file = ""
            made.remarks.append(str(error))
        after += ["--prompts", file] if file else []
        made.left_out += [] if file else ["the prompts"]
    after += ["--seeds", ",".join(map(str, seeds))] if seeds else []
    return _whole(run, made, words, [*after, *said])


def _begun(run: RunRecord, keep: KeepVector | None) -> tuple[_Command, list[str]]:
    """A ``compare`` with the model and the arms of a run."""
    source = run.made_with.source or run.model or demo.NAME
    made = _Command(source, run.made_with, keep)
    before = ["--adapter", run.made_with.adapter] if run.made_with.adapter else []
    words = ["mlx-lens-tui", *before, "compare", "--model", source]
    for number, kept in enumerate(run.arms):
        if number or not kept.arm.is_baseline or kept.changes:
            words += made.arm(number, kept)
    made.left_out += _unsayable(run.sampling)
    return made, words


def _whole(run: RunRecord, made: _Command, words: Sequence[str], said: Sequence[str]) -> str:
    """The command with its SAE and settings, what is ``said`` at its end, and in a comment what it leaves out."""
    sae = ["--sae", run.made_with.saes[made.sae]] if made.sae else []
    options = _options(run.sampling) + (["--raw"] if run.raw else [])
    remarks = ([f"without {', '.join(made.left_out)}"] if made.left_out else []) + made.remarks
    command = " ".join(map(quoted, [*words, *sae, *options, *said]))
    return command + (f"  # {one_line('; '.join(remarks), 400)}" if remarks else "")


def _said(run: RunRecord, made: _Command, keep_chat: KeepChat | None) -> list[str]:
    """The prompt as words of the command, or the file of the conversation that it is the end of."""
    if run.turns and keep_chat is not None:
        try:
            return ["--chat", str(keep_chat(run.turns))]
        except LensError as error:
            made.remarks.append(str(error))
    if run.turns:
        made.left_out.append("the turns before")
    return ["--", run.prompt]


def _replay_words(run: RunRecord, keep_run: KeepRun | None, remarks: list[str]) -> list[str]:
    if run.id:
        return ["mlx-lens-tui", "replay", str(run.id)]
    if keep_run is None:
        return []
    try:
        return ["mlx-lens-tui", "replay", str(keep_run(run))]
    except LensError as error:
        remarks.append(str(error))
        return []


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
    if (ready := demo.ready_vector(path)) is not None and model == demo.NAME:
        return ready.name
    words = [str(facts[key]) for key in ("name", "position") if facts.get(key) is not None]
    # Of a file with several layers @LAYER picks: a row that was moved to another layer has to be written by itself.
    if (
        not _holds(path, words, vector)
        or (layer != vector.layer and "row" in facts)
        or any(":" in word for word in words)
    ):
        return ""
    return ":".join([path, *words])


def _holds(path: str, words: list[str], vector: SteeringVector) -> bool:
    """Whether the file is there and has not been written over with another vector, as far as it says so by itself."""
    import numpy as np

    from lens_tui.records.vector_formats import load_one

    if not Path(path).is_file():
        return False
    try:
        held = load_one(":".join([path, *words]), layer=vector.layer, elsewhere=True, d_model=vector.d_model)
    except LensError:  # what its rows are depends on the model; the command asks it
        return True
    return np.array_equal(held.direction, vector.direction)


def _unsayable(sampling: Sampling) -> list[str]:
    """Settings that are not at their defaults and for which ``compare`` has no option."""
    plain = Sampling()
    names = ("repetition_context_size", "min_tokens_to_keep", "xtc_probability", "stop_ids")
    return [name for name in names if getattr(sampling, name) != getattr(plain, name)]


def _options(sampling: Sampling) -> list[str]:
    plain = Sampling()
    out = ["--max-tokens", str(sampling.max_tokens), "--seed", str(sampling.seed)]
    for name in ("temp", "top_p", "min_p", "top_k", "repetition_penalty"):
        value = getattr(sampling, name)
        if value != getattr(plain, name):
            out += [f"--{name.replace('_', '-')}", exact(value)]
    return out + [word for text in sampling.stop for word in ("--stop", text)]
