"""From a GGUF file to a Hugging Face folder: layout, names, numbers, tokenizer. Nothing is downloaded here."""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def smollm2(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import build_smollm2_model

    return build_smollm2_model


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(tensor_kind: int = 0) -> bytes:
    """Three values and two tensors: [2, 32] of the given kind at the first byte of the data, [3] in float32 behind it."""
    values = [
        text("name") + struct.pack("<I", 8) + text("naïve"),
        text("sizes") + struct.pack("<IIQ", 9, 4, 3) + struct.pack("<3I", 1, 2, 3),
        text("tied") + struct.pack("<I?", 7, True),
    ]
    tensors = [
        text("token_embd.weight") + struct.pack("<I2QIQ", 2, 32, 2, tensor_kind, 0),
        text("output_norm.weight") + struct.pack("<IQIQ", 1, 3, 0, 256),
    ]
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values)) + b"".join(values + tensors)
    header += b"\0" * (-len(header) % 32)
    return header + np.arange(64, dtype="<f4").tobytes() + np.array([5, 6, 7], "<f4").tobytes()


def test_a_header_gives_values_and_where_tensors_lie(smollm2: ModuleType) -> None:
    content = gguf()
    metadata, tensors = smollm2.read_header(io.BytesIO(content))
    assert metadata == {"name": "naïve", "sizes": [1, 2, 3], "tied": True}
    embedding, norm = tensors["token_embd.weight"], tensors["output_norm.weight"]
    assert (embedding.shape, embedding.bytes, norm.shape) == ((2, 32), 256, (3,))
    weights = smollm2.dequantise(content[norm.start : norm.start + norm.bytes], norm.kind)
    assert weights.tolist() == [5, 6, 7]


def test_other_files_and_tensor_types_are_refused(smollm2: ModuleType) -> None:
    with pytest.raises(ValueError, match="no GGUF file"):
        smollm2.read_header(io.BytesIO(b"PK\3\4" + gguf()[4:]))
    with pytest.raises(ValueError, match=r"token_embd\.weight is of type 12"):
        smollm2.read_header(io.BytesIO(gguf(tensor_kind=12)))


def test_blocks_become_numbers(smollm2: ModuleType) -> None:
    """Q4_1: weight i and weight i + 16 share a byte, the first one its low half."""
    nibbles = bytes(low | (15 - low) << 4 for low in range(16))
    q4 = np.array([0.5, -2.0], "<f2").tobytes() + nibbles
    expected = [0.5 * low - 2 for low in range(16)] + [0.5 * (15 - low) - 2 for low in range(16)]
    assert smollm2.dequantise(q4 * 2, smollm2.Q4_1).tolist() == expected * 2
    q8 = np.array([0.25], "<f2").tobytes() + np.arange(-16, 16, dtype=np.int8).tobytes()
    assert smollm2.dequantise(q8, smollm2.Q8_0).tolist() == [0.25 * value for value in range(-16, 16)]


def test_names_are_all_that_a_llama_has(smollm2: ModuleType) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, vocab_size=8))
    layers = [f"blk.{layer}.{part}.weight" for layer in range(2) for part in smollm2.LAYER_PARTS]
    names = {smollm2.transformers_name(name) for name in ("token_embd.weight", "output_norm.weight", *layers)}
    assert names | {"lm_head.weight"} == set(model.state_dict())


def test_rotated_pairs_go_from_side_by_side_to_halves(smollm2: ModuleType) -> None:
    """Two heads of size six with one input: row 10h + p + 0.5 is the second one of pair p in head h."""
    side_by_side = np.array([[10 * head + pair + half] for head in (0, 1) for pair in (0, 1, 2) for half in (0, 0.5)])
    halves = [10 * head + pair + half for head in (0, 1) for half in (0, 0.5) for pair in (0, 1, 2)]
    assert smollm2.split_halves(side_by_side, 2)[:, 0].tolist() == halves


def test_the_tokenizer_splits_digits_keeps_special_tokens_whole_and_has_the_chat_template(smollm2: ModuleType) -> None:
    from tokenizers import pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "12"]
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = smollm2.build_tokenizer(
        {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
            "tokenizer.ggml.merges": ["Ġ a", "1 2"],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.padding_token_id": 2,
            "tokenizer.chat_template": template,
            "llama.context_length": 64,
        }
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer("12 a<|im_end|>")["input_ids"]) == ["1", "2", "Ġa", "<|im_end|>"]
    for probe in (smollm2.PROBE, "  two  blanks\n"):
        assert tokenizer.decode(tokenizer(probe)["input_ids"]) == probe
    chat = [{"role": "user", "content": "1"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>1<|im_end|>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_what_is_there_is_kept(
    smollm2: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished model is not fetched again, and a folder with something else in it is not touched."""
    finished = smollm2.describe_build() | {"parameters": 7, "answer": "Paris"}
    (tmp_path / "manifest.json").write_text(json.dumps(finished))
    monkeypatch.setattr(smollm2, "build_and_install", lambda output: pytest.fail("it is there already"))
    monkeypatch.setattr(sys, "argv", ["build", "--output", str(tmp_path)])
    smollm2.main()
    assert "7 parameters" in capsys.readouterr().out
    (tmp_path / "manifest.json").rename(tmp_path / "thesis.txt")
    with pytest.raises(SystemExit, match="it stays as it is"):
        smollm2.main()
