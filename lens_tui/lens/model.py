"""``LensModel``: a model with steering, capture, generation and comparison, on top of all the other files here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import (
    ALL,
    Add,
    Arm,
    Echo,
    Intervention,
    LensError,
    ModelInfo,
    NormMatch,
    Positions,
    Sampling,
    SteeringVector,
    TokenWeight,
)
from lens_tui.records.interventions import as_number, as_positions

from .architecture.find import find_decoder
from .architecture.load_model import load_model
from .architecture.placement import place
from .architecture.ranks import Shared, shared_loading
from .architecture.unembed import Convention, Unembedding, find_unembedding, readout, token_weights
from .architecture.weights import Held, check_dequantize, check_device, describe, evaluate
from .decode.batch import BatchGeneration
from .decode.batch_start import Engine, Prompts, check_engine, start_batch
from .decode.compare import Comparison, Generation
from .decode.generation import DecodeOptions, row_decoder
from .decode.prefill import PrefixCache
from .decode.sampling import settings_from
from .forward import Ids, echo, mean_loss, run_forward, unhooked
from .hooks.capture_result import CaptureResult
from .hooks.program import Hook, Item
from .hooks.readings import FeatureSource
from .hooks.registry import Plan, Registry
from .hooks.steering import Steering, as_numpy, check_vector, checked, entries_of, for_a_block
from .texts import read_table, text_logits, text_losses, text_residuals, texts_in
from .tokens import Prompt, Tokens, id_table

Layers = int | Sequence[int]
Sites = str | Sequence[str]


class LensModel:
    """An mlx-lm model with steering, capture, generation and comparison.

    ``model_path`` is a folder, a hub id or ``"demo"`` (the bundled model); ``load_kwargs`` go to ``mlx_lm.load``.
    ``dequantize`` says whether quantised and 16-bit weights are held in float32: ``"auto"`` where that is faster and
    memory allows (a Linux CPU), ``"never"`` or ``"always"``; ``info.weights`` says what was done. ``adapter`` is the
    folder of a LoRA, PEFT's or mlx-lm's. ``use_engine`` says who schedules batches, this library (``"built-in"``;
    ``False`` and ``True`` say the same) or ``"vllm-mlx"``. ``shard`` shares the model among the processes that
    ``mlx.launch`` started: ``"tensor"`` (a slice of each layer in each) or ``"pipeline"`` (some layers in each); all
    run the same program and have the same results. Use the model on the thread that made it.
    """

    def __init__(
        self,
        model_path: str,
        use_engine: Engine | bool = False,
        *,
        dequantize: str = "auto",
        shard: str | None = None,
        adapter: str = "",
        **load_kwargs: Any,
    ) -> None:
        self.engine = check_engine(use_engine)
        with shared_loading(shard) as shared:
            found = load_model(str(model_path), check_dequantize(dequantize), not shared, str(adapter), **load_kwargs)
            extra: Any = {"held": found.held, "window": found.window, "shared": shared}
            self._setup(found.model, found.tokenizer, str(model_path), found.path, **extra)
            for _ in () if shared is None or load_kwargs.get("lazy") else evaluate(found.model):
                pass

    @classmethod
    def from_model(
        cls,
        model: Module,
        tokenizer: Any | None = None,
        *,
        name: str = "",
        path: str = "",
        use_engine: Engine | bool = False,
        window: int | None = None,
        shard: str | None = None,
    ) -> LensModel:
        """Wrap an mlx-lm model that is in memory.

        Args:
            model: The model, as ``mlx_lm.load`` gives it.
            tokenizer: mlx-lm's tokenizer; without one, prompts are token ids.
            name: What the model is called in records; by default its architecture.
            path: Where it was read from, for the record.
            use_engine: Who schedules batches, as for the class.
            window: Texts of more tokens are refused: where mlx-lm computes the model right up to there only.
            shard: How the processes of ``mlx.launch`` share it, as for the class; the model given is whole, the same
                in all of them, and keeps this process's part alone.

        Raises:
            LensError: For what is no ``mlx.nn.Module``, a model whose decoder blocks cannot be proved, or one that MLX
                cannot compute on this device.
        """
        if not isinstance(model, Module):
            raise LensError(
                f"{type(model).__name__} is not a model of MLX.", "Give the first of what mlx_lm.load(path) gives."
            )
        self = cls.__new__(cls)
        self.engine = check_engine(use_engine)
        known = name or type(model).__module__.rpartition(".")[2]
        with shared_loading(shard) as shared:
            self._setup(model, tokenizer, known, path, window=window, shared=shared)
        return self

    def _setup(
        self,
        model: Module,
        tokenizer: Any | None,
        name: str,
        path: str,
        *,
        held: Held | None = None,
        window: int | None = None,
        shared: Shared | None = None,
    ) -> None:
        check_device(model)
        self._model = model
        self._decoder = find_decoder(model, window)
        self.tokens = Tokens(tokenizer, self._decoder.vocab_size)
        hidden = self.tokens.hidden
        if hidden is not None:
            self._decoder = replace(self._decoder, hide=mx.where(mx.array(hidden), -mx.inf, 0.0))
        info = describe(model, self._decoder, self.tokens, name=name, path=path)
        self.info: ModelInfo = held.noted(info) if held else info
        if shared is not None:
            self._decoder = place(model, self._decoder, shared)
        self._registry = Registry(self._decoder, self.tokens.bos)
        self._ids = itertools.count(1)
        self.prefixes = PrefixCache()
        self._unembedding: Unembedding | None = None

    # -- what it is ----------------------------------------------------------

    @property
    def model(self) -> Module:
        """The mlx-lm model itself: always the same object, hooked or not."""
        return self._model

    @property
    def tokenizer(self) -> Any:
        """mlx-lm's tokenizer wrapper, ``None`` if there is none."""
        return self.tokens.tokenizer

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._decoder.d_model

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self._decoder.n_layers

    @property
    def registry(self) -> Registry:
        """What is hooked, and how; for code that builds on this library."""
        return self._registry

    @property
    def hooked(self) -> tuple[Item, ...]:
        """What acts now: the records of all open ``steer``, ``intervene`` and ``hook`` blocks, oldest first."""
        return tuple(entry.item for entry in self._registry.ambient_entries)

    def sites(self, layer: int) -> tuple[str, ...]:
        """The sites that a layer has, each one proved by a forward pass."""
        return self._registry.sites.available(self._decoder.index(layer))

    def attach_sae(self, name: str, sae: FeatureSource) -> None:
        """Give the model an SAE that ``ClampFeature`` records can name."""
        if sae.d_model != self.d_model:
            raise LensError(f"The SAE {name!r} reads width {sae.d_model}; this model's is {self.d_model}.")
        self._registry.attach(name, sae)
        self.prefixes.clear()  # another SAE may have had this name

    # -- putting things up ---------------------------------------------------

    def steer(
        self,
        layer: int,
        vector: SteeringVector | Any,
        scale: float,
        *,
        site: str = "resid_post",
        positions: Positions | str | Sequence[int] = ALL,
        mode: str = "add",
        precision: str = "model",
        id: str = "",  # noqa: A002
    ) -> Steering:
        """Steer inside a ``with`` block: add ``scale * vector`` at a site, by default the output of a layer.

        Args:
            layer: Counted from 0; negative numbers count from the end.
            vector: ``(d_model,)`` exactly: a list, numpy or MLX array, whose own length counts, or a
                :class:`SteeringVector`, which is a unit direction.
            scale: How much of it; with ``norm_match`` a share of each token's own norm.
            site: One of ``sites(layer)``.
            positions: Which tokens; :class:`Positions`, the name of a kind, a number or a list.
            mode: ``"add"``, or ``"norm_match"``, which multiplies by each token's own norm.
            precision: ``"float32"`` keeps the stream in float32 from there on.
            id: A name for it, which errors and records say.

        Returns:
            The block, which also changes what it steers by while it holds.

        Raises:
            LensError: For anything that cannot be.
        """
        where = self._decoder.index(layer)
        width = self._registry.sites.point(where, site).width
        name = id or f"steer-{next(self._ids)}"
        if isinstance(vector, SteeringVector):
            record_vector, norm = vector, 1.0
        else:
            values = as_numpy(vector)
            check_vector(values, width, "The vector")
            record_vector = SteeringVector.of(name, values, where, site=site, model=self.info.name)
            norm = record_vector.norm
        kinds: dict[str, type[Add] | type[NormMatch]] = {kind.mode: kind for kind in (Add, NormMatch)}
        if mode not in kinds:
            raise LensError(
                f"There is no mode {mode!r} of steer.", "Use 'add' or 'norm_match', or intervene() for others."
            )
        scale = as_number(scale, "The scale")
        record = kinds[mode](
            id=name,
            layer=where,
            site=site,
            positions=as_positions(positions),
            vector=record_vector,
            scale=scale * norm,
            precision=precision,  # type: ignore[arg-type]
        )
        return Steering(self._registry, [checked(record, self._registry)], norm)

    def intervene(self, *records: Intervention) -> Steering:
        """Put up any interventions inside a ``with`` block, in the order given; each has an id of its own."""
        one = records[0] if len(records) == 1 else records
        return Steering(self._registry, for_a_block(one, self._registry))

    def hook(self, layer: int, fn: Callable[[Any, mx.array], mx.array | None], *, site: str = "resid_post") -> Steering:
        """Call ``fn(ctx, h)`` at a site in each forward inside a ``with`` block.

        ``h`` has shape (batch, tokens, width); what ``fn`` returns replaces it,
        ``None`` leaves it. An exception in ``fn`` stops the run and names the hook.
        """
        where = self._decoder.index(layer)
        self._registry.sites.point(where, site)
        return Steering(self._registry, [Hook(f"hook-{next(self._ids)}", where, site, fn)])

    @contextmanager
    def capture(self, layers: Layers, site: Sites = "resid_post") -> Iterator[CaptureResult]:
        """Read tensors at one or several sites inside a ``with`` block, after all interventions there.

        Gives a :class:`CaptureResult`: ``result[layer]``, or ``result[layer, site]``
        if ``site`` is a list. Repeated layers count once, negative ones count from the end.
        """
        wanted = self._decoder.indices(layers)
        sites = [site] if isinstance(site, str) else list(site)
        keys = tuple(dict.fromkeys((layer, name) for layer in wanted for name in sites))
        if not keys:
            raise LensError("There is nothing to capture.", "Name at least one layer and one site.")
        result = CaptureResult(self._registry, keys, by_site=not isinstance(site, str))
        self._registry.put(result)
        try:
            yield result
        finally:
            self._registry.take(result)

    # -- reading ---------------------------------------------------------------

    def residuals(
        self,
        tokens: Any,
        layer: int,
        *,
        site: str = "resid_post",
        steered: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> mx.array:
        """The activations of one text or several at a site, evaluated; nothing behind the layer is computed.

        Args:
            tokens: A text or its token ids; or a list of these, of any lengths (:meth:`rows` says how long they are).
            layer: Counted from 0; negative numbers count from the end.
            site: One of ``sites(layer)``.
            steered: Under the blocks around the call; by default of the plain model, whatever they are.
            progress: ``progress(done, total)`` counts the tokens of one text behind each of the pieces that a long one
                goes in; what it raises ends the reading.

        Returns:
            ``(tokens, width)`` in the model's dtype; of several texts ``(texts, longest, width)``, zero behind the end
            of a text.

        Raises:
            LensError: For a layer or site that the model does not have.
            NotFinite: With the layer from which on the residual is not finite.
        """
        key = self._decoder.index(layer), site
        if (rows := texts_in(self.tokens, tokens)) is not None:
            return text_residuals(self._registry, rows, key, steered=steered)
        ids = self.ids(tokens)
        entries = self._registry.ambient()[0] if steered else ()
        found = read_table(self._registry, ids, [key], entries, progress=progress)[key]
        return found[0] if ids.shape[0] == 1 else found

    def readout(self, residual: Any) -> mx.array:
        """The model's own logits for a last-layer residual ``(batch, tokens, d_model)``: norm, head, soft-capping.

        ``residual`` is an MLX or NumPy array.
        Raises :class:`LensError` for another shape, and for a model whose logits depend on more than this residual.
        """
        if not isinstance(residual, mx.array):
            residual = mx.array(as_numpy(residual))
        if residual.ndim < 2 or residual.shape[-1] != self.d_model:
            shape = f"(batch, tokens, {self.d_model})"
            raise LensError(f"The residual has shape {tuple(residual.shape)}, not {shape}.", "Give it that shape.")
        with unhooked(self):
            return readout(self._decoder, residual)

    def promoted(
        self, direction: Any, k: int = 10, *, convention: Convention = "norm"
    ) -> tuple[tuple[TokenWeight, ...], tuple[TokenWeight, ...]]:
        """The tokens that a residual-stream direction promotes and suppresses most, strongest first.

        ``convention`` ``"norm"`` folds the final norm's gain into the direction;
        ``"raw"`` does not. Values are for the direction as given, before the norm's
        division by the residual's size.
        """
        if self._unembedding is None:
            with unhooked(self):
                self._unembedding = find_unembedding(self._decoder)
        values = direction.direction if isinstance(direction, SteeringVector) else as_numpy(direction)
        check_vector(values, self.d_model, "The direction")
        return token_weights(self._unembedding, self.tokens, values, k, convention)

    def echo(self, tokens: Any, *interventions: Intervention) -> tuple[Echo, ...]:
        """How much of a change is still there behind each layer of a text: one ``records.Echo`` a layer."""
        rows: list[list[int]] = self.ids(tokens).tolist()  # type: ignore[assignment]
        return echo(self._registry, rows, interventions)

    # -- running ---------------------------------------------------------------

    def forward(self, tokens: Any, cache: list[Any] | None = None) -> mx.array:
        """Logits ``(batch, tokens, vocabulary)`` of a text, token ids, or several texts of any lengths.

        Several texts, or lists of ids that differ in length, go in groups of similar length that bound the memory; what
        comes out is that of each text alone, and zero behind its end (:meth:`rows` says where that is), here and in
        what a ``capture`` block around the call holds. Positions count each text's own end as the prompt's.
        ``cache`` is one of mlx-lm's prompt caches, for ids of one length; one that was filled under other
        interventions is refused.
        """
        if (rows := texts_in(self.tokens, tokens)) is not None:
            if cache is not None:
                raise LensError("A prompt cache cannot continue several texts.", "Leave it out, or give ids.")
            return text_logits(self._registry, rows)
        return run_forward(self._registry, self.ids(tokens), cache)

    def loss(self, tokens: Any) -> float:
        """Mean next-token cross-entropy in nats of a text, token ids or several texts, by float32 log-softmax.

        Of several, of any lengths, the mean over all their predicted tokens; :meth:`losses` gives each text's own.
        At least two tokens a text; the first one is not predicted. For positions every token but the first counts as
        generated, as in ``delta_loss``. Raises :class:`LensError` for an intervention that touches no token that a
        scored one follows, and ``NotFinite`` where the loss is not a number.
        """
        if (rows := texts_in(self.tokens, tokens)) is not None:
            return float(np.average(text_losses(self._registry, rows), weights=[len(row) - 1 for row in rows]))
        return mean_loss(self._registry, self.ids(tokens))

    def losses(self, tokens: Any) -> tuple[float, ...]:
        """The mean next-token cross-entropy in nats of each of several texts, as :meth:`loss` gives it for one."""
        return tuple(text_losses(self._registry, self.rows(tokens)).tolist())

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling | None = None,
        interventions: Sequence[Intervention] | None = None,
        raw: bool = False,
        top: int = 0,
        prompt_cache: list[Any] | None = None,
        **options: Any,
    ) -> Generation:
        """Generate token by token.

        Args:
            prompt: A text (through the chat template if there is one, unless ``raw``), chat messages or token ids.
            sampling: The settings; single ones among ``options`` go before its fields.
            interventions: Replace those of the blocks around the call, which hold otherwise.
            raw: Do not apply the chat template.
            top: Candidates that each token carries.
            prompt_cache: One of mlx-lm's, to continue from; it is refused if it was filled under other interventions.
            options: mlx-lm's sampling options by name (``max_tokens``, ``temp`` or ``temperature``, ``top_p``,
                ``min_p``, ``top_k``, ``seed``, the penalties and ``logit_bias``), ``stop`` (a text, or several, that
                end it and are left out of it), ``stop_ids`` (token ids), ``sampler``, ``logits_processors``,
                ``max_kv_size``, ``kv_bits``, ``prefill_step_size``, ``progress(done, total)`` and ``monitors``,
                which read every token (``readings`` of the run and of each token).

        Returns:
            An iterator of :class:`~lens_tui.records.Token`; nothing is computed before the first one is asked for.

        Raises:
            LensError: For an option that does not exist, and for more tokens than the model has positions.
        """
        settings = settings_from(sampling, options)
        encoded = self.tokens.prompt(prompt, raw=raw)
        entries, recorders = self._registry.ambient()
        if interventions is not None:
            entries = tuple(entries_of(interventions, self._registry))
        decoder = row_decoder(
            self._registry,
            encoded,
            Plan((entries,), recorders),
            1,
            DecodeOptions(settings, top=top),
            options,
            prompt_cache,
            self.prefixes,
        )
        return Generation(decoder, self.tokens, [""])

    def generate(self, prompt: Prompt, **options: Any) -> str:
        """Generate a text; the options are those of :meth:`stream`."""
        options.pop("verbose", None)
        generation = self.stream(prompt, **options)
        for _ in generation:
            pass
        return generation.text

    def compare(
        self,
        prompt: Prompt,
        arms: Sequence[Arm],
        sampling: Sampling | None = None,
        *,
        raw: bool = False,
        top: int = 0,
        kl: bool = True,
        **options: Any,
    ) -> Comparison:
        """Generate every arm in lock step, one batch row each.

        All arms see the same prompt and draw from the same random numbers. In a float32 model each greedy row equals
        what its arm gives alone; in lower precision a batch may round differently from a single row, which can change
        a token where two are nearly tied. A stop ends the arm that comes to it, the others continue.

        Args:
            prompt: A text, chat messages or token ids.
            arms: The first one without interventions is the baseline; if there is none, one is put in front.
            sampling: The settings of all arms.
            raw: Do not apply the chat template.
            top: Candidates that each token carries.
            kl: Give each arm that something acts on a companion row, the plain model fed the arm's own tokens, so
                that a token says how far the two next-token distributions are apart *on the same text* (``Token.kl``,
                ``reverse_kl``, ``plain_logprob``; what ``divergence`` gives for the arm's tokens). Else those are
                ``None``.
            options: As of :meth:`stream`.

        Returns:
            An iterator of tokens, step by step, and of the arms' ends.

        Raises:
            LensError: Inside a ``steer`` block, and for what :meth:`stream` refuses.
        """
        if self._registry.ambient()[0]:
            raise LensError("compare was called inside a steer block.", "Give the steering as an arm instead.")
        named = list(arms)
        if wrong := next((arm for arm in named if not isinstance(arm, Arm)), None):
            raise LensError(f"An arm cannot be {type(wrong).__name__}.", "Give Arm(name, interventions).")
        if not any(arm.is_baseline for arm in named):
            named.insert(0, Arm("baseline"))
        settings = settings_from(sampling, options)
        rows = [entries_of(arm.interventions, self._registry) for arm in named]
        baseline = next(index for index, arm in enumerate(named) if arm.is_baseline)
        plan = Plan(rows, self._registry.ambient()[1])
        decode = DecodeOptions(settings, kl=kl, top=top)
        encoded = self.tokens.prompt(prompt, raw=raw)
        return Comparison(
            row_decoder(self._registry, encoded, plan, len(named), decode, options, None, self.prefixes),
            self.tokens,
            [arm.name for arm in named],
            baseline,
        )

    def close(self) -> None:
        """Take everything down and free MLX's buffer cache."""
        for entry in tuple(self._registry.ambient_entries):
            self._registry.take(entry)
        self.prefixes.clear()
        mx.clear_cache()

    def __enter__(self) -> LensModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- helpers -----------------------------------------------------------

    def ids(self, tokens: Any) -> mx.array:
        """A text or token ids as an array (batch, tokens), each id inside the vocabulary. Raises :class:`LensError`."""
        ids: Any = tokens
        if isinstance(tokens, str):
            ids = np.asarray(self.tokens.encode(tokens))
        elif not (isinstance(tokens, mx.array) and tokens.ndim and mx.issubdtype(tokens.dtype, mx.integer)):
            ids = id_table(tokens)
        ids = ids[None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or ids.size == 0:
            raise LensError(
                f"Token ids of shape {tuple(ids.shape)} cannot be run.", "Give (tokens,) or (batch, tokens)."
            )
        if not isinstance(ids, mx.array):
            self.tokens.check([int(ids.min()), int(ids.max())])
            return mx.array(ids.astype(np.int32))
        # An array on the device stays there: read on the host, it would be brought back for every forward. As a number
        # without a sign a negative id is a very large one, so that the largest says it all, in one reduction. It is
        # waited for, 30 microseconds of an H100: to ask for it later, and to force the ids into the vocabulary until
        # then, took five times that.
        wide = ids if ids.dtype.size >= 4 else ids.astype(mx.int32)
        if int(wide.view(mx.uint64 if wide.dtype.size == 8 else mx.uint32).max()) >= self.tokens.vocab_size:
            self.tokens.check([int(ids.min()), int(ids.max())])
        return wide.astype(mx.int32)

    def rows(self, tokens: Any) -> tuple[Ids, ...]:
        """The token ids of each text: of one, of several of any lengths, or of a table of ids. Raises ``LensError``."""
        rows = texts_in(self.tokens, tokens)
        return rows if rows is not None else tuple(tuple(row) for row in self.ids(tokens).tolist())  # type: ignore[union-attr, arg-type]

    def stream_batch(
        self,
        prompts: Prompts,
        *,
        sampling: Sampling | None = None,
        interventions: Sequence[Intervention] | None = None,
        **options: Any,
    ) -> BatchGeneration:
        """Generate many prompts together by mlx-lm's continuous batching.

        A prompt's result is what it gives alone, its seed included, in float32; in lower precision a batch may round
        differently. Models that mlx-lm cannot batch rightly are run row by row; that is found out by a tiny batch
        before the first one.

        Args:
            prompts: Texts, chat messages, token ids, or :class:`~lens_tui.records.Request` records with
                interventions, sampling and stops of their own.
            sampling: The settings of the prompts that have none.
            interventions: Those of the prompts that have none; by default those of the blocks around the call.
            options: mlx-lm's sampling options and the stops as for :meth:`stream`, ``raw``, ``top``, ``sampler``,
                ``logits_processors``, ``completion_batch_size``, ``prefill_batch_size``, ``prefill_step_size``,
                ``max_kv_size`` and ``monitors``, which read every token (``readings(index)`` of the batch).

        Returns:
            An iterator of tokens and prompt ends, which prompts can join and leave. A ``capture`` block around it has
            each prompt's tensors in ``row(index)``.

        Raises:
            LensError: For no prompts, or an option that does not exist.
        """
        return start_batch(
            self._registry,
            self.tokens,
            prompts,
            sampling=sampling,
            interventions=interventions,
            options=options,
            prefixes=self.prefixes,
            engine=self.engine,
        )

    def generate_batch(self, prompts: Prompts, **options: Any) -> list[str]:
        """Generate a text for each prompt, together; the options are those of :meth:`stream_batch`."""
        batch = self.stream_batch(prompts, **options)
        for _ in batch:
            pass
        return list(batch.texts)
