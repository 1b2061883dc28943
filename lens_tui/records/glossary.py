"""What every number of the app and of the command line is: the one glossary, plain data.

``?`` on a screen, the verb ``glossary`` and ``docs/glossary.md`` show these entries and have no words of their own.
The numbers of Features, Lens and Causes are here, those of Load, Steer and Generate in :mod:`.glossary_terms`.
"""

from __future__ import annotations

from .glossary_terms import ACTING, GlossaryTerm

_SAES = "docs/saes.md"

READING: tuple[GlossaryTerm, ...] = (
    # Features
    GlossaryTerm(
        "activation",
        "activation",
        "How strongly a feature is on at a token, as its SAE defines it; above 0 it is active. “here” is the largest "
        "in the text shown.",
        "units of the residual",
        "Bricken et al. 2023, Towards Monosemanticity",
        ("Features", "Causes"),
        ("here", "max", "active"),
    ),
    GlossaryTerm(
        "l0",
        "L0",
        "Mean number of features active on a token, special tokens and the first left out.",
        "features a token",
        "Bricken et al. 2023, Towards Monosemanticity",
        ("Features",),
        ("l0",),
    ),
    GlossaryTerm(
        "fvu",
        "FVU",
        "Fraction of variance unexplained: squared error of the reconstruction over the squared distance from the "
        "text's mean. 0 is perfect.",
        "share, 0 up",
        "Gao et al. 2024, arXiv 2406.04093; docs/saes.md",
        ("Features",),
        ("fraction of variance unexplained",),
    ),
    GlossaryTerm(
        "density",
        "density, ≋",
        "Share of the index's tokens on which the feature is active. ≋ marks a dense one "
        "(over 20 %): it says little of one token.",
        "%",
        "Bricken et al. 2023; docs/saes.md",
        ("Features",),
        ("dense", "≋"),
    ),
    GlossaryTerm(
        "histogram",
        "histogram",
        "How often each activation comes in the index: across, activation in half octaves (a logarithmic axis, its "
        "ends in figures, ▲ this text); up, tokens.",
        "tokens",
        _SAES,
        ("Features",),
        ("▲",),
    ),
    GlossaryTerm(
        "detection",
        "detection",
        "Score of a label: balanced accuracy of a judge who sees only the label and says which held-out passages "
        "activate the feature. 0.5 is chance.",
        "share, 0 to 1",
        "Paulo et al. 2024, arXiv 2410.13928",
        ("Features",),
        ("fuzz", "score"),
    ),
    GlossaryTerm(
        "near",
        "near",
        "Cosine of two features' decoder directions: 1 the same direction, 0 unrelated.",
        "cosine, −1 to 1",
        _SAES,
        ("Features",),
        ("neighbours", "cosine"),
    ),
    GlossaryTerm(
        "together",
        "together",
        "Jaccard index of two features' active tokens in the index: tokens with both over tokens with either.",
        "share, 0 to 1",
        "Jaccard 1901; docs/saes.md",
        ("Features",),
        ("jaccard", "co-active"),
    ),
    GlossaryTerm(
        "auc",
        "AUC, d, p",
        "On held-out texts: the chance that a text of A is above one of B; d, the difference of means in standard "
        "deviations; p, against texts dealt at random.",
        "share; deviations; share",
        "Hanley and McNeil 1982; docs/saes.md",
        ("Features",),
        ("d", "p", "contrast", "held out"),
    ),
    GlossaryTerm(
        "feature_rank",
        "rank of a feature",
        "At a token: the share of the feature's own active tokens in the index that are as strong or weaker.",
        "share, 0 to 1",
        _SAES,
        ("Features",),
        ("--by rank",),
    ),
    # Lens
    GlossaryTerm(
        "p",
        "p",
        "Probability of a token if the model's final norm and unembedding were applied to this layer's output.",
        "share, 0 to 1",
        "nostalgebraist 2020, the logit lens",
        ("Lens",),
        ("probability",),
    ),
    GlossaryTerm(
        "rank",
        "rank",
        "Place of the followed token in a layer's order of probability, counted from 0: 0 is the best. The bars are "
        "logarithmic, full for 0.",
        "tokens above it",
        "docs/library.md",
        ("Lens",),
        ("rank 0", "target_rank"),
    ),
    GlossaryTerm(
        "entropy",
        "entropy",
        "How undecided a layer's readout is, or a head's look: 0 is certain of one token, ln of how many there are "
        "knows nothing.",
        "nats",
        "Shannon 1948",
        ("Lens",),
    ),
    GlossaryTerm(
        "layer_kl",
        "KL from the last layer",
        "D(last layer ‖ this layer) of their next-token distributions: how far the readout still is from what the "
        "model says.",
        "nats",
        "Belrose et al. 2023, arXiv 2303.08112",
        ("Lens",),
        ("KL",),
    ),
    GlossaryTerm(
        "attribution",
        "attention, MLP, steering, layer",
        "What that part adds to the logit of the followed token, the final norm's denominator kept as it is. The "
        "parts, embedding, biases and rounding sum to the logit before soft-capping.",
        "logits",
        "Elhage et al. 2021, A mathematical framework for transformer circuits",
        ("Lens",),
        ("adds to the logit", "logit attribution", "--attribute"),
    ),
    GlossaryTerm(
        "head_attribution",
        "H3 +0.41",
        "What one attention head adds to the logit of the followed token. Heads, the output projection's bias and the "
        "rest (rounding, later steering) sum to the layer's attention.",
        "logits",
        "Elhage et al. 2021, A mathematical framework for transformer circuits",
        ("Lens",),
        ("heads of", "adds to"),
    ),
    GlossaryTerm(
        "attention_weight",
        "looks at",
        "The weight a head gives a token when it looks from another, after the model's masks, window and cap. Those of "
        "one look sum to 1, or to less with sinks.",
        "share, 0 to 1",
        "Vaswani et al. 2017, arXiv 1706.03762; read off the layer itself",
        ("Lens",),
        ("share of the look", "attention pattern", "--heads"),
    ),
    GlossaryTerm(
        "jacobian_lens",
        "Jacobian lens",
        "A layer's residual carried to the last one by the mean Jacobian J between them, then read by the model's own"
        " norm and unembedding: unembed(norm(J h)).",
        "tokens and shares",
        "Anthropic 2026, jacobian-lens; docs/jacobian-lens.md",
        ("Lens",),
        ("jacobian", "J h", "jlens", "through"),
    ),
    GlossaryTerm(
        "agreement",
        "says what the model says",
        "The share of the text's tokens at which a layer's best next token is the model's own; in brackets the same "
        "read by the logit lens.",
        "share of tokens",
        "docs/jacobian-lens.md",
        ("Lens",),
        ("agreement", "agrees", "of tokens"),
    ),
    GlossaryTerm(
        "jacobian_error",
        "error of a Jacobian lens",
        "Half the distance between a layer's mean Jacobians over two halves of the texts, over the length of the mean"
        " of all. It falls with the root of their number.",
        "share of the matrix's length",
        "docs/jacobian-lens.md",
        ("Lens",),
        ("jlens show", "convergence"),
    ),
    # Causes
    GlossaryTerm(
        "patch_effect",
        "effect",
        "(value − corrupted) / (clean − corrupted): 0 is the corrupted run, 1 the clean one, in both directions; of "
        "several pairs the ratio of the sums.",
        "share of clean − corrupted",
        "Heimersheim and Nanda 2024, arXiv 2404.15255",
        ("Causes",),
        ("normalised effect", "denoise", "noise"),
    ),
    GlossaryTerm(
        "patch_value",
        "value",
        "The metric under the patch, after the last token: logit of the answer less the wrong one's, its "
        "log-probability, probability or rank, or the KL from the clean run.",
        "logits, nats, share or tokens",
        "Zhang and Nanda 2023, arXiv 2309.16042",
        ("Causes",),
        ("metric", "logit-difference", "clean", "corrupted"),
    ),
    GlossaryTerm(
        "patch_random",
        "random",
        "The effect of a patch of the same length in a random direction: what chance alone does there. “random at "
        "most” is the largest move of them all.",
        "share of clean − corrupted",
        "docs/causes.md",
        ("Causes",),
        ("noise floor", "random ≤", "random at most"),
    ),
    GlossaryTerm(
        "patch_shuffled",
        "shuffled",
        "The effect of the same place taken from another pair's run; only where there are several pairs.",
        "share of clean − corrupted",
        "docs/causes.md",
        ("Causes",),
        ("shuffled pairs",),
    ),
    GlossaryTerm(
        "patch_estimate",
        "estimate",
        "The effect by one backward pass: the change that the patch makes, times the metric's gradient. r and rank r "
        "are its correlations with the patched effects.",
        "share of clean − corrupted",
        "Nanda 2023; Syed et al. 2023, arXiv 2310.10348",
        ("Causes",),
        ("estimates r", "rank r", "attribution patching", "one backward pass"),
    ),
    GlossaryTerm(
        "indirect_effect",
        "effect of a trace",
        "What one restored state gives back of the answer's probability where the subject is noised: (restored − "
        "noised) / (clean − noised), mean over the noised runs.",
        "share of clean − noised",
        "Meng et al. 2022, arXiv 2202.05262",
        ("Causes",),
        ("causal tracing", "indirect effect", "noised"),
    ),
    GlossaryTerm(
        "patch_interval",
        "95 % of an effect",
        "The percentile bootstrap interval of an effect over prompt pairs; there is none of a single pair.",
        "share of clean − corrupted",
        "Efron 1979; docs/causes.md",
        ("Causes",),
        ("interval of an effect", "low, high"),
    ),
    GlossaryTerm(
        "path_effect",
        "effect of a path, of an edge",
        "The effect where only the direct path from a sender (a head, an MLP, the embedding) to a receiver carries "
        "the other run's activation.",
        "share of clean − corrupted",
        "Wang et al. 2022, arXiv 2211.00593; docs/causes.md",
        ("Causes",),
        ("patch --to", "patch --edges", "path patching"),
    ),
    GlossaryTerm(
        "graph_share",
        "share of a node",
        "The part of all influence on the logits that goes through a node: w (A + A² + ...), with A the sizes of "
        "effects over their sum for each target and w the logits' probabilities.",
        "share, 0 to 1",
        "Ameisen et al. 2025, Circuit Tracing",
        ("Causes",),
        ("influence", "pruned", "dial", "graph --nodes"),
    ),
    GlossaryTerm(
        "graph_effect",
        "edge of a graph",
        "What the source adds directly to the target's pre-activation or logit (less the mean of all), attention "
        "patterns, norms and active features held.",
        "units of the target's value",
        "Ameisen et al. 2025, Circuit Tracing",
        ("Causes",),
        ("direct effect", "comes from", "acts on", "direct on"),
    ),
    GlossaryTerm(
        "graph_checks",
        "checks of a graph",
        "A node is removed, its targets measured. direct, total: what the graph predicts, without and with paths "
        "between; frozen: all held; held: attention held; free: nothing.",
        "change of the target's value",
        "docs/graphs.md",
        ("Causes",),
        ("direct", "frozen", "total", "held", "free", "graph --check"),
    ),
    GlossaryTerm(
        "graph_completeness",
        "completeness",
        "The share of what acts directly on nodes, weighted by their influence, that is no error of the "
        "transcoders; before pruning.",
        "share, 0 to 1",
        "Ameisen et al. 2025, Circuit Tracing",
        ("Causes",),
        ("graph --json", "errors"),
    ),
    GlossaryTerm(
        "graph_replacement",
        "replacement",
        "Of the influence on the logits that begins in tokens or errors, the share that begins in tokens.",
        "share, 0 to 1",
        "Ameisen et al. 2025, Circuit Tracing",
        ("Causes",),
        ("replacement score",),
    ),
    GlossaryTerm(
        "graph_sums",
        "sums within",
        "The largest difference between a target's value and the sum of what acts on it directly, biases and features"
        " without a node: how exactly the graph adds up.",
        "units of the target's value",
        "docs/graphs.md",
        ("Causes",),
        ("sum_error", "sum error"),
    ),
    GlossaryTerm(
        "graph_active",
        "features of ... active",
        "How many features show, of all that are active anywhere in the prompt; the others were pruned, or had too "
        "little influence to get a node.",
        "features",
        "docs/graphs.md",
        ("Causes",),
        ("n_active", "active features"),
    ),
)
"""In the order of the screens."""


TERMS: tuple[GlossaryTerm, ...] = (*ACTING, *READING)
"""In the order of the screens."""


def by_id(name: str) -> GlossaryTerm:
    """The entry of that id. Raises ``KeyError`` where there is none."""
    return {term.id: term for term in TERMS}[name]


def on_screen(title: str) -> tuple[GlossaryTerm, ...]:
    """The entries for the numbers of a screen, by its title."""
    return tuple(term for term in TERMS if title in term.where)


def find(words: str) -> list[GlossaryTerm]:
    """The entries that ``words`` name, best first: by id or name, then by another way of writing, then by any part."""
    wanted = words.strip().casefold()
    ranked = [(rank, place, term) for place, term in enumerate(TERMS) if (rank := _rank(term, wanted)) is not None]
    best = min((rank for rank, _, _ in ranked), default=None)
    named = best is not None and best < 2
    return [term for rank, _, term in sorted(ranked, key=lambda item: item[:2]) if rank < 2 or not named]


def _rank(term: GlossaryTerm, wanted: str) -> int | None:
    if wanted in (term.id, term.name.casefold()):
        return 0
    if wanted in (other.casefold() for other in term.also):
        return 1
    if wanted and wanted in " ".join((term.id, term.name, *term.also)).casefold():
        return 2
    return 3 if wanted and wanted in term.means.casefold() else None


def as_markdown() -> str:
    """The glossary as ``docs/glossary.md`` has it."""
    lines = [
        "# Glossary",
        "",
        "Every number that the app and the command line show. `?` on a screen lists those of that screen, "
        "`mlx-lens-tui glossary TERM` prints one. Written by `docs/make_glossary.py` from "
        "`lens_tui/records/glossary.py`.",
    ]
    for title in dict.fromkeys(term.where[0] for term in TERMS):
        lines += ["", f"## {title}", "", "| number | what it is | unit | source |", "|---|---|---|---|"]
        for term in TERMS:
            if term.where[0] == title:
                cells = (f"**{term.name}** (`{term.id}`)", term.means, term.unit, term.source)
                lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
