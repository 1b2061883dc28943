"""What is known of a loaded model or SAE, as plain data a screen can show, and the names of sites.

A site is a place of a decoder block where a tensor can be read or changed:

- ``resid_pre``, ``resid_post``: input and output of the block;
- ``attn_out``, ``mlp_out``: outputs of the attention and the MLP module themselves;
- ``attn_out_normed``, ``mlp_out_normed``: the same after the block's own norm of them (Gemma 2 and 3);
- ``attn_q``, ``attn_k``, ``attn_v``: outputs of the attention's projections of queries, keys and values, before norms
  and rotary embedding: heads concatenated, each ``head_dim`` wide, of keys and values as many as the model has;
- ``attn_z``: input of the attention's output projection, query heads concatenated;
- ``mlp_in``: input of the MLP, after its norm;
- ``mlp_normed``: the same before that norm's gain (``ln2.hook_normalized`` in TransformerLens): the residual over what
  the norm divides by. A model holds no such array: it is computed where it is read; what is put there gets the gain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .paths import expanded

Dequantize = Literal["auto", "never", "always"]
"""Whether weights are turned into float32 as a model is loaded: where that is faster, never, or always."""


_TUNED = re.compile(r"(?<![a-z0-9])(it|instruct|chat|sft|dpo|assistant)(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model: who it is and its shape. Sizes are bytes.

    ``quantization`` is that of its files; ``weights`` says how they are held if not so ("": as in the files).
    ``has_chat_template``: texts go through the chat template; ``takes_chat``: conversations can be given, be it
    through a template that is only for them. ``adapter`` is the folder of the LoRA that it was loaded with.
    """

    name: str
    path: str
    architecture: str
    n_layers: int
    d_model: int
    vocab_size: int
    n_parameters: int
    dtype: str
    quantization: str
    nbytes: int
    has_chat_template: bool
    bos_token_id: int | None
    device: str
    weights: str = ""
    takes_chat: bool = False
    adapter: str = ""

    @property
    def lacks_template(self) -> bool:
        """Whether it is named as a model for chats and its files have no chat template: prompts go in as they are."""
        return not self.has_chat_template and _TUNED.search(self.name.rstrip("/").rpartition("/")[2]) is not None


@dataclass(frozen=True, slots=True)
class SAEInfo:
    """A loaded SAE: what it reads, how wide it is, and where each fact came from.

    ``id`` names its contents (``sae-`` and 16 hex digits), so that labels and indexes stay with it when its files
    move; ``name`` is for people.
    ``site`` and ``layer`` name the tensor it reads; ``""`` and -1 where nothing says which, for nothing is
    guessed. A transcoder writes to ``site_out`` of ``layer_out``; for an autoencoder they are the same as what
    it reads. ``d_model`` is the width of what it reads (for ``attn_z`` that is
    heads times head size), ``d_out`` of what it gives (0: the same). ``l0`` and ``fvu`` are what its maker declares,
    ``None`` where they do not say; so is ``bos``, whether BOS was among the tokens it was trained on. ``k`` is
    how many latents a TopK SAE keeps of a token (0 for others), ``context`` the training
    length in tokens (0: unknown). ``provenance`` gives for a field the file and key, the path, the rule of the
    format or the caller's own word it rests on.
    """

    id: str
    name: str
    path: str
    architecture: str
    site: str
    layer: int
    d_model: int
    width: int
    model_name: str
    l0: float | None = None
    fvu: float | None = None
    d_out: int = 0
    site_out: str = ""
    layer_out: int = -1
    bos: bool | None = None
    k: int = 0
    context: int = 0
    format: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def target(self) -> tuple[int, str] | None:
        """Layer and site of what a transcoder should give; ``None`` where they are not known, or for an autoencoder."""
        known = self.is_transcoder and self.layer_out >= 0 and bool(self.site_out)
        return (self.layer_out, self.site_out) if known else None

    @property
    def is_transcoder(self) -> bool:
        """Whether it gives another tensor than the one it reads."""
        apart = (self.site_out, self.layer_out) not in (("", -1), (self.site, self.layer))
        return apart or "transcoder" in self.architecture


_PLACE = re.compile(r"(?P<name>.+)@(?P<layer>\d{1,4})(?::(?P<site>[a-z_]+))?")


def split_place(text: str) -> tuple[str, int | None, str | None]:
    """``sae.pt@4:mlp_out`` as path or name, layer and site; the site is ``resid_post`` if only a layer is given.

    What exists on disk under the whole text is taken as it stands. ``None`` where it does not say.
    """
    match = _PLACE.fullmatch(text.strip())
    if match is None or expanded(text).exists():
        return text, None, None
    return match["name"], int(match["layer"]), match["site"] or "resid_post"


SITES = (
    "resid_pre",
    "resid_post",
    "attn_out",
    "mlp_out",
    "attn_out_normed",
    "mlp_out_normed",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_z",
    "mlp_in",
    "mlp_normed",
)


def in_residual(site: str) -> bool:
    """Whether a tensor at this site is in the basis of the residual stream.

    What is read inside a block (heads, ``mlp_in``, ``mlp_normed``) is in another one: a direction there promotes no
    tokens.
    """
    return site not in ("attn_q", "attn_k", "attn_v", "attn_z", "mlp_in", "mlp_normed")


@dataclass(frozen=True, slots=True)
class HookName:
    """A hook name understood: the site (``""`` if no site of ours is that tensor), the layer (-1: none), and why."""

    site: str
    layer: int
    why: str


def read_hook(name: str, model_name: str = "") -> HookName:
    """The site of a Hugging Face (``model.layers.4.output``) or TransformerLens (``blocks.4.hook_resid_post``) hook.

    What a name means may depend on the model: Gemma 2 and 3 norm what attention and MLP give, and
    TransformerLens' ``hook_attn_out`` and ``hook_mlp_out`` are after that norm. A name that is
    not understood gives the site ``""``, never a guess.
    """
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,4})(?:\.(.*))?$", name)
    if found is None:
        return HookName("", -1, f"{name!r} names no layer")
    layer, part = int(found[1]), found[2] or "output"
    table = _TRANSFORMER_LENS if "hook_" in part else _HUGGING_FACE
    site = table.get(part, "")
    if not site:
        return HookName("", layer, f"no site is known for {name!r}")
    if "|" in site:
        plain, gemma = site.split("|")
        if not model_name:
            return HookName("", layer, f"what {name!r} is depends on the model, which is not given")
        site = gemma if norms_its_outputs(model_name) else plain
    return HookName(site, layer, name)


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
    "self_attn.q_proj.output": "attn_q",
    "self_attn.k_proj.output": "attn_k",
    "self_attn.v_proj.output": "attn_v",
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
    "ln2.hook_normalized": "mlp_normed",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_out": "mlp_out",
}
