"""The workload of the GPU check: a model of Qwen2's 0.5 B shape with random weights, which writes up to the limit.

Random weights cost as much as trained ones, need no download, and give different responses: all tokens are about
equally likely, so responses end at ``MAX_NEW_TOKENS`` and half of a group's are right by the checksum of their text.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_openrlhf.bench.workload.reward import END
from dapo_openrlhf.bench.workload.workload import Workload, write_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 151_936
DIGITS = "0123456789"
PROMPTS = 512
PROMPT_TOKENS = 64
MAX_NEW_TOKENS = 512
SHAPE: Mapping[str, Any] = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}


def random_workload(folder: Path) -> Workload:
    """The workload in ``folder``, where :func:`build_work` writes it."""
    return Workload(
        folder=folder,
        prompt_count=PROMPTS,
        prompt_tokens=PROMPT_TOKENS,
        max_new_tokens=MAX_NEW_TOKENS,
        pass_rate=1.0,
    )


def build_work(work: Workload, *, shape: Mapping[str, Any] = SHAPE, vocabulary: int = VOCABULARY) -> int:
    """Write model, tokenizer and prompts into the folder; returns the number of parameters."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    special: dict[str, Any] = {"eos_token_id": 1, "pad_token_id": 0}
    config = Qwen2Config(
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        dtype="bfloat16",
        **shape,
        **special,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config).bfloat16()
    model.generation_config = GenerationConfig(do_sample=True, **special)
    work.folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(work.model)
    _tokenizer(vocabulary).save_pretrained(work.model)
    draw = random.Random(0)
    digits = ("".join(draw.choices(DIGITS, k=work.prompt_tokens)) for _ in range(work.prompt_count))
    write_prompts(work.prompts, ((prompt, "mixed") for prompt in digits))
    return int(model.num_parameters())


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer with digits for prompts, and a different text for every token that the model can write.

    Beside a Qwen2 model transformers always reads a tokenizer of Qwen2's kind, so this is one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", END, "<unk>"]
    words = [*special, *DIGITS, *(f"w{index}" for index in range(len(special) + len(DIGITS), vocabulary))]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
