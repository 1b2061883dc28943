"""A run as text for elsewhere: JSON, Markdown, and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lens_tui.records import Arm, Intervention, Sampling, SteeringVector
from lens_tui.records.codec import to_json
from lens_tui.records.modes import POSITIONS, mode_of, told
from lens_tui.tui.run_text import ArmText, RunText

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
        "arms": [_arm(arm) for arm in run.arms],
    }


def _arm(arm: ArmText) -> dict[str, Any]:
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
    return [f"> {line}".rstrip() for line in text.split("\n")]


def as_command(run: RunText, sae: str = "") -> str:
    """The ``mlx-lens-tui compare`` command that makes the run again.

    What a command line cannot say (vectors from prompts or arithmetic, a
    repetition penalty) is left out and named in a comment at the end.
    """
    words = ["mlx-lens-tui", "compare", "--model", run.source or run.model or "demo"]
    left_out: list[str] = []
    for arm in run.arms[1:]:
        acting = [item for item in arm.interventions if item.enabled]
        terms = [_term(item, run.source or run.model) for item in acting]
        missing = [item for item, term in zip(acting, terms, strict=True) if not term]
        left_out += [getattr(getattr(item, "vector", None), "name", item.id) for item in missing]
        known = [term for term in terms if term]
        if known:
            plain = arm.arm.name and not set("=*@") & set(arm.arm.name)
            words += ["--arm", f"{arm.arm.name}={'+'.join(known)}" if plain else "+".join(known)]
    if sae:
        words += ["--sae", sae]
    words += _options(run.sampling)
    command = shlex.join([*words, "--", run.prompt])
    if run.sampling.repetition_penalty:
        left_out.append("the repetition penalty")
    return command + (f"  # without {', '.join(left_out)}" if left_out else "")


def _term(item: Intervention, model: str) -> str:
    acting, vector = told(item), getattr(item, "vector", None)
    if acting is None or vector is None or item.positions.kind not in POSITIONS:
        return ""
    facts, (mode, amount) = vector.origin.facts, acting
    where = f"@{item.layer}" + (f"*{amount:g}" if mode_of(mode).amount else "")
    where += (f":{mode}" if mode != "add" else "") + (f":{item.positions.kind}" if item.positions.kind != "all" else "")
    match vector.origin.kind:
        case "feature":
            return f"f{facts['feature']}{where}"
        case "random":
            return f"random:{facts['seed']}{where}"
    return f"{source}{where}" if (source := _file_of(vector, item.layer, model)) else ""


def _file_of(vector: SteeringVector, layer: int, model: str) -> str:
    """The bundled vector's name or the file that a vector is from, as ``--arm`` names it; ``""`` if there is none."""
    from lens_tui import demo

    facts = vector.origin.facts
    path = str(facts.get("path", ""))
    if (ready := demo.ready_vector(path)) is not None and model in (demo.NAME, ""):
        return ready.name
    words = [str(facts[key]) for key in ("name", "position") if key in facts]
    # Of a file with several layers, @LAYER picks: a row that was moved to another layer cannot be said.
    if not Path(path).is_file() or (layer != vector.layer and "row" in facts) or any(":" in word for word in words):
        return ""
    return ":".join([path, *words])


def _options(sampling: Sampling) -> Sequence[str]:
    plain = Sampling()
    out = ["--max-tokens", str(sampling.max_tokens), "--seed", str(sampling.seed)]
    for name in ("temp", "top_p", "min_p", "top_k"):
        value = getattr(sampling, name)
        if value != getattr(plain, name):
            out += [f"--{name.replace('_', '-')}", f"{value:g}"]
    return out + [word for text in sampling.stop for word in ("--stop", text)]


def write(run: RunText, folder: Path) -> Path:
    """Write a run as JSON and Markdown under the next free name; returns it without suffix. Raises ``OSError``."""
    stems = (folder / f"lens-run-{number}" for number in range(1, 10_000))
    stem = next(stem for stem in stems if not stem.with_suffix(".json").exists())
    data = json.dumps(as_data(run), ensure_ascii=False, indent=1)
    stem.with_suffix(".json").write_text(data, encoding="utf-8")
    stem.with_suffix(".md").write_text(as_markdown(run), encoding="utf-8")
    return stem
