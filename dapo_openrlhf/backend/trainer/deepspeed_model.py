"""A model under DeepSpeed, ZeRO 1 to 3 (runs inside the trainer's ranks); the only file that uses DeepSpeed's engines.

DeepSpeed (0.19.6) itself checks for gradients that are not finite with bf16 and ZeRO 1 and 2, and always with fp16, but
never with fp32 or with bf16 and ZeRO-3. All its optimizers can nevertheless skip an update: gradients are dropped,
schedule and step counts stay, and ``skipped_steps`` is increased. Here the decision is made outside and passed to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from deepspeed.checkpoint.constants import GROUP_PADDINGS, LOSS_SCALER, PARAM_SLICE_MAPPINGS, ZERO_STAGE
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from dapo_openrlhf.backend.trainer.adapters import write_adapter
from dapo_openrlhf.backend.trainer.own_forward import instead
from dapo_openrlhf.backend.trainer.parameters import BUCKET_BYTES, Published, buckets
from dapo_openrlhf.backend.trainer.state_tree import HostCopies, Tree
from dapo_openrlhf.backend.trainer.stored import PEFT_PREFIX, adapter_tensors, stored_tensors, whole_numel
from dapo_openrlhf.backend.trainer.strategy import Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER_FOLDER = "adapter"
"""Name of the folder in a saved model with its adapters in peft's format."""

CONFIGURED = ("lr", "initial_lr", "betas", "eps", "weight_decay")
"""Entries of an optimizer's parameter groups that DeepSpeed restores with the moments although they are
configuration."""

LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What changes in a loss scaler during training; the static one of bf16 and fp32 has only the first."""

NOT_STATE = (LOSS_SCALER, ZERO_STAGE, GROUP_PADDINGS, PARAM_SLICE_MAPPINGS)
"""Entries of an optimizer's state that are saved otherwise, or that describe its layout and are not read again."""


class DeepSpeedModel:
    """A DeepSpeed engine as a ``ShardedModel``."""

    def __init__(self, engine: Any, strategy: Strategy) -> None:
        self._engine = engine
        self._strategy = strategy
        self._optimizer = engine.optimizer
        # The optimizer's own check, where it has one, would overwrite the decision that is passed to it in
        # ``overflow``.
        self._optimizer.check_overflow = lambda *_, **__: None

    @classmethod
    def prepared(cls, model: torch.nn.Module, strategy: Strategy, optimizer: Mapping[str, Any]) -> Self:
        """Put a model under DeepSpeed.

        ``optimizer`` describes optimizer and schedule in the form that OpenRLHF's ``prepare`` takes.
        """
        engine, *_ = strategy.prepare((model, dict(optimizer)))
        engine.eval()  # without dropout, the trained policy is the one that sampled
        return cls(engine, strategy)

    @property
    def device(self) -> torch.device:
        """The device of inputs and outputs."""
        return torch.device(self._engine.device)

    @property
    def inner(self) -> Any:
        """The module of transformers; under ZeRO-3 its parameters are empty between passes."""
        return self._engine.module

    @property
    def parameter_count(self) -> int:
        """Number of parameters of the whole model."""
        return sum(map(whole_numel, self.inner.parameters()))

    def __call__(self, **inputs: Any) -> Any:
        """Run one forward pass."""
        return self._engine(**inputs)

    def backward(self, share: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient to the update's gradient, see :class:`ShardedModel`."""
        # DeepSpeed steps once per update, however many micro-batches it has, and averages over the ranks.
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(share * self._strategy.world_size)

    def gradient_norm(self) -> Tensor:
        """Gradient norm over all ranks before clipping; available after the update's last backward pass."""
        scaled = torch.stack(self._group_norms())
        # DeepSpeed writes -1 for a group's norm that is not finite, and would clip by a norm computed from that.
        norm: Tensor = torch.linalg.vector_norm(torch.where(scaled < 0, torch.nan, scaled))
        unscaled: Tensor = norm / self._optimizer.loss_scale
        return unscaled

    def _group_norms(self) -> list[Tensor]:
        """Norm of each of the optimizer's parameter groups, over all ranks and with the loss scale."""
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
        """Apply the gradients if they are ``sound``, otherwise drop them.

        Dropping them leaves weights, moments and schedule as they were.
        """
        self._optimizer.overflow = not sound
        self._engine.step()

    @property
    def learning_rate(self) -> float:
        """The learning rate that the next step uses."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def loss_scaled(self) -> bool:
        """Whether losses are scaled, as with fp16."""
        return bool(self._engine.fp16_enabled())

    def held(self) -> Iterator[tuple[str, Tensor]]:
        """Names of all parameters, and this rank's part of each, flattened."""
        for name, parameter in self.inner.named_parameters():
            yield name, _part(parameter)

    def owned(self) -> Iterator[tuple[str, Tensor]]:
        """Names of the trained parameters, and this rank's part: under ZeRO-3 of each, otherwise all of them on rank 0."""
        first = torch.distributed.get_rank() == 0
        for name, parameter in self.inner.named_parameters():
            if parameter.requires_grad and (first or hasattr(parameter, "ds_id")):
                yield name, _part(parameter)

    def whole(self) -> Published:
        """The tensors that a publication consists of."""
        return Published(self.inner)

    def state(self) -> Tree:
        """This rank's part of what training resumes from, as DeepSpeed's optimizer returns it."""
        held = self._optimizer.state_dict()
        scaler = vars(held[LOSS_SCALER])
        engine = self._engine
        return {
            "optimizer": {name: value for name, value in held.items() if name not in NOT_STATE},
            "loss_scale": {name: scaler[name] for name in LOSS_SCALE if name in scaler},
            "steps": {
                "global_steps": engine.global_steps,
                "global_samples": engine.global_samples,
                "skipped_steps": engine.skipped_steps,
            },
        }

    def load_state(self, state: Tree, *, updates_done: int) -> None:
        """Load full-precision weights and moments, and compute the model's weights from them.

        Learning rate, decays, gradient clipping and schedule stay as configured. The schedule continues after
        ``updates_done`` gradient steps of the new configuration: DeepSpeed's own counter counts those of the old one,
        whose updates may have had another size.
        """
        optimizer, scaler = self._optimizer, self._optimizer.loss_scaler
        configured = [{name: group[name] for name in CONFIGURED} for group in optimizer.param_groups]
        max_norm = optimizer.clip_grad
        vars(scaler).update(state["loss_scale"])
        vars(self._engine).update(state["steps"])
        _load(optimizer, {**state["optimizer"], LOSS_SCALER: scaler})
        for group, settings in zip(optimizer.param_groups, configured, strict=True):
            group.update(settings)
        optimizer.clip_grad = max_norm
        _enter_schedule(self._engine.lr_scheduler, optimizer.param_groups, updates_done)

    def copy_whole(
        self, copies: HostCopies | None, name: str, parts: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Copy all tensors that belong in a Hugging Face folder, and the adapters', gathering those of ZeRO-3 in buckets."""
        stored = stored_tensors(self.inner) | adapter_tensors(self.inner)
        others = {id(parameter): parts[n] for n, parameter in self.inner.named_parameters() if parts and n in parts}
        names, whole = list(stored), dict[str, Tensor]()
        for first, last in buckets([tensor.bytes for tensor in stored.values()], BUCKET_BYTES):
            bucket = {name: stored[name] for name in names[first:last]}
            needed = [part for tensor in bucket.values() for part in tensor.parts]
            joined = {id(part): _joined(part, others[id(part)]) for part in needed if id(part) in others}
            partitioned = [part for part in needed if hasattr(part, "ds_id") and id(part) not in joined]
            with GatheredParameters(partitioned, enabled=bool(partitioned)):
                if copies is not None:
                    tensors = {name: tensor.of(joined).whole() for name, tensor in bucket.items()}
                    whole |= copies.copy(tensors, name)
        return whole

    def write_whole(self, tensors: Mapping[str, Tensor], folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a Hugging Face folder as transformers does: under the checkpoint's names, with remote code.

        Its defaults for generation are as the model came with them, also those that transformers refuses to save.
        Adapters are in the model's weights there, and besides in the subfolder :data:`ADAPTER_FOLDER` as peft writes them.
        """
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(PEFT_PREFIX)}
        _save(self.inner, folder, {name: tensor for name, tensor in tensors.items() if name not in own})
        tokenizer.save_pretrained(folder)
        if own:
            write_adapter(self.inner, own, Path(folder, ADAPTER_FOLDER))


def _save(model: Any, folder: str, tensors: Mapping[str, Tensor]) -> None:
    """``save_pretrained`` without a check of ``generation_config``.

    Loading accepts what saving calls invalid, such as a temperature without ``do_sample``, which many published models have.
    """
    generation = model.generation_config if model.can_generate() else None
    with instead(model, "generation_config", GenerationConfig()):
        model.save_pretrained(folder, state_dict=tensors)
    if generation is not None:
        generation.to_json_file(Path(folder, GENERATION_CONFIG_NAME), keys_to_pop=["compile_config"])


def _load(optimizer: Any, state: Tree) -> None:
    """Load the state that one of DeepSpeed's optimizers returned on this rank."""
    # Each rank takes its own entry of what may be a list with an entry for every rank.
    own = {torch.distributed.get_rank(): state}
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.checkpoint_event_prologue()
        optimizer.load_state_dict(own)
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.load_state_dict(own, load_from_fp32_weights=True)
        optimizer.update_lp_params()


def _part(parameter: Any) -> Tensor:
    """This rank's part of a parameter, flattened, without the padding of ZeRO-3, which is uninitialised memory."""
    if not hasattr(parameter, "ds_id"):
        whole: Tensor = parameter.detach().view(-1)
        return whole
    part: Tensor = parameter.ds_tensor.detach().view(-1)
    begin = torch.distributed.get_rank(parameter.ds_process_group) * part.numel()
    return part[: max(0, min(part.numel(), int(parameter.ds_numel) - begin))]


def _joined(parameter: Any, part: Tensor) -> Tensor:
    """A tensor like the whole parameter, of this rank's ``part`` and under ZeRO-3 of the other ranks'."""
    if not hasattr(parameter, "ds_id"):
        return part.view(parameter.shape).to(parameter.dtype)
    own = torch.zeros_like(parameter.ds_tensor).view(-1)
    own[: part.numel()] = part.to(own)
    group = parameter.ds_process_group
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, own, group=group)
    return torch.cat(gathered)[: int(parameter.ds_numel)].view(tuple(parameter.ds_shape))


def _enter_schedule(schedule: Any, groups: list[dict[str, Any]], updates_done: int) -> None:
    """Set a ``torch.optim.lr_scheduler.LambdaLR`` and the learning rates of ``groups`` to ``updates_done`` steps.

    Calling its ``step`` with a number is deprecated, and stepping there one by one takes time in proportion to the
    steps.
    """
    schedule.last_epoch = updates_done
    rates = [peak * share(updates_done) for peak, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
