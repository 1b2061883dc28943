"""A tiny random model of every architecture in the installed mlx-lm.

``COMMON`` holds what most configurations share, under every name that mlx-lm's
``ModelArgs`` use for it; an architecture's own entry adds to it. Names that a
``ModelArgs`` does not have are dropped by its ``from_dict``.
"""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import tiny

HALF = ["sliding_attention", "full_attention"] * 2
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
YARN = {**ROPE, "type": "default", "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}
ROPES = {"sliding_attention": ROPE, "full_attention": ROPE}
DELTA = {"kda_layers": [1, 3], "full_attn_layers": [2, 4], "num_heads": 4, "head_dim": 8, "short_conv_kernel_size": 4}
SHARED: tuple[tuple[Any, str], ...] = (
    (32, "hidden_size hidden_dim d_model n_embd model_dim moe_intermediate_size shared_expert_intermediate_size"),
    (32, "moe_shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size moe_hidden_size"),
    (32, "share_expert_dim dense_intermediate_size block_dim block_multiple_of"),
    (
        64,
        "intermediate_size ffn_hidden_size n_inner ff_intermediate_size intermediate_size_mlp block_ff_dim index_topk",
    ),
    (128, "max_position_embeddings n_positions n_ctx block_size model_max_length"),
    (tiny.VOCAB, "vocab_size num_vocab vocab_size_per_layer_input"),
    (16, "kv_lora_rank q_lora_rank index_head_dim mamba_d_state mamba_d_head mamba_head_dim state_size ssm_state_size"),
    (16, "global_head_dim"),
    (8, "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim swa_head_dim"),
    (
        8,
        "swa_v_head_dim kv_channels hidden_size_per_head query_pre_attn_scalar laurel_rank hidden_size_per_layer_input",
    ),
    (8, "a_low_rank_dim v_low_rank_dim gate_low_rank_dim decay_low_rank_dim o_lora_rank"),
    (4, "num_hidden_layers num_layers n_layers n_layer num_transformer_layers num_attention_heads num_heads n_heads"),
    (4, "n_head num_experts num_local_experts n_routed_experts moe_num_experts sliding_window sliding_window_size"),
    (4, "window_size attention_window_size mamba_d_conv mamba_n_heads mamba_num_heads conv_kernel time_step_rank"),
    (4, "linear_num_value_heads linear_conv_kernel_dim swa_num_attention_heads rotary_dim conv1d_width"),
    (
        2,
        "num_key_value_heads num_kv_heads n_kv_heads num_experts_per_tok num_experts_per_token moe_topk moe_k",
    ),
    (2, "mamba_expand layer_group_size linear_num_key_heads index_n_heads swa_num_key_value_heads zero_expert_num"),
    (2, "moe_top_k num_attention_groups cla_share_factor sliding_window_pattern full_attention_interval"),
    (1, "n_shared_experts num_shared_experts num_shared_expert decoder_sparse_step first_k_dense_replace n_group"),
    (1, "topk_group moe_layer_freq num_dense_layers mamba_n_groups n_groups group_norm_size num_expert_group"),
    (1e-5, "rms_norm_eps norm_eps layer_norm_epsilon layer_norm_eps norm_epsilon layernorm_epsilon"),
    (10000.0, "rope_theta swa_rope_theta rope_local_base_freq"),
    (1.0, "embedding_multiplier logits_scaling routed_scaling_factor"),
    (0.5, "attention_multiplier residual_multiplier partial_rotary_factor"),
    (False, "attention_bias mlp_bias use_bias use_qkv_bias conv_bias mamba_proj_bias post_norm tie_word_embeddings"),
    (True, "use_conv_bias mamba_conv_bias norm_topk_prob qk_norm use_qk_norm mla_scale_q_lora mla_scale_kv_lora"),
    (True, "linear_allow_neg_eigval"),
    (None, "rope_scaling"),
    ("sigmoid", "scoring_func"),
    ("noaux_tc", "topk_method"),
)
COMMON: dict[str, Any] = {
    **{name: value for value, listed in SHARED for name in listed.split()},
    "mlp_only_layers": [],
    "time_step_limit": (0.0, 100.0),
}
LFM2 = {
    "conv_L_cache": 3,
    "full_attn_idxs": [1, 3],
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "use_expert_bias": True,
}
GEMMA3N = {
    "num_kv_shared_layers": 1,
    "final_logit_softcapping": 30.0,
    "layer_types": HALF,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "altup_num_inputs": 4,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
}
MUSE = {
    "post_norm_eps": 1e-6,
    "rope_parameters": ROPE,
    "layer_rope_theta": [1e4, 0, 1e4, 0],
    "layer_types": HALF,
    "final_logit_softcapping": 20.0,
    "output_multiplier": 0.2,
    "num_shared_experts": 0,
}
NAS = [
    {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
    {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
    {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
    {"attention": {"n_heads_in_group": 2}, "ffn": {"replace_with_linear": True}},
]
YARN_V2 = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0}
LONG = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4, "original_max_position_embeddings": 64, "factor": 1.0}
OWN: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 2},
    "afmoe": {"layer_types": HALF},
    "baichuan_m1": {"sliding_window_layers": [1, 3], "conv_window": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": YARN_V2},
    "deepseek_v41": {"o_groups": 2, "compress_ratios": [0, 0, 0, 0]},
    "exaone4": {"sliding_window_pattern": "LG"},
    "exaone_moe": {"layer_types": HALF, "is_moe_layer": [False, True, True, True]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gear": {"layer_types": HALF},
    "gemma3n": GEMMA3N,
    "gemma4": {"num_kv_shared_layers": 0, "layer_types": HALF},
    "gemma4_text": {"num_kv_shared_layers": 0, "layer_types": HALF},
    "glm_moe_dsa": {"rope_parameters": ROPE},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.5},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0},
    },
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
    "kimi_k3": {"linear_attn_config": DELTA, "attn_res_block_size": 2},
    "kimi_linear": {"linear_attn_config": DELTA},
    "lfm2": LFM2,
    "lfm2-vl": LFM2,
    "lfm2_moe": LFM2,
    "lille-130m": {"n_embd": 64},
    "llama4": {"attention_chunk_size": 8, "interleave_moe_layer_step": 2, "num_experts_per_tok": 1},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0]},
    "longcat_flash": {"attention_method": "MLA", "zero_expert_type": "identity"},
    "mellum": {"layer_types": HALF, "rope_parameters": ROPES},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    },
    "minicpm": {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 12},
    "minicpm3": {
        "dim_model_base": 16,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "rope_scaling": {"type": "longrope", **LONG},
    },
    "minimax_m3_vl": {"moe_layer_freq": [0, 1, 1, 1], "index_block_size": 4, "index_topk_blocks": 2},
    "ministral3": {"rope_parameters": YARN},
    "mistral4": {"rope_parameters": YARN},
    "muse_spark": MUSE,
    "nanbeige": {"num_loops": 2},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {"block_configs": NAS},
    "nemotron_h": {"hybrid_override_pattern": ["M", "*", "E", "-"]},
    "openelm": {
        "ffn_dim_divisor": 8,
        "num_query_heads": [4] * 4,
        "num_kv_heads": [2] * 4,
        "ffn_multipliers": [1.0, 2.0, 1.0, 2.0],
    },
    # It writes to fixed token ids of its own vocabulary.
    "phi3small": {"dense_attention_every_n_layers": 2, "gegelu_limit": 20.0, "vocab_size": 100352},
    "plamo": {"n_shared_head": 2},
    "plamo2": {"full_attention_idx": [3]},
    "plamo3": {"sliding_window": 16},
    "prism_hadamard_qwen35": {"hidden_size": 128, "num_experts": 0},
    "qwen3_5": {"num_experts": 0},
    "recurrent_gemma": {"logits_soft_cap": 30.0, "block_types": ["recurrent", "attention"], "num_key_value_heads": 1},
    "spark2_5": {"layer_types": HALF, "rope_parameters": ROPES},
    "step3p5": {"layer_types": HALF},
}
INNER = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "lfm2-vl": "lfm2",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "pixtral": "mistral",
    "qwen2_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}
"""The language model's type inside a multimodal wrapper, where it is not the wrapper's own."""

PACKED = {"path": "model.layers.0.mlp.gate_proj", "embedding": False, "dtype": "float16", "block": 0}
OUTER: dict[str, dict[str, Any]] = {
    "prism_hadamard_qwen35": {
        "tensor_namespace": "mlx-vlm-qwen3_5",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [PACKED],
    }
}
UNIMPORTABLE = ("olmo",)
"""Modules that leave the process on import when a package that mlx-lm does not bring is missing."""


_MODEL = r"^(class Model\b|Model = |from .* import (.*, )?Model\b)"
"""A module's own ``Model``, or another one's as its own."""


def names() -> tuple[str, ...]:
    """Every architecture in the installed mlx-lm: each module of its ``models`` that has a ``Model``.

    The files are read: each process that takes part in the tests would import all of them.
    """
    (folder,) = import_module("mlx_lm.models").__path__
    files = Path(folder).glob("*.py")
    return tuple(sorted(file.stem for file in files if re.search(_MODEL, file.read_text(), re.MULTILINE)))


def make(name: str, *, seed: int = 0) -> Any:
    """A tiny float32 model with seeded weights."""
    module = import_module(f"mlx_lm.models.{name}")
    own = {**COMMON, "model_type": INNER.get(name, name), **OWN.get(name, {})}
    if "text_config" in {item.name for item in fields(module.ModelArgs)}:
        own = {"model_type": name, "text_config": own, "vocab_size": own["vocab_size"], **OUTER.get(name, {})}
    model = tiny.built(module, own)
    for _, part in model.named_modules():
        if "weight_scale" in part:  # packed ternary weights
            part.weight = mx.random.randint(0, 256, part.weight.shape, key=mx.random.key(seed)).astype(mx.uint8)
    return tiny.settle(model, seed)
