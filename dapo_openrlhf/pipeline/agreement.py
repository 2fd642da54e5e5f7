"""Checks during a run whether engines and trainer are the same policy (standard library)."""

from __future__ import annotations

from collections.abc import Mapping

FRESH_KL = "rollout_kl/age_0"
"""Metric: KL(rollout || trainer) per token, in nats, over responses of exactly the weights that a step begins with."""


class PoliciesDiffer(RuntimeError):
    """Engines sample from another distribution than the trainer trains; further updates would make it worse."""


class Agreement:
    """Stops a run whose engines and trainer disagree about tokens of the same weights."""

    def __init__(self, *, limit: float, data_type: str) -> None:
        """``limit``: largest :data:`FRESH_KL`. ``data_type``: data type of the model, for the diagnosis."""
        self._limit = limit
        self._data_type = data_type

    def check(self, step: int, statistics: Mapping[str, float]) -> None:
        """Raise :class:`PoliciesDiffer` beyond the limit or at NaN; does nothing without responses of these weights."""
        kl = statistics.get(FRESH_KL)
        if kl is None or kl <= self._limit:
            return
        raise PoliciesDiffer(
            f"step {step}: {FRESH_KL} is {kl:.3g} nats a token, above train.max_rollout_kl {self._limit:g}. It compares the "
            "log-probs of sampled tokens in the engine with the trainer's under the very same weights, so staleness is no "
            f"part of it; rounding makes it some 1e-6 in fp32 and 1e-3 to 1e-2 in bf16 (this run: {self._data_type}). The "
            "step's weights were not published and nothing more is trained.\n"
            "  in the first step: the trainer computes this architecture otherwise than vLLM (scales, soft caps, sliding "
            "windows, dropout, position embeddings); try another attention (ds.attn_implementation) or model\n"
            "  after a publication: the engines did not take the weights; compare the checksums of publications in "
            "events.jsonl, and on GPUs run make gpu-check\n"
            "  in bf16 only slightly above: experts or long responses round differently; try ds.param_dtype fp32 to see, and "
            "raise train.max_rollout_kl if it is rounding"
        )
