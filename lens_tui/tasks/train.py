"""Train an SAE on a text with a model: where the two libraries meet. Runs on the model's thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx

from lens_tui.lens import room
from lens_tui.lens.read.activations import Windowing, text_activations
from lens_tui.records import LensError, paths
from lens_tui.records.errors import AskedToStop
from lens_tui.records.machine import launched
from lens_tui.records.remote import is_remote, without_password, written_to
from lens_tui.records.training import ActivationSource, FitReport, Place, TrainConfig, TrainProgress, TrainReport
from lens_tui.sae.fit import check_fit_with
from lens_tui.sae.training.peers import peers_of
from lens_tui.sae.training.trainer import train

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.lens.read.activations import TextActivations
    from lens_tui.sae.load_sae import SAE

    Texts = tuple[TextActivations, TextActivations | None]


class Readable(Protocol):
    """What can be trained on at some of its places."""

    def at(self, places: Sequence[Place]) -> ActivationSource:
        """The same, read at these places."""
        ...


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
    """Train an SAE at a layer and site on a text, and write it to ``out``; or a transcoder of the layer's MLP.

    A transcoder (``config.kind``) reads the MLP's input and gives its output, before any norm behind it. Stopped or
    killed, the same call continues with the same numbers. Texts shorter than the training are read several
    times, in another order each time.

    Args:
        model: the model.
        text: a folder, a ``.txt`` or a ``.jsonl`` file; an address of fsspec (``s3://...``) as ``str``.
        out: the folder to write to, or its address, which gets all of it when training ends or is stopped.
        config: the SAE's kind and size, and how it is trained.
        layer: the decoder block to read, from 0; -1 is the last.
        site: the tensor of the block; of a transcoder it is ``mlp_in`` whatever is given.
        context: tokens in a window.
        rows: windows in a forward pass; more is faster on a GPU.
        held_out: every ``held_out``-th document of each file is measured on and not trained on (0: none is held out).
        max_tokens: tokens of the text that are kept in memory, as ids, at most; by default as many as are trained on.
        text_key: in JSONL, the key that holds the text.
        model_name: what the SAE calls the model; by default its id or folder.
        progress: called as it goes.
        should_stop: asked between two steps and two forwards, and while the text is read.
        checkpoint_seconds: seconds between checkpoints.

    Raises:
        LensError: for a place the model lacks, an unreadable text, another run's folder, and what memory cannot hold.
    """
    if _is_divided(model):
        # Before the text is read: processes that meet late, one of them busy for long, do not find each other.
        peers_of(config.batch, config.architecture)
    place, place_out = places_of(model, config, layer, site)
    texts = read_texts(
        model, text, [place] if place_out is None else [place, place_out], config, context=context, rows=rows,
        held_out=held_out, max_tokens=max_tokens, text_key=text_key, model_name=model_name, progress=progress,
        should_stop=should_stop,
    )  # fmt: skip
    with written_to(out) as folder:
        report = train_on(model, texts, folder, config, place, place_out, progress=progress, should_stop=should_stop,
                          checkpoint_seconds=checkpoint_seconds)  # fmt: skip
    return named(report, out)


def named(report: TrainReport, out: str | Path) -> TrainReport:
    """The report with the folder that was asked for, if that is an address."""
    return replace(report, folder=without_password(out)) if is_remote(out) else report


def read_texts(
    model: LensModel,
    text: str | Path,
    places: Sequence[Place],
    config: TrainConfig,
    *,
    context: int,
    rows: int,
    held_out: int,
    max_tokens: int | None = None,
    text_key: str = "text",
    model_name: str = "",
    progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Texts:
    """The text to train on and that to measure on, tokenised once for all ``places``; the rest as :func:`train_sae`."""
    _check_memory(model, config, places[:2])
    return text_activations(
        model, text, places, held_out=held_out, max_tokens=max_tokens or config.tokens, text_key=text_key,
        windowing=Windowing(context=context, rows=rows, seed=config.seed), model_name=model_name,
        progress=partial(_read, config.steps, progress, should_stop), pause=partial(_pause, should_stop),
    )  # fmt: skip


def train_on(
    model: LensModel,
    texts: tuple[Readable, Readable | None],
    out: str | Path,
    config: TrainConfig,
    place: Place,
    place_out: Place | None = None,
    **hooks: Any,
) -> TrainReport:
    """Train on what :func:`read_texts` has read, or a capture, at one of its places; the rest as :func:`train_sae`."""
    places = [place] if place_out is None else [place, place_out]
    _check_memory(model, config, places)
    source, held = (None if each is None else each.at(places) for each in texts)
    assert source is not None
    parallel = _is_divided(model)
    return train(source, config, out, evaluation=held, place=place, place_out=place_out, parallel=parallel, **hooks)


def _is_divided(model: LensModel) -> bool:
    """Whether several processes train, each on its rows; those that share a model compute one batch together."""
    return launched() and model.registry.decoder.shared is None


def _pause(should_stop: Callable[[], bool] | None) -> None:
    if should_stop is not None and should_stop():
        raise AskedToStop


def _read(
    steps: int,
    progress: Callable[[TrainProgress], None] | None,
    should_stop: Callable[[], bool] | None,
    done: int,
    _total: int,
) -> None:
    if progress is not None:
        progress(TrainProgress(stage="read", step=0, steps=steps, tokens=done, seconds_left=None))
    _pause(should_stop)


def places_of(model: LensModel, config: TrainConfig, layer: int, site: str) -> tuple[Place, Place | None]:
    """What is read at a layer, and what is to be given: of a transcoder the MLP's input and output."""
    layer = model.registry.decoder.index(layer)
    return mlp_of(layer) if config.kind == "transcoder" else ((layer, site), None)


MLP = ("mlp_in", "mlp_out")
"""What a transcoder reads and what it gives."""


def mlp_of(layer: int) -> tuple[Place, Place]:
    """The two places of a layer's transcoder."""
    return (layer, MLP[0]), (layer, MLP[1])


def _check_memory(model: LensModel, config: TrainConfig, places: Sequence[Place]) -> None:
    """The weights with Adam's two moments of each, the pool and the sample, and one batch of pre-activations."""
    registry = model.registry
    widths = [registry.sites.point(registry.decoder.index(layer), site).width for layer, site in places]
    d, size = widths[0], registry.decoder.dtype.size
    weights = 3 * ((d + widths[-1] + 1) * config.width + config.skip * d * widths[-1]) * 4
    rows = (max(config.pool_tokens, config.batch) + config.calibration_tokens) * sum(widths) * size
    batch = config.batch * config.width * (4 if config.compute == "float32" else 2)
    room.refuse_above(
        room.memory_left,
        weights + rows + batch,
        f"Training {config.width:,} features of width {d:,} in batches of {config.batch:,} tokens",
        "Lower width, batch or pool_tokens.",
    )


def small_run(**settings: Any) -> TrainConfig:
    """Settings with the tokens of the pool and of the measuring fewer where an eighth of the run is little.

    Args:
        **settings: those of ``TrainConfig``.

    Raises:
        LensError: for settings that cannot be.
    """
    usual = TrainConfig(width=1, k=1)
    some = max(settings.get("batch", usual.batch), settings.get("tokens", usual.tokens) // 8)
    fewer = {
        "pool_tokens": min(usual.pool_tokens, 2 * some),
        "calibration_tokens": min(usual.calibration_tokens, some),
        "evaluation_tokens": min(usual.evaluation_tokens, some),
    }
    return TrainConfig(**{**fewer, **settings})


def trained_folder(model: str, config: TrainConfig, layers: Sequence[int], site: str = "resid_post") -> Path:
    """Where what is trained goes unless another folder is named: the user's folder of SAEs.

    Args:
        model: the model's id or folder.
        config: what is trained.
        layers: the layers that are read; a set of transcoders has one folder for all.
        site: the tensor an SAE reads.
    """
    kind = site if config.kind == "sae" else "skip-transcoder" if config.skip else "transcoder"
    where = [str(layers[0])] if len(layers) == 1 else []
    name = Path(model).name or "model"
    return paths.saes_folder() / "-".join([name, kind, *where, config.architecture, str(config.width)])


FIT_TEXT = (
    "The lighthouse keeper climbed the stairs every evening, lit the lamp, and wrote the weather into a small book. "
    "In 1848 the town had nine hundred people, two churches and a market where farmers sold wool, cheese and horses. "
    "“Will it rain tomorrow?” asked the girl. Her father laughed: “Ask the cat; she knows more than the newspaper.” "
    "Water boils at 100 degrees Celsius at sea level, and at a lower temperature on a mountain. "
    "To make the soup, chop two onions, fry them in butter, add salt, and let everything simmer for half an hour."
)
"""The text of a check when none is given: some hundred tokens of plain English of several kinds."""


def check_sae(model: LensModel, sae: SAE, text: str | None = None) -> FitReport:
    """L0 and FVU of an SAE on each tensor it could be for, over one text (by default ``FIT_TEXT``), and the verdict.

    Special tokens (BOS and the like) and the first are left out. One forward pass. Raises ``LensError`` for a text of
    fewer than two tokens, and where no tensor of this model has the width that the SAE reads.
    """
    ids = model.tokens.encode(FIT_TEXT if text is None else text)
    kept = [place for place, content in enumerate(model.tokens.content(ids)) if content]
    if len(kept) < 2:
        raise LensError("The text has too few tokens to measure on.", "Give a few sentences.")

    def capture(places: Sequence[Place]) -> Mapping[Place, Any]:
        return capture_places(model, ids, kept, places)

    return check_fit_with(sae, capture, model.n_layers)


def capture_places(
    model: LensModel, ids: Sequence[int], kept: Sequence[int], places: Sequence[Place]
) -> dict[Place, Any]:
    """Activations ``(len(kept), d)`` of some places at some positions; places the model lacks are left out."""
    by_site: dict[str, list[int]] = {}
    for layer, site in places:
        if site in model.sites(layer):
            by_site.setdefault(site, []).append(layer)
    rows = mx.array(list(kept))
    with ExitStack() as stack:
        held = {site: stack.enter_context(model.capture(layers, site=[site])) for site, layers in by_site.items()}
        model.forward(list(ids))
        return {
            (layer, site): mx.take(held[site][layer, site][0], rows, axis=0)
            for site, layers in by_site.items()
            for layer in layers
        }
