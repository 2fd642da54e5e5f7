"""Whether a model's experts can be kept equally busy by transformers' load-balancing loss (torch; runs in trainer ranks).

The loss is that of Switch Transformer (arXiv 2101.03961, equations 4 to 6): the number of experts times the sum, over
experts, of the share of tokens that go to an expert and the mean probability of going there. transformers adds it up over
a token's experts, and takes the means over all layers together, so that equal loads give the number of a token's experts.
Not every family's own forward pass computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.utils.output_capturing import OutputRecorder

from dapo_openrlhf.backend.trainer import families
from dapo_openrlhf.backend.trainer.own_forward import takes_router_logits

ROUTERS = "router_logits"
"""The name under which transformers records what routers say."""


def why_not_balanced(model: Any) -> str | None:
    """The reason why a causal language model has no load-balancing loss, or None if it has one. It needs no weights."""
    config = model.config
    name = families.architecture(config)
    if not _has_experts(config.get_text_config().to_dict()):
        return f"{name} is a dense model, which has no experts to balance"
    recorded = (model.base_model._can_record_outputs or {}).get(ROUTERS)
    if recorded is None or not takes_router_logits(type(model)):
        return (
            f"transformers computes no load-balancing loss for {name} (its forward pass reports no router logits), whose "
            "experts are balanced otherwise or not at all"
        )
    recorders = recorded if isinstance(recorded, list) else [recorded]
    classes = [one.target_class if isinstance(one, OutputRecorder) else one for one in recorders]
    kinds = tuple(one for one in classes if isinstance(one, type))  # others are named by a string
    if kinds and not any(isinstance(module, kinds) for module in model.modules()):
        return f"none of the layers of this {name} has a router, so there are no experts to balance"
    if (reason := families.why_by_rows(config)) is not None:
        return f"{name}: {reason}, so its sequences are read in rows, whose padding that loss would count"
    return None


def _has_experts(told: Mapping[str, Any]) -> bool:
    """Whether a configuration, or a part of it, counts more than one expert, under whatever name."""
    return any(
        _has_experts(value)
        if isinstance(value, dict)
        else "experts" in str(key) and "per_tok" not in str(key) and isinstance(value, int) and value > 1
        for key, value in told.items()
    )
