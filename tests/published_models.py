"""Tiny random models of many families, for tests on the real stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COMMON: Mapping[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "Llama": {"intermediate_size": 128},
    "Qwen2": {"intermediate_size": 128, "tie_word_embeddings": True},
    "Qwen3": {"intermediate_size": 128, "head_dim": 32, "tie_word_embeddings": True},
    "Mistral": {"intermediate_size": 128, "head_dim": 32, "sliding_window": 8},
    "Gemma2": {"intermediate_size": 128, "head_dim": 32},
    "Gemma3Text": {"intermediate_size": 128, "head_dim": 32, "architecture": "Gemma3ForCausalLM"},
    "Phi3": {"intermediate_size": 128},
    "Granite": {"intermediate_size": 128},
    "Cohere": {"intermediate_size": 128},
    "Cohere2": {"intermediate_size": 128},
    "Olmo2": {"intermediate_size": 128},
    "Starcoder2": {"intermediate_size": 128},
    "GPT2": {"n_positions": 64, "architecture": "GPT2LMHeadModel"},
    "GPTNeoX": {"intermediate_size": 128},
    "Qwen2Moe": {
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "Qwen3Moe": {
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "Mixtral": {"intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Olmoe": {"intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
    "GraniteMoe": {"intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Phimoe": {"intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3": {
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 32,
        "topk_method": "noaux_tc",
        "num_key_value_heads": 2,
    },
    "Glm4Moe": {
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "head_dim": 32,
    },
    "Lfm2": {
        "intermediate_size": 128,
        "layer_types": ["conv", "full_attention"],
        "conv_dim": 64,
        "conv_L_cache": 4,
        "block_dim": 64,
        "block_ff_dim": 128,
        "block_multiple_of": 32,
        "block_auto_adjust_ff_dim": False,
        "block_ffn_dim_multiplier": 1.0,
    },
}
"""Beyond :data:`COMMON`; the key is the first part of the classes' names."""


def make_model(family: str, *, seed: int, **settings: Any) -> Any:
    """A random model in float32, each parameter different from zero and from one."""
    import torch
    import transformers

    wanted = {**COMMON, **FAMILIES[family], **settings}
    architecture = wanted.pop("architecture", f"{family}ForCausalLM")
    config = getattr(transformers, f"{family}Config")(**wanted)
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.02)
    return model
