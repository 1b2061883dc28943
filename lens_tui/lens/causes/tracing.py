"""Causal tracing: which single hidden state brings back a fact when the subject's embeddings are noised.

Meng et al. 2022 (2202.05262), section 2.1 and appendix B.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError
from lens_tui.records.patch_grid import CausalTrace, Doubles, Span, Text

from ..forward import Core, one_text
from ..hooks.program import Key
from .cells import Change, Progress, TextRun, judged, layers_with, needed_for, read_run
from .metrics import Metric, probability, token_of
from .patching import final_logits
from .prompt_pairs import places_of

EMBEDDING: Key = (0, "resid_pre")


def causal_trace(
    lens: Core,
    prompt: Text,
    subject: Span,
    *,
    answer: int | str | None = None,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    window: int = 10,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    controls: bool = True,
    progress: Progress | None = None,
    partial: Callable[[CausalTrace], None] | None = None,
) -> CausalTrace:
    """Trace one prompt: noise the subject's embeddings, restore single states, read the answer's probability.

    The noise is added to what the first block is given at the subject's tokens. Then each layer's state at each token
    is given back its clean value, in every noised run.

    Args:
        lens: The model; what holds in blocks around the call is left out.
        prompt: A text, raw, or its token ids.
        subject: ``(start, stop)`` tokens, or words that the prompt has once.
        answer: A text of one token or an id; by default what the model predicts.
        site: ``resid_post`` (the hidden states of the paper), ``attn_out``, ``mlp_out`` or another.
        layers: Those to restore, by default all that have the site.
        window: For sites that only add to the stream, how many layers around one are restored together.
        noise: Its standard deviation, in that of the numbers in the subject's embeddings.
        samples: How many times noise is drawn.
        seed: Of the noise and of the random restorations.
        controls: Take steps as long as those to the clean state in random directions too: twice the work.
        progress: Is called with (restorations done, in all).
        partial: Is called with the trace of the samples that are done, after each one.

    Raises:
        LensError: For a subject that is not in the prompt, and for numbers below what makes sense.
        NotFinite: For activations that are not numbers.
    """
    if samples < 1 or window < 1 or not noise > 0:
        raise LensError("Causal tracing needs at least one sample, a window of one layer, and noise above 0.")
    ids = one_text(lens, prompt)
    where = places_of(lens, ids, prompt, subject, "the subject")
    chosen = layers_with(lens, site, layers)
    keys = [_window(lens, layer, site, window) for layer in chosen]
    clean = read_run(lens, ids, needed := [*needed_for(lens, [key for group in keys for key in group]), EMBEDDING])
    token = int(mx.argmax(final_logits(lens, clean))) if answer is None else token_of(lens, answer, "trace", "answer")
    metric = probability(token)
    embedded = clean.hidden[EMBEDDING].astype(mx.float32)
    sigma = noise * float(np.array(embedded)[list(where)].std())
    changes = [Change(group, ((at,), (at,)), clean) for group in keys for at in range(len(ids))]
    turned = [replace(change, random=seed) for change in changes] if controls else []
    rng = np.random.default_rng(seed)
    starts = [_noised(embedded, where, sigma, rng) for _ in range(samples)]
    whole = float(judged(lens, clean, [_nothing(clean)], metric)[0])
    trace = _unanswered(lens, clean, site, token, where, chosen, (whole, sigma, samples, max(map(len, keys))))
    tell = None if partial is None else lambda found, noised: partial(_with(trace, found, noised))
    found, noised = _sampled(lens, clean, starts, [*changes, *turned], (metric, needed, progress), tell)
    return _with(trace, found, noised)


def _unanswered(
    lens: Core,
    clean: TextRun,
    site: str,
    token: int,
    where: Sequence[int],
    layers: tuple[int, ...],
    figures: tuple[float, float, int, int],
) -> CausalTrace:
    """A trace without what the restorations gave."""
    whole, sigma, samples, window = figures
    texts, shown = tuple(map(lens.tokens.display, clean.ids)), lens.tokens.display(token)
    return CausalTrace(
        lens.info.name, site, token, shown, texts, (where[0], where[-1] + 1), layers,
        whole, 0.0, np.zeros(0), np.zeros(0), sigma, samples, window,
    )  # fmt: skip


def _with(trace: CausalTrace, found: Doubles, noised: Sequence[float]) -> CausalTrace:
    """A trace with its numbers: the states restored, then (twice as many columns) those restored at random."""
    size = len(trace.layers) * len(trace.tokens)
    shape = (len(found), len(trace.layers), len(trace.tokens))
    values, at_random = found[:, :size].reshape(shape), found[:, size:]
    return replace(
        trace,
        noised=float(np.mean(noised)),
        values=values.mean(axis=0),
        per_sample=values,
        samples=len(values),
        random=at_random.reshape(shape).mean(axis=0) if at_random.size else None,
    )


def _sampled(
    lens: Core,
    clean: TextRun,
    starts: Sequence[mx.array],
    changes: Sequence[Change],
    how: tuple[Metric, list[Key], Progress | None],
    tell: Callable[[Doubles, Sequence[float]], None] | None,
) -> tuple[Doubles, list[float]]:
    """For each noised run the metric under every restoration, (samples, changes), and without any."""
    metric, needed, progress = how
    found: list[Doubles] = []
    noised: list[float] = []
    for sample, start in enumerate(starts):
        base = read_run(lens, clean.ids, needed, start.astype(clean.hidden[EMBEDDING].dtype))
        noised.append(float(judged(lens, base, [_nothing(clean)], metric)[0]))
        report = _from(progress, sample * len(changes), len(starts) * len(changes))
        found.append(judged(lens, base, changes, metric, progress=report).astype(np.float64))
        if tell is not None:
            tell(np.stack(found), noised)
    return np.stack(found), noised


def _nothing(run: TextRun) -> Change:
    """The change of no token."""
    return Change((EMBEDDING,), ((), ()), run)


def _noised(embedded: mx.array, where: Sequence[int], sigma: float, rng: np.random.Generator) -> mx.array:
    """The embeddings ``(tokens, d_model)`` with noise at some tokens."""
    added = np.zeros(embedded.shape, np.float32)
    added[list(where)] = rng.standard_normal((len(where), embedded.shape[1])) * sigma
    return embedded + mx.array(added)


def _window(lens: Core, layer: int, site: str, window: int) -> tuple[Key, ...]:
    """The layers restored together around one: of the stream itself only that one, which holds all below it."""
    if site in ("resid_pre", "resid_post"):
        return ((layer, site),)
    first = max(0, layer - window // 2)
    last = min(lens.n_layers, layer + (window + 1) // 2)
    return tuple((at, site) for at in range(first, last) if at == layer or site in lens.sites(at))


def _from(progress: Progress | None, done: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda more, _: progress(done + more, total)
