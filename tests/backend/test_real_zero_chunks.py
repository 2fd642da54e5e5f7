"""Under ZeRO-3 every rank calls every module equally often, whatever its tokens: two ranks with other numbers of chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS
from tiny_model import CHARACTERS

pytestmark = pytest.mark.real


def _model(folder: Path) -> Path:
    """A model whose larger parameters ZeRO-3 partitions: they have more than its 1e5 elements."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2048 + len(CHARACTERS),
        hidden_size=64,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("checkpointing", [False, True])
def test_ranks_with_other_numbers_of_chunks_do_not_wait_for_each_other(
    checkpointing: bool, tmp_path: Path, port: int
) -> None:
    model = _model(tmp_path / "model")
    command = [sys.executable, str(Path(__file__).parents[1] / "zero_chunks.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(port), str(model), str(checkpointing)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=HANG_SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-3000:]
