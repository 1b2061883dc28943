"""What torch, TransformerLens and scikit-learn make of the same weights and numbers, in a Python that has them.

``PEERS_PYTHON tests/peers/torch_side.py hooks|transformer_lens|scikit_learn FOLDER``: ``plan.json`` of the folder says
what is asked, and ``NAME.npy`` beside it is what came of it. Nothing of this project is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Places = list[tuple[Any, Any]]


def network(plan: dict[str, Any]) -> Any:
    """The model as transformers computes it, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32, attn_implementation="eager")
    return model.eval()


class Hooked:
    """Plain hooks on the modules of a llama of transformers'. A site is a module, and whether its input is meant."""

    def __init__(self, model: Any) -> None:
        self.model, self.layers = model, model.model.layers
        self.sites = {
            "resid_pre": [(layer, "in") for layer in self.layers],
            "resid_post": [(layer, "out") for layer in self.layers],
            "attn_out": [(layer.self_attn, "out") for layer in self.layers],
            "mlp_out": [(layer.mlp, "out") for layer in self.layers],
            "attn_z": [(layer.self_attn.o_proj, "in") for layer in self.layers],
        }

    def run(self, ids: Any, changes: list[tuple[Any, Callable[[Any], Any]]]) -> Any:
        """Logits after the last token, ``changes`` acting on (module, side) places."""
        handles = [self._hook(module, side, act) for (module, side), act in changes]
        try:
            return self.model(ids, use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, module: Any, side: str, act: Callable[[Any], Any]) -> Any:
        def before(_: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (act(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": act(kwargs["hidden_states"])}

        def after(_: Any, args: Any, output: Any) -> Any:
            return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)

        if side == "in":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def held(self, ids: Any, site: str) -> tuple[list[Any], Any]:
        """Each layer's tensor at a site ``(1, tokens, width)``, and the logits."""
        found: list[Any] = []

        def keep(value: Any) -> Any:
            found.append(value)
            return value

        logits = self.run(ids, [(place, keep) for place in self.sites[site]])
        return found, logits


def hooks(folder: Path) -> None:
    """Activation patching, first-order estimates and causal tracing, a forward and a hook for each cell."""
    import torch

    plan = json.loads((folder / "plan.json").read_text())
    hooked = Hooked(network(plan))
    clean, corrupted = (torch.tensor([plan[name]]) for name in ("clean", "corrupted"))

    def metric(logits: Any) -> Any:
        return logits[plan["answer"]] - logits[plan["wrong"]]

    with torch.no_grad():
        for site in ("resid_pre", "attn_out", "mlp_out"):
            source, _ = hooked.held(clean, site)
            rows = [
                [metric(hooked.run(corrupted, [(place, put(source[layer], at))])) for at in range(clean.shape[1])]
                for layer, place in enumerate(hooked.sites[site])
            ]
            np.save(folder / f"{site}.npy", np.array(rows, np.float64))
        source, _ = hooked.held(clean, "attn_z")
        np.save(folder / "heads.npy", np.array(heads(hooked, corrupted, source, metric, plan["heads"]), np.float64))
        for site in ("resid_post", "mlp_out"):
            np.save(folder / f"traced_{site}.npy", traced(hooked, clean, site, plan))
    np.save(folder / "estimates.npy", estimates(hooked, clean, corrupted, metric, plan["heads"]))


def put(source: Any, at: int) -> Callable[[Any], Any]:
    """One token's tensor from another run."""

    def act(value: Any) -> Any:
        value = value.clone()
        value[:, at] = source[:, at]
        return value

    return act


def heads(hooked: Hooked, ids: Any, source: list[Any], metric: Callable[[Any], Any], count: int) -> list[list[Any]]:
    """The metric with a head's part of what attention hands on from another run, at every token."""

    def replaced(layer: int, head: int) -> Callable[[Any], Any]:
        def act(value: Any) -> Any:
            value, size = value.clone(), value.shape[-1] // count
            value[..., head * size : (head + 1) * size] = source[layer][..., head * size : (head + 1) * size]
            return value

        return act

    places = hooked.sites["attn_z"]
    return [
        [metric(hooked.run(ids, [(place, replaced(layer, head))])) for head in range(count)]
        for layer, place in enumerate(places)
    ]


def estimates(hooked: Hooked, clean: Any, corrupted: Any, metric: Callable[[Any], Any], count: int) -> Any:
    """(layers, heads, tokens): the change of what a head hands on, times the metric's gradient in the corrupted run."""
    import torch

    with torch.no_grad():
        source, _ = hooked.held(clean, "attn_z")
    found, logits = hooked.held(corrupted, "attn_z")
    slopes = torch.autograd.grad(metric(logits), found)
    products = [((there - here) * slope)[0] for there, here, slope in zip(source, found, slopes, strict=True)]
    split = torch.stack(products).detach().unflatten(-1, (count, -1)).sum(-1)
    return split.permute(0, 2, 1).numpy()


def traced(hooked: Hooked, ids: Any, site: str, plan: dict[str, Any]) -> Any:
    """(samples, layers, tokens): the answer's probability with one state clean again, the subject's embeddings noised.

    Three standard deviations of the subject's embeddings; of what only adds to the stream ten layers at once.
    """
    import torch

    clean, _ = hooked.held(ids, site)
    start, stop = plan["subject"]
    embedded = hooked.held(ids, "resid_pre")[0][0]
    sigma = 3.0 * float(embedded[0, start:stop].numpy().std())
    rng, first, n = np.random.default_rng(0), hooked.sites["resid_pre"][0], len(hooked.layers)
    samples = []
    for _ in range(plan["samples"]):
        noised = embedded.clone()
        drawn = rng.standard_normal((stop - start, embedded.shape[-1])) * sigma
        noised[0, start:stop] += torch.tensor(drawn, dtype=torch.float32)
        begun = [(first, lambda _, noised=noised: noised)]
        rows = []
        for layer in range(n):
            around = range(max(0, layer - 5), min(n, layer + 5)) if site != "resid_post" else (layer,)
            row = []
            for at in range(ids.shape[1]):
                acts = [(hooked.sites[site][near], put(clean[near], at)) for near in around]
                row.append(float(torch.softmax(hooked.run(ids, [*begun, *acts]), -1)[plan["answer"]]))
            rows.append(row)
        samples.append(rows)
    return np.array(samples)


def transformer_lens(folder: Path) -> None:
    """The same cells and estimates by TransformerLens' own functions."""
    import torch
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    plan = json.loads((folder / "plan.json").read_text())
    model = TransformerBridge.boot_transformers(
        plan["model"], hf_model=network(plan), device="cpu", dtype=torch.float32
    )
    clean, corrupted = (torch.tensor([plan[name]]) for name in ("clean", "corrupted"))

    def metric(logits: Any) -> Any:
        return logits[0, -1, plan["answer"]] - logits[0, -1, plan["wrong"]]

    with torch.no_grad():
        _, cache = model.run_with_cache(clean)
        functions = {
            "resid_pre": patching.get_act_patch_resid_pre,
            "attn_out": patching.get_act_patch_attn_out,
            "mlp_out": patching.get_act_patch_mlp_out,
            "heads": patching.get_act_patch_attn_head_out_all_pos,
        }
        for name, function in functions.items():
            np.save(folder / f"{name}.npy", function(model, corrupted, cache, metric).numpy())
    found = np.zeros((model.cfg.n_layers, model.cfg.n_heads, clean.shape[1]))
    for node, score in attribution_patch(model, clean, corrupted, metric).node_scores.items():
        if node.kind == "attn_head_out":
            found[node.layer, node.head, node.position] = score
    np.save(folder / "estimates.npy", found)


def scikit_learn(folder: Path) -> None:
    """Scores of every layer's probes on activations that were held out, and how well they tell labels apart."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import r2_score, roc_auc_score

    plan = json.loads((folder / "plan.json").read_text())
    x, labels, n = np.load(folder / "x.npy"), np.load(folder / "labels.npy"), plan["fitted"]
    found: dict[str, list[Any]] = {"logistic": [], "ridge": [], "auc": [], "r2": []}
    for each in x:
        centred = each - each[:n].mean(axis=0)
        z = centred / np.sqrt((centred[:n] ** 2).sum(axis=1).mean())
        logistic = LogisticRegression(C=1 / (n * plan["l2"]), tol=1e-12, max_iter=100_000, solver="newton-cg")
        logistic.fit(z[:n], labels[:n] > 0)
        ridge = Ridge(alpha=n * plan["l2"], tol=1e-12).fit(z[:n], labels[:n])
        found["logistic"].append(logistic.decision_function(z[n:]))
        found["ridge"].append(ridge.predict(z[n:]))
        found["auc"].append(roc_auc_score(labels[n:] > 0, found["logistic"][-1]))
        found["r2"].append(r2_score(labels[n:], found["ridge"][-1]))
    for name, values in found.items():
        np.save(folder / f"{name}.npy", np.array(values))


if __name__ == "__main__":
    what: dict[str, Callable[[Path], None]] = {
        "hooks": hooks,
        "transformer_lens": transformer_lens,
        "scikit_learn": scikit_learn,
    }
    what[sys.argv[1]](Path(sys.argv[2]))
