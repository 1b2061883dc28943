"""Train an SAE on a text with a model: where the two libraries meet. Runs on the model's thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lens_tui.records.training import TrainConfig, TrainProgress, TrainReport

if TYPE_CHECKING:
    from lens_tui.lens import LensModel


def train_sae(
    model: LensModel,
    text: str | Path,
    out: str | Path,
    config: TrainConfig,
    *,
    layer: int,
    site: str = "resid_post",
    context: int = 256,
    rows: int = 32,
    held_out: int = 40,
    max_tokens: int | None = None,
    text_key: str = "text",
    model_name: str = "",
    progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    checkpoint_seconds: float = 60.0,
) -> TrainReport:
    """Train an SAE at a layer and site on a text folder, ``.txt`` or ``.jsonl`` file, and write it to ``out``.

    The text is read in windows of ``context`` tokens, ``rows`` of them a forward pass (more is faster on a GPU). Every
    ``held_out``-th document of each file is not trained on and is what the SAE is measured on (0: none, it is
    measured on what it was trained on). ``max_tokens`` bounds the text that is kept in memory as token ids
    (by default as many as are trained on); shorter texts are read several times, in another order each time. Stopped
    or killed, the same call goes on with the same numbers. Raises ``LensError`` for a place the model lacks, a text
    that cannot be read, or a folder with another run in it.
    """
    from lens_tui.lens.activations import text_activations
    from lens_tui.lens.batches import Reading
    from lens_tui.sae import train

    def reading(done: int, total: int) -> None:
        if progress is not None:
            progress(TrainProgress(stage="read", step=0, steps=config.steps, tokens=done, seconds_left=None))

    source, held = text_activations(
        model,
        text,
        [(layer, site)],
        held_out=held_out,
        max_tokens=max_tokens or config.tokens,
        text_key=text_key,
        reading=Reading(context=context, rows=rows, seed=config.seed),
        model_name=model_name,
        progress=reading,
    )
    return train(
        source,
        config,
        out,
        evaluation=held,
        progress=progress,
        should_stop=should_stop,
        checkpoint_seconds=checkpoint_seconds,
    )
