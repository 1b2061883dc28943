"""The app's long jobs on the bundled model: the dose of a row and the search for a scale, as the Steer screen asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import numpy as np

from lens_tui import LensModel
from lens_tui.records import Add, SteeringVector
from lens_tui.tasks.make_vectors import find, measure_dose

from .generation import PROMPT
from .machine import Options
from .report import Row, at_most, duration
from .turns import medians, timed

SCALES = [float(scale) for scale in np.linspace(-40, 40, 11)]


def rows(options: Options) -> Iterator[Row]:
    """Both jobs in turns; the dose's first scale by its own report."""
    lens = LensModel("demo")
    layer = lens.n_layers // 2
    vector = SteeringVector.of("random", np.random.default_rng(0).standard_normal(lens.d_model), layer)
    record = Add(id="one", layer=layer, vector=vector, scale=8.0)
    firsts: list[float] = []

    def dose() -> None:
        start, heard = time.perf_counter(), []
        measure_dose(lens, PROMPT, [record], SCALES, progress=lambda *_: heard.append(time.perf_counter() - start))
        firsts.append(heard[0])

    contenders = {"dose": timed(dose), "search": timed(lambda: find(lens, [record], "delta_loss", 0.3))}
    found = medians(contenders, options.repeats(2), unmeasured=0 if options.quick else 1)
    first = median(firsts)
    for what, seconds, bound in (
        ("dose of a row, its first scales", first, 3),
        (f"dose of a row, {len(SCALES)} scales", found["dose"], 20),
        ("search for the scale that adds 0.3 nat", found["search"], 15),
    ):
        yield Row(what, duration(seconds), "", seconds, at_most(bound), "s")
