"""What layers, parts and heads say of a text, for tests of the screen: the same words in, the same numbers out."""

from __future__ import annotations

import numpy as np

from lens_tui.records import LensError
from lens_tui.records.measures import AttentionPattern, HeadAttribution, LogitAttribution, LogitLens, Part
from lens_tui.worker import jobs
from tests.fake_words import OTHERS, noise, split, token_id


def fake_lens(job: jobs.ReadLens, layers: int = 8) -> LogitLens:
    """A logit lens that grows surer from layer to layer: the same words in, the same numbers out."""
    words = ["<s>", *split(job.text)] if not job.token_ids else [f" w{token}" for token in job.token_ids]
    ids = [token_id(word) for word in words]
    wanted = job.target if isinstance(job.target, int) else token_id(job.target or " the")
    if isinstance(job.target, str) and len(split(job.target)) > 1:
        raise LensError(f"{job.target!r} is not one token.", "Give another text.")
    follow = [*ids[1:], wanted] if job.target == "" else [wanted] * len(ids)
    texts = {wanted: str(job.target) or " the"} | {token_id(word): word for word in (*OTHERS, *words)}
    steered = job.arm.name if job.arm else ""
    shape = (layers, len(ids))
    sure = np.array([[0.05 + 0.9 * noise(steered, i, w) * (i + 1) / layers for w in words] for i in range(layers)])
    top = np.zeros((*shape, 4), np.int32)
    for layer in range(layers):
        for at in range(len(ids)):
            others = [token_id(OTHERS[(layer + at + k) % len(OTHERS)]) for k in range(4)]
            top[layer, at] = [follow[at], *others[:3]] if layer > 4 else others
    chances = sure[..., None] * np.array([1.0, 0.3, 0.1, 0.03])
    return LogitLens(
        "demo",
        "resid_post",
        tuple(range(layers)),
        tuple(ids),
        top,
        np.log(chances).astype(np.float32),
        np.array(follow, np.int32),
        np.array([[0 if i > 4 else 400 >> i for _ in ids] for i in range(layers)], np.int32),
        np.log(sure * [[1.0] if i > 4 else [0.01] for i in range(layers)]).astype(np.float32),
        np.full(shape, 3.0, np.float32),
        np.array([[float(layers - 1 - i) for _ in ids] for i in range(layers)], np.float32),
        texts,
        final_ids=top[-1, :, 0],
        method="jacobian" if job.jacobian else "logit",
    )


def fake_parts(job: jobs.ReadParts, layers: int = 8, heads: int = 6) -> LogitAttribution:
    """A logit taken apart: heads sum to their attention, parts to the logit."""
    words = ["<s>", *split(job.text)] if not job.token_ids else [f" w{token}" for token in job.token_ids]
    ids = tuple(token_id(word) for word in words)
    at = job.position % len(ids)
    steered = job.arm.name if job.arm else ""
    own = [np.array([[3.0 * noise(steered, i, h, at) - 1.0] for h in range(heads)], np.float32) for i in range(layers)]
    none = np.zeros(1, np.float32)
    parts, values = [Part("embed")], [0.25]
    for layer in range(layers):
        parts += [Part("attn", layer), Part("mlp", layer)]
        values += [float(own[layer].sum()), 2.0 * noise(steered, "mlp", layer, at)]
        if job.arm is not None and any(item.layer == layer for item in job.arm.interventions):
            parts.append(Part("steer", layer))
            values.append(1.5)
    logit = np.array([sum(values)], np.float32)
    return LogitAttribution(
        "demo",
        ids,
        (at,),
        (job.target,),
        None,
        tuple(parts),
        np.array(values, np.float32)[:, None],
        none,
        none,
        logit,
        logit,
        0.0,
        {job.target: " the"} | {token_id(word): word for word in words},
        tuple(HeadAttribution(layer, own[layer], none, none) for layer in range(layers)),
    )


def fake_pattern(job: jobs.ReadPattern, heads: int = 6) -> AttentionPattern:
    """Each head of a layer looks mostly at a token some places back; layer 1 has none."""
    if job.layer == 1:
        raise LensError("The attention of layer 1 (Fake) has no pattern that can be read.")
    count = 1 + len(split(job.text)) if not job.token_ids else len(job.token_ids)
    ids = tuple(token_id(w) for w in ["<s>", *split(job.text)]) if not job.token_ids else job.token_ids
    weights = np.zeros((heads, count, count), np.float32)
    for head in range(heads):
        for at in range(count):
            weights[head, at, : at + 1] = 0.25 / (at + 1)
            weights[head, at, max(0, at - (head + job.layer) % 4)] += 0.75
    return AttentionPattern("demo", job.layer, tuple(ids), weights, 0.0)
