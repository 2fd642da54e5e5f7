"""A random model of a few hundred thousand parameters with a character tokenizer, for tests on the real stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHARACTERS = ["<pad>", "<eos>", *(chr(code) for code in range(32, 127)), "\n"]


def make_tiny_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of one token per character to ``folder``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    return folder


def make_looks(folder: Path, values: dict[str, Any]) -> None:
    """Give a tokenizer's folder what tells a model's, before one loads it: a configuration, and weights that fit none."""
    import numpy as np
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps(values))
    save_file({"weight": np.ones(3, np.float32)}, folder / "model.safetensors")


def add_first_token(folder: Path, token: str, token_id: int) -> None:
    """Make a tokenizer begin everything it tokenizes, special tokens wanted, with one."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    begin, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def tiny_config(*, tied: bool) -> Any:
    """The configuration of a Qwen2 model for the tiny tokenizer."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=len(CHARACTERS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def make_tiny_model(folder: Path, *, tied: bool, seed: int = 0) -> Path:
    """Write a Qwen2 model to ``folder``; its head is tied to the embedding or not."""
    import torch
    from transformers import GenerationConfig, Qwen2ForCausalLM

    make_tiny_tokenizer(folder)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(tiny_config(tied=tied))
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    return folder
