"""Models in folders and runs of theirs whose arms are of every kind, for what takes a run elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui import LensModel, demo, load_sae
from lens_tui.lens.vectors import from_array, from_token, mean_difference, random_unit
from lens_tui.records import (
    Ablate,
    Add,
    Arm,
    CapProjection,
    ClampFeature,
    Gate,
    Intervention,
    Monitor,
    NormMatch,
    Positions,
    ProjectOut,
    SAEInfo,
    Sampling,
    SetProjection,
)
from lens_tui.records.run import RunRecord
from lens_tui.records.vector_formats import load_one
from lens_tui.tasks.replay import Gathered
from tests.folders import llama_folder

PROMPT = 'it\'s \n"the" $HOME `x` \\ \u202ecat \'\'\' """ e\u0301 日本'
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def chat_folder(folder: Path, **config: Any) -> Path:
    """A small llama in bfloat16 whose tokenizer has a chat template."""
    llama_folder(folder, **config)
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.save_safetensors(str(folder / "model.safetensors"), {k: v.astype(mx.bfloat16) for k, v in weights.items()})
    place = folder / "tokenizer_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "chat_template": TEMPLATE}))
    return folder


def made_run(
    lens: LensModel,
    arms: Sequence[Arm],
    sampling: Sampling,
    *,
    prompt: str = PROMPT,
    raw: bool = False,
    saes: Sequence[SAEInfo] = (),
    dials: dict[int, tuple[int, tuple[Intervention, ...]]] | None = None,
) -> RunRecord:
    """A run as it is kept. ``dials``: after the step, the arm and what acts on it from then on."""
    named = arms if any(arm.is_baseline for arm in arms) else [Arm("baseline"), *arms]
    comparison = lens.compare(prompt, named, sampling, raw=raw, top=5)
    gathered = Gathered(prompt, named, comparison, raw)
    for event in comparison:
        gathered.take(event)
        if dials and getattr(event, "index", -1) in dials and event.arm == 0:
            comparison.dial(*dials[event.index])  # type: ignore[union-attr]
    return gathered.record(lens, saes)


def demo_arms(lens: LensModel) -> tuple[list[Arm], list[SAEInfo]]:
    """Arms of the bundled model: features added, projected out, clamped; a ready vector; several rows; positions."""
    sae = load_sae(demo.sae_paths()[demo.default_sae()])
    lens.attach_sae(sae.info.id, sae)
    feature, ready = sae.vector(2666), demo.vectors()[0]
    held = load_one(ready.path)
    arms = [
        Arm("baseline"),
        Arm("feature", (Add(id="a", layer=4, vector=feature, scale=22.0),)),
        Arm("out", (ProjectOut(id="b", layer=4, vector=feature),)),
        Arm("clamped", (ClampFeature(id="c", layer=4, sae=sae.info.id, feature=2666, value=20.0),)),
        Arm(
            "gated",
            (
                Add(
                    id="g",
                    layer=4,
                    vector=feature,
                    scale=22.0,
                    gate=Gate(Monitor("f75", 4, sae=sae.info.id, feature=75), 0.5, "below"),
                ),
                Add(
                    id="h",
                    layer=5,
                    vector=feature,
                    scale=5.0,
                    gate=Gate(Monitor(held.name, held.layer, held.site, held), 1.25),
                ),
            ),
        ),
        Arm(
            "several",
            (
                Add(id="d", layer=held.layer, vector=held, scale=ready.scale / 2),
                NormMatch(id="e", layer=5, vector=feature, scale=0.25, positions=Positions("generated")),
            ),
        ),
    ]
    return arms, [sae.info]


def every_arm(lens: LensModel, folder_sae: Any, hub_sae: Any) -> list[Arm]:
    """Arms of a small llama, of every record, origin, site and kind of positions."""
    rng = np.random.default_rng(0)
    for sae in (folder_sae, hub_sae):
        lens.attach_sae(sae.info.id, sae)
    texts = mean_difference(lens, "dogs / cats!", ["the dog"], ["the cat"], 1)
    token, noise = from_token(lens, 7, 1), random_unit(lens, "noise", 2, seed=5)
    site = from_array(lens, "class", rng.normal(size=lens.d_model), 1, site="mlp_out")
    same = from_array(lens, "noise", rng.normal(size=lens.d_model), 2)
    mean = rng.normal(size=lens.d_model).astype(np.float32)
    return [
        Arm("baseline"),
        Arm("folder & hub", (
            ClampFeature(id="a", layer=1, sae=folder_sae.info.id, feature=3, value=40.0),
            ClampFeature(id="b", layer=2, sae=hub_sae.info.id, feature=4, value=40.0),
        )),
        Arm("two SAEs", (
            Add(id="c", layer=1, vector=folder_sae.vector(3), scale=8.0, positions=Positions("prompt")),
            Add(id="d", layer=2, vector=hub_sae.vector(4), scale=8.0, positions=Positions("indices", indices=(1, -1))),
        )),
        Arm("made", (
            Add(id="e", layer=1, vector=texts, scale=1 / 3),
            SetProjection(id="f", layer=1, vector=token, value=4.0, positions=Positions("slice", start=2)),
            CapProjection(id="g", layer=2, vector=noise, low=-0.5, high=0.5),
            CapProjection(id="h", layer=2, vector=same, low=3.0, positions=Positions("not_bos")),
        )),
        Arm("sites", (
            Add(id="i", layer=1, site="mlp_out", vector=site, scale=9.0, precision="float32"),
            Add(id="off", layer=1, vector=token, scale=99.0, enabled=False),
        )),
        Arm("gone", (Ablate(id="j", layer=1, site="mlp_out"), Ablate(id="k", layer=2, site="attn_out", mean=mean))),
    ]  # fmt: skip
