"""What the peers on torch do, in a Python that has them: TransformerLens' model, or SAELens' SAE, from a folder.

    PEERS_PYTHON -m benchmarks.torch_child transformer_lens|sae_lens|patching FOLDER

The folder has the weights that both sides load and gets ``*.npy`` of what came out, for comparison.
"""

from __future__ import annotations

import json
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
    model = TransformerBridge.boot_transformers(str(folder), hf_model=network, device="cpu", dtype=torch.float32)
    clean, corrupted = (torch.tensor([plan[name]]) for name in ("clean", "corrupted"))
    with torch.no_grad():
        _, cache = model.run_with_cache(clean)

    def metric(logits: Any) -> Any:
        return logits[0, -1, plan["answer"]] - logits[0, -1, plan["wrong"]]

    def exact(function: Any) -> Any:
        with torch.no_grad():
            return function(model, corrupted, cache, metric)

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

    works, versions = {"transformer_lens": transformer_lens, "sae_lens": sae_lens, "patching": patching}[sys.argv[1]](
        Path(sys.argv[2])
    )
    serve(works, {**versions, "torch": version("torch"), "threads": torch.get_num_threads()}, wall)
