"""Read a text with the logit lens, plain or under an arm's interventions."""

from __future__ import annotations

from collections.abc import Iterator

from lens_tui.records import LensError

from .. import events as ev
from .. import jobs
from ..control import Control
from .context import Context


def read_lens(control: Control, job: jobs.ReadLens, context: Context) -> Iterator[ev.Event]:
    """Every layer's most probable tokens at every token of the text, and where the followed token stands."""
    from lens_tui.lens.read.logits import logit_lens

    model = context.need_model()
    ids = model.tokens.check(job.token_ids) if job.token_ids else model.tokens.encode(job.text)
    if len(ids) > jobs.LENS_TOKENS:
        raise LensError(
            f"The text has {len(ids)} tokens; the lens reads up to {jobs.LENS_TOKENS}.", "Choose a shorter text."
        )
    control.progress("tokens", 0, len(ids), "tokens")

    def said(done: int, total: int) -> None:
        control.progress("tokens", done, total, "tokens")

    found = logit_lens(
        model,
        ids,
        target=None if job.target == "" else job.target,
        top_k=job.top_k,
        interventions=job.arm.interventions if job.arm else (),
        progress=said,
    )
    yield ev.LensRead(control.id, found)
