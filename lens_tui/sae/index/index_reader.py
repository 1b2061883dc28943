"""An index on disk, read where it is looked at: opens at once whatever its size, needs NumPy alone, answers in 1 ms.

What anyone may have written is not shown unchecked: the numbers of every feature are checked when an index is opened,
and what belongs to one feature when it is asked for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.file_arrays import FileArray
from lens_tui.records.read_files import explained, open_regular
from lens_tui.records.sanitise import one_line, sanitise_token

from .index_settings import (
    EDGES,
    N_BINS,
    WHOLE,
    Identity,
    IndexSettings,
    called,
    damaged,
    nobody,
    octaves_of,
    open_array,
    place_of,
    read_manifest,
)
from .tables import CONVENTIONS, FIELDS, TokenTable


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Numbers of one feature over the corpus; ``definitions`` in the manifest says what each means.

    ``count`` is of active tokens, ``density`` their share of counted tokens,
    ``mean`` and ``std`` are over active tokens (0 where there are none).
    ``histogram`` counts active tokens in the bins of ``edges`` (41, in units of
    activation; the first and last bin are open-ended).
    """

    feature: int
    count: int
    density: float
    max: float
    mean: float
    std: float
    histogram: tuple[int, ...]
    edges: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A place in the corpus where a feature is active, with its surroundings.

    ``token`` numbers tokens of the index, ``document`` and ``offset`` name the
    same token in the corpus. ``token_ids`` and ``values`` have shape ``(w,)``,
    the place itself at ``peak``; ``values`` is NaN where the index did not keep
    the feature's activation (samples of an index that is not full).
    """

    feature: int
    token: int
    document: int
    offset: int
    value: float
    peak: int
    token_ids: NDArray[np.uint32]
    values: NDArray[np.float32]


class FeatureIndex:
    """The index of one SAE over one corpus, opened for reading.

    Open with ``FeatureIndex(path)``. Thread-safe: nothing in it changes.
    Raises :class:`LensError` for a folder that is not an index, is of another
    version, or lacks a file. Feature ids are checked in every call.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        try:
            self.identity: Identity = _typed(Identity, self.manifest["identity"])
            self.settings: IndexSettings = _typed(IndexSettings, self.manifest["settings"])
            self.n_tokens = _whole(self.manifest, "n_tokens")
            self.n_counted = _whole(self.manifest, "n_counted", self.n_tokens)
            self._n_active = _whole(self.manifest, "n_active")
            self.notes = tuple(one_line(str(note), 300) for note in self.manifest["notes"])
            self.conventions = tuple(name for name in [*self.manifest["conventions"]] if name in CONVENTIONS)
            self._octaves = octaves_of(self.manifest)
            self._n_co_active = _whole(self.manifest, "co_active", self.width) if "co_active" in self.manifest else 0
        except (KeyError, TypeError, ValueError) as error:
            what = f" ({one_line(str(error), 60)})" if isinstance(error, KeyError | ValueError) else ""
            raise LensError(f"The manifest of {called(self.path)} is damaged{what}.", "Build it again.") from error
        self._open()
        self._check()

    def _open(self) -> None:
        width, k, window = self.width, self.settings.top_k, self.settings.window
        self.count: NDArray[np.int64] = self._map("count", WHOLE, (width,)).take().astype(np.int64)
        self.max: NDArray[np.float32] = self._map("max", np.float32, (width,)).take()
        self._sum: NDArray[np.float64] = self._map("sum", np.float64, (width,)).take()
        self._sumsq: NDArray[np.float64] = self._map("sumsq", np.float64, (width,)).take()
        first, end = self._octaves
        self._histogram = self._map("histogram", "u", (width, 2 * (end - first)))
        self._example_tokens = self._map("example_tokens", "u", (width, k))
        self._example_peaks = self._map("example_peaks", np.float32, (width, k))
        self._example_windows = self._map("example_windows", "f", (width, k, window))
        sample = (width, end - first, self.settings.sample_per_bin)
        self._sample_tokens = self._map("sample_tokens", "u", sample)
        self._sample_values = self._map("sample_values", np.float32, sample)
        self.tokens = self._map("tokens", "u", (self.n_tokens,))
        self.special = self._map("special", np.bool_, (self.n_tokens,))
        self._stored_starts = self._map("sequence_starts", "u", None)
        if self._stored_starts.ndim != 1:
            raise damaged(self.path, "sequence_starts.npy")
        self._documents = self._map("sequence_documents", "u", self._stored_starts.shape)
        self._offsets = self._map("sequence_offsets", np.int64, self._stored_starts.shape)
        if self._n_co_active:
            shape = (width, self._n_co_active)
            self._co_active = self._map("co_active_ids", "u", shape), self._map("co_active_counts", "u", shape)
        self._open_full()

    def _check(self) -> None:
        """Raise :class:`LensError` if the numbers of the features cannot be those of one corpus."""
        active = self.count > 0
        if (self.count > self.n_counted).any():
            message = (
                f"{called(self.path).capitalize()} is damaged: a feature is active at more tokens than were counted"
            )
            raise LensError(f"{message} ({self.n_counted}, n_counted of its manifest).", "Build it again.")
        if (self.count < 0).any() or self.count.sum() != self._n_active:
            raise damaged(self.path, "count.npy")
        with np.errstate(over="ignore", invalid="ignore"):
            most = self.max.astype(np.float64) * 1.001
            # Each value is summed to the nearest 2**-32.
            for name, values, largest in (
                ("max", self.max, np.where(active, np.float64(np.finfo(np.float32).max), 0)),
                ("sum", self._sum, self.count * (most + 2.0**-31)),
                ("sumsq", self._sumsq, self.count * (most * most + 2.0**-31)),
            ):
                if not ((values >= 0) & (values <= largest)).all():  # and NaN is neither
                    raise damaged(self.path, f"{name}.npy")
        if not (self.max[active] > 0).all():
            raise damaged(self.path, "max.npy")

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """The first token of every sequence, rising."""
        starts = self._stored_starts.take().astype(np.int64)
        if len(starts) and not (starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] < self.n_tokens):
            raise damaged(self.path, "sequence_starts.npy")
        return starts

    def _open_full(self) -> None:
        if not self.full:
            return
        n = self._n_active
        self._row_ends = self._map("row_ends", "u", (self.n_tokens,))
        self._row_features = self._map("row_features", "u", (n,))
        self._row_values = self._map("row_values", "f", (n,))
        self._feature_ends = self._map("feature_ends", "u", (self.width,))
        self._feature_tokens = self._map("feature_tokens", "u", (n,))
        self._feature_values = self._map("feature_values", "f", (n,))

    @property
    def width(self) -> int:
        """How many features the SAE has."""
        return self.identity.width

    @property
    def full(self) -> bool:
        """Whether every activation was kept, so that whole tokens can be asked for."""
        return self.settings.full

    @property
    def knows_co_active(self) -> bool:
        """Whether it can say which features fire together: it is full, or the best of each feature were kept."""
        return self.full or self._n_co_active > 0

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """Share of counted tokens at which each feature is active, ``(width,)``."""
        return self.count / max(self.n_counted, 1)

    def statistics(self, feature: int) -> FeatureStatistics:
        """The numbers of one feature."""
        f = self.check(feature)
        count = int(self.count[f])
        histogram = self._histograms(np.array([f]))[0]
        if histogram.sum() != count:
            raise damaged(self.path, "histogram.npy")
        mean = float(self._sum[f]) / count if count else 0.0
        variance = float(self._sumsq[f]) / count - mean * mean if count else 0.0
        return FeatureStatistics(
            f,
            count,
            count / max(self.n_counted, 1),
            float(self.max[f]),
            mean,
            max(variance, 0.0) ** 0.5,
            tuple(histogram.tolist()),
            tuple(EDGES.tolist()),
        )

    def _histograms(self, features: NDArray[np.int64]) -> NDArray[np.int64]:
        """All bins ``(n, N_BINS)`` of some features: those that are not stored are empty."""
        first, end = self._octaves
        rows = np.zeros((len(features), N_BINS), np.int64)
        rows[:, 2 * first : 2 * end] = self._histogram[features]
        return rows

    def examples(self, feature: int, k: int = 20) -> tuple[Example, ...]:
        """The strongest token of each of the strongest documents, at most ``k`` (or as many as were kept)."""
        f = self.check(feature)
        stored = self._example_tokens[f]
        if self.count[f] and stored[0] == nobody(stored.dtype):
            raise damaged(self.path, "example_tokens.npy")
        tokens = stored[: max(k, 0)]
        tokens = tokens[tokens != nobody(tokens.dtype)].astype(np.int64)
        peaks = self._example_peaks[f][: len(tokens)]
        if not ((peaks > 0) & (peaks <= self.max[f])).all() or (np.diff(peaks) > 0).any():
            raise damaged(self.path, "example_peaks.npy")
        windows = self._example_windows[f][: len(tokens)].astype(np.float32)
        if not np.isfinite(windows).all():
            raise damaged(self.path, "example_windows.npy")
        return self._at(f, tokens, peaks, windows)

    def sample(self, feature: int) -> tuple[tuple[float, tuple[Example, ...]], ...]:
        """Random active tokens of each octave of activation, as (lower edge, examples), strongest octave first."""
        f = self.check(feature)
        groups = []
        first, end = self._octaves
        all_tokens, all_values = self._sample_tokens[f], self._sample_values[f]
        for octave in range(end - 1, first - 1, -1):
            tokens = all_tokens[octave - first]
            good = tokens != nobody(tokens.dtype)
            if good.any():
                places, values = tokens[good].astype(np.int64), all_values[octave - first][good]
                if not ((values > 0) & (values <= self.max[f])).all():
                    raise damaged(self.path, "sample_values.npy")
                windows = self._windows(f, places, values)
                groups.append((float(EDGES[2 * octave]), self._at(f, places, values, windows)))
        if self.count[f] and not groups and self.settings.sample_per_bin:
            raise damaged(self.path, "sample_tokens.npy")
        return tuple(groups)

    def quantile(self, features: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
        """The share of each feature's own active tokens at or below a value: 0 weak, 1 at its maximum or beyond.

        Exact for a full index. Otherwise from the histogram: exact at the edges
        of bins, and between them the logarithm of activation is taken as spread
        evenly over the bin (or up to the maximum). NaN where the feature was never active.
        """
        ids = self.check_all(features)
        values = np.asarray(values, np.float32)
        if self.full:
            return np.array([self._exact_quantile(f, v) for f, v in zip(ids.tolist(), values, strict=True)], np.float64)
        histogram = self._histograms(ids).astype(np.float64)
        low, high = np.log2(EDGES[:-1].astype(np.float64)), np.log2(EDGES[1:].astype(np.float64))
        top = np.log2(np.maximum(self.max[ids].astype(np.float64), 2.0**-100))[:, None]
        high = np.where(low < top, np.minimum(high, top), high)
        high[:, -1] = np.maximum(high[:, -1], top[:, 0])
        here = np.log2(np.maximum(values.astype(np.float64), 2.0**-100))[:, None]
        share = np.clip((here - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((histogram * share).sum(-1) / histogram.sum(-1))

    def _exact_quantile(self, feature: int, value: np.float32) -> float:
        values = self._of_feature(feature)[1][::-1]  # rising
        if not len(values):
            return float("nan")
        with np.errstate(over="ignore"):
            return float(np.searchsorted(values, value.astype(values.dtype), side="right")) / len(values)

    def _of_feature(self, feature: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Of a full index: the tokens and values of a feature as they are stored, strongest first."""
        low = int(self._feature_ends[feature - 1]) if feature else 0
        high = int(self._feature_ends[feature])
        if high - low != self.count[feature] or high > self._n_active:
            raise damaged(self.path, "feature_ends.npy")
        tokens, values = self._feature_tokens[low:high], self._feature_values[low:high]
        if len(tokens) and int(tokens.max()) >= self.n_tokens:
            raise damaged(self.path, "feature_tokens.npy")
        if not ((values > 0) & (values < np.inf)).all():
            raise damaged(self.path, "feature_values.npy")
        return tokens, values

    def table(self, convention: str = "norm") -> TokenTable:
        """Promoted and suppressed tokens of all features under one convention, in memory (:meth:`pushed`: of one)."""
        if convention not in self._tables:
            arrays = [array.take() for array in self._table(convention)]
            for name, array in zip(FIELDS, arrays, strict=True):
                self._check_pushes(convention, name, array)
            self._tables[convention] = TokenTable(convention, *arrays)
        return self._tables[convention]

    def pushed(self, feature: int, convention: str = "norm") -> tuple[NDArray[Any], ...]:
        """Of one feature, strongest first: ids and values of promoted tokens, then of suppressed, ``(k,)`` each."""
        f = self.check(feature)
        rows = tuple(array[f] for array in self._table(convention))
        for name, row in zip(FIELDS, rows, strict=True):
            self._check_pushes(convention, name, row)
        return rows

    def _check_pushes(self, convention: str, name: str, values: NDArray[Any]) -> None:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise damaged(self.path, f"tokens_of/{convention}/{name}.npy")

    def _table(self, convention: str) -> list[FileArray]:
        """The files of a token table, opened once: who names features as they come asks for it again and again."""
        if (known := self._table_files.get(convention)) is not None:
            return known
        if convention not in self.conventions:
            kept = ", ".join(self.conventions) or "none"
            wanted = one_line(convention, 40)
            raise LensError(f"{called(self.path).capitalize()} has no token table {wanted!r}.", f"It has: {kept}.")
        kinds = ("u", "f", "u", "f")
        arrays = [
            self._map(f"tokens_of/{convention}/{name}", kind, None) for name, kind in zip(FIELDS, kinds, strict=True)
        ]
        if any(array.ndim != 2 or array.shape != (self.width, arrays[0].shape[-1]) for array in arrays):
            raise LensError(f"The token table of {called(self.path)} is damaged.", "Build it again.")
        self._table_files[convention] = arrays
        return arrays

    @cached_property
    def _table_files(self) -> dict[str, list[FileArray]]:
        return {}

    @cached_property
    def _tables(self) -> dict[str, TokenTable]:
        return {}

    def at_token(self, token: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Of a full index: the active features of a token of the corpus and their values, strongest first."""
        self._needs_full()
        if not 0 <= token < self.n_tokens:
            raise LensError(f"There is no token {token} in the index.", f"It has tokens 0..{self.n_tokens - 1}.")
        low = int(self._row_ends[token - 1]) if token else 0
        high = int(self._row_ends[token])
        features, values = self._of_rows(low, high)
        return features.astype(np.uint32), values.astype(np.float32)

    def _of_rows(self, low: int, high: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Of a full index: features and values as they lie by token, of the activations from ``low`` to ``high``."""
        if not 0 <= low <= high <= self._n_active:
            raise damaged(self.path, "row_ends.npy")
        features, values = self._row_features[low:high], self._row_values[low:high]
        if len(features) and int(features.max()) >= self.width:
            raise damaged(self.path, "row_features.npy")
        if not ((values > 0) & (values < np.inf)).all():
            raise damaged(self.path, "row_values.npy")
        return features, values

    def everywhere(self, feature: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Of a full index: all tokens at which a feature is active and its values, strongest first."""
        self._needs_full()
        tokens, values = self._of_feature(self.check(feature))
        return tokens.astype(np.uint32), values.astype(np.float32)

    def kept_co_active(self, feature: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of an index with a table of them: the features that fire with one, and the tokens at which both are active.

        Highest Jaccard index first. Raises :class:`LensError` where there is no such table.
        """
        if not self._n_co_active:
            raise LensError(
                f"{called(self.path).capitalize()} did not keep every activation.",
                "Build it with full=True, or `index --full`.",
            )
        f = self.check(feature)
        ids, counts = (array[f] for array in self._co_active)
        taken = ids != nobody(ids.dtype)
        ids, counts = ids[taken].astype(np.int64), counts[taken].astype(np.int64)
        if len(ids) and (ids.max() >= self.width or (ids == f).any()):
            raise damaged(self.path, "co_active_ids.npy")
        if ((counts < 1) | (counts > np.minimum(self.count[ids], self.count[f]))).any():
            raise damaged(self.path, "co_active_counts.npy")
        return ids, counts

    def features_at(self, tokens: NDArray[Any]) -> NDArray[np.uint32]:
        """Of a full index: the active features of many tokens, one after the other."""
        self._needs_full()
        tokens = np.asarray(tokens, np.int64)
        end = self._row_ends[tokens].astype(np.int64)
        begin = np.where(tokens > 0, self._row_ends[np.maximum(tokens - 1, 0)].astype(np.int64), 0)
        length = end - begin
        if (length < 0).any() or (end > self._n_active).any():
            raise damaged(self.path, "row_ends.npy")
        place = np.arange(length.sum()) + np.repeat(begin - (np.cumsum(length) - length), length)
        found = self._row_features[place]
        if len(found) and int(found.max()) >= self.width:
            raise damaged(self.path, "row_features.npy")
        return np.asarray(found, np.uint32)

    def verify(self) -> None:
        """Read every file and compare it with its checksum; raises :class:`LensError` for the first that differs."""
        for name, expected in self.manifest.get("files", {}).items():
            digest = hashlib.blake2b(digest_size=16)
            file_path = place_of(self.path, self.manifest, str(name).removesuffix(".npy"))
            with explained(file_path, "Build it again."), open_regular(file_path) as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            if digest.hexdigest() != expected:
                raise damaged(self.path, str(name))

    def check(self, feature: int) -> int:
        """``feature`` as an int, if the SAE has it."""
        f = int(feature)
        if not 0 <= f < self.width:
            raise LensError(f"There is no feature {f} in this index.", f"It has features 0..{self.width - 1}.")
        return f

    def check_all(self, features: NDArray[Any]) -> NDArray[np.int64]:
        """Feature ids as an int64 array, if the SAE has them all."""
        ids = np.asarray(features).astype(np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.width):
            raise LensError("A feature id is out of range.", f"The index has features 0..{self.width - 1}.")
        return ids

    def _at(
        self, feature: int, tokens: NDArray[np.int64], peaks: NDArray[np.float32], windows: NDArray[np.float32]
    ) -> tuple[Example, ...]:
        if len(tokens) and tokens.max() >= self.n_tokens:
            raise LensError(f"{called(self.path).capitalize()} is damaged: an example lies outside the corpus.")
        before, after = self.settings.before, self.settings.after
        sequence = np.searchsorted(self._starts, tokens, side="right") - 1
        begin = self._starts[sequence]
        following = np.minimum(sequence + 1, len(self._starts) - 1)
        end = np.where(sequence + 1 < len(self._starts), self._starts[following], self.n_tokens).astype(np.int64)
        low, high = np.maximum(tokens - before, begin), np.minimum(tokens + after + 1, end)
        columns = zip(
            tokens.tolist(),
            peaks.tolist(),
            self._documents[sequence].tolist(),
            (self._offsets[sequence] + tokens - begin).tolist(),
            low.tolist(),
            high.tolist(),
            windows,
            strict=False,
        )
        return tuple(
            Example(feature, t, d, o, v, t - a, self.tokens[a:b].astype(np.uint32), w[a - t + before : b - t + before])
            for t, v, d, o, a, b, w in columns
        )

    def _windows(self, feature: int, tokens: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The feature around tokens: from the activations by token, or NaN but at the token itself."""
        before = self.settings.before
        if not self.full:
            windows = np.full((len(tokens), self.settings.window), np.nan, np.float32)
            windows[:, before] = values
            return windows
        windows = np.zeros((len(tokens), self.settings.window), np.float32)
        for window, token in zip(windows, tokens.tolist(), strict=True):
            low, high = max(token - before, 0), min(token + self.settings.after + 1, self.n_tokens)
            first = int(self._row_ends[low - 1]) if low else 0
            ends = self._row_ends[low:high].astype(np.int64)
            features, found = self._of_rows(first, int(ends[-1]))
            hits = np.flatnonzero(features == feature)
            if (np.diff(ends, prepend=first) < 0).any():
                raise damaged(self.path, "row_ends.npy")
            window[np.searchsorted(ends, hits + first, side="right") + low - token + before] = found[hits]
        return windows

    def _needs_full(self) -> None:
        if not self.full:
            raise LensError(
                f"{called(self.path).capitalize()} did not keep every activation.",
                "Build it with full=True, or `index --full`.",
            )

    def _map(self, name: str, kind: Any, shape: tuple[int, ...] | None) -> FileArray:
        return open_array(self.path, self.manifest, name, kind, shape)


def _typed(kind: Any, given: Any) -> Any:
    """A record of strings, whole numbers and flags, each of the type that its field has. Raises ``ValueError``."""
    made = kind(**given)
    for item in fields(kind):
        value, wanted = getattr(made, item.name), {"str": str, "int": int, "bool": bool}[str(item.type)]
        if type(value) is not wanted:
            raise ValueError(f"{item.name} is of another type")
    texts = {name: one_line(value, 400) for name, value in given.items() if isinstance(value, str)}
    return kind(**{**given, **texts})


def _whole(manifest: dict[str, Any], name: str, most: int = 1 << 53) -> int:
    value = manifest[name]
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {one_line(repr(value), 30)}")
    return value


@dataclass(frozen=True, slots=True)
class Description:
    """``promotes`` and ``peaks_on`` are tokens, safe to show; ``convention`` says how the first were found.

    Made by counting, without any language model: ``text`` begins with ``auto:``
    so that it is never taken for somebody's label.
    """

    feature: int
    promotes: tuple[str, ...]
    peaks_on: tuple[str, ...]
    convention: str
    n_examples: int

    @property
    def text(self) -> str:
        """One line, for a list."""
        if not self.n_examples and not self.promotes:
            return "auto: never active in the corpus"
        peaks = "peaks on " + _listed(self.peaks_on) if self.peaks_on else "never active in the corpus"
        return f"auto: {peaks}" + (f" · promotes {_listed(self.promotes)}" if self.promotes else "")


def describe(
    index: FeatureIndex, feature: int, token_text: Callable[[int], str], *, convention: str = "", n: int = 3
) -> Description:
    """The tokens a feature promotes and the tokens its top examples peak on (most frequent first), ``n`` of each.

    ``token_text`` is the tokenizer's; ``convention`` defaults to the index's first.
    """
    examples = index.examples(feature)
    peaks = Counter(sanitise_token(token_text(int(example.token_ids[example.peak]))) for example in examples)
    promotes: tuple[str, ...] = ()
    convention = convention or next(iter(index.conventions), "")
    if convention:
        ids = index.pushed(feature, convention)[0][:n]
        promotes = tuple(sanitise_token(token_text(int(token))) for token in ids)
    return Description(
        int(feature), promotes, tuple(text for text, _ in peaks.most_common(n)), convention, len(examples)
    )


def _listed(tokens: tuple[str, ...]) -> str:
    return ", ".join(f"‘{token}’" for token in tokens)
