"""Measure what this machine can and write tables.

    python -m benchmarks [--quick] [--only NAME ...] [--peers PYTHON ...] [--out benchmarks/README.md] [--json FILE]

Without ``--out`` the tables are printed. With it, the parts that were measured are made anew in that file, in the
section of this machine's device; all else in it stays. The columns: ``ratio`` is ours over the peer's, ``before`` what
that row was in the file until now, ``bound`` that of the design. The exit status is 1 if a benchmark failed; a bound
that is not met is no failure.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from .machine import Options, device, facts, in_words
from .report import Device, Row, absent, with_part


@dataclass(frozen=True)
class Benchmark:
    """A module of this package, whose ``rows(Options)`` measures, and the devices it is for."""

    name: str
    module: str
    devices: tuple[Device, ...] = ("cpu", "gpu")

    def rows(self, options: Options) -> Iterable[Row]:
        """Measure."""
        measure: Callable[[Options], Iterable[Row]] = import_module(f"benchmarks.{self.module}").rows
        return measure(options)


ALL = (
    Benchmark("generation", "generation"),
    Benchmark("shapes", "model_shapes", ("gpu",)),
    Benchmark("features", "features"),
    Benchmark("index", "feature_index", ("cpu",)),
    Benchmark("openblas", "openblas", ("cpu",)),
    Benchmark("long-jobs", "long_jobs"),
    Benchmark("app", "app", ("cpu",)),
    Benchmark("app-on-model", "app_on_model"),
    Benchmark("memory", "memory"),
    Benchmark("mlx-lens", "mlx_lens"),
    Benchmark("transformer-lens", "torch_peers", ("cpu",)),
    Benchmark("patching", "patch_speed"),
    Benchmark("graphs", "graph_speed"),
    Benchmark("server", "serving_http"),
    Benchmark("cluster", "ray_cluster", ("cpu",)),
)


def measured(benchmark: Benchmark, options: Options) -> tuple[list[Row], bool]:
    """Its rows, and whether it went to its end; what ends it early is a row."""
    rows: list[Row] = []
    try:
        for row in benchmark.rows(options):
            rows.append(row)
            print(f"  {row.what:<58} {row.ratio:>10}  {row.met}", file=sys.stderr, flush=True)
    except Exception as error:  # the others are measured all the same
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        rows.append(absent("not finished", f"{type(error).__name__}: {reason}"))
        print(f"  failed: {type(error).__name__}: {reason}", file=sys.stderr, flush=True)
        return rows, False
    return rows, True


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns and smaller sizes, for a look")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[each.name for each in ALL])
    parser.add_argument("--peers", nargs="+", default=[], metavar="PYTHON", help="Pythons with the peers on torch")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables into this Markdown file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the machine into this file")
    asked = parser.parse_args(arguments)
    options, here = Options(asked.quick, tuple(asked.peers)), device()
    document = asked.out.read_text() if asked.out is not None and asked.out.exists() else ""
    chosen = [each for each in ALL if here in each.devices and each.name in (asked.only or [each.name])]
    left_out = sorted(set(asked.only or ()) - {each.name for each in chosen})
    if left_out:
        print(f"Not measured on a {here}: {', '.join(left_out)}.", file=sys.stderr)
    found, whole = [], True
    for benchmark in chosen:
        print(f"{benchmark.name}:", file=sys.stderr, flush=True)
        machine, start = facts(), time.perf_counter()
        rows, finished = measured(benchmark, options)
        whole = whole and finished
        print(f"  {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        words = in_words(machine) + (" A quick look: fewer turns, smaller sizes." if options.quick else "")
        document = with_part(document, here, benchmark.name, words, rows)
        found.append({"benchmark": benchmark.name, "machine": machine, "rows": [asdict(row) for row in rows]})
        if asked.out is not None:  # after each, so that what ends this early loses only what was not measured
            asked.out.write_text(document)
        if asked.json is not None:
            asked.json.write_text(json.dumps({"device": here, "quick": options.quick, "benchmarks": found}, indent=1))
    if asked.out is None:
        print(document)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
