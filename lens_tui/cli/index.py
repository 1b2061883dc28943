"""``mlx-lens-tui index`` and ``index-merge``: what every feature does in a text, kept on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records.errors import LensError

from .long_work import Meter, count, duration, interruptible
from .output import note, print_json, say
from .sources import open_model, open_sae

if TYPE_CHECKING:
    from lens_tui.sae.index import BuildResult, IndexProgress


@dataclass(frozen=True, slots=True)
class Reading:
    """How the text is read: window length, windows a batch, most tokens (``None``: all), the JSONL key."""

    context: int
    rows: int
    max_tokens: int | None
    text_key: str


def index(
    text: Path,
    *,
    model: str,
    saes: Sequence[str],
    out: Path | None,
    options: Mapping[str, Any],
    reading: Reading,
    shard: tuple[int, int],
    as_json: bool,
) -> None:
    """Build the index of each SAE, or one shard of it."""
    from lens_tui.sae.index import IndexSettings
    from lens_tui.worker.indexing import index_text

    settings = IndexSettings(**options)
    meter = Meter()
    with open_model(model) as lens, interruptible() as asked:
        opened = [open_sae(name, model) for name in saes]
        result = index_text(
            lens,
            opened,
            text,
            out,
            settings=settings,
            context=reading.context,
            rows=reading.rows,
            max_tokens=reading.max_tokens,
            text_key=reading.text_key,
            shard=shard,
            progress=lambda progress: meter.say(*_line(progress)),
            should_stop=asked,
        )
        meter.end()
    facts = {"model": lens.info.name, **_facts(result)}
    if as_json:
        print_json(facts)
    if result.stopped:
        kept = ", ".join(str(part) for part in result.parts)
        note(f"mlx-lens-tui: stopped; what was read is in {kept}. The same command goes on.")
        raise SystemExit(asked.status)
    if not as_json:
        _print(facts)


def merge(parts: Sequence[Path], *, model: str, sae: str, out: Path | None, as_json: bool) -> None:
    """Merge shards; the token tables are made with the model and the SAE."""
    from lens_tui.sae.index import BuildResult
    from lens_tui.worker.indexing import merge_index

    with open_model(model) as lens:
        path = merge_index(lens, open_sae(sae, model), parts, out)
        facts = {"model": lens.info.name, **_facts(BuildResult(False, (path,)))}
    print_json(facts) if as_json else _print(facts)


def read_shard(text: str) -> tuple[int, int]:
    """``2/8`` as numbers, the whole for nothing. Raises :class:`LensError` for anything else."""
    if not text:
        return 0, 1
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None:
        raise LensError(f"The shard {text!r} cannot be read.", "Write i/n with i from 0 to n - 1, for example 0/4.")
    return int(match[1]), int(match[2])


def _line(progress: IndexProgress) -> tuple[str, str]:
    if progress.stage != "read":
        return "writing the index", ""
    speed = f"{count(progress.tokens_per_s)} tokens/s · {duration(progress.seconds_left)} left"
    return "read", f"block {progress.block} of {progress.n_blocks} · {count(progress.n_tokens)} tokens · {speed}"


def _facts(result: BuildResult) -> dict[str, Any]:
    from lens_tui.sae.index import FeatureIndex

    indexes = []
    for path in result.indexes:
        opened = FeatureIndex(path)
        indexes.append(
            {
                "path": str(path),
                "identity": asdict(opened.identity),
                "n_tokens": opened.n_tokens,
                "counted_tokens": opened.n_counted,
                "active_features": int((opened.count > 0).sum()),
                "full": opened.full,
                "notes": list(opened.notes),
            }
        )
    return {"stopped": result.stopped, "indexes": indexes, "parts": [str(part) for part in result.parts]}


def _print(facts: Mapping[str, Any]) -> None:
    for item in facts["indexes"]:
        identity = item["identity"]
        share = f"{item['active_features']} of {identity['width']} features were active"
        say(f"{identity['site']} of layer {identity['layer']}: {item['counted_tokens']} tokens counted, {share}")
        for line in item["notes"]:
            say(f"  {line}")
        say(f"written to {item['path']}")
    for part in facts["parts"]:
        say(f"shard written to {part}")
