"""What the peers on torch do, in a Python that has them: TransformerLens' model, or SAELens' SAE, from a folder.

    PEERS_PYTHON -m benchmarks.torch_child transformer_lens|sae_lens|patching FOLDER

The folder has the weights that both sides load and gets ``*.npy`` of what came out, for comparison.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .serving import serve, wall


def transformer_lens(folder: Path) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """Capture of all layers and hooked generation, as its documentation shows them."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    plan = json.loads((folder / "plan.json").read_text())
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = TransformerBridge.boot_transformers(str(folder), hf_model=network, device="cpu", dtype=torch.float32)
    names = [f"blocks.{layer}.hook_out" for layer in range(plan["layers"])]
    wanted = set(names)
    direction = torch.from_numpy(np.load(folder / "direction.npy")) * plan["scale"]
    at = names[plan["layer"]]

    def plain(length: int) -> Callable[[], object]:
        ids = torch.tensor([plan["ids"][:length]])
        return lambda: model(ids)

    def captured(length: int) -> Callable[[], Any]:
        ids = torch.tensor([plan["ids"][:length]])
        return lambda: model.run_with_cache(ids, names_filter=lambda name: name in wanted)

    def generate(cached: bool = True) -> Any:
        prompt = torch.tensor([plan["ids"][: plan["prompt"]]])
        with model.hooks(fwd_hooks=[(at, lambda value, hook: value + direction)]):
            return model.generate(
                prompt,
                max_new_tokens=plan["tokens"],
                do_sample=False,
                stop_at_eos=False,
                verbose=False,
                return_type="tokens",
                use_past_kv_cache=cached,
            )

    length = max(plan["lengths"])
    logits, cache = captured(length)()
    np.save(folder / "logits.npy", logits.numpy())
    np.save(folder / "residuals.npy", torch.stack([cache[name][0] for name in names]).numpy())
    # With some versions of transformers its cached generation gives other tokens, and the hook does not act.
    right = generate(cached=False)
    whole = bool((generate() == right).all())
    np.save(folder / "generated.npy", right[0, plan["prompt"] :].numpy())
    tasks: dict[str, Callable[[], object]] = {"generate": lambda: generate(whole)}
    tasks |= {f"plain {n}": plain(n) for n in plan["lengths"]}
    tasks |= {f"capture {n}": captured(n) for n in plan["lengths"]}
    return tasks, {name: version(name) for name in ("transformer-lens", "transformers")} | {"cached": whole}


def patching(folder: Path) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """Activation patching by layer and position and by head, and attribution patching, by its own functions."""
    import torch
    from transformer_lens import patching as patches
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch
    from transformers import AutoModelForCausalLM

    plan = json.loads((folder / "plan.json").read_text())
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    at = plan["device"]
    network.to(at)
    model = TransformerBridge.boot_transformers(str(folder), hf_model=network, device=at, dtype=torch.float32)
    clean, corrupted = (torch.tensor([plan[name]], device=at) for name in ("clean", "corrupted"))
    with torch.no_grad():
        _, cache = model.run_with_cache(clean)

    def metric(logits: Any) -> Any:
        return logits[0, -1, plan["answer"]] - logits[0, -1, plan["wrong"]]

    def exact(function: Any) -> Any:
        with torch.no_grad():
            return function(model, corrupted, cache, metric).cpu()  # it waits for the device

    def positions() -> Any:
        return exact(patches.get_act_patch_resid_pre)

    def heads() -> Any:
        return exact(patches.get_act_patch_attn_head_out_all_pos)

    def attribution() -> Any:
        return attribution_patch(model, clean, corrupted, metric)

    np.save(folder / "positions.npy", positions().numpy())
    np.save(folder / "heads.npy", heads().numpy())
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    estimates = np.zeros((n_layers, n_heads, clean.shape[1]), np.float32)
    for node, score in attribution().node_scores.items():
        if node.kind == "attn_head_out":
            estimates[node.layer, node.head, node.position] = score
    np.save(folder / "estimates.npy", estimates.reshape(n_layers * n_heads, -1))
    tasks = {"positions": positions, "heads": heads, "attribution": attribution}
    return tasks, {"transformer-lens": version("transformer-lens")}


def graphs(folder: Path) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """Attribution graphs by circuit-tracer, on TransformerLens' own llama with the same weights."""
    import torch
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
    from safetensors.torch import load_file
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plan = json.loads((folder / "plan.json").read_text())
    c, at = plan["config"], torch.device(plan["device"])
    n_layers, width, heads = c["num_hidden_layers"], c["hidden_size"], c["num_attention_heads"]
    made = {}
    for layer in range(n_layers):
        tensors = load_file(str(folder / "set" / f"layer_{layer}.safetensors"))
        size, relu = len(tensors["b_enc"]), torch.nn.functional.relu
        made[layer] = SingleLayerTranscoder(width, size, relu, layer, device=at, dtype=torch.float32)
        made[layer].load_state_dict(tensors)
    config = HookedTransformerConfig(
        n_layers=n_layers, d_model=width, d_head=width // heads, n_heads=heads, n_ctx=c["max_position_embeddings"],
        n_key_value_heads=c["num_key_value_heads"], d_mlp=c["intermediate_size"], d_vocab=c["vocab_size"],
        eps=c["rms_norm_eps"], act_fn="silu", normalization_type="RMS", positional_embedding_type="rotary",
        rotary_dim=width // heads, rotary_base=int(c["rope_theta"]), rotary_adjacent_pairs=False, gated_mlp=True,
        final_rms=True, original_architecture="LlamaForCausalLM", model_name="small-llama", device=str(at),
        dtype=torch.float32,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = TransformerLensReplacementModel(config, tokenizer=AutoTokenizer.from_pretrained(folder))
    plain = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    model.load_and_process_state_dict(convert_llama_weights(network, config), **plain)
    model._configure_replacement_model(TranscoderSet(made, "mlp.hook_in", "mlp.hook_out", scan="random"))
    model.to(at)
    ids = torch.tensor(plan["ids"], device=at)

    def graph() -> Any:
        return attribute(ids, model, max_n_logits=plan["logits"], desired_logit_prob=1.0, batch_size=64)

    np.save(folder / "effects.npy", graph().adjacency_matrix.cpu().numpy())
    return {"graph": graph}, {"circuit-tracer": version("circuit-tracer")}


def sae_lens(folder: Path) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """Encode a block of residuals and take the strongest features."""
    import torch
    from sae_lens import SAE

    torch.set_grad_enabled(False)
    sae = SAE.load_from_disk(folder, device="cpu")
    x = torch.from_numpy(np.load(folder / "residuals.npy"))
    k = json.loads((folder / "plan.json").read_text())["k"]

    def top() -> Any:
        return torch.topk(sae.encode(x), k, dim=-1)

    np.save(folder / "values.npy", top().values.numpy())
    return {"encode": lambda: sae.encode(x), "top-k": top}, {"sae-lens": version("sae-lens")}


if __name__ == "__main__":
    import torch

    answers = os.dup(1)
    os.dup2(2, 1)  # what the peers print while they load is no answer
    works, versions = {
        "transformer_lens": transformer_lens,
        "sae_lens": sae_lens,
        "patching": patching,
        "graphs": graphs,
    }[sys.argv[1]](Path(sys.argv[2]))
    os.dup2(answers, 1)
    serve(works, {**versions, "torch": version("torch"), "threads": torch.get_num_threads()}, wall)
