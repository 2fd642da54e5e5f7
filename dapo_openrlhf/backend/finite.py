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
    named = [(name, held(parameter)) for engine in engines for name, parameter in engine.module.named_parameters()]
    _refuse(what, named, engines[0].device)


def refuse_moments_not_finite(what: str, *engines: Any) -> None:
    """The same for the optimizers' moments, of which a rank holds its part; before the first step there are none."""
    named = []
    for engine in engines:
        optimizer = engine.optimizer.optimizer
        nothing = torch.zeros(0, device=engine.device)
        for group, settings in enumerate(optimizer.param_groups):
            for part, parameter in enumerate(settings["params"]):
                for name in ("exp_avg", "exp_avg_sq"):
                    moment = optimizer.state.get(parameter, {}).get(name, nothing)
                    named.append((f"the optimizer's {name} ({group}, {part})", moment))
    _refuse(what, named, engines[0].device)


def held(parameter: Any) -> Tensor:
    """What this rank holds of a parameter, flat: without the padding that ZeRO-3 leaves as it found the memory."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().view(-1)
    part: Tensor = parameter.ds_tensor.detach().view(-1)
    begin = torch.distributed.get_rank(parameter.ds_process_group) * part.numel()
    return part[: max(0, min(part.numel(), int(parameter.ds_numel) - begin))]


def _refuse(what: str, named: Sequence[tuple[str, Tensor]], device: torch.device) -> None:
    found = torch.stack([_not_finite(tensor).to(device) for _, tensor in named]).float()
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    bad = [name for (name, _), is_bad in zip(named, found.tolist(), strict=True) if is_bad]
    if bad:
        more = f" and {len(bad) - NAMES_SHOWN} more" if len(bad) > NAMES_SHOWN else ""
        raise NotFinite(
            f"{what}: {len(bad)} of {len(named)} tensors hold NaN or infinity: {', '.join(bad[:NAMES_SHOWN])}{more}"
        )


def _not_finite(tensor: Tensor) -> Tensor:
    """Whether a tensor holds a number that is not finite, as a tensor; its extremes do then, without a copy of it."""
    if not tensor.numel():
        return torch.zeros((), dtype=torch.bool, device=tensor.device)
    low, high = torch.aminmax(tensor)
    return ~(torch.isfinite(low) & torch.isfinite(high))
