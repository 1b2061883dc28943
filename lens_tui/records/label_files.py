"""Labels of other tools: Neuronpedia's exports and delphi's folders, read as data that anyone may have written.

A file that is cut short, too large or of the wrong form is refused in one
sentence that names the file and the line.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import disk
from .errors import LensError
from .labels import MAX_FEATURE, Label, NewLabel
from .read_files import MAX_LINE, parse_json, read_json, read_lines
from .sanitise import one_line, sanitise_token
from .store import Family, Store

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
            _check_keys(row, ("index", "description"), number, file, "explanations")
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
        raise LensError(f"{Path(path).name} has no labels of {source_id!r}.", "Check the name of the source.")


def write_neuronpedia(
    labels: Iterable[Label], folder: Path | str, *, model_id: str, source_id: str, sae_id: str = ""
) -> list[Path]:
    """Write labels as ``explanations/batch-N.jsonl.gz`` (1,024 a file), the form :func:`read_neuronpedia` reads.

    Where a label came from, its score and the SAE's id are under a key of our own, which others leave alone.
    """
    paths: list[Path] = []
    rows: list[dict[str, Any]] = []
    target = Path(folder) / "explanations"

    def flush() -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = target / f"batch-{len(paths)}.jsonl.gz"
        disk.write_bytes(path, gzip.compress(text.encode(), mtime=0))
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
            f"{root.name} contains no delphi explanations.", "Give the folder with explanations/*_latent*.txt."
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

    Where each came from is in a file of our own beside them, so that :func:`read_delphi` brings it back as it was.
    """
    if "/" in module or "\\" in module or module.startswith("."):
        raise LensError(f"{module!r} is not a module name.", "Give one such as layers.4.mlp.")
    done: dict[int, dict[str, Any]] = {}
    for label in labels:
        if label.feature not in done:
            done[label.feature] = _provenance(label)
            name = f"{module}_latent{label.feature}.txt"
            disk.write_text(Path(folder) / "explanations" / name, json.dumps(label.text, ensure_ascii=False))
    disk.write_json(Path(folder) / _PROVENANCE, {"module": module, "sae": sae_id, "labels": done})
    return len(done)


def _neuronpedia_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / "explanations" if (path / "explanations").is_dir() else path
    files = [*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")] if folder.is_dir() else []
    if not files:
        raise LensError(f"{path.name} contains no Neuronpedia labels.", "Give the folder with explanations/*.jsonl.gz.")
    return sorted(files, key=natural_order)


def json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a ``.jsonl`` or ``.jsonl.gz`` file with their numbers from 1; each must hold one JSON object."""
    name = one_line(file.name, 80)
    for number, line in read_lines(file):
        row = parse_json(line, f"Line {number} of {name}")
        if not isinstance(row, dict):
            raise LensError(f"Line {number} of {name} is not a JSON object.", "Check the file.")
        yield number, row


def _check_keys(row: Mapping[str, Any], keys: tuple[str, ...], number: int, file: Path, folder: str) -> None:
    """Raise :class:`LensError` for a line that lacks what every line of a Neuronpedia export has."""
    if lacking := [key for key in keys if key not in row]:
        lacks = " and no ".join(map(repr, lacking))
        raise LensError(
            f"{one_line(file.name, 80)} is not a Neuronpedia export: line {number} has no {lacks}.",
            f"Every line of {folder}/*.jsonl.gz in one is an object with {' and '.join(keys)}.",
        )


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
        "Choose the SAE they were made for; if it is the right one all the same, use --anyway (sae=None).",
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


MAX_FILE = 128 << 20
MAX_EXAMPLES = 50
MAX_TOKENS = 4096

DASHBOARDS = Family(
    "dashboards",
    (
        "CREATE TABLE dashboard (sae TEXT NOT NULL, feature INTEGER NOT NULL, source TEXT NOT NULL, "
        "facts TEXT NOT NULL, PRIMARY KEY (sae, feature, source)) WITHOUT ROWID;",
    ),
)

Weighted = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class DashboardExample:
    """A context with the feature's activation on each token.

    ``bin_min`` and ``bin_max`` bound the interval it was drawn from; both are -1
    for top activations, as in the files.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    bin_min: float
    bin_max: float


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A feature as another tool shows it; strings are safe to show, ``None`` where it does not say.

    ``density`` is over all tokens, BOS and padding among them; ``maximum`` is over
    the stored examples only; ``promoted`` and ``suppressed`` ignore the final norm (both tools' conventions).
    """

    feature: int
    source: str
    density: float | None
    maximum: float | None
    promoted: Weighted
    suppressed: Weighted
    examples: tuple[DashboardExample, ...]


class Dashboards:
    """The dashboards in a store, by SAE (``SAEInfo.id``)."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.use(DASHBOARDS)

    def take(self, sae: str, dashboards: Iterable[Dashboard]) -> int:
        """Import dashboards, all or (if one is bad) none; one of the same feature and source is replaced."""
        n = 0
        with self.store.write() as connection:
            for dashboard in dashboards:
                facts = json.dumps(asdict(dashboard))
                values = (sae, dashboard.feature, dashboard.source, facts)
                connection.execute("INSERT OR REPLACE INTO dashboard VALUES (?, ?, ?, ?)", values)
                n += 1
        return n

    def of(self, sae: str, feature: int) -> tuple[Dashboard, ...]:
        """What is known of a feature, one of each source."""
        rows = self.store.all(
            "SELECT facts FROM dashboard WHERE sae = ? AND feature = ? ORDER BY source", (sae, feature)
        )
        with self.store.reading():
            return tuple(_restored(json.loads(row["facts"])) for row in rows)


def read_saedashboard(path: Path | str, *, sae: SAEInfo | None = None) -> Iterator[Dashboard]:
    """The features of ``batch-*.json`` files, or of one of them. Files of more than 128 MiB are refused.

    With ``sae`` files that say they are of another model or layer are refused.
    """
    root = Path(path)
    files = [root] if root.is_file() else sorted(root.glob("batch-*.json"), key=natural_order)
    if not files:
        raise LensError(f"{root.name} contains no SAEDashboard batches.", "Give the folder with batch-*.json.")
    for file in files:
        batch = read_json(file, MAX_FILE)
        rows = batch.get("features") if isinstance(batch, dict) else None
        if not isinstance(rows, list):
            raise LensError(f"{file.name} has no list of features.", "Give a batch-*.json of SAEDashboard.")
        if sae is not None:
            check_belongs(sae, _said(batch, "model_id"), layer_of(_said(batch, "layer")), file.name)
        for number, row in enumerate(rows):
            where = f"feature {number} of {file.name}"
            if not isinstance(row, dict):
                raise LensError(f"The {where} is not an object.", "Check the file.")
            yield _dashboard(row, "feature_index", "saedashboard", where)


def read_neuronpedia_features(path: Path | str, *, sae: SAEInfo | None = None) -> Iterator[Dashboard]:
    """The features of a Neuronpedia export: its folder, its ``features`` folder, or one file, without examples.

    With ``sae`` features that say they are of another model or layer are refused.
    """
    root = Path(path)
    folder = root / "features" if (root / "features").is_dir() else root
    files = [root] if root.is_file() else [*folder.glob("batch-*.jsonl"), *folder.glob("batch-*.jsonl.gz")]
    if not files:
        raise LensError(f"{root.name} contains no Neuronpedia features.", "Give the folder with features/*.jsonl.gz.")
    for file in sorted(files, key=natural_order):
        for number, row in json_lines(file):
            where = f"line {number} of {file.name}"
            _check_keys(row, ("index",), number, file, "features")
            if sae is not None:
                check_belongs(sae, _said(row, "modelId"), layer_of(_said(row, "layer")), where)
            yield _dashboard(row, "index", "neuronpedia", where)


def _said(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return str(value) if type(value) in (str, int) else ""


def _dashboard(row: Mapping[str, Any], index: str, source: str, where: str) -> Dashboard:
    examples = _list(row, "activations", where)[:MAX_EXAMPLES]
    return Dashboard(
        feature_number(row.get(index), where),
        source,
        _number(row.get("frac_nonzero"), where),
        _maximum(row, examples, where),
        _weighted(row, "pos_str", "pos_values", where),
        _weighted(row, "neg_str", "neg_values", where),
        tuple(_example(example, where) for example in examples),
    )


def _maximum(row: Mapping[str, Any], examples: list[Any], where: str) -> float | None:
    said = _number(row.get("maxActApprox"), where)
    if said is not None or not examples:
        return said
    return max(max(_example(example, where).values, default=0.0) for example in examples)


def _example(row: Any, where: str) -> DashboardExample:
    if not isinstance(row, dict):
        raise LensError(f"An activation in {where} is not an object.", "Check the file.")
    tokens, values = _list(row, "tokens", where), _list(row, "values", where)
    if len(tokens) != len(values) or len(tokens) > MAX_TOKENS:
        raise LensError(f"An activation in {where} has {len(tokens)} tokens and {len(values)} values.")
    low, high = (_number(row.get(key), where) for key in ("bin_min", "bin_max"))
    return DashboardExample(
        tuple(_token(token, where) for token in tokens),
        tuple(_number(value, where) or 0.0 for value in values),
        -1.0 if low is None else low,
        -1.0 if high is None else high,
    )


def _weighted(row: Mapping[str, Any], names: str, values: str, where: str) -> Weighted:
    tokens, weights = _list(row, names, where), _list(row, values, where)
    if len(tokens) != len(weights) or len(tokens) > MAX_TOKENS:
        raise LensError(f"{names} and {values} of {where} differ in length.", "Check the file.")
    pairs = zip(tokens, weights, strict=True)
    return tuple((_token(token, where), _number(weight, where) or 0.0) for token, weight in pairs)


def _list(row: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise LensError(f"{key!r} of {where} is not a list.", "Check the file.")
    return value


def _token(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise LensError(f"A token of {where} is not text.", "Check the file.")
    return sanitise_token(value[:1000])


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.nan
    if not math.isfinite(number):
        raise LensError(f"A number of {where} is not one.", "Check the file.")
    return number


def _restored(facts: dict[str, Any]) -> Dashboard:
    for key in ("promoted", "suppressed"):
        facts[key] = tuple((token, value) for token, value in facts[key])
    facts["examples"] = tuple(
        DashboardExample(tuple(row["tokens"]), tuple(row["values"]), row["bin_min"], row["bin_max"])
        for row in facts["examples"]
    )
    return Dashboard(**facts)
