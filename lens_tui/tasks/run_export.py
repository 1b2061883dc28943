"""A run for elsewhere: JSON data (which can be replayed), Markdown, CSV, a picture, Python. And back from JSON.

The picture is an SVG: each arm's figures and text, tokens shaded by their KL, with a bar under each.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from lens_tui.records import Arm, LensError, Sampling, Token
from lens_tui.records.chat import Turn, as_prompt
from lens_tui.records.codec import from_json, to_json
from lens_tui.records.disk import free_files, write_text
from lens_tui.records.gates import Watched
from lens_tui.records.interventions import moved_of
from lens_tui.records.paths import expanded
from lens_tui.records.prompt_set import PromptItem
from lens_tui.records.read_files import read_json
from lens_tui.records.run import END, KL_STEPS, ArmRecord, MadeWith, RunRecord, figures, kl_level, parts_at, pieces
from lens_tui.records.sanitise import finite, json_escaped, one_line, sanitise
from lens_tui.records.wording import many

from .run_script import as_python

_COLUMNS = 108
_CELL, _LINE = 8.0, 24.0  # pixels
_MARGIN = 28.0
_SIZE = 13
_STYLE = (
    "text{font:13px ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre;fill:#1f2328}"
    ".b{font-weight:bold}.m{fill:#6e7781}"
)
_HEAT = "#d9822b"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text in one line, from a column on; a level from 0 to 7 shades it."""

    column: int
    text: str
    cells: int
    level: int = 0
    style: str = ""


def as_svg(run: RunRecord) -> str:
    """The run as an SVG picture, its text selectable; it refers to nothing outside of itself."""
    sampling = run.sampling
    settings = f"seed {sampling.seed} · temperature {sampling.temp:g} · at most {many(sampling.max_tokens, 'token')}"
    lines: list[list[_Piece]] = [[_words(run.model or "model", "b")], [_words(settings, "m")], []]
    for turn in run.turns or (Turn("", run.prompt),):
        lines += [*_flow([(f"{turn.role}: {turn.content}" if turn.role else turn.content, 0)], "m"), []]
    for kept in run.arms:
        lines += [[_words(kept.arm.name, "b")], [_words(_facts(kept), "m")], *_arm_lines(kept), []]
    steps = " · ".join(f"{step:g}" for step in KL_STEPS)
    lines.append([_words(f"shade and bar: KL to the plain model on the arm's own text, from {steps} nat", "m")])
    width, height = 2 * _MARGIN + _COLUMNS * _CELL, 2 * _MARGIN + len(lines) * _LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
    ]
    for row, line in enumerate(lines):
        for piece in line:
            parts += _drawn(piece, _MARGIN + row * _LINE)
    return "\n".join([*parts, "</svg>", ""])


def _facts(kept: ArmRecord) -> str:
    found = figures(kept.tokens)
    facts = [many(len(kept.tokens), "token")]
    if found["perplexity"] is not None:
        facts.append(f"ppl {found['perplexity']:.1f}")
    if not kept.arm.is_baseline and found["mean_kl"] is not None:
        plain = "" if found["plain_perplexity"] is None else f"plain ppl {found['plain_perplexity']:.1f} · "
        facts.append(f"{plain}mean KL {found['mean_kl']:.3f} nat")
    if kept.dose is not None:
        unit = moved_of(item.site for item in kept.arm.interventions)
        facts.append(f"moved {kept.dose:.2f} {unit}")
    return " · ".join(facts)


def _arm_lines(kept: ArmRecord) -> list[list[_Piece]]:
    steered = not kept.arm.is_baseline or bool(kept.changes)
    shown = pieces(kept.tokens, kept.reason or "stopped")
    levels = [kl_level(token.kl) if steered else 0 for token in kept.tokens]
    added = [
        "" if not token.text and (text == END or text.startswith("<")) else text
        for token, text in zip(kept.tokens, shown, strict=True)
    ]
    return _flow(list(zip(added, levels, strict=True)))


def _words(text: str, style: str = "") -> _Piece:
    shown = sanitise(text).replace("\n", "⏎")[:_COLUMNS]
    return _Piece(0, shown, _cells(shown), style=style)


def _flow(pieces: Sequence[tuple[str, int]], style: str = "") -> list[list[_Piece]]:
    """Pieces of one text in lines of the picture's width: broken before a piece that does not fit, and at line ends."""
    lines: list[list[_Piece]] = [[]]
    column = 0
    for text, level in pieces:
        for part in _parts(sanitise(text)):
            cells = _cells(part)
            if part == "\n":
                lines, column = [*lines, []], 0
                continue
            if column + cells > _COLUMNS:
                lines, column = [*lines, []], 0
            lines[-1].append(_Piece(column, part, cells, level, style))
            column += cells
    return lines


def _parts(text: str) -> Iterator[str]:
    """Words with the blanks before them, and line ends by themselves; what is longer than a line is cut."""
    word = ""
    for letter in text:
        begins = letter == "\n" or (letter == " " and not word.isspace()) or _cells(word) >= _COLUMNS - 1
        if begins and word:
            yield word
            word = ""
        if letter == "\n":
            yield letter
        else:
            word += letter
    if word:
        yield word


def _cells(text: str) -> int:
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _drawn(piece: _Piece, top: float) -> list[str]:
    left, width = _MARGIN + piece.column * _CELL, piece.cells * _CELL
    drawn = []
    if piece.level:
        share = piece.level / 7
        bar = 0.6 * piece.level
        drawn.append(
            f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{_SIZE + 3}" fill="{_HEAT}" '
            f'fill-opacity="{0.12 + 0.5 * share:.2f}"/>'
            f'<rect x="{left:g}" y="{top + _SIZE + 4:g}" width="{max(1.0, width - 1):g}" height="{bar:.1f}" '
            f'fill="#57606a"/>'
        )
    if piece.text.strip():
        kind = f' class="{piece.style}"' if piece.style else ""
        drawn.append(
            f'<text x="{left:g}" y="{top + _SIZE:g}"{kind} textLength="{width:g}" lengthAdjust="spacingAndGlyphs" '
            f'xml:space="preserve">{escape(piece.text)}</text>'
        )
    return drawn


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
        **({"prompt_readings": finite(kept.tokens[0].readings)} if monitors and kept.tokens else {}),
        "tokens": [
            {**_token_data(token, scales=bool(changes)), **({"readings": finite(read)} if monitors else {})}
            for token, read in zip(kept.tokens, _each_read(kept), strict=True)
        ],
    }


def _each_read(kept: ArmRecord) -> list[tuple[float, ...]]:
    """What the monitors read at each token."""
    return [*(token.readings for token in kept.tokens[1:]), kept.readings] if kept.tokens else []


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
