"""Weights that are not finite are neither published nor saved (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NAMES_SHOWN = 8


class NotFinite(RuntimeError):
    """Weights hold NaN or infinity; the message names them."""


def refuse_not_finite(what: str, *engines: Any) -> None:
    """Raise :class:`NotFinite` on every rank if a parameter on any rank is not finite.

    Each rank looks at what it holds, a part of each parameter under ZeRO-3: one pass over the memory, one collective and
    one synchronisation. ``what`` is not done because of it. Every rank must call it with DeepSpeed's engines.
    """
    _refuse(
        what,
        [
            (name, _not_finite(held(parameter)).to(engine.device))
            for engine in engines
            for name, parameter in engine.module.named_parameters()
        ],
    )


def refuse_moments_not_finite(what: str, *engines: Any) -> None:
    """The same for the optimizers' moments, of which a rank holds its part; before the first step there may be none."""
    named = []
    for engine in engines:
        # Under ZeRO-3 the parameter groups are empty between steps; the state is not.
        states = engine.optimizer.optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq"):
            moments = [state[name] for state in states if name in state]
            named.append((f"the optimizer's {name}", _any_not_finite(moments, engine.device)))
    _refuse(what, named)


def held(parameter: Any) -> Tensor:
    """What this rank holds of a parameter, flat: without the padding that ZeRO-3 leaves as it found the memory."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().view(-1)
    part: Tensor = parameter.ds_tensor.detach().view(-1)
    begin = torch.distributed.get_rank(parameter.ds_process_group) * part.numel()
    return part[: max(0, min(part.numel(), int(parameter.ds_numel) - begin))]


def _refuse(what: str, named: Sequence[tuple[str, Tensor]]) -> None:
    """``named``: whether each tensor is not finite, as tensors on one device; as many on every rank."""
    found = torch.stack([is_bad for _, is_bad in named]).float()
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    bad = [name for (name, _), is_bad in zip(named, found.tolist(), strict=True) if is_bad]
    if bad:
        more = f" and {len(bad) - NAMES_SHOWN} more" if len(bad) > NAMES_SHOWN else ""
        raise NotFinite(
            f"{what}: {len(bad)} of {len(named)} tensors hold NaN or infinity: {', '.join(bad[:NAMES_SHOWN])}{more}"
        )


def _any_not_finite(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Whether one of these is not finite, on ``device``; they may lie in host memory."""
    flags = [_not_finite(tensor).to(device) for tensor in tensors]
    return torch.stack(flags).any() if flags else torch.zeros((), dtype=torch.bool, device=device)


def _not_finite(tensor: Tensor) -> Tensor:
    """Whether a tensor holds a number that is not finite, as a tensor; its extremes do then, without a copy of it."""
    if not tensor.numel():
        return torch.zeros((), dtype=torch.bool, device=tensor.device)
    low, high = torch.aminmax(tensor)
    return ~(torch.isfinite(low) & torch.isfinite(high))
