"""verl's trained model as settings: adapters, attention, turns (standard library)."""

from __future__ import annotations

from dapo_openrlhf.config.yaml_text import value_of
from dapo_openrlhf.convert.conversion import Conversion, is_true, whole
from dapo_openrlhf.convert.verl_names import MODEL, ROLLOUT
from dapo_openrlhf.convert.verl_taken import Taken

TARGETS = f"{MODEL}.target_modules"


def convert_model(taken: Taken, conversion: Conversion) -> None:
    """Translate what is trained of the model. Raises ``NotConvertible`` for numbers that are none."""
    _adapters(taken, conversion)
    if (attention := taken.get(f"{MODEL}.override_config.attn_implementation")) is not None:
        conversion.settings["ds.attn_implementation"] = "sdpa" if attention == "eager" else attention
    turns = taken.below(f"{ROLLOUT}.multi_turn")
    if is_true(turns.get("enable")):
        conversion.lacks(
            f"{ROLLOUT}.multi_turn.enable", "tools and turns are an environment here; name one in train.agent_func_path"
        )


def _adapters(taken: Taken, conversion: Conversion) -> None:
    rank = whole(taken.number(f"{MODEL}.lora_rank", f"{MODEL}.lora.rank", default=0), name=f"{MODEL}.lora_rank")
    alpha = taken.number(f"{MODEL}.lora_alpha", f"{MODEL}.lora.alpha", default=16)
    targets = taken.get(TARGETS, f"{MODEL}.lora.target_modules")
    left_out = taken.get(f"{MODEL}.exclude_modules", f"{MODEL}.lora.exclude_modules")
    if not rank:
        return
    conversion.settings |= {"ds.lora.rank": rank, "ds.lora.alpha": whole(alpha, name=f"{MODEL}.lora_alpha")}
    if isinstance(targets, str) and targets.startswith("["):
        targets = value_of(targets)
    if targets is not None:
        conversion.settings["ds.lora.target_modules"] = targets
    if left_out:
        conversion.lacks(f"{MODEL}.exclude_modules", "name the layers that get adapters in ds.lora.target_modules")
