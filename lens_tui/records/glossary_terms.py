"""What the numbers of Load, Steer and Generate are, and what an entry of the glossary is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GlossaryTerm:
    """One number or sign.

    Args:
        id: what ``glossary`` and other code name it by.
        name: how it is written where it is shown.
        means: what it is, in a sentence or two.
        unit: what it is counted in.
        source: the paper or the place of our own definition.
        where: the titles of the screens it is shown on.
        also: other ways it is written, for looking it up.
    """

    id: str
    name: str
    means: str
    unit: str
    source: str
    where: tuple[str, ...]
    also: tuple[str, ...] = ()

    @property
    def unit_and_source(self) -> str:
        """Its unit and its source, the second of the two lines it is explained in."""
        return f"unit: {self.unit} · {self.source}"


_OURS = "our definition"
_STEERING = "docs/steering.md"
_SAES = "docs/saes.md"

ACTING: tuple[GlossaryTerm, ...] = (
    # Load
    GlossaryTerm(
        "fit",
        "FIT ███",
        "How well a comparison of four arms fits in memory: ███ up to 60 % of the machine's, ██░ to 85 %, █░░ to "
        "100 %, ░░░ beyond.",
        "share of memory",
        _OURS,
        ("Load",),
        ("memory",),
    ),
    GlossaryTerm(
        "reads",
        "+ reads",
        "Memory for what is read while arms run: the captured residuals and the logits. Each bar counts the rows above "
        "it too.",
        "bytes",
        _OURS,
        ("Load",),
        ("+ cache", "capture"),
    ),
    # Steer, Generate
    GlossaryTerm(
        "h",
        "‖h‖",
        "The length of the residual stream at a layer; a row's ‖h‖ is the median over ordinary tokens of a set of "
        "texts.",
        "units of the residual",
        _STEERING,
        ("Steer", "Generate"),
        ("|h|", "residual norm", "median ‖h‖"),
    ),
    GlossaryTerm(
        "scale",
        "scale",
        "The coefficient on the unit direction that is added to the residual: the length of the push. In norm-match "
        "it is a share of each token's ‖h‖.",
        "units of the residual",
        "Turner et al. 2023, arXiv 2308.10248",
        ("Steer", "Generate"),
        ("coefficient", "+8.0"),
    ),
    GlossaryTerm(
        "x_max",
        "×max",
        "The scale over the feature's largest activation in the texts of its index (without an index: in the text "
        "it was sent from).",
        "ratio",
        "Templeton et al. 2024, Scaling Monosemanticity",
        ("Steer", "Generate"),
        ("x max", "× max", "max activation"),
    ),
    GlossaryTerm(
        "norm",
        "norm",
        "The length of the vector as it was made or read. Steering uses its direction at length 1, so this does not "
        "change a scale's effect.",
        "units of the residual",
        _STEERING,
        ("Steer",),
        ("unit norm", "norm 1", "norm 4.14"),
    ),
    GlossaryTerm(
        "moved",
        "moved",
        "Mean ‖Δh‖/‖h‖ as delivered: the length of the change a steering made, after rounding, over the residual's "
        "own. ‖z‖: of edited heads and patterns, over what the heads hand on.",
        "ratio",
        _STEERING,
        ("Steer", "Generate"),
        ("dose", "moved 0.57 ‖h‖", "‖z‖"),
    ),
    GlossaryTerm(
        "relative_norm",
        "‖Δh‖/‖h‖",
        "Mean length of the change over the length of the residual, after rounding.",
        "ratio",
        _STEERING,
        ("Steer",),
    ),
    GlossaryTerm(
        "promoted",
        "promotes, suppresses",
        "What one unit along the direction adds to a token's logit, the final norm's gain folded in and its division "
        "left out.",
        "logits per unit of scale",
        "nostalgebraist 2020, the logit lens; docs/saes.md",
        ("Steer", "Features"),
        ("promoted", "suppressed", "+0.59"),
    ),
    GlossaryTerm(
        "delta_loss",
        "Δ loss",
        "Mean next-token loss of unrelated texts, steered minus plain, in nats a token; "
        "in brackets the 95 % bootstrap interval over texts.",
        "nats a token",
        _STEERING,
        ("Steer",),
        ("loss",),
    ),
    GlossaryTerm(
        "kl",
        "KL",
        "Mean D(plain ‖ steered) on the first 20 tokens of the plain text, in nats (lanes: D(steered ‖ plain) on their "
        "own). Past 1 text often comes apart.",
        "nats a token",
        "Kullback and Leibler 1951; docs/steering.md",
        ("Steer",),
        ("divergence",),
    ),
    GlossaryTerm(
        "kl_own",
        "KL of a lane",
        "D(steered ‖ plain) of the next token, both models on the lane's own text, whole vocabulary at temperature 1. "
        "The figure is the mean over tokens, not the sum.",
        "nats a token",
        "Kullback and Leibler 1951; docs/steering.md",
        ("Generate",),
        ("KL", "KL to plain", "mean KL"),
    ),
    GlossaryTerm(
        "ppl",
        "ppl",
        "exp of the mean −logp of a lane's text. “own”: to the steered model that wrote it; “plain”: of the same text "
        "to the plain model.",
        "effective choices a token",
        "Jelinek et al. 1977; docs/steering.md",
        ("Generate",),
        ("perplexity", "own", "plain"),
    ),
    GlossaryTerm(
        "ppl_unsteered",
        "perplexity",
        "Of what the steered model wrote, under the plain model. High here and low under the steered one: "
        "confidently broken text.",
        "effective choices a token",
        "Jelinek et al. 1977; docs/steering.md",
        ("Steer",),
    ),
    GlossaryTerm(
        "logp",
        "logp",
        "The natural logarithm of a token's probability, to the model that wrote it; over a text the mean.",
        "nats",
        _STEERING,
        ("Generate",),
        ("logprob", "surprise", "−logp"),
    ),
    GlossaryTerm(
        "distinct_2",
        "distinct-2",
        "Share of the token pairs of what was written that are different: it falls when text repeats itself.",
        "share, 0 to 1",
        "Li et al. 2016, arXiv 1510.03055",
        ("Steer",),
    ),
    GlossaryTerm(
        "read_back",
        "read-back",
        "Mean activation of the feature on what was written, read again by the plain model: "
        "high only if the text is about it.",
        "activation",
        _STEERING,
        ("Steer",),
    ),
    GlossaryTerm(
        "random",
        "random",
        "The same measure with random directions of the same length in its place: what any push does. "
        "Flipped: the sign turned.",
        "as the measure",
        _STEERING,
        ("Steer",),
        ("flipped", "control"),
    ),
    GlossaryTerm(
        "knee",
        "knee",
        "The scale where the curve bends most: the point furthest from the straight line between its ends.",
        "scale",
        "after Satopää et al. 2011, Kneedle",
        ("Steer",),
        ("◆", "turns back"),
    ),
    GlossaryTerm(
        "probe",
        "probe",
        "A direction and a bias fitted to labelled texts; its score is w · h + bias: log-odds of label 1 (logistic), "
        "above 0 on its side (mean difference), the label (ridge).",
        "log-odds, or the label's",
        "Alain and Bengio 2016; docs/probes.md",
        ("Steer", "Generate"),
        ("score",),
    ),
    GlossaryTerm(
        "probe_score",
        "AUC, R2 of a probe",
        "On examples held out in folds: the chance that one of label 1 scores above one of label 0; where labels are "
        "numbers, the share of their variance that the score tells.",
        "share, 0 to 1 (R2: at most 1)",
        "Hanley and McNeil 1982; docs/probes.md",
        ("Steer",),
        ("R2", "AUC", "held out", "probe evaluate"),
    ),
    GlossaryTerm(
        "probe_null",
        "at random, p",
        "A probe's held-out score with labels dealt at random: the mean and, in brackets, the 95th percentile of 100 "
        "fits. p: the share that do as well.",
        "AUC or R2; share",
        "docs/probes.md, permutation test",
        ("Steer",),
        ("null", "permutation"),
    ),
    GlossaryTerm(
        "monitor",
        "verse 1.24 > 0.5",
        "A probe's score, projection on a vector or feature's activation at a token, against its threshold: above it "
        "the shade begins, and bars are ▅ or higher.",
        "the probe's, vector's or feature's",
        "docs/probes.md",
        ("Generate",),
    ),
    GlossaryTerm(
        "gate",
        "if verse>0.5",
        "The row acts only at tokens where the monitor reads more than the number (with < less): conditional "
        "steering, decided anew at every token.",
        "as the monitor",
        "Lee et al. 2024, arXiv 2409.05907; docs/steering.md",
        ("Generate", "Steer"),
    ),
    GlossaryTerm(
        "behaviour",
        "behaviour",
        "Mean over questions of log p(answer that shows the behaviour) − log p(the other), at the first token in which "
        "they differ, with its interval.",
        "nats",
        "Rimsky et al. 2024, arXiv 2312.06681; docs/steering.md",
        ("Steer",),
        ("behavior", "A/B", "CAA"),
    ),
    GlossaryTerm(
        "behaviour_share",
        "share, chosen",
        "Of the questions of a behaviour: the mean of p(matching) / (p(matching) + p(other)), and how often the "
        "matching answer is the likelier one, a tie counting half.",
        "share, 0 to 1; questions",
        "docs/steering.md",
        ("Steer",),
        ("share", "chosen"),
    ),
)
"""In the order of the screens."""
