"""Tiny random models of many families, for tests on the real stack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

VOCABULARY = 48

BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
NAMES = {"vocab_size", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "n_inner": 96}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOWED = ["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Family:
    """A model's classes by their common name, and what is set beside :data:`BASE`."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    head: str = "ForCausalLM"
    config: str = "Config"
    base: bool = True
    engine: bool = True
    """Whether vLLM has it on a CPU at this size."""


FAMILIES = {
    "Llama": Family("Llama"),
    "Qwen2": Family("Qwen2"),
    "Qwen2, window in one layer": Family(
        "Qwen2", {"use_sliding_window": True, "sliding_window": 8, "layer_types": WINDOWED}, engine=False
    ),
    "Qwen3": Family("Qwen3", {"head_dim": 32}),
    "Mistral": Family("Mistral", {"sliding_window": None}),
    "Mistral, window": Family("Mistral", {"sliding_window": 8}),
    "Gemma": Family("Gemma", {"head_dim": 32}),
    "Gemma 2": Family(
        "Gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "layer_types": WINDOWED,
        },
    ),
    "Gemma 3": Family(
        "Gemma3",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "layer_types": WINDOWED},
        config="TextConfig",
    ),
    "Phi-3": Family("Phi3", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1}),
    "Phi-3, window": Family("Phi3", {"sliding_window": 8}),
    "Phi": Family("Phi", {"intermediate_size": 256, "resid_pdrop": 0.1, "num_key_value_heads": 2}),
    "Granite": Family(
        "Granite",
        {
            "logits_scaling": 4.0,
            "attention_multiplier": 0.18,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_dropout": 0.1,
        },
    ),
    "Granite MoE": Family("GraniteMoe", {"logits_scaling": 4.0, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Cohere": Family("Cohere", {"logit_scale": 0.25}),
    "Cohere 2": Family("Cohere2", {"logit_scale": 0.25, "sliding_window": 8, "layer_types": WINDOWED, "head_dim": 32}),
    "OLMo": Family("Olmo"),
    "OLMo 2": Family("Olmo2"),
    "OLMo 3": Family("Olmo3", {"sliding_window": 8, "layer_types": WINDOWED}),
    "OLMoE": Family("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "StarCoder2": Family(
        "Starcoder2", {"sliding_window": 8, "residual_dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1}
    ),
    "GPT-2": Family(
        "GPT2", {**GPT2, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}, head="LMHeadModel", base=False
    ),
    "GPT-NeoX": Family("GPTNeoX", {"hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "GPT-J": Family(
        "GPTJ",
        {
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 128,
            "n_inner": 96,
            "rotary_dim": 32,
            "resid_pdrop": 0.1,
        },
        base=False,
    ),
    "OPT": Family(
        "OPT",
        {
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 64,
            "init_std": 0.25,
            "dropout": 0.1,
        },
        base=False,
    ),
    "BLOOM": Family("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.1}, base=False),
    "Falcon": Family("Falcon", {"hidden_dropout": 0.1, "new_decoder_architecture": False, "multi_query": True}),
    "StableLM": Family("StableLm", {"num_key_value_heads": 2, "hidden_dropout": 0.1}),
    "Mixtral": Family(
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.1, "sliding_window": None},
    ),
    "Qwen2-MoE": Family("Qwen2Moe", {**MOE, "shared_expert_intermediate_size": 32}),
    "Qwen3-MoE": Family("Qwen3Moe", {**MOE, "head_dim": 32}),
    "gpt-oss": Family(
        "GptOss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 32,
            "sliding_window": 8,
            "layer_types": WINDOWED,
        },
        engine=False,
    ),
    "LFM2": Family(
        "Lfm2",
        {"layer_types": ["conv", "full_attention"], "norm_eps": 1e-5, "block_auto_adjust_ff_dim": False},
        engine=False,  # vLLM's convolution on a CPU knows bfloat16 only
    ),
    "SmolLM3": Family("SmolLM3"),
    "GLM-4": Family("Glm4", {"head_dim": 32}),
    "EXAONE 4": Family("Exaone4", {"sliding_window": 8, "layer_types": WINDOWED}),
    "ERNIE 4.5": Family("Ernie4_5", {"head_dim": 32}),
    "Seed-OSS": Family("SeedOss", {"head_dim": 32}),
    "Apertus": Family("Apertus"),
    "Nemotron": Family("Nemotron", {"head_dim": 32}),
    "Arcee": Family("Arcee"),
    "Qwen3-Next": Family(
        "Qwen3Next",
        {
            **MOE,
            "shared_expert_intermediate_size": 32,
            "head_dim": 32,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
        },
        engine=False,
    ),
    "Mamba": Family("Mamba", {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2}, base=False, engine=False),
}


LOADED_ONLY = {
    "PhiMoE": Family("Phimoe", {"intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "DeepSeek-V3": Family(
        "DeepseekV3",
        {
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
    ),
    "GLM-4-MoE": Family(
        "Glm4Moe",
        {
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "head_dim": 32,
        },
    ),
}
"""Families of which only the way of their weights is tested, and no table tells."""


def random_model(name: str, *, seed: int = 0, settings: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> Any:
    """A random model of that family, in float32 and evaluation mode; ``settings`` of it come last."""
    import torch
    import transformers

    family = (FAMILIES | LOADED_ONLY)[name]
    base = BASE if family.base else {key: value for key, value in BASE.items() if key in NAMES}
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family.name}{family.config}")(**base | family.settings | settings)
    model = getattr(transformers, f"{family.name}{family.head}")._from_config(config, dtype=torch.float32, **more)
    return model.eval()


def distinct_model(name: str, *, seed: int, settings: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A random model each of whose parameters differs from zero, from one, and from another seed's."""
    import torch

    model = random_model(name, seed=seed, settings=settings)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.02)
    return model
