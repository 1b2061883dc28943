"""A run for elsewhere: JSON data (which can be replayed), Markdown, CSV, a picture, Python. And back from JSON."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

from lens_tui.records import Arm, LensError, Sampling, Token
from lens_tui.records.chat import Turn, as_prompt
from lens_tui.records.codec import from_json, to_json
from lens_tui.records.disk import free_files, write_text
from lens_tui.records.gates import Watched
from lens_tui.records.paths import expanded
from lens_tui.records.prompt_set import PromptItem
from lens_tui.records.read_files import read_json
from lens_tui.records.run_record import ArmRecord, MadeWith, RunRecord, figures, parts_at
from lens_tui.records.sanitise import json_escaped, one_line, sanitise
from lens_tui.records.wording import many

from .run_picture import as_svg
from .run_script import as_python

SCHEMA = "mlx-lens-tui/run/3"
_MOST = 1 << 29  # bytes of a file that is read back

KL_WORDS = (
    "logp and ppl: to the arm's own model; plain ppl: to the plain model. "
    "KL: D(arm ‖ plain) of the next token, both models on the arm's own text."
)


def as_data(run: RunRecord) -> dict[str, Any]:
    """The whole run as JSON data: prompt, settings, what it was made with, and every token with its figures.

    ``kl`` is D(arm || plain) and ``reverse_kl`` D(plain || arm) of the next token in nats, both models on the arm's own
    text; ``logprob`` and ``perplexity`` are to the arm's own model, those with ``plain_`` to the plain model.
    Directions are base64 of little-endian float32. ``readings`` are what each of ``monitors`` read at the token itself,
    ``prompt_readings`` at the prompt's last.
    """
    return {
        "schema": SCHEMA,
        "id": run.id,
        "created": run.created,
        "model": run.model,
        "made_with": to_json(run.made_with),
        "prompt": run.prompt,
        "messages": to_json(run.turns),
        "raw": run.raw,
        "prompt_ids": list(run.prompt_ids),
        "sampling": to_json(run.sampling),
        "state": run.state,
        "monitors": to_json(run.monitors),
        "arms": [_arm_data(arm, run.arms[0], len(run.monitors)) for arm in run.arms],
    }


def _arm_data(kept: ArmRecord, baseline: ArmRecord, monitors: int) -> dict[str, Any]:
    found, changes = figures(kept.tokens), kept.changes
    means = {name: found[name] for name in ("mean_logprob", "perplexity", "plain_perplexity")}
    means |= {name: found[name] for name in ("mean_kl", "mean_reverse_kl")}
    return {
        "name": kept.arm.name,
        "interventions": to_json(kept.arm)["interventions"],
        "changed_while_running": [
            {"from_token": index, "interventions": to_json(Arm(kept.arm.name, items))["interventions"]}
            for index, items in changes
        ],
        "text": kept.text,
        "finish_reason": kept.reason,
        "dose": kept.dose,
        **means,
        "parts_at": _parts_at(kept, baseline),
        **({"prompt_readings": _finite(kept.tokens[0].readings)} if monitors and kept.tokens else {}),
        "tokens": [
            {**_token_data(token, scales=bool(changes)), **({"readings": _finite(read)} if monitors else {})}
            for token, read in zip(kept.tokens, _each_read(kept), strict=True)
        ],
    }


def _each_read(kept: ArmRecord) -> list[tuple[float, ...]]:
    """What the monitors read at each token."""
    return [*(token.readings for token in kept.tokens[1:]), kept.readings] if kept.tokens else []


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if isfinite(value) else None for value in values]


def _token_data(token: Token, *, scales: bool) -> dict[str, Any]:
    return {
        "id": token.token_id,
        "token": token.token,
        "text": token.text,
        "logprob": token.logprob,
        "plain_logprob": token.plain_logprob,
        "kl": token.kl,
        "reverse_kl": token.reverse_kl,
        **({"scales": to_json(token.scales)} if scales else {}),
    }


def _parts_at(kept: ArmRecord, baseline: ArmRecord) -> int | None:
    if kept is baseline:
        return None
    return parts_at(kept.tokens, bool(kept.reason), baseline.tokens, bool(baseline.reason))


def from_data(data: Any, what: str = "The run") -> RunRecord:
    """A run from :func:`as_data`. Raises :class:`LensError` for what is not one, saying what is wrong with it."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        said = one_line(repr(data.get("schema") if isinstance(data, dict) else type(data).__name__), 60)
        raise LensError(f"{what} is not an exported run ({SCHEMA}): its schema is {said}.", "Export it again as JSON.")
    try:
        sampling = data["sampling"]
        return RunRecord(
            model=str(data["model"]),
            prompt=str(data["prompt"]),
            arms=tuple(_arm_of(number, arm) for number, arm in enumerate(data["arms"])),
            sampling=from_json(Sampling, sampling),
            raw=bool(data["raw"]),
            prompt_ids=tuple(int(token) for token in data["prompt_ids"]),
            created=float(data["created"]),
            state=data["state"],
            made_with=from_json(MadeWith, data["made_with"]),
            turns=tuple(from_json(Turn, turn) for turn in data.get("messages", ())),
            monitors=tuple(from_json(Watched, item) for item in data.get("monitors", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = one_line(f"{type(error).__name__}: {error}", 120)
        raise LensError(f"{what} lacks something or holds what cannot be ({said}).", "Export it again.") from error


def _arm_of(number: int, data: Any) -> ArmRecord:
    arm = from_json(Arm, {"name": data["name"], "interventions": data["interventions"]})
    each = (token.get("readings", ()) for token in data["tokens"])
    read = [_readings(data.get("prompt_readings", ())), *map(_readings, each)]
    tokens = tuple(_token_of(number, place, token, read[place]) for place, token in enumerate(data["tokens"]))
    return ArmRecord(arm, tokens, str(data["text"]), str(data["finish_reason"]), data["dose"], read[len(tokens)])


def _readings(values: Any) -> tuple[float, ...]:
    return tuple(nan if value is None else float(value) for value in values)


def _token_of(arm: int, place: int, data: Any, readings: tuple[float, ...]) -> Token:
    scales = tuple((str(name), float(scale)) for name, scale in data.get("scales", ()))
    kl, reverse, plain = (_number(data[name]) for name in ("kl", "reverse_kl", "plain_logprob"))
    return Token(
        place,
        int(data["id"]),
        str(data["token"]),
        str(data["text"]),
        float(data["logprob"]),
        arm,
        kl,
        scales=scales,
        reverse_kl=reverse,
        plain_logprob=plain,
        readings=readings,
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def read_run(path: Path | str) -> RunRecord:
    """A run from a JSON file that was exported. Raises :class:`LensError`."""
    place = expanded(path)
    return from_data(read_json(place, _MOST), one_line(str(place), 120))


def as_json(run: RunRecord) -> str:
    """:func:`as_data` as text that is safe in a terminal."""
    return json_escaped(json.dumps(as_data(run), ensure_ascii=False, indent=1)) + "\n"


def as_csv(run: RunRecord) -> str:
    """A row for each token of each arm; tokens in the form that is safe to show."""
    out = io.StringIO()
    names = ("arm", "index", "id", "token", "logprob", "plain_logprob", "kl", "reverse_kl")
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow((*names, *(f"read:{one_line(watched.monitor.name, 80)}" for watched in run.monitors)))
    for kept in run.arms:
        read = [kept.read(at) for at in range(len(run.monitors))]
        for place, t in enumerate(kept.tokens):
            shown = (sanitise(kept.arm.name), t.index, t.token_id, one_line(t.token, 400))
            rows.writerow((*shown, t.logprob, t.plain_logprob, t.kl, t.reverse_kl, *(each[place] for each in read)))
    return out.getvalue()


def _asked(run: RunRecord) -> list[str]:
    """The prompt, or the conversation turn by turn."""
    if not run.turns:
        return ["Prompt:", "", *_quote(run.prompt)]
    parts = [[f"{one_line(turn.role, 40)}:", "", *_quote(turn.content), ""] for turn in run.turns]
    return [line for part in parts for line in part][:-1]


def as_markdown(run: RunRecord) -> str:
    """The run to be read: a table of figures, then every arm's text."""
    sampling = run.sampling
    lines = [
        f"# {run.model or 'model'}: {many(len(run.arms), 'arm')}",
        "",
        f"Seed {sampling.seed}, temperature {sampling.temp:g}, at most {many(sampling.max_tokens, 'token')}.",
        "",
        *_asked(run),
        "",
        "| arm | tokens | mean logp | ppl | plain ppl | mean KL (nat) | moved | parts at |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kept in run.arms:
        found, parted = figures(kept.tokens), _parts_at(kept, run.arms[0])
        to_plain = (found["plain_perplexity"], found["mean_kl"]) if not kept.arm.is_baseline else (None, None)
        values = (found["mean_logprob"], found["perplexity"], *to_plain, kept.dose)
        cells = [
            sanitise(kept.arm.name).replace("|", "\\|"),
            str(len(kept.tokens)),
            *("" if value is None else f"{value:.3f}" for value in values),
        ]
        lines.append(f"| {' | '.join(cells)} | {'' if parted is None else parted} |")
    lines += ["", KL_WORDS, *_read_lines(run)]
    for kept in run.arms:
        lines += ["", f"## {sanitise(kept.arm.name)}", "", *_quote(kept.text)]
    return "\n".join(lines) + "\n"


def _read_lines(run: RunRecord) -> list[str]:
    """A table of what monitors read of each arm: the mean, and the share of tokens above the threshold."""
    if not run.monitors:
        return []
    lines = ["", "| arm | monitor | mean | above |", "|---|---|--:|--:|"]
    for kept in run.arms:
        for at, watched in enumerate(run.monitors):
            values = [value for value in kept.read(at) if value is not None]
            name, level = (sanitise(text).replace("|", "\\|") for text in (kept.arm.name, watched.monitor.name))
            above = sum(value > watched.threshold for value in values)
            mean = f"{sum(values) / len(values):.3f}" if values else ""
            lines.append(f"| {name} | {level} > {watched.threshold:g} | {mean} | {above} of {len(values)} |")
    return lines


def _quote(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in sanitise(text).split("\n")]


FORMATS: dict[str, Callable[[RunRecord], str]] = {
    "json": as_json,
    "md": as_markdown,
    "csv": as_csv,
    "svg": as_svg,
    "py": as_python,
}
"""What a run can be written as, by the file's suffix."""


def formats_of(text: str) -> tuple[str, ...]:
    """Formats from what was typed: suffixes with commas or blanks between; raises :class:`LensError` for others."""
    asked = tuple(dict.fromkeys(re.findall(r"[^\s,]+", text.lower())))
    wrong = [name for name in asked if name not in FORMATS]
    if wrong or not asked:
        said = f"no format {one_line(repr(wrong[0]), 40)}" if wrong else "no format named"
        raise LensError(f"There is {said}.", f"Use {', '.join(FORMATS)}.")
    return asked


def default_name(run: RunRecord) -> str:
    """What an export is called: after the run's number in the history, else the time."""
    when = time.strftime("%Y-%m-%d-%H%M%S", time.localtime(run.created or time.time()))
    return f"lens-run-{run.id}" if run.id else f"lens-run-{when}"


def write(run: RunRecord, folder: Path, name: str = "", formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Write a run into a folder, which is made if it is not there; nothing that is there is written over.

    Args:
        run: The run.
        folder: Where.
        name: The files' name without suffix; by default :func:`default_name`. A number follows if it is taken.
        formats: Keys of ``FORMATS``.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        LensError: if the disk refuses.
    """
    texts = {suffix: FORMATS[suffix](run) for suffix in formats}
    stem = re.sub(r"[^\w.-]+", "-", name.strip() or default_name(run)).strip("-.")[:120] or "lens-run"
    files = free_files(folder, stem, formats)
    for file, text in zip(files, texts.values(), strict=True):
        write_text(file, text)
    return files


def file_format(path: Path) -> str:
    """The format that a file's name asks for, ``""`` for a name that asks for none, or a folder's."""
    suffix = path.suffix.lower().removeprefix(".")
    return suffix if suffix in FORMATS and not path.is_dir() else ""


def write_file(run: RunRecord, file: Path) -> Path:
    """Write a run into one file, in the format that its name asks for; what is there is written over.

    Raises:
        LensError: for a name that asks for no format, and if the disk refuses.
    """
    if not (form := file_format(file)):
        raise LensError(
            f"{one_line(str(file), 120)} does not say in which format.", f"End it in one of .{', .'.join(FORMATS)}."
        )
    write_text(file, FORMATS[form](run))
    return file


def write_chat(turns: Sequence[Turn], folder: Path) -> Path:
    """The file of a folder that holds this conversation, as ``--chat`` reads it; it is written if there is none.

    Raises:
        LensError: if the disk refuses.
    """
    text = json_escaped(json.dumps(as_prompt("", turns), ensure_ascii=False, indent=1)) + "\n"
    return _written_once(text, folder, "chat", ".json")


def write_prompts(prompts: Sequence[PromptItem], folder: Path) -> Path:
    """The file of a folder that holds these prompts, as ``--prompts`` reads it; it is written if there is none.

    Raises:
        LensError: if the disk refuses.
    """
    lines = (json_escaped(json.dumps({"id": item.id, "prompt": item.text}, ensure_ascii=False)) for item in prompts)
    return _written_once("".join(f"{line}\n" for line in lines), folder, "prompts", ".jsonl")


def _written_once(text: str, folder: Path, kind: str, suffix: str) -> Path:
    file = folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}{suffix}"
    if not file.exists():
        write_text(file, text)
    return file
