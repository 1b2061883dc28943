"""A run for elsewhere: as JSON data, as Markdown to read, and as the command that makes it again."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lens_tui import demo
from lens_tui.records import Arm, Intervention, LensError, SAEInfo, Sampling, SteeringVector
from lens_tui.records.arm_syntax import Term, exact, written_arm
from lens_tui.records.codec import to_json
from lens_tui.records.interventions import POSITIONS, amount_of
from lens_tui.records.sanitise import json_escaped, one_line, sanitise

from .session import ArmText, RunText

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
        """``--arm`` and its value; nothing where the arm cannot be written as one."""
        terms = [self._term(item) for item in arm.arm.interventions if item.enabled]
        if arm.dials:
            self.left_out.append(f"what was dialled in {arm.arm.name}")
        known = [term for term in terms if term is not None]
        return ["--arm", written_arm(arm.arm.name, known, f"arm {number}")] if known else []

    def _term(self, item: Intervention) -> Term | None:
        amount, vector, kind = amount_of(item), getattr(item, "vector", None), item.positions.kind
        if (
            amount is not None
            and vector is not None
            and kind in POSITIONS
            and (term := self._source(vector, item.layer))
        ):
            return replace(term, scale=amount, mode=item.mode, positions=kind)
        self.left_out.append(getattr(vector, "name", item.id))
        return None

    def _source(self, vector: SteeringVector, layer: int) -> Term | None:
        """How the command line finds this vector: a feature, a seed, a file that is there or is written for it."""
        facts = vector.origin.facts
        feature = Term("feature", str(facts.get("feature", "")), layer, 0.0)
        if vector.origin.kind == "feature" and self._is_of(facts.get("sae")):
            return feature
        if vector.origin.kind == "random" and "seed" in facts and vector.site == "resid_post":
            return Term("random", str(facts["seed"]), layer, 0.0)
        if file := _file_of(vector, layer, self.model):
            return Term("file", file, layer, 0.0)
        if self.keep is not None:
            try:
                return Term("file", str(self.keep(vector)), layer, 0.0)
            except LensError as error:
                self.remarks.append(str(error))
        elif vector.origin.kind == "feature":
            self.remarks.append(f"the SAE {facts.get('sae')} is not available")
            return feature
        return None

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


def _options(sampling: Sampling) -> list[str]:
    plain = Sampling()
    out = ["--max-tokens", str(sampling.max_tokens), "--seed", str(sampling.seed)]
    for name in ("temp", "top_p", "min_p", "top_k", "repetition_penalty"):
        value = getattr(sampling, name)
        if value != getattr(plain, name):
            out += [f"--{name.replace('_', '-')}", exact(value)]
    return out + [word for text in sampling.stop for word in ("--stop", text)]


def write(run: RunText, folder: Path) -> Path:
    """Write a run as JSON and Markdown under the next free name; returns it without suffix. Raises ``OSError``."""
    stems = (folder / f"lens-run-{number}" for number in range(1, 10_000))
    stem = next(stem for stem in stems if not stem.with_suffix(".json").exists())
    data = json_escaped(json.dumps(as_data(run), ensure_ascii=False, indent=1))
    stem.with_suffix(".json").write_text(data, encoding="utf-8")
    stem.with_suffix(".md").write_text(as_markdown(run), encoding="utf-8")
    return stem
