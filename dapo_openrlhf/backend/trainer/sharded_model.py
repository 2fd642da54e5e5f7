"""The interface between a rank's training step and the framework that holds its models.

A step, its loss and the guard against numbers that are not finite use a model only as a :class:`ShardedModel`.
DeepSpeed implements it today (``deepspeed_model.py``); FSDP2, or another trainer, would be a second class with these
methods, and a second way to build it in ``loading.py``. ``tests/plain_model.py`` is the smallest implementation: a
torch module and AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dapo_openrlhf.backend.messages import WeightLayout
from dapo_openrlhf.backend.trainer.state_tree import HostCopies, Tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Forward(Protocol):
    """A model that is run and never trained, such as the reference of a KL."""

    def __call__(self, **inputs: Any) -> Any:
        """Run one forward pass. It may be a collective, so every rank must make as many calls as the others."""
        ...


class WholeTensors(Protocol):
    """A model's tensors in the form that they have in its checkpoint, gathered from all ranks."""

    layout: WeightLayout
    """Names, types and shapes, in the order of :meth:`tensors`; the same on every rank."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and whole tensors. Every rank must exhaust it."""
        ...


class ShardedModel(Protocol):
    """A model that is trained, of which each rank may hold a part, with its optimizer and schedule.

    Unless a method says otherwise, every rank must call it, in the same order as the others.
    """

    @property
    def device(self) -> torch.device:
        """The device of inputs and outputs. Not a collective call."""
        ...

    @property
    def inner(self) -> Any:
        """The module that computes, for code that inspects it; its parameters may be parts. Not a collective call."""
        ...

    @property
    def parameter_count(self) -> int:
        """Number of parameters of the whole model. Not a collective call."""
        ...

    def __call__(self, **inputs: Any) -> Any:
        """Run one forward pass, with gradient if torch's gradients are enabled."""
        ...

    def backward(self, share: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient to the update's; ``last`` says that no other follows before the step.

        ``share`` is this rank's part of the update's loss; the parts of all ranks and micro-batches add up to the loss.
        """
        ...

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient before clipping, after the last :meth:`backward`; the same on every rank.

        It is not finite if any gradient is not finite, or if gradients are so large that their squares overflow.
        """
        ...

    def step(self, *, sound: bool) -> None:
        """Clip, step optimizer and schedule, and clear the gradient. If it is not ``sound``, only clear it."""
        ...

    @property
    def learning_rate(self) -> float:
        """The learning rate that the next step uses. Not a collective call."""
        ...

    @property
    def loss_scaled(self) -> bool:
        """Whether losses are scaled, so that gradients may overflow until the scale fits. Not a collective call."""
        ...

    def held(self) -> Iterator[tuple[str, Tensor]]:
        """Names of all parameters, and this rank's part of each, flattened. Not a collective call."""
        ...

    def owned(self) -> Iterator[tuple[str, Tensor]]:
        """Names of the trained parameters, and the part of each, flattened, that no other rank yields.

        All ranks' together are the whole model, each in the order of :meth:`held`. Not a collective call.
        """
        ...

    def whole(self) -> WholeTensors:
        """The tensors that a publication consists of."""
        ...

    def state(self) -> Tree:
        """Full-precision weights and the optimizer's state: this rank's part, not copied."""
        ...

    def load_state(self, state: Tree, *, updates_done: int) -> None:
        """Load what :meth:`state` returned on this rank, among as many ranks.

        Learning rate, decays, clipping and schedule stay as this model was made with; the schedule continues after
        ``updates_done`` steps.
        """
        ...

    def copy_whole(
        self, copies: HostCopies | None, name: str, parts: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Copies of all tensors that belong in a Hugging Face folder, by their names in the module.

        They are made by ``copies`` under ``name``; a rank without gets none. ``parts``: other values of the trained
        parameters, this rank's as :meth:`owned` yields them, in any data type and in host memory.
        """
        ...

    def write_whole(self, tensors: Mapping[str, Tensor], folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a Hugging Face folder of copies that :meth:`copy_whole` has made. Not a collective call.

        The model may be trained meanwhile, in another thread.
        """
        ...
