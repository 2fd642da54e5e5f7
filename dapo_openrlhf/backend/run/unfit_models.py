"""Models that cannot be trained, as their config.json tells before anything is loaded (standard library)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dapo_openrlhf.backend.run.stop_tokens import text_parts
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config

LONG_ROPE = ("longrope", "su")
"""Names of the scaling with other factors for long sequences than for short ones; the second is its older one."""


def check_trainable(config: Config, values: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for a model whose trained policy could not be the one that samples.

    ``values`` are those of the model's config.json. Refused are quantized weights, and positions whose scaling depends on
    the longest sequence of a batch: transformers takes it anew in each forward pass, vLLM once for all sequences.
    """
    model = config.actor.model_name_or_path
    for part in text_parts(values):
        if method := _quantization(part):
            raise ConfigError(
                f"actor.model_name_or_path: the weights of {model} are quantized ({method}; quantization_config of its "
                "config.json), and only weights in bf16, fp16 or fp32 are trained; take the model that it was made from, or "
                "save it dequantized and without that key"
            )
        for rope in _ropes(part):
            _check_rope(config, rope, part)


def _quantization(part: Mapping[str, Any]) -> str:
    quantized = part.get("quantization_config")
    return str(quantized.get("quant_method", "no method named")) if isinstance(quantized, Mapping) else ""


def _ropes(part: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The scalings of positions, of which each kind of layer may have its own."""
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := part.get(name), Mapping):
            yield rope
            yield from (inner for inner in rope.values() if isinstance(inner, Mapping))


def _check_rope(config: Config, rope: Mapping[str, Any], part: Mapping[str, Any]) -> None:
    kind, model = rope.get("rope_type", rope.get("type")), config.actor.model_name_or_path
    if kind == "dynamic" and "alpha" not in rope and rope.get("factor") != 1:
        raise ConfigError(
            f"actor.model_name_or_path: {model} scales its positions dynamically (rope_type of its config.json): "
            "transformers by the longest sequence of each batch, vLLM always, so that the policy which samples is not the "
            'one that is trained; take "default", "linear" or "yarn" there'
        )
    original = rope.get("original_max_position_embeddings") or part.get("original_max_position_embeddings")
    if kind in LONG_ROPE and isinstance(original, int) and config.data.max_len > original:
        raise ConfigError(
            f"data.max_len: with {config.data.max_len} tokens of prompt and response {model} has other positions for long "
            f"sequences than for short ones ({kind} in its config.json, from {original} tokens on): transformers chooses by the "
            f"longest sequence of each batch, vLLM takes the long ones always; use at most {original}"
        )
