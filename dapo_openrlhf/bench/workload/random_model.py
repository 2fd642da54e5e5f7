"""The work of ``gpu_check``: a model of Qwen2's 0.5 B shape with random weights, which writes to the limit.

Random weights cost what trained ones cost, need no download, and say something different each time: all tokens are about
equally likely, so responses end at ``MAX_NEW_TOKENS`` and half of a group's are right by the checksum of their text.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from dapo_openrlhf.bench.workload import reward

VOCABULARY = 151_936
DIGITS = "0123456789"
PROMPTS = 512
PROMPT_TOKENS = 64
MAX_NEW_TOKENS = 512
GROUPS, SAMPLES = 32, 8
PACK_TOKENS = 16_384
SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}


def build_work(folder: Path, *, shape: dict[str, int] | None = None, vocabulary: int = VOCABULARY) -> int:
    """Write model, tokenizer and prompts into ``folder``; returns the number of parameters."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    special = {"eos_token_id": 1, "pad_token_id": 0}
    config = Qwen2Config(
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        dtype="bfloat16",
        **(shape or SHAPE),
        **special,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(do_sample=True, **special)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "model")
    _tokenizer(vocabulary).save_pretrained(folder / "model")
    draw = random.Random(0)
    prompts = ("".join(draw.choices(DIGITS, k=PROMPT_TOKENS)) for _ in range(PROMPTS))
    rows = (json.dumps({"input": prompt, "label": "mixed"}) for prompt in prompts)
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return int(model.num_parameters())


def _tokenizer(vocabulary: int) -> Any:
    """Digits to read, and a text of its own for every token that the model can write.

    Whatever is saved, transformers reads Qwen2's kind of tokenizer from beside a Qwen2 model: so this is of that kind.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", reward.END, "<unk>"]
    words = [*special, *DIGITS, *(f"w{index}" for index in range(len(special) + len(DIGITS), vocabulary))]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=reward.END,
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def settings(folder: Path, *, max_staleness: int, steps: int, learning_rate: float = 1e-6) -> dict[str, Any]:
    """A run on one GPU that engine and trainer share: 131,072 response tokens a step, in two updates."""
    return {
        "device": "cuda",
        "run": {"name": f"k{max_staleness}", "dir": str(folder / "runs")},
        "actor": {
            "model_name_or_path": str(folder / "model"),
            "adam": {"lr": learning_rate},
            "lr_warmup_steps": 0,
        },
        "ds": {"zero_stage": 2, "param_dtype": "bf16", "attn_implementation": "flash_attention_2"},
        "vllm": {"gpu_memory_utilization": 0.3},
        "rollout": {"batch_size": GROUPS, "n_samples_per_prompt": SAMPLES, "max_new_tokens": MAX_NEW_TOKENS},
        "train": {
            "colocate_all": True,
            "batch_size": GROUPS * SAMPLES // 2,
            "max_steps": steps,
            "max_tokens_per_gpu": PACK_TOKENS,
        },
        "async": {"max_staleness": max_staleness, "start_timeout": 300.0, "publish_timeout": 60.0},
        "algo": {"dynamic_filtering_enable": False},
        "reward": {"remote_url": reward.__file__, "overlong_filtering_enable": False, "num_workers": 2},
        "data": {"prompt_dataset": str(folder / "prompts.jsonl"), "max_len": PROMPT_TOKENS + MAX_NEW_TOKENS},
    }
