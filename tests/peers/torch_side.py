"""What torch, TransformerLens and scikit-learn make of the same weights and numbers, in a Python that has them.

``PEERS_PYTHON tests/peers/torch_side.py WHAT FOLDER``, WHAT being one of the functions named at the end:
``plan.json`` of the folder says what is asked, and ``NAME.npy`` beside it is what came of it. Nothing of this project
is imported.
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


def paths(folder: Path) -> None:
    """What heads send straight to receivers, by the three forwards of Wang et al. 2022 for each head.

    The second has every attention and MLP as it was but for the head's own part, and is where receivers are read; the
    third has the receivers read that, and all else computed anew.
    """
    import torch

    plan = json.loads((folder / "plan.json").read_text())
    hooked = Hooked(network(plan))
    clean, corrupted = (torch.tensor([plan[name]]) for name in ("clean", "corrupted"))
    with torch.no_grad():
        source, _ = hooked.held(clean, "attn_z")
        kept = {site: hooked.held(corrupted, site)[0] for site in ("attn_z", "attn_out", "mlp_out")}

        def of_head(layer: int, head: int, ends: list[Any]) -> float:
            own, size = kept["attn_z"][layer].clone(), kept["attn_z"][layer].shape[-1] // plan["heads"]
            own[..., head * size : (head + 1) * size] = source[layer][..., head * size : (head + 1) * size]
            frozen = [
                (hooked.sites[site][at], always(was))
                for site in ("attn_out", "mlp_out")
                for at, was in enumerate(kept[site])
                if (site, at) != ("attn_out", layer)
            ]
            read: dict[int, Any] = {}
            places = [receiver(hooked, end, plan["heads"]) for end in ends]
            reading = [(place, noted(read, at)) for at, (place, _) in enumerate(places)]
            hooked.run(corrupted, [*frozen, (hooked.sites["attn_z"][layer], always(own)), *reading])
            logits = hooked.run(corrupted, [(place, given(read[at])) for at, (place, given) in enumerate(places)])
            return float(logits[plan["answer"]] - logits[plan["wrong"]])

        for number, (senders, ends) in enumerate(plan["paths"]):
            found = [of_head(layer, head, ends) for layer, head in senders]
            np.save(folder / f"paths_{number}.npy", np.array(found))


def always(other: Any) -> Callable[[Any], Any]:
    """What puts a tensor in the place of any."""
    return lambda _: other


def noted(read: dict[int, Any], at: int) -> Callable[[Any], Any]:
    """What keeps a tensor under a number and leaves it as it is."""

    def act(value: Any) -> Any:
        read[at] = value.clone()
        return value

    return act


def receiver(hooked: Hooked, end: list[Any], count: int) -> tuple[Any, Callable[[Any], Callable[[Any], Any]]]:
    """Where a receiver reads the stream, and what gives it another run's: its norm's input, or a head's queries."""
    kind, layer, head = end

    def queries(other: Any) -> Callable[[Any], Any]:
        def act(value: Any) -> Any:
            value, size = value.clone(), value.shape[-1] // count
            value[..., head * size : (head + 1) * size] = other[..., head * size : (head + 1) * size]
            return value

        return act

    if kind == "logits":
        return (hooked.model.model.norm, "in"), always
    block = hooked.layers[layer]
    if kind == "q":
        return (block.self_attn.q_proj, "out"), queries
    return ((block.input_layernorm if kind == "attn" else block.post_attention_layernorm), "in"), always


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


def bridged(plan: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """The plan's model in TransformerLens, both prompts' ids, and the metric of logits."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(
        plan["model"], hf_model=network(plan), device="cpu", dtype=torch.float32
    )
    clean, corrupted = (torch.tensor([plan[name]]) for name in ("clean", "corrupted"))

    def metric(logits: Any) -> Any:
        return logits[0, -1, plan["answer"]] - logits[0, -1, plan["wrong"]]

    return model, clean, corrupted, metric


def transformer_lens(folder: Path) -> None:
    """The same cells and estimates by TransformerLens' own functions."""
    import torch
    from transformer_lens import patching
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    plan = json.loads((folder / "plan.json").read_text())
    model, clean, corrupted, metric = bridged(plan)
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


def transformer_lens_paths(folder: Path) -> None:
    """(senders, layers, heads): the metric with what a head sends to the queries of one behind it, by its own sweep."""
    import torch
    from transformer_lens import patching

    plan = json.loads((folder / "plan.json").read_text())
    model, clean, corrupted, metric = bridged(plan)
    with torch.no_grad():
        caches = [model.run_with_cache(ids)[1] for ids in (clean, corrupted)]
        rows = [
            patching.get_act_patch_direct_path(model, corrupted, *caches, metric, layer, head, "q", verbose=False)
            for layer, head in plan["senders"]
        ]
    np.save(folder / "queries.npy", torch.stack(rows).numpy())


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


def sparse(folder: Path) -> None:
    """Probes on the features that tell the labels apart best: which, and the scores of what was held out.

    The F of an analysis of variance orders two groups' features as the difference of means in deviations does.
    """
    from sklearn.feature_selection import SelectKBest, f_classif
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    plan = json.loads((folder / "plan.json").read_text())
    x, labels, n = np.load(folder / "x.npy"), np.load(folder / "labels.npy"), plan["fitted"]
    for k in plan["features"]:
        chosen = SelectKBest(f_classif, k=k).fit(x[:n], labels[:n])
        few = chosen.transform(x)
        centred = few - few[:n].mean(axis=0)
        z = centred / np.sqrt((centred[:n] ** 2).sum(axis=1).mean())
        logistic = LogisticRegression(C=1 / (n * plan["l2"]), tol=1e-12, max_iter=100_000, solver="newton-cg")
        scores = logistic.fit(z[:n], labels[:n]).decision_function(z[n:])
        np.save(folder / f"chosen_{k}.npy", chosen.get_support(indices=True))
        np.save(folder / f"scores_{k}.npy", scores)
        np.save(folder / f"auc_{k}.npy", roc_auc_score(labels[n:], scores))


if __name__ == "__main__":
    what: dict[str, Callable[[Path], None]] = {
        "hooks": hooks,
        "transformer_lens": transformer_lens,
        "scikit_learn": scikit_learn,
        "paths": paths,
        "transformer_lens_paths": transformer_lens_paths,
        "sparse": sparse,
    }
    what[sys.argv[1]](Path(sys.argv[2]))
