"""The model of the comparison, which writes the chain of ``chain.py`` without training.

Its embeddings and its head are set to the chain's transition probabilities, and its layers, full-sized and random, add
almost nothing. The model is built within seconds and gives the same lengths and the same pass rate on every machine,
while generating and training cost as much as with any model of this shape.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dapo_openrlhf.bench.workload.chain import EOS, PAD, UNKNOWN, Recipe, list_tokens
from dapo_openrlhf.bench.workload.characters import character_tokenizer

NEVER = -20.0
"""Log-probability of tokens that the model must not write."""


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A tokenizer of characters, which adds nothing to a text."""
    return character_tokenizer(list_tokens(recipe), pad=PAD, eos=EOS, unknown=UNKNOWN, longest=recipe.max_len)


def next_logprobs(recipe: Recipe) -> torch.Tensor:
    """Log-probability of each token (column) after each token (row), the chain that the model is to write."""
    tokens = list_tokens(recipe)
    ids = {token: index for index, token in enumerate(tokens)}
    logprobs = torch.full((len(tokens), len(tokens)), NEVER)
    logprobs[:, ids[EOS]] = 0.0  # after tokens that are never followed by others
    for category in recipe.categories:
        own = [ids[letter] for letter in category.letters]
        uniform = torch.tensor(1.0 / len(own))
        logprobs[ids[category.mark], own] = uniform.log()
        logprobs[ids[category.mark], ids[EOS]] = NEVER
        for letter in own:
            logprobs[letter, own] = (uniform * (1.0 - category.hazard)).log()
            logprobs[letter, ids[EOS]] = torch.tensor(category.hazard).log()
    return logprobs


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A model in float32, with untied embeddings, that writes the chain."""
    special: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    undeclared: dict[str, Any] = {"head_dim": recipe.head_size}  # which transformers accepts nevertheless
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.max_len,
        tie_word_embeddings=False,
        bos_token_id=None,
        dtype="float32",
        **special,
        **undeclared,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **special)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.normal_(std=recipe.layer_scale)
        # One orthonormal direction per token: the head reads the last token and looks up what may follow.
        # The embeddings' root mean square is 1, so the last norm leaves them as they are.
        directions = torch.linalg.qr(torch.randn(recipe.hidden_size, recipe.hidden_size))[0][: len(tokenizer)]
        model.model.embed_tokens.weight.copy_(directions * recipe.hidden_size**0.5)
        model.lm_head.weight.copy_(next_logprobs(recipe).T @ directions / recipe.hidden_size**0.5)
    return model
