"""verl's corrections of off-policy samples as settings (standard library)."""

from __future__ import annotations

from dapo_openrlhf.convert.conversion import Conversion, NotConvertible, is_true, number
from dapo_openrlhf.convert.verl_names import ACTOR
from dapo_openrlhf.convert.verl_taken import Taken

GROUP = "algorithm.rollout_correction"
REJECTED_BY = {
    "token": "token", "token_k1": "token", "geometric": "seq", "seq_mean_k1": "seq",
}  # fmt: skip
"""What verl rejects, and by which weight, as a level here: a response by the geometric mean of its tokens' weights."""


def convert_correction(taken: Taken, conversion: Conversion) -> None:
    """Translate weights, their truncation, rejection, and the denominator of the ratio.

    Weights are applied where they are named, or their truncation alone is given, as before there were names. Raises
    ``NotConvertible`` for numbers that are none.
    """
    if is_true(taken.get(f"{GROUP}.bypass_mode", "algorithm.bypass_old_logprob_for_rollout")):
        conversion.settings["async.old_logprobs"] = "rollout"
    weights = _weights(taken, conversion)
    rejected = _rejection(taken, conversion)
    if rejected is not None:
        level, bounds = rejected
        conversion.settings |= {
            "algo.advantage.is_correction_level": level,
            "algo.advantage.is_correction_mode": "mask",
            "algo.advantage.is_correction_threshold": bounds,
            "algo.advantage.is_correction_cap": weights,
        }
        if weights is None:
            conversion.differs(f"{GROUP}.rollout_rs", "what is not rejected is weighted by its ratio, too")
    elif weights is not None:
        conversion.settings |= {
            "algo.advantage.is_correction_level": "token",
            "algo.advantage.is_correction_mode": "clip",
            "algo.advantage.is_correction_threshold": (0.0, weights),
        }


def _weights(taken: Taken, conversion: Conversion) -> float | None:
    """Where each token's weight is truncated; None if nothing is weighted."""
    kind = taken.get(f"{GROUP}.rollout_is", "algorithm.rollout_is")
    level = taken.get("algorithm.rollout_is_level")
    threshold = taken.number(f"{GROUP}.rollout_is_threshold", "algorithm.rollout_is_threshold", default=2.0)
    cap = taken.number(f"{ACTOR}.tis_imp_ratio_cap", default=-1)
    if str(kind).lower() in ("none", "null", "false"):
        if cap <= 0:
            return None
        kind, threshold = "token", cap
    kind = (level or "token") if is_true(kind) else kind
    if str(kind) != "token":
        conversion.differs("algorithm.rollout_is", f"{kind} weights are not here; each token's is truncated")
    return threshold


def _rejection(taken: Taken, conversion: Conversion) -> tuple[str, tuple[float, float]] | None:
    """What is rejected, and the bounds of the weights that are not."""
    name, bound = f"{GROUP}.rollout_rs", f"{GROUP}.rollout_rs_threshold"
    kind, threshold = taken.get(name), taken.get(bound)
    lower = taken.get(f"{GROUP}.rollout_rs_threshold_lower")
    if str(kind).lower() in ("none", "null", "false"):
        return None
    level = REJECTED_BY.get(str(kind))
    if level is None:
        conversion.lacks(name, f"{kind} is not here; those of {', '.join(REJECTED_BY)} are")
        return None
    first, _, second = str(2.0 if threshold is None else threshold).partition("_")  # LOW_HIGH, or HIGH alone
    high = number(second or first, name=bound)
    if high <= 0:
        raise NotConvertible(f"{bound}: {threshold!r} is no bound of a weight; it must be greater than 0")
    low = number(first, name=bound) if second else 1 / high if lower is None else number(lower, name=f"{bound}_lower")
    return level, (low, high)
