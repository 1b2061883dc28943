"""What a Ray cluster on this machine costs and gains: one text indexed by one process, and by one worker and two.

Each worker has one core, and every turn starts Ray, loads the models and ends Ray again, as the command does. On two
cores the gain is bounded by what else they do; what is to be seen there is the overhead.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from lens_tui import LensModel, demo
from lens_tui.sae.load_sae import SAE, load_sae
from lens_tui.tasks.cluster import Cluster
from lens_tui.tasks.cluster_index import index_on_cluster
from lens_tui.tasks.index import index_text
from lens_tui.tasks.models import named_sae
from lens_tui.tasks.text_source import text_source

from .machine import Options
from .report import Row, absent, duration, of_times
from .turns import medians, timed

# Token tables, which every one makes alike behind the reading, are left out.
HOW: dict[str, Any] = {"context": 128, "rows": 8, "conventions": ()}


def rows(options: Options) -> Iterator[Row]:
    """The same index by one process and by clusters, in turns; it is compared to the byte before times are given."""
    if find_spec("ray") is None:
        yield absent("an index by the workers of a cluster", "ray is not installed")
        return
    lens, sae = LensModel("demo"), load_sae(named_sae(demo.default_sae())[0])
    tokens = 8_000 if options.quick else 24_000
    home, firsts = Path(tempfile.mkdtemp()), list[float]()
    try:
        contenders = {name: _made(lens, sae, tokens, home / name, workers, firsts)
                      for name, workers in (("one process", 0), ("one worker", 1), ("two workers", 2))}  # fmt: skip
        found = medians({name: timed(made) for name, made in contenders.items()}, options.repeats(1), unmeasured=0)
        _compare(home)
    finally:
        shutil.rmtree(home)
    for name in ("one worker", "two workers"):
        yield of_times(f"index of {tokens:,} tokens, {name}", found[name], found["one process"], "one process")
    first = median(firsts)
    yield Row("until Ray's workers have read a first block", duration(first), "", first, unit="s")


def _made(
    lens: LensModel, sae: SAE, tokens: int, folder: Path, workers: int, firsts: list[float]
) -> Callable[[], None]:
    def made() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if not workers:
            index_text(lens, [sae], text_source("bundled"), folder, max_tokens=tokens, **HOW)
            return
        start, heard = time.perf_counter(), list[float]()

        def said(progress: object) -> None:
            if getattr(progress, "stage", "") == "read" and getattr(progress, "n_tokens", 0) and not heard:
                heard.append(time.perf_counter() - start)

        index_on_cluster(lens, [sae], text_source("bundled"), folder, cluster=Cluster(workers), max_tokens=tokens,
                         progress=said, **HOW)  # fmt: skip
        firsts.extend(heard)

    return made


def _compare(home: Path) -> None:
    """Every array of every index is the same file."""
    kept = [{file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.npy")}
            for folder in sorted(home.iterdir())]  # fmt: skip
    if len(kept) != 3 or not kept[0] or any(other != kept[0] for other in kept[1:]):
        raise ValueError("the indexes differ")
