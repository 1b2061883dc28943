"""Labels of other tools: Neuronpedia's exports and delphi's folders, read as data that anybody may have written.

A file that is cut short, too large or of the wrong form is refused in one
sentence that names the file and the line.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import atomic
from .errors import LensError
from .labels import MAX_FEATURE, Label, NewLabel
from .read_files import MAX_LINE, parse_json, read_json, read_lines
from .sanitise import one_line

if TYPE_CHECKING:
    from .info import SAEInfo

OURS = "mlx_lens_tui"
"""The key of a line under which our exports keep what Neuronpedia's form has no place for."""
_PROVENANCE = f"{OURS}.json"
_MAX_PROVENANCE = 64 << 20
_DELPHI_NAME = re.compile(r"(?P<module>.+)_latent(?P<feature>\d{1,8})\.txt")
_SCORERS = ("fuzz", "detection")


def read_neuronpedia(
    path: Path | str, *, source_id: str | None = None, sae: SAEInfo | None = None
) -> Iterator[NewLabel]:
    """The labels of a Neuronpedia export: its folder, its ``explanations`` folder, or one ``.jsonl`` or ``.jsonl.gz``.

    Every file with ``index`` as text or number is read, in any order of batches.
    An export of several sources (``layer`` in each line) needs ``source_id``,
    for example ``20-gemmascope-res-16k``. With ``sae`` labels that say they are of another model or layer are refused.
    What :func:`write_neuronpedia` wrote comes back as it was: source, score and all.
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
            ours = row.get(OURS, {})
            if not isinstance(ours, dict):
                raise LensError(f"{OURS!r} in {where} is not an object.", "Check the file.")
            if sae is not None and _text(ours, "sae", where, default="") != sae.id:
                check_belongs(sae, _text(row, "modelId", where, default=""), layer_of(layer), where)
            text = _text(row, "description", where)
            if text.strip():
                new = NewLabel(
                    feature_number(row.get("index"), where),
                    text,
                    "neuronpedia",
                    author=_text(row, "authorId", where, default=""),
                    method=_text(row, "typeName", where, default=""),
                    explainer=_text(row, "explanationModelName", where, default=""),
                    external_id=_text(row, "id", where, default=""),
                )
                yield _ours(new, ours, where) if ours else new
    if source_id is not None and not seen:
        raise LensError(f"{Path(path).name} holds no labels of {source_id!r}.", "Check the name of the source.")


def write_neuronpedia(
    labels: Iterable[Label], folder: Path | str, *, model_id: str, source_id: str, sae_id: str = ""
) -> list[Path]:
    """Write labels as ``explanations/batch-N.jsonl.gz`` (1,024 a file), the form :func:`read_neuronpedia` reads.

    Where a label came from, its score and the SAE's id stand under a key of our own, which others leave alone.
    """
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
                OURS: {"sae": sae_id, **_provenance(label)},
            }
        )
        if len(rows) == 1024:
            flush()
    if rows:
        flush()
    return paths


def read_delphi(path: Path | str, *, module: str | None = None, sae: SAEInfo | None = None) -> Iterator[NewLabel]:
    """The labels of a delphi results folder: ``explanations/{module}_latent{i}.txt``, scores beside them if there are.

    The score is the share of a scorer's judgements that were right: ``fuzz`` if
    present, else ``detection``, else the first by name. A folder of several modules needs ``module``.
    With ``sae`` labels whose module is of another layer are refused.
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
    scorers, kept = _scorers(folder.parent / "scores"), _kept(root, modules[0], sae)
    for file, _, feature in files:
        text = read_json(file, MAX_LINE)
        if not isinstance(text, str):
            raise LensError(f"{file.name} does not hold one JSON string.", "Delphi writes one per explanation.")
        scorer, score = _delphi_score(scorers, file.name)
        if text.strip():
            new = NewLabel(
                feature_number(feature, file.name), text, "delphi", method="delphi", score=score, scorer=scorer
            )
            ours = kept.get(str(feature))
            yield new if ours is None else _ours(new, ours, f"{feature} of {_PROVENANCE}")


def write_delphi(labels: Iterable[Label], folder: Path | str, *, module: str, sae_id: str = "") -> int:
    """Write the first label of each feature as ``explanations/{module}_latent{i}.txt``; returns how many.

    Where each came from stands in a file of our own beside them, so that :func:`read_delphi` brings it back as it was.
    """
    if "/" in module or "\\" in module or module.startswith("."):
        raise LensError(f"{module!r} is no module name.", "Give one such as layers.4.mlp.")
    done: dict[int, dict[str, Any]] = {}
    for label in labels:
        if label.feature not in done:
            done[label.feature] = _provenance(label)
            name = f"{module}_latent{label.feature}.txt"
            atomic.write_text(Path(folder) / "explanations" / name, json.dumps(label.text, ensure_ascii=False))
    atomic.write_json(Path(folder) / _PROVENANCE, {"module": module, "sae": sae_id, "labels": done})
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
    for number, line in read_lines(file):
        row = parse_json(line, f"Line {number} of {one_line(file.name, 80)}")
        if not isinstance(row, dict):
            raise LensError(f"Line {number} of {one_line(file.name, 80)} is not a JSON object.", "Check the file.")
        yield number, row


def check_belongs(sae: SAEInfo, model: str, layer: int | None, where: str) -> None:
    """Raise :class:`LensError` if a file says it is of another model or layer than an SAE is.

    ``model`` is ``""`` and ``layer`` ``None`` where the file does not say; what the SAE does not say fits everything.
    """
    if model and sae.model_name and _plain_name(model) != _plain_name(sae.model_name):
        theirs, ours = f"model {one_line(model, 60)}", f"{one_line(sae.model_name, 60)}"
    elif layer is not None and sae.layer >= 0 and layer != sae.layer:
        theirs, ours = f"layer {layer}", f"layer {sae.layer}"
    else:
        return
    raise LensError(
        f"{one_line(where, 100)} is of {theirs}, but the SAE {one_line(sae.name, 60)} is of {ours}.",
        "Choose the SAE they were made for; if it is the same in spite of that, say so with --anyway (sae=None).",
    )


def layer_of(source: str) -> int | None:
    """The layer in the name of a source at Neuronpedia, as ``20-gemmascope-res-16k``; ``None`` if there is none."""
    found = re.match(r"(\d{1,4})(?:-|$)", source)
    return int(found[1]) if found else None


def _plain_name(model: str) -> str:
    """What stays of a model's name whoever writes it: no owner, no folder, no bits, no punctuation."""
    name = re.sub(
        r"[-_](?:\d+bit|bf16|fp16|f16|fp32|mlx|hf|q\d\w*|mxfp4)\b", "", model.lower().rstrip("/").rpartition("/")[2]
    )
    name = re.sub(r"[^a-z0-9]", "", name)
    return "gpt2" if name == "gpt2small" else name


def _provenance(label: Label) -> dict[str, Any]:
    names = ("source", "author", "method", "explainer", "score", "scorer", "external_id")
    return {name: getattr(label, name) for name in names}


def _ours(label: NewLabel, kept: Any, where: str) -> NewLabel:
    """A label of one of our exports, with where it came from."""
    if not isinstance(kept, dict):
        raise LensError(f"{OURS!r} in {where} is not an object.", "Check the file.")
    names = ("source", "author", "method", "explainer", "scorer", "external_id")
    texts = {name: _text(kept, name, where, default="") for name in names}
    texts["source"] = texts["source"] or label.source
    score = _score(kept, where)
    if label.scorer:  # somebody scored the folder since
        score, texts["scorer"] = label.score, label.scorer
    return NewLabel(label.feature, label.text, score=score, **texts)


def _kept(root: Path, module: str, sae: SAEInfo | None) -> dict[str, Any]:
    """Where the labels of our own delphi folder came from, by feature; nothing for others'."""
    file = root / _PROVENANCE
    found = read_json(file, _MAX_PROVENANCE) if file.exists() else {}
    if not isinstance(found, dict) or not isinstance(found.get("labels", {}), dict):
        raise LensError(f"{file.name} is not of this program.", "Delete it.")
    found = found if found.get("module") == module else {}
    layer = re.search(r"(?:layers|h|blocks)\.(\d{1,4})(?:\.|$)", module)
    if sae is not None and layer and found.get("sae") != sae.id:
        check_belongs(sae, "", int(layer[1]), root.name)
    return dict(found.get("labels", {}))


def _score(row: dict[str, Any], where: str) -> float | None:
    score = row.get("score")
    if score is None:
        return None
    if type(score) not in (int, float) or not -1e9 < score < 1e9:
        raise LensError(f"The score in {where} is not a number.", "Check the file.")
    return float(score)


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
            rows = read_json(file, MAX_LINE)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise LensError(f"{scorer.name}/{name} is not a list of judgements.", "Check the file.")
            right = [row["correct"] for row in rows if isinstance(row.get("correct"), bool)]
            if right:
                return scorer.name, math.fsum(right) / len(right)
    return "", None


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A sorting key that puts ``batch-2`` before ``batch-10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,12})", path.name)]
