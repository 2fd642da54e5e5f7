"""The seam between a rank's step and whatever keeps its models.

A step, its loss and the guard against numbers that are not finite know a model as a :class:`ShardedModel` only. DeepSpeed
stands behind it today (``deepspeed_model.py``); FSDP2, or another trainer, would be a second class with these methods, and
a second way to build it in ``loading.py``. ``tests/plain_model.py`` is the smallest one: a module of torch and AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dapo_openrlhf.backend.messages import WeightLayout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Forward(Protocol):
    """A model that is run and never trained, as the reference of a KL is."""

    def __call__(self, **inputs: Any) -> Any:
        """One forward pass. It may be a collective, so every rank makes as many calls as the others."""
        ...


class WholeTensors(Protocol):
    """A model's tensors as its checkpoint has them, brought together from all ranks."""

    layout: WeightLayout
    """Names, types and shapes, in the order of :meth:`tensors`; the same on every rank."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors. Every rank must exhaust it."""
        ...


class ShardedModel(Protocol):
    """A model that learns, of which each rank may hold a part, with its optimizer and schedule.

    Unless a method says otherwise, every rank must call it, in the same order as the others.
    """

    @property
    def device(self) -> torch.device:
        """Where inputs go and outputs come from; no collective."""
        ...

    @property
    def inner(self) -> Any:
        """The module that computes, for those who look inside of it; its parameters may be parts. No collective."""
        ...

    @property
    def parameter_count(self) -> int:
        """Elements of the whole model's parameters; no collective."""
        ...

    def __call__(self, **inputs: Any) -> Any:
        """One forward pass, with gradient where torch's gradients are on."""
        ...

    def backward(self, share: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient to the update's; ``last`` says that no other follows before the step.

        ``share`` is this rank's part of the update's loss, whose parts over ranks and micro-batches add up.
        """
        ...

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient before clipping, after the last :meth:`backward`; the same on every rank.

        It is not finite if any gradient is not, or if they are so large that their squares overflow.
        """
        ...

    def step(self, *, sound: bool) -> None:
        """Clip, step optimizer and schedule, and forget the gradient; if it is not ``sound``, only forget it."""
        ...

    @property
    def learning_rate(self) -> float:
        """Which the next step takes; no collective."""
        ...

    @property
    def loss_scaled(self) -> bool:
        """Whether losses are scaled, so that gradients overflow now and then until the scale fits; no collective."""
        ...

    def held(self) -> Iterator[tuple[str, Tensor]]:
        """Names of all parameters, and what this rank holds of each, flat; no collective."""
        ...

    def held_moments(self) -> Iterator[tuple[str, Sequence[Tensor]]]:
        """Names of the optimizer's moments, and what this rank holds of each; none before a first step. No collective."""
        ...

    def whole(self) -> WholeTensors:
        """The tensors that a publication consists of."""
        ...

    def save_state(self, folder: str, tag: str) -> None:
        """Write full-precision weights and the optimizer's state into a folder, under a name of their own."""
        ...

    def load_state(self, folder: str, tag: str, *, updates_done: int) -> bool:
        """Take them from there; False if there is nothing of that name.

        Learning rate, decays, clipping and schedule stay as this model was made with; the schedule is entered after
        ``updates_done`` steps.
        """
        ...

    def save(self, folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a Hugging Face folder."""
        ...
