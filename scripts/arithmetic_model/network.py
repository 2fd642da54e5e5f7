"""Tokenizer and untrained model."""

from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from arithmetic_model.recipe import EOS, PAD, UNKNOWN, Recipe
from dapo_openrlhf.bench.workload.characters import character_tokenizer


def build_tokenizer(vocabulary: list[str], max_positions: int) -> PreTrainedTokenizerFast:
    """A tokenizer of characters and a few words; it adds nothing of its own to a text."""
    return character_tokenizer(vocabulary, pad=PAD, eos=EOS, unknown=UNKNOWN, longest=max_positions)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model in float32, with untied embeddings."""
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_size,
        max_position_embeddings=recipe.max_positions,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=None,
        dtype="float32",
        **special,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **special)
    return model
