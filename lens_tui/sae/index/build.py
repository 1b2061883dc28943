"""One streaming pass over a corpus for one or several SAEs: resumable, in shards, in bounded memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lens_tui.records import LensError
from lens_tui.records.training import ActivationSource, Place

from .finish import finish, remove_leftovers
from .index_settings import Identity, IndexSettings, index_key
from .tables import Encoder, TokenTable, block_columns, encode_block
from .tally import IndexPart


@dataclass(frozen=True, slots=True)
class Target:
    """An SAE to index: the SAE, where it reads, and what identifies it.

    ``sae`` is the name labels and jobs know it by (``SAEInfo.id``); hashes are
    of contents (``records.fingerprint``). ``corpus`` is what the corpus is called;
    its files' name if it is empty. ``tables`` are promoted and suppressed tokens to be
    kept with the index.
    """

    encoder: Encoder
    place: Place
    width: int
    sae: str
    sae_hash: str = ""
    model_hash: str = ""
    precision: str = ""
    corpus: str = ""
    tables: Sequence[TokenTable] = ()


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far the pass is: tokens seen now, tokens a second, seconds left (``None``: not known yet).

    ``total_tokens`` counts the tokens of a whole pass that are not special.
    """

    stage: str
    block: int
    n_blocks: int
    n_tokens: int
    tokens_per_s: float
    seconds_left: float | None
    total_tokens: int = 0


@dataclass(frozen=True, slots=True)
class BuildResult:
    """``indexes`` are finished folders, ``parts`` working folders still to be merged or taken up again."""

    stopped: bool
    indexes: tuple[Path, ...] = ()
    parts: tuple[Path, ...] = ()


@dataclass(slots=True)
class _Clock:
    total: int
    report: Callable[[IndexProgress], None] | None
    total_tokens: int = 0
    begun: float = field(default_factory=time.monotonic)
    tokens: int = 0
    blocks: int = 0

    def tick(self, block: int, n: int) -> None:
        self.tokens += n
        self.blocks += 1
        seconds = max(time.monotonic() - self.begun, 1e-9)
        left = (self.total - block - 1) * seconds / self.blocks
        if self.report:
            self.report(
                IndexProgress(
                    "read", block + 1, self.total, self.tokens, self.tokens / seconds, left, self.total_tokens
                )
            )


def build_index(
    source: ActivationSource,
    targets: Sequence[Target],
    out: Path | str,
    settings: IndexSettings | None = None,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[IndexProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 60.0,
) -> BuildResult:
    """Index one pass of ``source`` with every target; each index is the folder ``out/<key>``.

    With ``shard=(i, n)`` only the i-th of n runs of blocks is read, and the
    folders ``out/<key>.part-<i>-of-<n>`` are left for :func:`merge_parts`. If
    stopped or killed, the same call continues from the last checkpoint (at most
    ``checkpoint_seconds`` are lost). An index that exists already is not built
    again. Raises :class:`LensError` for a bad shard, for residuals the SAE does
    not fit, and for a folder that holds something else.
    """
    settings = settings or IndexSettings()
    number, of = check_shard(shard)
    if not targets:
        raise LensError("There is no SAE to index.", "Give at least one.")
    total = source.n_blocks
    span = (total * number // of, total * (number + 1) // of, total)
    folders = keys_of(source, targets, settings)
    root = Path(out)
    todo = {key: pair for key, pair in folders.items() if not (root / key / "manifest.json").exists()}
    parts = {key: root / part_name(key, shard) for key in todo}
    with ExitStack() as stack:
        open_parts = [
            (todo[key][0], stack.enter_context(IndexPart(folder, todo[key][1], settings, span)))
            for key, folder in parts.items()
        ]
        complete = _read(
            source, open_parts, _Clock(span[1], progress, source.facts.n_tokens), should_stop, checkpoint_seconds
        )
        if not complete or of > 1:
            return BuildResult(not complete, (), tuple(parts.values()))
        for key, folder in parts.items():  # the parts are still locked: nobody else finishes them
            if progress:
                progress(IndexProgress("write", total, total, 0, 0.0, None))
            remove_leftovers(root / key)
            finish([folder], root / key, todo[key][0].tables)
            shutil.rmtree(folder)
    return BuildResult(False, tuple(root / key for key in folders))


def keys_of(
    source: ActivationSource, targets: Sequence[Target], settings: IndexSettings
) -> dict[str, tuple[Target, Identity]]:
    """Every target and its identity by the key of its index, which names the folder. Raises ``LensError`` for twins."""
    pairs = [(target, identity_of(source, target)) for target in targets]
    found = {index_key(identity, settings): (target, identity) for target, identity in pairs}
    if len(found) < len(targets):
        raise LensError("The same SAE is given twice.", "Give each SAE once, and each its own name.")
    return found


def part_name(key: str, shard: tuple[int, int]) -> str:
    """What the folder of part i of n of an index is called."""
    return f"{key}.part-{shard[0]}-of-{shard[1]}"


def check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """Part i of n, if there is such a part; raises :class:`LensError` if not."""
    number, of = shard
    if not 0 <= number < of:
        raise LensError(f"There is no shard {number} of {of}.", "Shards count from 0: give 0 <= i < n.")
    return shard


def merge_parts(
    parts: Sequence[Path | str], out: Path | str, *, tables: Sequence[TokenTable] = (), keep: bool = False
) -> Path:
    """The index of all shards of a pass, equal to the bit to that of one pass: ``out/<key>``, its path.

    The parts are removed unless ``keep``. Raises :class:`LensError` if one is
    missing, unfinished, doubled, or belongs to something else.
    """
    if not parts:
        raise LensError("There are no parts to merge.", "Give the folders that `index --shard` left.")
    return finish([Path(part) for part in parts], Path(out), tables, named_by_key=True, remove=not keep)


def identity_of(source: ActivationSource, target: Target) -> Identity:
    """What identifies the index of a target over a source."""
    facts = source.facts
    if target.place not in source.places:
        layer, site = target.place
        raise LensError(f"The corpus is not read at {site} of layer {layer}.", "Open it with that place.")
    extra: dict[str, Any] = dict(facts.extra)
    return Identity(
        model=facts.model_name,
        model_hash=target.model_hash or extra.get("model_hash", ""),
        precision=target.precision or extra.get("precision", ""),
        sae=target.sae,
        sae_hash=target.sae_hash,
        layer=target.place[0],
        site=target.place[1],
        width=target.width,
        d_model=source.d_model(target.place),
        corpus=target.corpus or extra.get("corpus", ""),
        corpus_hash=_corpus_hash(facts, source.n_blocks),
        context=facts.context,
        bos=facts.bos,
    )


def _corpus_hash(facts: Any, n_blocks: int) -> str:
    """The texts, and everything that decides which tokens of them are read and in which windows."""
    how = f"{facts.n_documents}.{facts.n_tokens}.{facts.skipped}.{int(facts.packed)}.{facts.seed}.{n_blocks}"
    return f"{facts.corpus_sha256}/{how}"


def _read(
    source: ActivationSource,
    parts: Sequence[tuple[Target, IndexPart]],
    clock: _Clock,
    should_stop: Callable[[], bool],
    checkpoint_seconds: float,
) -> bool:
    """Run the blocks that are left through every part; whether all were read."""
    if not parts:
        return True
    start = min(part.state.next for _, part in parts)
    stop = parts[0][1].state.stop
    saved = time.monotonic()
    try:
        if start < stop:
            for block in source.blocks(start, stop):
                if should_stop():
                    break
                for target, part in parts:
                    if block.index == part.state.next:
                        _take(block, target, part)
                clock.tick(block.index, len(block.token_ids))
                if time.monotonic() - saved > checkpoint_seconds:
                    for _, part in parts:
                        part.checkpoint()
                    saved = time.monotonic()
    finally:
        for _, part in parts:
            part.checkpoint()
    return all(part.state.done for _, part in parts)


def _take(block: Any, target: Target, part: IndexPart) -> None:
    residual = block.values[target.place]
    found, counted, overflowed = encode_block(block, residual, target.encoder, target.width, part.settings)
    part.add(found, block_columns(block), counted, overflowed)
