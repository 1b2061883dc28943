"""Labels of other tools: Neuronpedia's exports and delphi's folders, read as data that anybody may have written.

A file that is cut short, too large or of the wrong form is refused in one
sentence that names the file and the line.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from . import atomic
from .errors import LensError
from .labels import MAX_FEATURE, Label, NewLabel

MAX_LINE = 4 << 20
_DELPHI_NAME = re.compile(r"(?P<module>.+)_latent(?P<feature>\d{1,8})\.txt")
_SCORERS = ("fuzz", "detection")


def read_neuronpedia(path: Path | str, *, source_id: str | None = None) -> Iterator[NewLabel]:
    """The labels of a Neuronpedia export: its folder, its ``explanations`` folder, or one ``.jsonl`` or ``.jsonl.gz``.

    Every file with ``index`` as text or number is read, in any order of batches.
    An export of several sources (``layer`` in each line) needs ``source_id``,
    for example ``20-gemmascope-res-16k``.
    """
    seen: set[str] = set()
    for file in _neuronpedia_files(Path(path)):
        for number, row in json_lines(file):
            where = f"line {number} of {file.name}"
            layer = _text(row, "layer", where, default="")
            if source_id is not None and layer != source_id:
                continue
            seen.add(layer)
            if len(seen) > 1:
                names = " and ".join(repr(name) for name in sorted(seen))
                raise LensError(f"{Path(path).name} holds labels of {names}.", "Say which with source_id.")
            text = _text(row, "description", where)
            if text.strip():
                yield NewLabel(
                    feature_number(row.get("index"), where),
                    text,
                    "neuronpedia",
                    author=_text(row, "authorId", where, default=""),
                    method=_text(row, "typeName", where, default=""),
                    explainer=_text(row, "explanationModelName", where, default=""),
                    external_id=_text(row, "id", where, default=""),
                )
    if source_id is not None and not seen:
        raise LensError(f"{Path(path).name} holds no labels of {source_id!r}.", "Check the name of the source.")


def write_neuronpedia(labels: Iterable[Label], folder: Path | str, *, model_id: str, source_id: str) -> list[Path]:
    """Write labels as ``explanations/batch-N.jsonl.gz`` (1,024 a file), the form :func:`read_neuronpedia` reads."""
    paths: list[Path] = []
    rows: list[dict[str, Any]] = []
    target = Path(folder) / "explanations"

    def flush() -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = target / f"batch-{len(paths)}.jsonl.gz"
        atomic.write_bytes(path, gzip.compress(text.encode(), mtime=0))
        paths.append(path)
        rows.clear()

    for label in labels:
        rows.append(
            {
                "id": label.external_id or f"{source_id}-{label.feature}-{label.id}",
                "modelId": model_id,
                "layer": source_id,
                "index": str(label.feature),
                "authorId": label.author,
                "description": label.text,
                "typeName": label.method,
                "explanationModelName": label.explainer,
            }
        )
        if len(rows) == 1024:
            flush()
    if rows:
        flush()
    return paths


def read_delphi(path: Path | str, *, module: str | None = None) -> Iterator[NewLabel]:
    """The labels of a delphi results folder: ``explanations/{module}_latent{i}.txt``, scores beside them if there are.

    The score is the share of a scorer's judgements that were right: ``fuzz`` if
    present, else ``detection``, else the first by name. A folder of several modules needs ``module``.
    """
    root = Path(path)
    folder = root / "explanations" if (root / "explanations").is_dir() else root
    files = []
    for file in sorted(folder.glob("*_latent*.txt"), key=natural_order) if folder.is_dir() else []:
        match = _DELPHI_NAME.fullmatch(file.name)
        if match and module in (None, match["module"]):
            files.append((file, match["module"], int(match["feature"])))
    if not files:
        raise LensError(
            f"{root.name} holds no delphi explanations.", "Give the folder with explanations/*_latent*.txt."
        )
    modules = sorted({name for _, name, _ in files})
    if len(modules) > 1:
        raise LensError(f"{root.name} holds labels of {', '.join(modules)}.", "Say which with module.")
    scorers = _scorers(folder.parent / "scores")
    for file, _, feature in files:
        text = _json(file, _read(file), file.name)
        if not isinstance(text, str):
            raise LensError(f"{file.name} does not hold one JSON string.", "Delphi writes one per explanation.")
        scorer, score = _delphi_score(scorers, file.name)
        if text.strip():
            yield NewLabel(
                feature_number(feature, file.name), text, "delphi", method="delphi", score=score, scorer=scorer
            )


def write_delphi(labels: Iterable[Label], folder: Path | str, *, module: str) -> int:
    """Write the first label of each feature as ``explanations/{module}_latent{i}.txt``; returns how many."""
    if "/" in module or "\\" in module or module.startswith("."):
        raise LensError(f"{module!r} is no module name.", "Give one such as layers.4.mlp.")
    done: set[int] = set()
    for label in labels:
        if label.feature not in done:
            done.add(label.feature)
            name = f"{module}_latent{label.feature}.txt"
            atomic.write_text(Path(folder) / "explanations" / name, json.dumps(label.text, ensure_ascii=False))
    return len(done)


def _neuronpedia_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / "explanations" if (path / "explanations").is_dir() else path
    files = [*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")] if folder.is_dir() else []
    if not files:
        raise LensError(f"{path.name} holds no Neuronpedia labels.", "Give the folder with explanations/*.jsonl.gz.")
    return sorted(files, key=natural_order)


def json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a ``.jsonl`` or ``.jsonl.gz`` file with their numbers from 1; each must hold one JSON object."""
    number = 0
    try:
        with _open(file) as handle:
            while line := handle.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise LensError(f"Line {number} of {file.name} is longer than {MAX_LINE >> 20} MiB.", "Split it.")
                if line.strip():
                    row = _json(file, line, f"line {number} of {file.name}")
                    if not isinstance(row, dict):
                        raise LensError(f"Line {number} of {file.name} is not a JSON object.", "Check the file.")
                    yield number, row
    except (OSError, EOFError, zlib.error) as error:
        raise LensError(f"{file.name} is cut short or damaged after line {number}.", "Download it again.") from error


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_LINE + 1)
    except OSError as error:
        raise LensError(f"{file.name} cannot be read.", "Check the file.") from error
    if len(data) > MAX_LINE:
        raise LensError(f"{file.name} is larger than {MAX_LINE >> 20} MiB.", "Check the file.")
    return data


def _json(file: Path, data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LensError(f"There is no valid JSON in {where}.", "Check the file.") from error


def _text(row: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise LensError(f"{key!r} in {where} is not text.", "Check the file.")
    return value


def feature_number(value: Any, where: str) -> int:
    """A feature number of a file: a number or text, depending on who wrote the export. ``where`` is for the error."""
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 8:
        text = int(text)
    if isinstance(text, bool) or not isinstance(text, int) or not 0 <= text <= MAX_FEATURE:
        raise LensError(f"The feature number in {where} is not a number in 0..{MAX_FEATURE}.", "Check the file.")
    return text


def _scorers(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    names = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    return [names.pop(name) for name in _SCORERS if name in names] + list(names.values())


def _delphi_score(scorers: list[Path], name: str) -> tuple[str, float | None]:
    for scorer in scorers:
        file = scorer / name
        if file.is_file():
            rows = _json(file, _read(file), f"{scorer.name}/{name}")
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise LensError(f"{scorer.name}/{name} is not a list of judgements.", "Check the file.")
            right = [row["correct"] for row in rows if isinstance(row.get("correct"), bool)]
            if right:
                return scorer.name, math.fsum(right) / len(right)
    return "", None


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A sorting key that puts ``batch-2`` before ``batch-10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,12})", path.name)]
