"""Train from a capture on disk: its shards as a source of activations, and the text in it to measure on."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.lens.read.activations import TextActivations, Windowing, public_name, store_of
from lens_tui.records import LensError
from lens_tui.records.read_files import FileAbsent, explained, read_json
from lens_tui.records.remote import OutFolder, is_remote, written_to
from lens_tui.records.training import (
    ActivationBlock,
    Place,
    SourceFacts,
    Splice,
    TrainConfig,
    TrainProgress,
    TrainReport,
)

from .capture import MANIFEST, name_of, whole_shards
from .train import named, places_of, train_on

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel

_REMAINDER = 7


def is_capture(path: str | Path) -> bool:
    """Whether this is a folder, or the address of one, that ``capture`` wrote."""
    return (is_remote(path) or Path(path).is_dir()) and OutFolder(path).has(MANIFEST)


class CapturedActivations:
    """The shards of a capture as blocks of activations, in another order in each pass.

    A block is a whole shard: so much is in memory at a time. The order of a pass depends on ``seed`` and its number
    alone. Documents that are held out count as special. Losses are those over the text that is measured on.

    Args:
        folder: a capture that is whole, or its address.
        held_out: every ``held_out``-th document is not learnt from (0: all are).
        seed: of the order.

    Raises:
        LensError: for a folder that is no capture, or is not finished, or was captured under a steering.
    """

    def __init__(self, folder: str | Path, *, held_out: int = 0, seed: int = 0) -> None:
        self._folder, self._held_out, self._seed = OutFolder(folder), held_out, seed
        self.manifest = _manifest(self._folder)
        self._shards = [str(shard["file"]) for shard in self.manifest["shards"]]
        rows = self.manifest["places"]
        self._widths = {(int(row["layer"]), str(row["site"])): int(row["width"]) for row in rows}
        self._places = tuple(self._widths)
        self.measured: TextActivations | None = None
        self._facts = self._found()

    @property
    def places(self) -> tuple[Place, ...]:
        """The layers and sites that were captured, or those of them that are read."""
        return self._places

    @property
    def facts(self) -> SourceFacts:
        """What this source is."""
        return self._facts

    def d_model(self, place: Place) -> int:
        """The width of the activations at a place."""
        return self._widths[place]

    @property
    def n_blocks(self) -> int:
        """Shards."""
        return len(self._shards)

    def at(self, places: Sequence[Place]) -> CapturedActivations:
        """The same capture, read at some of its places. Raises ``LensError`` for one that was not captured."""
        for layer, site in places:
            if (layer, site) not in self._widths:
                raise LensError(
                    f"{site} of layer {layer} is not in the capture {self._folder.name}.",
                    "It has " + ", ".join(f"{name} of layer {number}" for number, name in list(self._widths)[:8]) + ".",
                )
        made = copy.copy(self)
        made._places = tuple(dict.fromkeys(places))
        return made

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
        """Shards from ``start`` on, pass after pass. Values ``(n, d)`` in the model's dtype, read as they are used."""
        index = start
        while stop is None or index < stop:
            number, place = divmod(index, self.n_blocks)
            order = np.random.Generator(np.random.PCG64([self._seed, number])).permutation(self.n_blocks)
            arrays = self._load(int(order[place]), [name_of(one) for one in self._places])
            ids, documents, offsets, special = (
                np.array(arrays[name]) for name in ("token_ids", "documents", "offsets", "special")
            )
            left_out = special.astype(bool) | self._held(documents)
            values = {one: arrays[name_of(one)] for one in self._places}
            yield ActivationBlock(index, ids, documents, offsets, left_out, values)
            index += 1

    def loss_with(self, place: Place, splice: Splice | None, blocks: int, *, read: Place | None = None) -> float:
        """Mean cross-entropy over the first blocks of the text that is measured on: a capture holds no model."""
        if self.measured is None:
            raise LensError("A capture holds no model to measure a loss with.", "Give one to measure on.")
        return self.measured.loss_with(place, splice, blocks, read=read)

    def documents(self, tokens: int) -> list[tuple[int, NDArray[np.int32]]]:
        """Documents to measure on, by number, with their tokens without BOS, until there are as many tokens.

        They are those held out, or the first ones where none is.
        """
        return self._documents(tokens, held=True) or self._documents(tokens, held=False)

    def _documents(self, tokens: int, *, held: bool) -> list[tuple[int, NDArray[np.int32]]]:
        parts: dict[int, list[NDArray[np.int32]]] = {}
        found = 0
        for number in range(self.n_blocks):
            arrays = self._load(number, [])
            ids, documents, offsets = (np.array(arrays[name]) for name in ("token_ids", "documents", "offsets"))
            kept = offsets >= 0
            if held:
                kept &= self._held(documents)
            for document in np.unique(documents[kept]).tolist():
                mine = ids[kept & (documents == document)].astype(np.int32)
                parts.setdefault(document, []).append(mine)
                found += len(mine)
            if found >= tokens:
                break
        return [(number, np.concatenate(each)) for number, each in sorted(parts.items())]

    def _held(self, documents: NDArray[Any]) -> NDArray[np.bool_]:
        every = self._held_out
        return documents % every == min(_REMAINDER, every - 1) if every else np.zeros(len(documents), bool)

    def _load(self, number: int, names: Sequence[str]) -> dict[str, mx.array]:
        """The facts of each token of a shard and some activations; of a remote shard nothing stays here."""
        name = self._shards[number]
        self._folder.fetch(name)
        file = self._folder.local / name
        with explained(file):
            loaded: Any = mx.load(str(file))
            arrays: dict[str, mx.array] = {
                key: loaded[key] for key in ("token_ids", "documents", "offsets", "special", *names)
            }
            if self._folder.remote:
                mx.eval(arrays)
                file.unlink()
        return arrays

    def _found(self) -> SourceFacts:
        """The facts; every shard's marks are counted once."""
        counted, seen = 0, set()
        for number in range(self.n_blocks):
            arrays = self._load(number, [])
            documents = np.array(arrays["documents"])
            left_out = np.array(arrays["special"]).astype(bool) | self._held(documents)
            counted += int((~left_out).sum())
            seen |= set(np.unique(documents[~left_out]).tolist())
        manifest = self.manifest
        shards = hashlib.sha256(json.dumps(manifest["shards"], sort_keys=True).encode()).hexdigest()[:16]
        return SourceFacts(
            model_name=str(manifest["model"]),
            corpus_sha256=str(manifest["corpus_sha256"]),
            n_documents=len(seen),
            n_tokens=counted,
            context=int(manifest["context"]),
            bos=bool(manifest["bos"]),
            skipped=1,
            packed=False,
            seed=self._seed,
            extra=(
                ("precision", str(manifest["precision"])),
                ("corpus", str(manifest["corpus"])),
                ("capture", shards),
                ("held_out", str(self._held_out)),
            ),
        )


def _manifest(folder: OutFolder) -> dict[str, Any]:
    """What a capture says of itself, checked."""
    folder.fetch(MANIFEST)
    hint = "Give a folder that `capture` wrote."
    try:
        found = read_json(folder.local / MANIFEST)
        shards = list(whole_shards(folder, found["shards"]))
        blocks = sum(shard["blocks"] for shard in shards)
        if blocks != found["blocks"] or not shards or len(shards) != len(found["shards"]):
            raise LensError(f"The capture in {folder.name} is not finished.", "Run `capture` again to continue it.")
        for row in found["places"]:
            int(row["layer"]), str(row["site"]), int(row["width"])
        for key in ("model", "corpus_sha256", "context", "bos", "precision", "corpus", "interventions"):
            found[key]
    except FileAbsent:
        raise LensError(f"There is no capture in {folder.name}.", hint) from None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, LensError):
            raise
        raise LensError(f"{MANIFEST} in {folder.name} is damaged.", hint) from None
    if found["interventions"]:
        raise LensError(f"{folder.name} was captured under a steering.", "Train on a capture of the plain model.")
    return dict(found)


def train_on_capture(
    model: LensModel,
    folder: str | Path,
    out: str | Path,
    config: TrainConfig,
    *,
    layer: int,
    site: str = "resid_post",
    rows: int = 32,
    held_out: int = 40,
    progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    checkpoint_seconds: float = 60.0,
) -> TrainReport:
    """Train an SAE, or a transcoder, on what :func:`lens_tui.tasks.capture.capture_texts` wrote, or a cluster did.

    The model computes nothing but the measurements, over the documents that are held out. The same capture, settings
    and seed give the same SAE, whoever captured it.

    Args:
        model: the model that was captured.
        folder: the capture, or its address, from which shards are then fetched as they are needed.
        out, config, layer, site, progress, should_stop, checkpoint_seconds: as for
            :func:`lens_tui.tasks.train.train_sae`. The site has to be in the capture.
        rows: windows in a forward pass of the measurements.
        held_out: every ``held_out``-th document is measured on and not trained on (0: all are trained on).

    Raises:
        LensError: for what is no finished capture of this model at this place, and as ``train_sae``.
    """
    source = CapturedActivations(folder, held_out=held_out, seed=config.seed)
    _check_model(model, source.manifest)
    place, place_out = places_of(model, config, layer, site)
    source = source.at([place] if place_out is None else [place, place_out])
    source.measured = measured = _measured(model, source, config, rows)
    with written_to(out) as local:
        report = train_on(
            model, (source, measured), local, config, place, place_out,
            progress=progress, should_stop=should_stop, checkpoint_seconds=checkpoint_seconds,
        )  # fmt: skip
    return named(report, out)


def _check_model(model: LensModel, manifest: Mapping[str, Any]) -> None:
    if (name := public_name(model.info.name)) != manifest["model"]:
        raise LensError(f"The capture is of {manifest['model']}, and the model is {name}.", "Open the model captured.")


def _measured(model: LensModel, source: CapturedActivations, config: TrainConfig, rows: int) -> TextActivations:
    """The text to measure on, read by the model itself."""
    facts = source.facts
    windowing = Windowing(context=facts.context, rows=rows, packed=False, shuffle=False, bos=facts.bos)
    store = store_of(source.documents(2 * config.evaluation_tokens), None)
    return TextActivations(model, store, source.places, windowing, model_name=facts.model_name,
                           corpus_sha256=facts.corpus_sha256)  # fmt: skip
