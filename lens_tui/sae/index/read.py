"""An index on disk, memory-mapped: opens at once whatever its size, needs NumPy alone, answers in well under 1 ms."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

from .arrays import WHOLE, inside, nobody, octaves_of, open_array, read_manifest
from .settings import EDGES, N_BINS, Identity, IndexSettings
from .tables import FIELDS, TokenTable


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
            self.identity = Identity(**self.manifest["identity"])
            self.settings = IndexSettings(**self.manifest["settings"])
            self.n_tokens = int(self.manifest["n_tokens"])
            self.n_counted = int(self.manifest["n_counted"])
            self.notes = tuple(str(note) for note in self.manifest["notes"])
            self.conventions = tuple(str(name) for name in self.manifest["conventions"])
            self._octaves = octaves_of(self.manifest)
        except (KeyError, TypeError, ValueError) as error:
            raise LensError(f"The manifest of the index {self.path.name} is damaged.", "Build it anew.") from error
        self._open()

    def _open(self) -> None:
        width, k, window = self.width, self.settings.top_k, self.settings.window
        self.count: NDArray[np.int64] = self._map("count", WHOLE, (width,)).astype(np.int64)
        self.max = self._map("max", np.float32, (width,))
        self._sum = self._map("sum", np.float64, (width,))
        self._sumsq = self._map("sumsq", np.float64, (width,))
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
        self._starts = self._map("sequence_starts", "u", None)
        self._documents = self._map("sequence_documents", "u", self._starts.shape)
        self._offsets = self._map("sequence_offsets", np.int64, self._starts.shape)
        self._open_full()

    def _open_full(self) -> None:
        if not self.full:
            return
        n = int(self.manifest["n_active"])
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
        """Whether every activation was kept, so that co-activation and whole tokens can be asked for."""
        return self.settings.full

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """Share of counted tokens at which each feature is active, ``(width,)``."""
        return self.count / max(self.n_counted, 1)

    def statistics(self, feature: int) -> FeatureStatistics:
        """The numbers of one feature."""
        f = self.check(feature)
        count = int(self.count[f])
        mean = float(self._sum[f]) / count if count else 0.0
        variance = float(self._sumsq[f]) / count - mean * mean if count else 0.0
        return FeatureStatistics(
            f,
            count,
            count / max(self.n_counted, 1),
            float(self.max[f]),
            mean,
            max(variance, 0.0) ** 0.5,
            tuple(self._histograms(np.array([f]))[0].tolist()),
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
        tokens = self._example_tokens[f, : max(k, 0)]
        tokens = tokens[tokens != nobody(tokens.dtype)].astype(np.int64)
        windows = self._example_windows[f, : len(tokens)].astype(np.float32)
        return self._at(f, tokens, self._example_peaks[f], windows)

    def sample(self, feature: int) -> tuple[tuple[float, tuple[Example, ...]], ...]:
        """Random active tokens of each octave of activation, as (lower edge, examples), strongest octave first."""
        f = self.check(feature)
        groups = []
        first, end = self._octaves
        for octave in range(end - 1, first - 1, -1):
            tokens = self._sample_tokens[f, octave - first]
            good = tokens != nobody(tokens.dtype)
            if good.any():
                places, values = tokens[good].astype(np.int64), self._sample_values[f, octave - first][good]
                windows = self._windows(f, places, values)
                groups.append((float(EDGES[2 * octave]), self._at(f, places, values, windows)))
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
        values = self._feature_values[self._span(feature)][::-1]  # rising
        if not len(values):
            return float("nan")
        with np.errstate(over="ignore"):
            return float(np.searchsorted(values, value.astype(values.dtype), side="right")) / len(values)

    def _span(self, feature: int) -> slice:
        return slice(int(self._feature_ends[feature - 1]) if feature else 0, int(self._feature_ends[feature]))

    def table(self, convention: str = "norm") -> TokenTable:
        """Promoted and suppressed tokens of all features under one convention."""
        if convention not in self.conventions:
            kept = ", ".join(self.conventions) or "none"
            raise LensError(f"The index {self.path.name} has no token table {convention!r}.", f"It has: {kept}.")
        if convention not in self._tables:
            kinds = ("u", "f", "u", "f")
            arrays = [
                self._map(f"tokens_of/{convention}/{name}", kind, None)
                for name, kind in zip(FIELDS, kinds, strict=True)
            ]
            if any(len(array) != self.width for array in arrays):
                raise LensError(f"The token table of the index {self.path.name} is damaged.", "Build it anew.")
            self._tables[convention] = TokenTable(convention, *arrays)
        return self._tables[convention]

    @cached_property
    def _tables(self) -> dict[str, TokenTable]:
        return {}

    def at_token(self, token: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Of a full index: the active features of a token of the corpus and their values, strongest first."""
        self._needs_full()
        if not 0 <= token < self.n_tokens:
            raise LensError(f"There is no token {token} in the index.", f"It has tokens 0..{self.n_tokens - 1}.")
        span = slice(int(self._row_ends[token - 1]) if token else 0, int(self._row_ends[token]))
        return self._row_features[span].astype(np.uint32), self._row_values[span].astype(np.float32)

    def everywhere(self, feature: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Of a full index: all tokens at which a feature is active and its values, strongest first."""
        self._needs_full()
        span = self._span(self.check(feature))
        return self._feature_tokens[span].astype(np.uint32), self._feature_values[span].astype(np.float32)

    def features_at(self, tokens: NDArray[Any]) -> NDArray[np.uint32]:
        """Of a full index: the active features of many tokens, one after the other."""
        self._needs_full()
        tokens = np.asarray(tokens, np.int64)
        end = self._row_ends[tokens].astype(np.int64)
        begin = np.where(tokens > 0, self._row_ends[np.maximum(tokens - 1, 0)].astype(np.int64), 0)
        length = end - begin
        place = np.arange(length.sum()) + np.repeat(begin - (np.cumsum(length) - length), length)
        return np.asarray(self._row_features[place], np.uint32)

    def verify(self) -> None:
        """Read every file and compare it with its checksum; raises :class:`LensError` for the first that differs."""
        for name, expected in self.manifest["files"].items():
            digest = hashlib.blake2b(digest_size=16)
            with inside(self.path, str(name)).open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            if digest.hexdigest() != expected:
                raise LensError(f"The file {name} of the index {self.path.name} is damaged.", "Build it anew.")

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
            raise LensError(f"The index {self.path.name} is damaged: an example lies outside the corpus.")
        before, after = self.settings.before, self.settings.after
        sequence = np.searchsorted(self._starts, tokens, side="right") - 1
        begin = self._starts[sequence].astype(np.int64)
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
            hits = np.flatnonzero(self._row_features[first : int(self._row_ends[high - 1])] == feature) + first
            at = np.searchsorted(self._row_ends[low:high], hits, side="right")
            window[at + low - token + before] = self._row_values[hits]
        return windows

    def _needs_full(self) -> None:
        if not self.full:
            raise LensError(f"The index {self.path.name} did not keep every activation.", "Build it with full=True.")

    def _map(self, name: str, kind: Any, shape: tuple[int, ...] | None) -> NDArray[Any]:
        return open_array(self.path, self.manifest, name, kind, shape)
