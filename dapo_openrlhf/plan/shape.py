"""The shape of a dense decoder, read from the ``config.json`` of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.lora_rules import ALL_LINEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What time and memory depend on."""

    parameters: int
    layers: int
    hidden: int
    kv_width: int
    """Number of key numbers, and of value numbers, that a layer keeps for a token."""
    tensors: int
    """Number of tensors in its checkpoint, roughly."""
    linear: Mapping[str, int] = field(default_factory=dict)
    """Inputs and outputs together of each linear layer of a decoder layer, by its name."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The shape of a model. Raises :class:`ConfigError` for a model that is not here, or not a dense decoder."""
        file = folder / "config.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return cls.of(values)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"actor.model_name_or_path: {file} cannot be read ({error}); a plan needs the model's config.json, not its "
                "weights"
            ) from error
        except KeyError as error:
            raise ConfigError(
                f"{file} has no {error}; a plan is made for dense decoders with the names of Llama and Qwen only"
            ) from error

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The shape that the values of a ``config.json`` describe. Raises ``KeyError`` for one that is missing."""
        if "num_experts" in values or "num_local_experts" in values:
            raise KeyError("dense feed-forward layer")
        hidden, layers, vocabulary = values["hidden_size"], values["num_hidden_layers"], values["vocab_size"]
        heads = values["num_attention_heads"]
        head = values.get("head_dim") or hidden // heads
        kv_width = (values.get("num_key_value_heads") or heads) * head
        attention = 2 * hidden * heads * head + 2 * hidden * kv_width
        inner = values["intermediate_size"]
        feed_forward = 3 * hidden * inner
        embeddings = vocabulary * hidden * (1 if values.get("tie_word_embeddings") else 2)
        return cls(
            parameters=layers * (attention + feed_forward + 2 * hidden) + embeddings + hidden,
            layers=layers,
            hidden=hidden,
            kv_width=kv_width,
            tensors=12 * layers + 3,
            linear={
                **dict.fromkeys(("q_proj", "o_proj"), hidden + heads * head),
                **dict.fromkeys(("k_proj", "v_proj"), hidden + kv_width),
                **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), hidden + inner),
            },
        )

    def adapters(self, rank: int, targets: Sequence[str]) -> int:
        """Number of parameters of adapters of that rank; ``targets`` as ``ds.lora.target_modules`` names them."""
        named = [
            both
            for name, both in self.linear.items()
            if any(target == ALL_LINEAR or target.rpartition(".")[2] == name for target in targets)
        ]
        return self.layers * rank * sum(named)

    @property
    def bytes(self) -> int:
        """Of the weights in bf16."""
        return 2 * self.parameters

    @property
    def kv_bytes(self) -> int:
        """Of the keys and values of one token, in bf16."""
        return 4 * self.layers * self.kv_width
