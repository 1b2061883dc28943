"""Features like one: by decoder direction, block by block, and by the tokens they share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lens_tui.sae.index import co_active, decoder_neighbours
from lens_tui.worker import events as ev
from lens_tui.worker.control import Control
from lens_tui.worker.neighbours import NeighboursRead, ReadNeighbours

from .context import Context
from .knowledge import index_of
from .load import open_sae

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_neighbours(control: Control, job: ReadNeighbours, context: Context) -> Iterator[ev.Event]:
    """One pass over the decoder; of a wide one a block at a time, looking at the stop flag between two."""
    sae = open_sae(job.sae, context)
    sae.directions([job.feature])  # checks the id before the long way

    def directions(ids: NDArray[Any]) -> Any:
        control.progress("decoder", int(ids[0]), sae.d_sae, "features")
        return sae.directions(ids)

    near = decoder_neighbours(directions, sae.d_sae, job.feature, k=job.top_k)
    index = index_of(sae.info)
    together = None
    if index is not None and index.full and job.feature < index.width:
        together = tuple((row.feature, row.jaccard) for row in co_active(index, job.feature, k=job.top_k))
    yield NeighboursRead(control.id, sae.info.id, job.feature, near, together)
