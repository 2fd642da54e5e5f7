"""Refuses to publish or save numbers that are not finite (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.sharded_model import ShardedModel

NAMES_SHOWN = 8


class NotFinite(RuntimeError):
    """Tensors hold NaN or infinity; the message names them."""


def refuse_not_finite(what: str, models: Sequence[ShardedModel], peers: Peers) -> None:
    """Raise :class:`NotFinite` on every rank if a parameter on any rank is not finite.

    Each rank checks what it holds, which under ZeRO-3 is a part of each parameter, with one pass over the memory, one
    collective and one synchronisation. ``what`` begins the message and says what is not done. Every rank must call it.
    """
    named = [(name, _not_finite(held).to(model.device)) for model in models for name, held in model.held()]
    _refuse(what, named, peers)


def refuse_tensors_not_finite(what: str, named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise :class:`NotFinite` if any of these tensors, all in host memory, is not finite. Not a collective call."""
    if flags := [(name, _not_finite(tensor)) for name, tensor in named]:
        _refuse(what, flags, Peers())


def _refuse(what: str, named: Sequence[tuple[str, Tensor]], peers: Peers) -> None:
    """Raise :class:`NotFinite` if any of these flags is set on any rank.

    ``named`` holds, for each tensor, its name and a flag that says whether it is not finite. All flags are on one
    device, and there are as many on every rank.
    """
    found = peers.largest(torch.stack([is_bad for _, is_bad in named]).float())
    bad = [name for (name, _), is_bad in zip(named, found.tolist(), strict=True) if is_bad]
    if bad:
        more = f" and {len(bad) - NAMES_SHOWN} more" if len(bad) > NAMES_SHOWN else ""
        raise NotFinite(
            f"{what}: {len(bad)} of {len(named)} tensors hold NaN or infinity: {', '.join(bad[:NAMES_SHOWN])}{more}"
        )


def _not_finite(tensor: Tensor) -> Tensor:
    """Whether a tensor holds a number that is not finite, as a tensor.

    If so, its minimum or maximum is not finite either, so the check needs no copy of the tensor.
    """
    if not tensor.numel():
        return torch.zeros((), dtype=torch.bool, device=tensor.device)
    low, high = torch.aminmax(tensor)
    return ~(torch.isfinite(low) & torch.isfinite(high))
