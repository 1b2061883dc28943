"""Feature dashboards other tools made: SAEDashboard's batches and Neuronpedia's feature exports.

What they hold (density, promoted tokens, top examples) is read into plain
records and kept in the store, so that a feature can be shown where there is no
index of our own. Definitions differ between tools; ``source`` says whose they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LensError
from .label_files import check_belongs, feature_number, json_lines, layer_of, natural_order
from .read_files import read_json
from .sanitise import sanitise_token
from .store import Family, Store

if TYPE_CHECKING:
    from .info import SAEInfo

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
    """A feature as another tool shows it; strings are safe to show, ``None`` where nothing is said.

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
        raise LensError(f"{root.name} holds no SAEDashboard batches.", "Give the folder with batch-*.json.")
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
        raise LensError(f"{root.name} holds no Neuronpedia features.", "Give the folder with features/*.jsonl.gz.")
    for file in sorted(files, key=natural_order):
        for number, row in json_lines(file):
            where = f"line {number} of {file.name}"
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
