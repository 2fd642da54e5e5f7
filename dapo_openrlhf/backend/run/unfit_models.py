"""Models that cannot be trained, as their config.json tells before anything is loaded (standard library)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dapo_openrlhf.backend.run.stop_tokens import text_parts
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config


def check_trainable(config: Config, values: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for a model whose trained policy could not be the one that samples.

    ``values`` are those of the model's config.json. Refused are quantized weights, and sequences so long that the scaling
    of positions depends on the longest of a batch: transformers finds it anew in each forward pass. vLLM has one for all
    sequences of an engine (``longrope``), or none at all (``dynamic``).
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
    kind = rope.get("rope_type", rope.get("type"))
    match kind:
        case "longrope" | "su":  # the second is its older name
            key = "original_max_position_embeddings"
        case "dynamic" if "alpha" not in rope:  # with one it is the same for all sequences
            key = "max_position_embeddings"
        case _:
            return
    most = rope.get(key) or part.get(key)
    if isinstance(most, int) and config.data.max_len > most:
        raise ConfigError(
            f"data.max_len: beyond {most} tokens ({key}) the positions of {config.actor.model_name_or_path} are scaled by "
            f"{kind} (config.json): in transformers by the longest sequence of each batch, in vLLM otherwise, so that the policy "
            f"which samples would not be the one that is trained; use at most {most} instead of {config.data.max_len}"
        )
