"""The same small llama in TransformerLens and the same SAE in SAELens, both on torch, in Pythons of their own.

Before a time is taken the results are compared: residuals and logits within 1e-3 of their largest size in float32,
the tokens of the steered generation one for one, the features' activations likewise. Torch uses as many threads as it
likes; MLX's products use half of the cores.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama

from lens_tui import LensModel, demo, load_sae
from lens_tui.records import Add, SteeringVector

from .generation import on_device
from .machine import Options, device
from .report import Row, absent, of_speeds, of_times
from .serving import Served, first_that_has
from .turns import medians

WITH_MODEL, MODEL_HELP = (
    "int(version('transformer-lens').split('.')[0]) >= 4",
    "not here: python3 -m venv peers && peers/bin/pip install torch 'transformer-lens>=4.3', then --peers",
)
WITH_SAE, SAE_HELP = (
    "version('sae-lens') and version('torch')",
    "not here: python3 -m venv saes && saes/bin/pip install torch sae-lens, then --peers "
    "(SAELens needs a TransformerLens before 4: a Python of its own)",
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}
PROMPT, LENGTHS, D, WIDTH, K, TOKENS = 32, (32, 512), 512, 16384, 32, 256
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def rows(options: Options) -> Iterator[Row]:
    """Both peers, each if there is a Python that has it."""
    for wanted, missing, what, measure in (
        (WITH_MODEL, MODEL_HELP, "TransformerLens: capture and steered generation", of_model),
        (WITH_SAE, SAE_HELP, "SAELens: encode and top-k", of_sae),
    ):
        python = first_that_has(options.peers, wanted)
        if python is None:
            yield absent(what, missing)
            continue
        with tempfile.TemporaryDirectory() as folder:
            yield from measure(python, Path(folder), options)


def torch_device() -> str:
    """Torch's name for the kind of device that MLX uses here."""
    return "cuda" if device() == "gpu" else "cpu"


def write_model(folder: Path) -> llama.Model:
    """A llama with random float32 weights, as a folder of Hugging Face's form; the network that has them."""
    network = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    mx.random.seed(0)
    network.update(tree_map(lambda w: w if w.ndim == 1 else mx.random.normal(w.shape) * 0.05, network.parameters()))
    mx.eval(network.parameters())
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())), metadata={"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):  # which the peer wants to see and does not use here
        shutil.copy(demo.model_path() / name, folder / name)
    return network


def of_model(python: str, folder: Path, options: Options) -> Iterator[Row]:
    """Forwards with all layers captured, and a generation with a vector added at one layer."""
    lens = LensModel.from_model(write_model(folder), name="small llama")
    tokens = 16 if options.quick else 48
    rng, layer = np.random.default_rng(0), lens.n_layers // 2
    vector = SteeringVector.of("random", rng.standard_normal(lens.d_model), layer)
    record = Add(id="one", layer=layer, vector=vector, scale=8.0)
    ids = rng.integers(2, 8000, max(LENGTHS)).tolist()
    np.save(folder / "direction.npy", np.asarray(vector.direction, np.float32))
    plan = {"layers": lens.n_layers, "layer": layer, "scale": 8.0, "ids": ids, "lengths": LENGTHS}
    (folder / "plan.json").write_text(json.dumps({**plan, "prompt": PROMPT, "tokens": tokens}))

    def captured(length: int) -> tuple[mx.array, list[mx.array]]:
        with lens.capture(range(lens.n_layers)) as held:
            logits = lens.forward(ids[:length])
            found = [held[each] for each in range(lens.n_layers)]
        mx.eval(logits, found)
        return logits, found

    def generate() -> list[int]:
        return [step.token_id for step in lens.stream(ids[:PROMPT], max_tokens=tokens, interventions=[record])]

    with Served(python, "benchmarks.torch_child", "transformer_lens", str(folder), also=OFFLINE) as peer:
        name = f"TransformerLens {peer.hello['transformer-lens']}, torch {peer.hello['torch']}"
        logits, residuals = captured(max(LENGTHS))
        same_within(
            "residuals", np.stack([np.asarray(each).reshape(-1, D) for each in residuals]), folder / "residuals.npy"
        )
        same_within("logits", np.asarray(logits), folder / "logits.npy")
        if generate() != np.load(folder / "generated.npy").tolist():
            raise AssertionError("the steered generations differ")
        for length in LENGTHS:
            task = f"capture {length}"
            found = medians(
                {"ours": on_device(lambda n=length: captured(n)), name: peer.contender(task)},  # type: ignore[misc]
                options.repeats(7),
            )
            yield of_times(
                f"small llama, forward of {length} tokens, all layers held", found["ours"], found[name], name
            )
        found = medians({"ours": on_device(generate), name: peer.contender("generate")}, options.repeats(5))
        rates = [tokens / found[each] for each in ("ours", name)]
        if not peer.hello["cached"]:
            name += f" without its KV cache, which with transformers {peer.hello['transformers']} gives other tokens"
        yield of_speeds(f"small llama, {tokens} tokens with a vector added", *rates, name)


def of_sae(python: str, folder: Path, options: Options) -> Iterator[Row]:
    """The strongest features of a block of tokens, from the file that both read."""
    write_sae(folder)
    sae, x = load_sae(folder, residence="memory"), mx.array(np.load(folder / "residuals.npy"))
    with Served(python, "benchmarks.torch_child", "sae_lens", str(folder), also=OFFLINE) as peer:
        name = f"SAELens {peer.hello['sae-lens']}, torch {peer.hello['torch']}"
        same_within("activations", np.asarray(sae.top_k(x, K)[1]), folder / "values.npy")
        works: dict[str, Any] = {"encode": lambda: mx.eval(sae.encode(x)), "top-k": lambda: mx.eval(sae.top_k(x, K))}
        said = {"encode": "encode", "top-k": f"the {K} strongest features"}
        for task, work in works.items():
            found = medians({"ours": on_device(work), name: peer.contender(task)}, options.repeats(7))
            yield of_times(f"SAE {D} x {WIDTH}, {TOKENS} tokens: {said[task]}", found["ours"], found[name], name)


def write_sae(folder: Path) -> None:
    """A JumpReLU SAE of random weights in SAELens' form, and residuals of which about 60 latents fire on each."""
    rng = np.random.default_rng(0)
    w_enc = rng.standard_normal((D, WIDTH), np.float32) / np.float32(D**0.5)
    tensors = {
        "W_enc": w_enc,
        "W_dec": np.ascontiguousarray(w_enc.T),
        "b_enc": np.zeros(WIDTH, np.float32),
        "b_dec": np.zeros(D, np.float32),
        "threshold": np.full(WIDTH, 2.7, np.float32),
    }
    mx.save_safetensors(
        str(folder / "sae_weights.safetensors"), {name: mx.array(value) for name, value in tensors.items()}
    )
    config = {
        "architecture": "jumprelu",
        "d_in": D,
        "d_sae": WIDTH,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.4.hook_resid_post", "model_name": "small-llama"},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder / "plan.json").write_text(json.dumps({"k": K}))
    np.save(folder / "residuals.npy", rng.standard_normal((TOKENS, D)).astype(np.float32))


def same_within(what: str, ours: np.ndarray[Any, Any], file: Path) -> None:
    """Raise :class:`AssertionError` unless ours is the peer's within 1e-3 of its largest number."""
    theirs = np.load(file)
    gap = float(np.abs(ours.reshape(theirs.shape) - theirs).max()) / float(np.abs(theirs).max())
    if not gap < 1e-3:
        raise AssertionError(f"the {what} differ by {gap:.2g} of the largest")
