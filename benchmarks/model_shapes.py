"""The rows of ``generation`` on models in the shape of real ones with random bf16 weights, and the losses of a search.

A random model has no scale that adds 0.3 nat, so a search is measured by what it is made of: the loss of three texts at
twelve scales, in one call of ``delta_losses``, against one loss a text and scale as in a loop written by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx
import numpy as np

from lens_tui import LensModel, SteeringVector, delta_losses
from lens_tui.records import Add

from .generation import on_device, rows_of
from .machine import Options, fresh
from .report import Row, absent, of_times
from .shapes import SHAPES, nbytes_of, random_model
from .turns import medians

SCALES = [2.0**i for i in range(12)]
LENGTHS = (24, 40, 31)


def rows(options: Options) -> Iterator[Row]:
    """Each shape that fits on the device, one after the other."""
    room = int(mx.device_info().get("memory_size", mx.device_info().get("total_memory", 1 << 62)))
    for shape in SHAPES:
        if nbytes_of(shape) > 0.7 * room:
            yield absent(f"{shape}", f"needs {nbytes_of(shape) / 2**30:.0f} GiB beside what it computes")
            continue
        lens = random_model(shape)
        for row in (*rows_of(lens, options, tokens=32 if options.quick else 64), *losses(lens, options)):
            yield replace(row, what=f"{shape}: {row.what}")
        del lens
        fresh()


def losses(lens: LensModel, options: Options) -> Iterator[Row]:
    """Three texts at twelve scales."""
    rng, layer = np.random.default_rng(2), lens.n_layers // 2
    texts = [rng.integers(1, lens.info.vocab_size, length).tolist() for length in LENGTHS]
    direction = SteeringVector.of("one", rng.standard_normal(lens.d_model), layer)
    records = [Add(id="one", layer=layer, vector=direction, scale=scale) for scale in SCALES]

    def one_by_one() -> None:
        for record in records:
            for text in texts:
                delta_losses(lens, [(record,)], texts=[text])

    found = medians(
        {
            "ours": on_device(lambda: delta_losses(lens, [(record,) for record in records], texts=texts)),
            "one by one": on_device(one_by_one),
        },
        options.repeats(3),
    )
    yield of_times("losses of 3 texts at 12 scales", found["ours"], found["one by one"], "one at a time")
