"""The names of sites, and how other projects' hook names read in them.

A site is a place of a decoder block where a tensor can be read or changed:

- ``resid_pre``, ``resid_post``: input and output of the block;
- ``attn_out``, ``mlp_out``: outputs of the attention and the MLP module themselves;
- ``attn_out_normed``, ``mlp_out_normed``: the same after the block's own norm of them (Gemma 2 and 3);
- ``attn_z``: input of the attention's output projection, heads concatenated;
- ``mlp_in``: input of the MLP, after its norm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SITES = (
    "resid_pre",
    "resid_post",
    "attn_out",
    "mlp_out",
    "attn_out_normed",
    "mlp_out_normed",
    "attn_z",
    "mlp_in",
)


def in_residual(site: str) -> bool:
    """Whether a tensor at this site is in the basis of the residual stream.

    What is read inside a block (``attn_z``, ``mlp_in``) is in another one: a direction there promotes no tokens.
    """
    return site not in ("attn_z", "mlp_in")


@dataclass(frozen=True, slots=True)
class Hook:
    """A hook name understood: the site (``""`` if no site of ours is that tensor), the layer (-1: none), and why."""

    site: str
    layer: int
    why: str


def read_hook(name: str, model_name: str = "") -> Hook:
    """The site of a Hugging Face (``model.layers.4.output``) or TransformerLens (``blocks.4.hook_resid_post``) hook.

    What a name means may depend on the model: Gemma 2 and 3 norm what attention and MLP give, and
    TransformerLens' ``hook_attn_out`` and ``hook_mlp_out`` are after that norm. A name that is
    not understood gives the site ``""``, never a guess.
    """
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,4})(?:\.(.*))?$", name)
    if found is None:
        return Hook("", -1, f"{name!r} names no layer")
    layer, part = int(found[1]), found[2] or "output"
    table = _TRANSFORMER_LENS if "hook_" in part else _HUGGING_FACE
    site = table.get(part, "")
    if not site:
        return Hook("", layer, f"no site is known for {name!r}")
    if "|" in site:
        plain, gemma = site.split("|")
        if not model_name:
            return Hook("", layer, f"what {name!r} is depends on the model, which is not given")
        site = gemma if norms_its_outputs(model_name) else plain
    return Hook(site, layer, name)


def norms_its_outputs(model_name: str) -> bool:
    """Whether a model's blocks norm what attention and MLP give, judged by its name (Gemma 2 and 3 do)."""
    return re.search(r"gemma-?v?[23](?!\d)(?!b)", model_name.lower()) is not None


# Left of "|" for plain blocks, right of it for blocks that norm the outputs of attention and MLP.
_HUGGING_FACE = {
    "input": "resid_pre",
    "output": "resid_post",
    "self_attn.output": "attn_out",
    "attention": "attn_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
    "self_attn.o_proj.input": "attn_z",
    "post_attention_layernorm.output": "mlp_in|attn_out_normed",
    "pre_feedforward_layernorm.output": "mlp_in",
    "mlp.input": "mlp_in",
    "mlp.output": "mlp_out",
    "mlp": "mlp_out",
    "post_feedforward_layernorm.output": "mlp_out_normed",
}
_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out|attn_out_normed",
    "hook_mlp_out": "mlp_out|mlp_out_normed",
    "attn.hook_z": "attn_z",
    "ln2.hook_normalized": "mlp_in",
}
