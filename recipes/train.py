"""Training with a token budget and a time limit, resumable to the same numbers.

A run folder holds ``run.json`` (what was asked for), ``state.safetensors`` (float32
master weights, momentum, Adam's moments, progress; replaced atomically) and
``curve.jsonl`` (the loss as it fell).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import qwen3

from recipes import optimiser
from recipes.batches import Batches
from recipes.evaluate import score
from recipes.model import Shape, build, cast, initialise, parameter_count
from recipes.tokens import TokenSet, check_vocabulary

Arrays = dict[str, mx.array]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked for.

    Attributes:
        shape: the model's sizes.
        epochs: passes over the training documents; the token budget.
        minutes: wall-clock limit. The rate then falls with whichever of tokens and time has gone further, so
            that it always ends near zero. None: tokens alone decide, and a resumed run repeats the numbers exactly.
        domain_epochs: domains that are seen fewer times.
        batch: windows of ``shape.context`` tokens per step.
        matrix_rate, other_rate: peak learning rates of Muon and AdamW.
        matrix_decay, other_decay: decoupled weight decay; gains of norms have none.
        dropout: on what attention and MLP write to the residual.
        z_loss: weight of the squared log-partition (Chowdhery et al. 2022), which keeps logits near zero.
        warm_up, hold: shares of the run with rising and with constant rate; after that it falls linearly to zero.
        seed: of first weights, order and dropout.
        compute: "bfloat16" or "float32"; master weights are float32.
    """

    shape: Shape = field(default_factory=Shape)
    epochs: float = 7.5
    minutes: float | None = None
    domain_epochs: Mapping[str, float] = field(default_factory=dict)
    batch: int = 64
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    matrix_decay: float = 0.1
    other_decay: float = 0.1
    dropout: float = 0.1
    z_loss: float = 1e-4
    warm_up: float = 0.03
    hold: float = 0.3
    clip: float = 1.0
    seed: int = 0
    compute: str = "bfloat16"


@dataclass(slots=True)
class State:
    """Everything a step changes."""

    model: qwen3.Model
    parameters: Arrays
    momentum: Arrays
    adam: optim.AdamW
    gains: optim.AdamW
    step: int = 0
    seconds: float = 0.0


def rate_factor(fraction: float, warm_up: float, hold: float) -> float:
    """The learning rate as a share of its peak: linear rise, constant, linear fall to zero."""
    if fraction < warm_up:
        return (fraction + 1e-3) / (warm_up + 1e-3)
    return 1.0 if fraction < hold else max(0.0, (1.0 - fraction) / (1.0 - hold))


def new_state(settings: Settings) -> State:
    """First weights and empty moments."""
    model = build(settings.shape, settings.dropout)
    initialise(model, settings.shape, settings.seed)
    parameters = dict(_flat(model.parameters()))
    adam = optim.AdamW(1.0, betas=[0.9, 0.95], weight_decay=settings.other_decay, bias_correction=True)
    gains = optim.AdamW(1.0, betas=[0.9, 0.95], weight_decay=0.0, bias_correction=True)
    matrices, embedding, others = _parts(parameters)
    adam.init(embedding)
    gains.init(others)
    return State(model, parameters, optimiser.initial_momentum(matrices), adam, gains)


def _parts(parameters: Arrays) -> tuple[Arrays, Arrays, Arrays]:
    """Split into the blocks' matrices, the embedding, and the gains of norms."""
    matrices = {name: weight for name, weight in parameters.items() if optimiser.is_matrix(name, weight)}
    embedding = {name: weight for name, weight in parameters.items() if weight.ndim == 2 and name not in matrices}
    return matrices, embedding, {name: weight for name, weight in parameters.items() if weight.ndim != 2}


def make_step(state: State, settings: Settings) -> Callable[..., tuple[mx.array, mx.array, Arrays, Arrays]]:
    """The compiled step: (parameters, momentum, inputs, targets, factor) -> (loss, norm, parameters, momentum)."""
    dtype = getattr(mx, settings.compute)

    def loss_of(parameters: Arrays, inputs: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        state.model.update(tree_unflatten(list(cast(parameters, dtype).items())))
        logits = state.model(inputs).astype(mx.float32)
        partition = mx.logsumexp(logits, axis=-1)
        gold = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        loss = (partition - gold).mean()
        return loss + settings.z_loss * mx.square(partition).mean(), loss

    gradient_of = mx.value_and_grad(loss_of)
    captured = [state.adam.state, state.gains.state, mx.random.state]

    @partial(mx.compile, inputs=captured, outputs=captured)
    def step(
        parameters: Arrays, momentum: Arrays, inputs: mx.array, targets: mx.array, factor: mx.array
    ) -> tuple[mx.array, mx.array, Arrays, Arrays]:
        (_, loss), gradients = gradient_of(parameters, inputs, targets)
        norm, shrink = optimiser.clip_scale(list(gradients.values()), settings.clip)
        gradients = {name: gradient * shrink for name, gradient in gradients.items()}
        matrices, embedding, others = _parts(parameters)
        moved, momentum = optimiser.muon_step(
            matrices, {name: gradients[name] for name in matrices}, momentum,
            settings.matrix_rate * factor, settings.matrix_decay,
        )  # fmt: skip
        rate = settings.other_rate * factor
        state.adam.learning_rate = rate
        state.gains.learning_rate = rate
        moved |= state.adam.apply_gradients({name: gradients[name] for name in embedding}, embedding)
        moved |= state.gains.apply_gradients({name: gradients[name] for name in others}, others)
        return loss, norm, {name: moved[name] for name in parameters}, momentum

    return step


@dataclass(slots=True)
class Run:
    """A training run in a folder: `advance` to its end or to a step, `save`, go on later."""

    folder: Path
    settings: Settings
    train: Mapping[str, TokenSet]
    held_out: Mapping[str, TokenSet]
    say: Callable[[str], None] = print
    save_every_seconds: float = 120.0
    curve_every: int = 50
    score_every: int = 500

    def __post_init__(self) -> None:
        vocabulary = self.settings.shape.vocabulary
        check_vocabulary(self.train, vocabulary)
        check_vocabulary(self.held_out, vocabulary)
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_json(self.folder / "run.json", asdict(self.settings))

    def advance(self, stop_after: int | None = None) -> State:
        """Train from the last saved state to the end of the budget, or until that many steps are done."""
        settings = self.settings
        batches = Batches(
            self.train, settings.shape.context, settings.batch, settings.epochs, settings.seed, settings.domain_epochs
        )
        state = new_state(settings)
        restore(state, self.folder)
        self._trim_curve(state.step)
        self.say(
            f"{parameter_count(state.model) / 1e6:.2f} M parameters, {batches.steps} steps "
            f"of {settings.batch * settings.shape.context} tokens, at step {state.step}"
        )
        self._loop(state, batches, min(batches.steps, stop_after or batches.steps))
        save(state, self.folder)
        return state

    def _loop(self, state: State, batches: Batches, last: int) -> None:
        step = make_step(state, self.settings)
        begun: float | None = None  # set after the first step, so that compiling is not charged to the time limit
        saved = time.monotonic()
        limit = self.settings.minutes * 60 if self.settings.minutes else math.inf
        while state.step < last:
            fraction = max(state.step / batches.steps, state.seconds / limit)
            if fraction >= 1:
                break
            factor = rate_factor(fraction, self.settings.warm_up, self.settings.hold)
            loss, norm = _one_step(step, state, batches, factor, self.settings.seed)
            state.step += 1
            if begun is None or state.step % 10 == 0 or state.step == last:
                mx.eval(loss, state.parameters)
                begun = time.monotonic() - state.seconds if begun is None else begun
                state.seconds = time.monotonic() - begun
            if state.step == 1 or state.step % self.curve_every == 0 or state.step == last:
                self._log(state, float(loss), float(norm), factor)
            if state.step % self.score_every == 0:
                self._score(state)
            if time.monotonic() - saved > self.save_every_seconds:
                save(state, self.folder)
                saved = time.monotonic()

    def _log(self, state: State, loss: float, norm: float, factor: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {state.step}; the last saved state is kept")
        tokens = state.step * self.settings.batch * self.settings.shape.context
        row = {"step": state.step, "tokens": tokens, "loss": loss, "norm": norm, "rate": factor}
        self._append(row | {"seconds": round(state.seconds, 2)})
        if state.step % (5 * self.curve_every) == 0:
            speed = tokens / max(state.seconds, 1e-3) / 1e3
            memory = mx.get_peak_memory() / 2**30
            self.say(
                f"step {state.step} loss {loss:.3f} norm {norm:.2f} rate {factor:.3f} "
                f"{state.seconds:.0f} s {speed:.0f} k tokens/s {memory:.1f} GiB"
            )

    def _score(self, state: State) -> None:
        """Mean held-out loss over domains, on a few documents of each: a curve, not the verdict."""
        forward = inference(state, self.settings)
        losses = [
            score(forward, tokens.select(range(min(8, len(tokens)))), self.settings.shape.context).nats_per_token
            for tokens in self.held_out.values()
        ]
        state.model.train()
        mean = sum(losses) / len(losses)
        self._append({"step": state.step, "held_out_sample": mean})
        self.say(f"step {state.step} held-out sample {mean:.3f} nats/token, mean over domains")

    def _append(self, row: dict[str, Any]) -> None:
        with (self.folder / "curve.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _trim_curve(self, step: int) -> None:
        path = self.folder / "curve.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _one_step(
    step: Callable[..., tuple[mx.array, mx.array, Arrays, Arrays]],
    state: State,
    batches: Batches,
    factor: float,
    seed: int,
) -> tuple[mx.array, mx.array]:
    inputs, targets = batches.step(state.step)
    mx.random.seed(seed * 1_000_003 + state.step)  # dropout is a function of the step, so a resumed run repeats it
    loss, norm, state.parameters, state.momentum = step(
        state.parameters, state.momentum, mx.array(inputs), mx.array(targets), mx.array(factor)
    )
    evaluate: Any = mx.async_eval
    evaluate(loss, norm, state.parameters, state.momentum, state.adam.state, state.gains.state)
    return loss, norm


def inference(state: State, settings: Settings) -> qwen3.Model:
    """The run's model with its present weights in the compute type and dropout off."""
    weights = cast(state.parameters, getattr(mx, settings.compute))
    state.model.update(tree_unflatten(list(weights.items())))
    state.model.eval()
    return state.model


def save(state: State, folder: Path) -> None:
    """Write the state beside the old one and put it in its place in one move."""
    arrays: Arrays = {f"parameters/{name}": weight for name, weight in state.parameters.items()}
    arrays |= {f"momentum/{name}": weight for name, weight in state.momentum.items()}
    for label, part in (("adam", state.adam), ("gains", state.gains)):
        arrays |= {f"{label}/{name}": value for name, value in _moments(part)}
    fresh = folder / "state.partial.safetensors"
    mx.save_safetensors(str(fresh), arrays, {"step": str(state.step), "seconds": repr(state.seconds)})
    os.replace(fresh, folder / "state.safetensors")


def restore(state: State, folder: Path) -> None:
    """Take up the folder's saved state, if it has one."""
    path = folder / "state.safetensors"
    if not path.exists():
        return
    loaded: Any = mx.load(str(path), return_metadata=True)
    arrays, facts = loaded
    for label, into in (("parameters", state.parameters), ("momentum", state.momentum)):
        for name in into:
            into[name] = arrays[f"{label}/{name}"]
    for label, part in (("adam", state.adam), ("gains", state.gains)):
        for key, _ in _moments(part):
            name, moment = key.rsplit("/", 1)
            (part.state[name] if name else part.state)[moment] = arrays[f"{label}/{key}"]
    mx.eval(list(arrays.values()))
    state.step, state.seconds = int(facts["step"]), float(facts["seconds"])


def read_settings(folder: Path) -> Settings:
    """The settings of a run folder."""
    return merge_settings(None, json.loads((folder / "run.json").read_text(encoding="utf-8")))


def merge_settings(base: Settings | None, facts: Mapping[str, Any]) -> Settings:
    """Settings with some of their values replaced, ``shape`` by its own values.

    Raises:
        TypeError: a name that is no setting.
    """
    settings = base or Settings()
    shape = replace(settings.shape, **facts.get("shape", {}))
    return replace(settings, **({**facts, "shape": shape}))


def _moments(part: optim.AdamW) -> list[tuple[str, mx.array]]:
    """Adam's state as ``PARAMETER/m``, ``PARAMETER/v``, ``/step``, ``/learning_rate``; parameter names have dots."""
    rows: list[tuple[str, mx.array]] = []
    for name, value in part.state.items():
        rows += [(f"{name}/{key}", inner) for key, inner in value.items()] if isinstance(value, dict) else []
        rows += [] if isinstance(value, dict) else [(f"/{name}", value)]
    return rows


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    rows: Any = tree_flatten(tree)
    return list(rows)


def _write_json(path: Path, facts: Any) -> None:
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
