"""A model under DeepSpeed, ZeRO 1 to 3 (runs inside the trainer's ranks). Nothing else touches DeepSpeed's engines.

DeepSpeed (0.19.6) looks for gradients that are not finite by itself with bf16 and ZeRO 1 and 2, with fp16 always, and never
with fp32 or with bf16 and ZeRO-3. Its optimizers have all that leaving an update out takes, though: gradients are
dropped, schedule and step counts stay, ``skipped_steps`` counts. Here the decision is made outside and handed to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from dapo_openrlhf.backend.trainer.parameters import Published, whole_numel
from dapo_openrlhf.backend.trainer.strategy import Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIGURED = ("lr", "initial_lr", "betas", "eps", "weight_decay")
"""Of an optimizer's parameter groups: what DeepSpeed restores with the moments though it is configuration."""

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedModel:
    """A DeepSpeed engine as a ``ShardedModel``."""

    def __init__(self, engine: Any, strategy: Strategy) -> None:
        self._engine = engine
        self._strategy = strategy
        self._optimizer = engine.optimizer
        # The optimizer's own look, where it takes one, would undo the decision that is handed to it in ``overflow``.
        self._optimizer.check_overflow = lambda *_, **__: None

    @classmethod
    def prepared(cls, model: torch.nn.Module, strategy: Strategy, optimizer: Mapping[str, Any]) -> Self:
        """Put a model under DeepSpeed. ``optimizer``: optimizer and schedule, as OpenRLHF's ``prepare`` wants them."""
        engine, *_ = strategy.prepare((model, dict(optimizer)))
        engine.eval()  # no dropout: the policy that learns is the one that sampled
        return cls(engine, strategy)

    @property
    def device(self) -> torch.device:
        """Where inputs go and outputs come from."""
        return torch.device(self._engine.device)

    @property
    def inner(self) -> Any:
        """transformers' module; under ZeRO-3 its parameters are empty between passes."""
        return self._engine.module

    @property
    def parameter_count(self) -> int:
        """Elements of the whole model's parameters."""
        return sum(map(whole_numel, self.inner.parameters()))

    def __call__(self, **inputs: Any) -> Any:
        """One forward pass."""
        return self._engine(**inputs)

    def backward(self, share: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient to the update's, see :class:`ShardedModel`."""
        # DeepSpeed steps once an update, however many micro-batches it took, and averages over the ranks.
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(share * self._strategy.world_size)

    def gradient_norm(self) -> Tensor:
        """Norm of the gradients of all ranks, before clipping; after the update's last backward pass."""
        scaled = torch.stack(self._group_norms())
        # DeepSpeed writes -1 for a group's norm that is not finite, and would clip by what it makes of that.
        norm: Tensor = torch.linalg.vector_norm(torch.where(scaled < 0, torch.nan, scaled))
        unscaled: Tensor = norm / self._optimizer.loss_scale
        return unscaled

    def _group_norms(self) -> list[Tensor]:
        """Of each of the optimizer's groups of parameters, over all ranks and with the loss scale."""
        optimizer = self._optimizer
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            norms: list[Tensor] = optimizer._get_norm_groups()
            return norms
        groups = optimizer.params_in_partition
        if optimizer.cpu_offload:
            return [optimizer.complete_grad_norm_calculation_for_cpu_offload(group) for group in groups]
        return [
            optimizer.get_grad_norm_direct(optimizer.averaged_gradients[i], group) for i, group in enumerate(groups)
        ]

    def step(self, *, sound: bool) -> None:
        """Let the gradients through, or drop them: weights, moments and schedule stay as they were."""
        self._optimizer.overflow = not sound
        self._engine.step()

    @property
    def learning_rate(self) -> float:
        """Which the next step takes."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def loss_scaled(self) -> bool:
        """Whether it is fp16."""
        return bool(self._engine.fp16_enabled())

    def held(self) -> Iterator[tuple[str, Tensor]]:
        """Names of all parameters, and what this rank holds of each, flat."""
        for name, parameter in self.inner.named_parameters():
            yield name, _part(parameter)

    def held_moments(self) -> Iterator[tuple[str, Sequence[Tensor]]]:
        """Names of the optimizer's moments, and what this rank holds of each."""
        # Under ZeRO-3 the parameter groups are empty between steps; the state is not.
        states = self._optimizer.optimizer.state.values()
        for name in MOMENTS:
            yield name, [state[name] for state in states if name in state]

    def whole(self) -> Published:
        """The tensors that a publication consists of."""
        return Published(self.inner)

    def save_state(self, folder: str, tag: str) -> None:
        """Write DeepSpeed's checkpoint."""
        self._engine.save_checkpoint(folder, tag=tag)

    def load_state(self, folder: str, tag: str, *, updates_done: int) -> bool:
        """Load full-precision weights and moments; False if ``folder`` holds none under ``tag``.

        Learning rate, decays, gradient clipping and schedule stay the configuration's. The schedule is entered after
        ``updates_done`` gradient steps of the new configuration: DeepSpeed's own counter counts those of the old one,
        whose updates may have had another size.
        """
        if not os.path.isdir(os.path.join(folder, tag)):
            return False
        optimizer = self._optimizer
        configured = [{name: group[name] for name in CONFIGURED} for group in optimizer.param_groups]
        max_norm = optimizer.clip_grad
        found, _ = self._engine.load_checkpoint(folder, tag=tag, load_lr_scheduler_states=False)
        assert found is not None
        for group, settings in zip(optimizer.param_groups, configured, strict=True):
            group.update(settings)
        optimizer.clip_grad = max_norm
        _enter_schedule(self._engine.lr_scheduler, optimizer.param_groups, updates_done)
        return True

    def save(self, folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a Hugging Face folder, as OpenRLHF does."""
        self._strategy.save_model(self._engine, tokenizer, folder)


def _part(parameter: Any) -> Tensor:
    """What this rank holds of a parameter, flat: without the padding that ZeRO-3 leaves as it found the memory."""
    if not hasattr(parameter, "ds_id"):
        whole: Tensor = parameter.detach().view(-1)
        return whole
    part: Tensor = parameter.ds_tensor.detach().view(-1)
    begin = torch.distributed.get_rank(parameter.ds_process_group) * part.numel()
    return part[: max(0, min(part.numel(), int(parameter.ds_numel) - begin))]


def _enter_schedule(schedule: Any, groups: list[dict[str, Any]], updates_done: int) -> None:
    """Put a ``torch.optim.lr_scheduler.LambdaLR``, and the learning rate of ``groups``, where it is after so many steps.

    Its ``step`` with a number is deprecated, and stepping there one by one takes as long as there are steps.
    """
    schedule.last_epoch = updates_done
    rates = [peak * share(updates_done) for peak, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
