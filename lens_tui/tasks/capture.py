"""Capture a data set: activations of every token of a text on disk, in shards, in bounded memory, resumable.

The folder holds ``capture.json`` and ``shard-00000.safetensors``, ``shard-00001.safetensors`` and so on. A shard has,
token after token, ``token_ids``, ``documents`` (the number of the text), ``offsets`` (the place in that text, -1 for
BOS), ``special`` (BOS and other special tokens), and for each layer and site ``layer.4.resid_post``
``(tokens, width)`` in the model's dtype. Runs on the model's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui.records import Intervention, LensError
from lens_tui.records.codec import to_json
from lens_tui.records.disk import remove_leftovers, write_json, write_with
from lens_tui.records.read_files import FileAbsent, read_json
from lens_tui.records.remote import OutFolder
from lens_tui.records.sanitise import one_line
from lens_tui.records.training import ActivationBlock, Place

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.lens.read.activations import TextActivations

FORMAT = 1
MANIFEST = "capture.json"
SHARD_BYTES = 1 << 28
"""Bytes of activations of a shard: it is written once it holds as many."""


@dataclass(frozen=True, slots=True)
class CaptureProgress:
    """How far it is: windows read so far and in all, tokens kept, tokens a second of this sitting."""

    block: int
    n_blocks: int
    n_tokens: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """What is in the folder; ``stopped``: it goes on from there when asked again.

    ``shards`` are the files in order, ``tensors`` the names of what they hold of each token, ``n_tokens`` counts BOS
    and other special tokens too.
    """

    folder: str
    shards: tuple[str, ...]
    tensors: tuple[str, ...]
    n_tokens: int
    stopped: bool


def capture_texts(
    model: LensModel,
    text: str | Path,
    out: str | Path,
    places: Sequence[Place],
    *,
    interventions: Sequence[Intervention] = (),
    context: int = 256,
    rows: int = 32,
    max_tokens: int | None = None,
    text_key: str = "text",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[CaptureProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CaptureReport:
    """Write the activations of every token of a text to a folder.

    Windows are of one document each, in the order of the corpus. Stopped or killed, the same call goes on behind the
    last shard that was written; of one that is finished nothing is computed again.

    Args:
        model: the model.
        text: a folder, a ``.txt`` or a ``.jsonl`` file; an address of fsspec (``s3://...``) as ``str``.
        out: the folder to write to, or its address, where each shard goes once it is full.
        places: layers (negative ones count from the end) and sites.
        interventions: what acts while it reads; positions count from the end of each window.
        context: tokens in a window, BOS included.
        rows: windows in a forward pass.
        max_tokens: read about this many tokens of the text, documents drawn at random; by default all.
        text_key: in JSONL, the key that holds the text.
        shard_bytes: bytes of activations that a shard holds before it is written.
        progress: called as it goes.
        should_stop: asked between forward passes.

    Raises:
        LensError: for a place the model lacks, a text that cannot be read, a folder with another capture in it, and
            what memory cannot hold.
    """
    from lens_tui.lens.read.activations import Windowing, text_activations

    check_memory(model, places, rows * context, shard_bytes)
    windowing = Windowing(context=context, rows=rows, packed=False, shuffle=False)
    source, _ = text_activations(model, text, places, max_tokens=max_tokens, text_key=text_key, windowing=windowing)
    folder = OutFolder(out)
    held = taken_up(folder, facts_of(source, model, interventions, rows, shard_bytes))
    with model.intervene(*interventions):
        stopped = _read(source, folder, held, shard_bytes, progress, should_stop)
    return report_of(folder, held, source.places, stopped)


def report_of(folder: OutFolder, held: Mapping[str, Any], places: Sequence[Place], stopped: bool) -> CaptureReport:
    """What a manifest says is in its folder."""
    shards = tuple(f"{folder.name if folder.remote else folder.local}/{shard['file']}" for shard in held["shards"])
    names = ("token_ids", "documents", "offsets", "special", *(name_of(place) for place in places))
    return CaptureReport(folder.name if folder.remote else str(folder.local), shards, names, _tokens(held), stopped)


def name_of(place: Place) -> str:
    """What a shard calls the activations of a layer and site."""
    return f"layer.{place[0]}.{place[1]}"


def shard_file(number: int) -> str:
    """What the file of a shard is called."""
    return f"shard-{number:05d}.safetensors"


def _read(
    source: TextActivations,
    folder: OutFolder,
    held: dict[str, Any],
    shard_bytes: int,
    progress: Callable[[CaptureProgress], None] | None,
    should_stop: Callable[[], bool],
) -> bool:
    """Read on from where the manifest ends, shard by shard; whether it was stopped before the end."""
    begun, before, seen = time.monotonic(), _tokens(held), 0
    for number, (first, end) in shard_spans(source, held, shard_bytes).items():
        waiting: list[ActivationBlock] = []
        stop = False
        for block in source.blocks(first, end):
            waiting.append(on_host(block))
            seen += len(block.token_ids)
            if progress:
                rate = seen / max(time.monotonic() - begun, 1e-9)
                progress(CaptureProgress(block.index + 1, source.n_blocks, before + seen, rate))
            if stop := should_stop():
                break
        held["shards"].append(write_shard(folder, number, waiting))
        write_manifest(folder, held)
        if stop:
            return waiting[-1].index + 1 < source.n_blocks
    return False


def shard_spans(source: TextActivations, held: Mapping[str, Any], shard_bytes: int) -> dict[int, tuple[int, int]]:
    """By number, the blocks of every shard that is to come, first and the one to end before.

    A shard ends with the block that fills it. One that was stopped before stays as it is, and the next begins behind.
    """
    per_token = sum(place["width"] for place in held["places"]) * source.itemsize
    number, first = len(held["shards"]), sum(shard["blocks"] for shard in held["shards"])
    found, begin, size = {}, first, 0
    for block, tokens in enumerate(source.sizes().tolist()[first:], first):
        size += tokens * per_token
        if size >= shard_bytes or block + 1 == source.n_blocks:
            found[number] = (begin, block + 1)
            number, begin, size = number + 1, block + 1, 0
    return found


def on_host(block: ActivationBlock) -> ActivationBlock:
    """The block with its activations computed, so that nothing of the forward that made them is held."""
    import mlx.core as mx

    mx.eval(list(block.values.values()))
    return block


def write_shard(folder: OutFolder, number: int, blocks: Sequence[ActivationBlock]) -> dict[str, Any]:
    """Write some blocks as a shard, and give what the manifest says of it.

    The manifest is written behind it: killed in between, the shard is written again.
    """
    import mlx.core as mx

    name = shard_file(number)
    arrays = {
        part: mx.array(np.concatenate([getattr(block, part) for block in blocks]))
        for part in ("token_ids", "documents", "offsets", "special")
    }
    for place in blocks[0].values:
        arrays[name_of(place)] = mx.concatenate([block.values[place] for block in blocks])
    write_with(folder.local / name, lambda file: mx.save_safetensors(file, arrays))
    folder.keep(name, drop=True)
    return {"file": name, "blocks": len(blocks), "tokens": sum(len(block.token_ids) for block in blocks)}


def write_manifest(folder: OutFolder, held: Mapping[str, Any]) -> None:
    """Write what is in the folder."""
    write_json(folder.local / MANIFEST, held)
    folder.keep(MANIFEST)


def _tokens(held: Mapping[str, Any]) -> int:
    return sum(shard["tokens"] for shard in held["shards"])


def facts_of(
    source: TextActivations, model: LensModel, interventions: Sequence[Intervention], rows: int, shard_bytes: int
) -> dict[str, Any]:
    """What decides every number of the capture; the same call gives the same."""
    facts = source.facts
    return {
        "format": FORMAT,
        "model": facts.model_name,
        "precision": model.info.quantization or model.info.dtype,
        "weights": model.info.weights,
        "places": [
            {"layer": layer, "site": site, "width": source.d_model((layer, site)), "tensor": name_of((layer, site))}
            for layer, site in source.places
        ],
        "interventions": to_json(tuple(interventions)),
        "corpus": dict(facts.extra).get("corpus", ""),
        "corpus_sha256": facts.corpus_sha256,
        "documents": facts.n_documents,
        "context": facts.context,
        "bos": facts.bos,
        "rows": rows,
        "blocks": source.n_blocks,
        "shard_bytes": shard_bytes,
    }


def taken_up(folder: OutFolder, facts: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the folder, whose shards are all there, or a new one."""
    folder.fetch(MANIFEST)
    try:
        found = read_json(folder.local / MANIFEST)
    except FileAbsent:
        if folder.local.exists() and any(folder.local.glob("*.safetensors")):
            raise LensError(f"{one_line(folder.local.name, 80)} holds other files.", "Give a new folder.") from None
        return {**facts, "shards": []}
    if not isinstance(found, dict) or not isinstance(shards := found.pop("shards", None), list):
        raise LensError(f"{MANIFEST} in {folder.name} is damaged.", "Give a new folder.")
    if found != facts:
        wrong = next((key for key in facts if found.get(key) != facts[key]), "what it says of itself")
        raise LensError(f"{folder.name} holds another capture: they differ in {wrong}.", "Give a new folder.")
    remove_leftovers(folder.local)
    return {**facts, "shards": list(whole_shards(folder, shards))}


def whole_shards(folder: OutFolder, shards: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The shards that a manifest names, up to the first one that is not there."""
    for number, shard in enumerate(shards):
        good = isinstance(shard, dict) and shard.get("file") == shard_file(number)
        counts = [shard.get(key) for key in ("blocks", "tokens")] if good else []
        if not good or not all(type(count) is int and count > 0 for count in counts):
            raise LensError(f"{MANIFEST} in {folder.name} is damaged.", "Give a new folder.")
        if not folder.has(shard["file"]):
            return
        yield shard


def check_memory(model: LensModel, places: Sequence[Place], tokens: int, shard_bytes: int) -> None:
    """The activations of one forward, and twice a shard: the blocks that wait, and what is written of them."""
    from lens_tui.lens.room import memory_left, refuse_above

    registry = model.registry
    read = sum(registry.sites.point(registry.decoder.index(layer), site).width for layer, site in set(places))
    refuse_above(
        memory_left,
        tokens * read * registry.decoder.dtype.size + 2 * shard_bytes,
        f"A capture of {len(set(places))} places over {tokens:,} tokens at a time, in shards of {shard_bytes:,} bytes,",
        "Lower rows or shard_bytes, or capture fewer layers.",
    )
