"""One rank of the trainer: an actor around a DeepSpeed engine."""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from dapo_openrlhf.backend.device import Device, stand_in_for_cuda
from dapo_openrlhf.backend.messages import GroupTokens, StagedWeights, WeightLayout, WeightManifest
from dapo_openrlhf.backend.openrlhf_bases import flash_attention_installed, policy_actor
from dapo_openrlhf.backend.parameters import whole_numel, whole_parameters, whole_shape
from dapo_openrlhf.batch import MicroBatch, RankPlan, Update
from dapo_openrlhf.checkpoint import TRAINER_FOLDER
from dapo_openrlhf.types import Span

if TYPE_CHECKING:
    from torch import Tensor

    from dapo_openrlhf.backend.collate import Tensors

STATE_TAG = "state"
"""DeepSpeed's name for the one state in a checkpoint."""

SampleKey = tuple[int, int]
"""(group, response) of a sample in the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """What the loss depends on; names and values as in the configuration."""

    eps_clip_low_high: tuple[float, float]
    dual_clip: float | None
    loss_agg_mode: Any
    old_logprobs: str
    is_correction_level: Any
    is_correction_mode: Any
    is_correction_threshold: tuple[float, float]
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReady:
    """A rank can train now."""

    parameters: int
    """Of the whole model."""
    attention: str
    """As transformers knows it; ``packed_sdpa`` also where flash-attn was asked for and is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One rank's share of a rollout step."""

    sums: Mapping[str, float]
    """Sums over this rank's trained tokens; ``tokens`` counts them (each epoch anew)."""
    values: Mapping[str, float]
    """Numbers that are the same on every rank."""
    spans: tuple[Span, ...]
    """What the rank did since its last report."""


class PolicyActor(policy_actor()):  # type: ignore[misc]  # see openrlhf_bases
    """OpenRLHF's policy actor with a step of its own.

    What stays OpenRLHF's: rendezvous, model loading, DeepSpeed set-up, optimizer and schedule, checkpoint writing.
    What is replaced: the replay buffer and the training loop. A rollout step is one call per rank, which fetches the
    tokens it needs from the object store itself.
    """

    def __init__(self, world_size: int, rank: int, master_addr: str | None, master_port: int | None) -> None:
        super().__init__(world_size, rank, master_addr, master_port)
        self._name = f"trainer {rank}"
        self._spans: list[Span] = []

    @contextmanager
    def _span(self, kind: str) -> Iterator[None]:
        started = time.time()
        yield
        self._spans.append(Span(worker=self._name, kind=kind, start=started, end=time.time()))

    def get_master_addr_port(self) -> tuple[str, int]:
        """Where the ranks meet, chosen by rank 0."""
        address: tuple[str, int] = super().get_master_addr_port()
        return address

    def start(
        self,
        *,
        openrlhf_settings: Mapping[str, Any],
        device: Device,
        loss: LossSettings,
        total_updates: int,
        checkpoint: str | None = None,
    ) -> RankReady:
        """Load the model and set up DeepSpeed. Blocks until all ranks have.

        ``checkpoint``: folder of a checkpoint whose optimizer, schedule and full-precision weights to go on with.
        """
        stand_in_for_cuda()
        import torch

        from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
        from dapo_openrlhf.backend.strategy import Strategy

        torch.set_num_threads(device.threads)
        self._loss = loss
        self._device = (
            torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.kind == "cuda" else torch.device("cpu")
        )
        args = openrlhf_namespace(openrlhf_settings)
        self._setup_distributed(Strategy(args, device=device))
        self._build(args, total_updates)
        self._engine = self.actor.model
        if checkpoint is not None:
            self._engine.load_checkpoint(os.path.join(checkpoint, TRAINER_FOLDER), tag=STATE_TAG)
        self._buffer: Tensor | None = None
        return RankReady(
            parameters=sum(map(whole_numel, self._engine.module.parameters())),
            attention=self._attention_name,
        )

    def _build(self, args: Any, total_updates: int) -> None:
        from openrlhf.models import Actor
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from dapo_openrlhf.backend import attention, logprobs
        from dapo_openrlhf.backend.strategy import PARAM_DTYPES

        path = args.actor.model_name_or_path
        attention.register()
        wanted = args.ds.attn_implementation
        packed_sdpa = wanted == "sdpa" or (wanted == "flash_attention_2" and not flash_attention_installed())
        self._attention_name = attention.NAME if packed_sdpa else wanted
        with _partitioned_loading(self.strategy, enabled=args.ds.zero_stage == 3 and self._device.type == "cuda"):
            model = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=PARAM_DTYPES[args.ds.param_dtype],
                attn_implementation=self._attention_name,
                trust_remote_code=True,
            )
        model.config.use_cache = False
        if args.actor.gradient_checkpointing_enable:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        logprobs.install(model)
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        settings = {
            "optim": "adam",
            "adam": vars(args.actor.adam),
            "lr_scheduler": args.actor.lr_scheduler,
            "lr_warmup_ratio": args.actor.lr_warmup_ratio,
            "max_norm": args.actor.max_norm,
            "scheduler_steps": total_updates,
        }
        self.actor, self._optimizer, self._scheduler = self.strategy.prepare((Actor(model), settings))
        self.actor.train()

    # ------------------------------------------------------------------ one rollout step

    def train(self, plan: RankPlan, tokens: Sequence[ray.ObjectRef]) -> StepReport:
        """All updates of one rollout step. ``tokens`` are this rank's groups, in the order of ``plan.groups``."""
        with self._span("fetch"):
            fetched = dict(zip(plan.groups, ray.get(list(tokens)), strict=True))
        with self._span("old_logprobs"):
            old = self._old_logprobs(plan, fetched)
        sums: defaultdict[str, float] = defaultdict(float)
        grad_norms = []
        for position, update in enumerate(plan.updates):
            with self._span("update"):
                self._update(update, fetched, None if position == 0 else old, sums)
                grad_norms.append(float(self.strategy.get_grad_norm(self.actor)))
        spans, self._spans = tuple(self._spans), []
        return StepReport(
            sums=sums,
            values={"grad_norm": sum(grad_norms) / len(grad_norms), "lr": self._scheduler.get_last_lr()[0]},
            spans=spans,
        )

    def _old_logprobs(self, plan: RankPlan, tokens: Mapping[int, GroupTokens]) -> dict[SampleKey, Tensor]:
        """Log-probs of the weights at the start of the step, for samples of all updates but the first.

        During the first update the weights still are those of the start, so its own forward pass has them.
        """
        import torch

        alone = self.strategy.world_size == 1
        known: dict[SampleKey, Tensor] = {}
        if self._loss.old_logprobs != "recompute":
            return known
        with torch.no_grad():
            for update in plan.updates[1:]:
                for samples in update.micro_batches:
                    # A forward pass is a collective under ZeRO-3, and ranks deal samples anew in each epoch: what one
                    # rank knows already another may not, so only a single rank may leave a pass out.
                    if alone and all((sample.group, sample.index) in known for sample in samples):
                        continue
                    logprobs, _, batch = self._forward(samples, tokens)
                    _remember(known, batch.samples, logprobs)
        return known

    def _update(
        self,
        update: Update,
        tokens: Mapping[int, GroupTokens],
        old: Mapping[SampleKey, Tensor] | None,
        sums: defaultdict[str, float],
    ) -> None:
        for position, samples in enumerate(update.micro_batches):
            # DeepSpeed steps once an update, however many micro-batches it took.
            self._engine.set_gradient_accumulation_boundary(position == len(update.micro_batches) - 1)
            logprobs, entropies, batch = self._forward(samples, tokens)
            loss, metrics = self._policy_loss(update, logprobs, entropies, batch, old)
            self._engine.backward(loss * self.strategy.world_size)  # DeepSpeed averages over the ranks
            for name, value in metrics.items():
                sums[name] += float(value)
        self._engine.step()

    def _forward(self, samples: MicroBatch, tokens: Mapping[int, GroupTokens]) -> tuple[Tensor, Tensor, Tensors]:
        """Log-probs and entropies [B, T] of a micro-batch's responses, and its tensors."""
        from dapo_openrlhf.backend.collate import collate

        batch = collate(samples, tokens, device=self._device)
        logprobs, entropies = self._engine(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            positions=batch.positions,
            targets=batch.targets,
            temperature=self._loss.temperature,
            **self._attention(batch),
        )
        return batch.unflatten(logprobs), batch.unflatten(entropies), batch

    def _attention(self, batch: Tensors) -> dict[str, Any]:
        """How the attention in use is told where sequences end."""
        import torch

        from dapo_openrlhf.backend import attention

        if self._attention_name == attention.NAME:
            return {"buckets": attention.make_buckets(batch.lengths, device=self._device)}
        ends = torch.tensor([0, *batch.lengths]).cumsum(0).to(self._device, torch.int32)
        longest = batch.lengths[0]
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}

    def _policy_loss(
        self,
        update: Update,
        logprobs: Tensor,
        entropies: Tensor,
        batch: Tensors,
        old: Mapping[SampleKey, Tensor] | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the update's loss. ``old`` is None while the weights are still the step's first."""
        from dapo_openrlhf.loss import aggregate, clipped_surrogate, importance_weights

        settings, samples = self._loss, batch.samples
        if settings.old_logprobs == "rollout":
            old_logprobs = batch.rollout_logprobs
        elif old is None:
            old_logprobs = logprobs.detach()
        else:
            old_logprobs = _recall(old, samples, like=logprobs)
        weights, metrics = importance_weights(
            old_logprobs,
            batch.rollout_logprobs,
            batch.mask,
            level=settings.is_correction_level,
            mode=settings.is_correction_mode,
            threshold=settings.is_correction_threshold,
        )
        eps_low, eps_high = settings.eps_clip_low_high
        token_losses, decided = clipped_surrogate(
            logprobs, old_logprobs, batch.advantages, eps_low=eps_low, eps_high=eps_high, dual_clip=settings.dual_clip
        )
        loss = aggregate(
            token_losses * weights,
            batch.mask,
            mode=settings.loss_agg_mode,
            total_tokens=update.total_tokens,
            total_responses=update.total_responses,
        )
        metrics |= {
            "tokens": batch.mask.sum(),
            "loss": loss.detach(),
            "entropy": (entropies * batch.mask).sum(),
            "token_probability": (logprobs.detach().exp() * batch.mask).sum(),
            "clip_fraction": (decided * batch.mask).sum(),
        }
        return loss, metrics

    # ------------------------------------------------------------------ weights out

    def export_weights(self) -> tuple[WeightManifest | None, NDArray[np.uint8] | None]:
        """All parameters in one flat buffer of bytes. Every rank must call it; rank 0 returns something."""
        with self._span("export_weights"):
            return self._export_weights()

    def _export_weights(self) -> tuple[WeightManifest | None, NDArray[np.uint8] | None]:
        import torch
        import xxhash

        layout = self.weight_layout()
        offsets = _offsets(layout.sizes)
        rank0 = self.strategy.is_rank_0()
        if rank0 and self._buffer is None:
            self._buffer = torch.empty(offsets[-1], dtype=torch.uint8)
        for index, (_, parameter) in enumerate(whole_parameters(self._engine.module)):
            if rank0:
                flat = parameter.contiguous().view(-1).view(torch.uint8)
                assert self._buffer is not None
                self._buffer[offsets[index] : offsets[index] + flat.numel()].copy_(flat)
        if not rank0 or self._buffer is None:
            return None, None
        array = self._buffer.numpy()
        manifest = WeightManifest(
            names=layout.names,
            dtypes=layout.dtypes,
            shapes=layout.shapes,
            offsets=tuple(offsets),
            checksum=xxhash.xxh3_64_intdigest(array),
        )
        return manifest, array

    def weight_layout(self) -> WeightLayout:
        """Which tensors a publication consists of."""
        named = list(self._engine.module.named_parameters())
        return WeightLayout(
            names=tuple(name for name, _ in named),
            dtypes=tuple(str(parameter.dtype).removeprefix("torch.") for _, parameter in named),
            shapes=tuple(whole_shape(parameter) for _, parameter in named),
            sizes=tuple(parameter.element_size() * whole_numel(parameter) for _, parameter in named),
        )

    def transfer_address(self) -> tuple[str, int]:
        """A free port of this rank's machine, for engines to meet it."""
        return self._master_addr, self._get_free_port()

    def open_nccl(self, address: str, port: int, world_size: int) -> None:
        """Meet the engines' workers, on rank 0. Blocks until all have joined."""
        from dapo_openrlhf.backend.senders import NcclSender

        self._nccl = NcclSender(address=address, port=port, world_size=world_size)

    def open_ipc(self) -> None:
        """Get ready to show the weights to the engine on this rank's GPU."""
        from dapo_openrlhf.backend.senders import IpcSender

        self._ipc = IpcSender()

    def broadcast_weights(self) -> int | None:
        """Send all parameters to the engines. Every rank must call it; rank 0 returns their checksum."""
        with self._span("export_weights"):
            parameters = whole_parameters(self._engine.module)
            if self.strategy.is_rank_0():
                return self._nccl.send(parameters)
            for _ in parameters:  # gathering takes every rank
                pass
            return None

    def stage_weights(self) -> StagedWeights:
        """Copy all parameters aside for the engine on this rank's GPU. Every rank must call it."""
        with self._span("export_weights"):
            return self._ipc.stage(whole_parameters(self._engine.module), size=self.weight_layout().bytes)

    def score_logprobs(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        """Log-probs of a response under the current weights, for comparison with an engine's."""
        import torch

        from dapo_openrlhf.batch import Sample

        sample = Sample(
            group=0, index=0, prompt_length=len(prompt_ids), length=len(response_ids), advantage=0.0, trained=True
        )
        tokens = GroupTokens(
            prompt_ids=np.asarray(prompt_ids, np.int32),
            response_ids=np.asarray(response_ids, np.int32),
            rollout_logprobs=np.zeros(len(response_ids), np.float32),
            offsets=np.asarray([0, len(response_ids)]),
        )
        with torch.no_grad():
            logprobs, _, _ = self._forward((sample,), {0: tokens})
        return logprobs[0].tolist()

    def save(self, path: str) -> None:
        """Write a Hugging Face checkpoint; ``path`` appears only once it is whole. Every rank must call it."""
        unfinished = path + ".unfinished"
        with self._span("save"):
            self.strategy.save_model(self.actor, self.tokenizer, unfinished)
            if self.strategy.is_rank_0():
                shutil.rmtree(path, ignore_errors=True)
                os.rename(unfinished, path)

    def save_state(self, path: str) -> None:
        """Write DeepSpeed's checkpoint beside a saved model. Every rank must call it."""
        with self._span("save"):
            self._engine.save_checkpoint(os.path.join(path, TRAINER_FOLDER), tag=STATE_TAG)


def _remember(known: dict[SampleKey, Tensor], samples: MicroBatch, logprobs: Tensor) -> None:
    for row, sample in enumerate(samples):
        known[sample.group, sample.index] = logprobs[row, : sample.length].detach()


def _recall(known: Mapping[SampleKey, Tensor], samples: MicroBatch, *, like: Tensor) -> Tensor:
    import torch

    rows = torch.zeros_like(like)
    for row, sample in enumerate(samples):
        rows[row, : sample.length] = known[sample.group, sample.index]
    return rows.detach()


def _offsets(sizes: Sequence[int], alignment: int = 64) -> list[int]:
    """Where tensors of these sizes (bytes) begin when each begins on a multiple of ``alignment``, and the end."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // alignment) * alignment)
    return offsets


@contextmanager
def _partitioned_loading(strategy: Any, *, enabled: bool) -> Iterator[None]:
    """Load a ZeRO-3 model already partitioned, as transformers does while such a configuration is alive.

    For models that a rank cannot hold whole. Not on a CPU: with gloo one parameter in some loads keeps what memory
    held before (transformers 5.15, DeepSpeed 0.19.6), and DeepSpeed partitions a model that was loaded whole as well.
    """
    if not enabled:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig(strategy.get_ds_train_config())
    yield
    del alive
