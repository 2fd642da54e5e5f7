"""One rank of the trainer: an actor around the policy's DeepSpeed engine, with reference and critic where needed."""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from dapo_openrlhf.backend.device import Device, stand_in_for_cuda
from dapo_openrlhf.backend.messages import Agreement, GroupTokens, StagedWeights, WeightLayout, WeightManifest
from dapo_openrlhf.backend.openrlhf_bases import policy_actor
from dapo_openrlhf.backend.trainer.parameters import Published, whole_numel
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings, GuardSettings, LossSettings
from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome, folder_of
from dapo_openrlhf.pipeline.batch import RankPlan, Sample, Update
from dapo_openrlhf.pipeline.checkpoint import TRAINER_FOLDER
from dapo_openrlhf.types import Span

if TYPE_CHECKING:
    from torch import Tensor

    from dapo_openrlhf.backend.trainer.agreement import Comparison
    from dapo_openrlhf.backend.trainer.collate import Tensors
    from dapo_openrlhf.backend.trainer.per_sample import Known, PerSample
    from dapo_openrlhf.backend.trainer.tally import Tally, Verdict
    from dapo_openrlhf.backend.transfer.senders.object_store import ObjectStoreSender

MOST_WRITTEN = 20
"""Updates that were stopped whose batches a rank writes down."""

NOT_PUBLISHED = "these weights are not published"

_NORMS = {"gradient norm": "grad_norm", "critic gradient norm": "critic_grad_norm"}
"""Names of a tally's norms as metrics."""

STATE_TAG, CRITIC_TAG = "state", "critic"
"""DeepSpeed's names for the policy's and the critic's state in a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReady:
    """A rank can train now."""

    parameters: int
    """Of the whole model."""
    attention: str
    """As transformers knows it; ``packed_attention`` also where flash-attn was asked for and is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One rank's share of a rollout step."""

    sums: Mapping[str, float]
    """Sums over this rank's trained tokens of the updates that were done; ``tokens`` counts them (each epoch anew)."""
    values: Mapping[str, float]
    """Numbers that are the same on every rank; gradient norms are missing where no update was done."""
    outcomes: tuple[UpdateOutcome, ...]
    """Of each update, up to the one with which the rank gave up; the same on every rank."""
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
        advantages: AdvantageSettings,
        guard: GuardSettings,
        total_updates: int,
        updates_done: int = 0,
        checkpoint: str | None = None,
        reference: str | None = None,
    ) -> RankReady:
        """Load the models and set up DeepSpeed. Blocks until all ranks have.

        ``total_updates``: gradient steps of the whole run, over which the schedule goes; ``updates_done``: where to enter
        it. ``checkpoint``: folder of a checkpoint whose moments and full-precision weights to go on with.
        ``reference``: the model that a KL is measured to, or None.
        """
        stand_in_for_cuda()
        import torch

        from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
        from dapo_openrlhf.backend.trainer.finite import refuse_not_finite
        from dapo_openrlhf.backend.trainer.models import Models
        from dapo_openrlhf.backend.trainer.strategy import Strategy

        torch.set_num_threads(device.threads)
        self._loss = loss
        self._advantages = advantages
        self._guard = guard
        self._bad_in_a_row = self._bad = 0
        self._device = (
            torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.kind == "cuda" else torch.device("cpu")
        )
        args = openrlhf_namespace(openrlhf_settings)
        self._setup_distributed(Strategy(args, device=device))
        self._models = Models(self.strategy, device=self._device)
        self._build(args, total_updates, reference)
        if checkpoint is not None:
            self._resume(os.path.join(checkpoint, TRAINER_FOLDER), updates_done)
        refuse_not_finite(f"the model {args.actor.model_name_or_path} cannot be trained", *self._engines)
        self._published = Published(self._engine.module)
        self._object_store: ObjectStoreSender | None = None
        return RankReady(
            parameters=sum(map(whole_numel, self._engine.module.parameters())),
            attention=self._models.attention_name,
        )

    def _build(self, args: Any, total_updates: int, reference: str | None) -> None:
        from openrlhf.models import Actor
        from transformers import AutoTokenizer

        from dapo_openrlhf.backend.trainer.gate import Gate

        path = args.actor.model_name_or_path
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        settings = {
            "optim": "adam",
            "adam": vars(args.actor.adam),
            "lr_scheduler": args.actor.lr_scheduler,
            "lr_warmup_ratio": args.actor.lr_warmup_ratio,
            "max_norm": args.actor.max_norm,
            "scheduler_steps": total_updates,
        }
        model = Actor(self._models.language_model(path))
        self.actor, self._optimizer, self._scheduler = self.strategy.prepare((model, settings))
        self.actor.eval()  # no dropout: the policy that learns is the one that sampled
        self._engine = self.actor.model
        self._gate = Gate(self._engine)
        self._reference = self._critic = None
        if reference is not None:
            self._reference = self.strategy.prepare(self._models.language_model(reference).requires_grad_(False))
            self._reference.eval()
        if self._advantages.critic:
            from dapo_openrlhf.backend.trainer.critic import Critic

            self._critic = Critic(self._models, self.strategy, total_updates=total_updates)

    @property
    def _engines(self) -> list[Any]:
        """DeepSpeed's engines that are trained."""
        return [self._engine] if self._critic is None else [self._engine, self._critic.engine]

    def _resume(self, folder: str, updates_done: int) -> None:
        from dapo_openrlhf.backend.trainer.restoring import restore

        if not restore(self._engine, folder, STATE_TAG, updates_done=updates_done):
            raise RuntimeError(f"{folder} holds no state of the optimizer: it cannot be gone on from")
        if self._critic is not None and not restore(self._critic.engine, folder, CRITIC_TAG, updates_done=updates_done):
            raise RuntimeError(f"{folder} holds no critic: its run trained none; start from its model instead")

    # ------------------------------------------------------------------ one rollout step

    def train(self, plan: RankPlan, tokens: Sequence[ray.ObjectRef]) -> StepReport:
        """All updates of one rollout step. ``tokens`` are this rank's groups, in the order of ``plan.groups``."""
        with self._span("fetch"):
            fetched = dict(zip(plan.groups, ray.get(list(tokens)), strict=True))
        known = self._look_ahead(plan, fetched)
        verdicts: list[Verdict] = []
        outcomes: list[UpdateOutcome] = []
        rate = 0.0
        for position, update in enumerate(plan.updates):
            rate = self._optimizer.param_groups[0]["lr"]
            verdict = self._update(update, fetched, known, first=position == 0)
            if verdict.sound:
                verdicts.append(verdict)
            outcomes.append(self._outcome(verdict, plan, position, fetched, known))
            if self._bad_in_a_row >= self._guard.max_bad_updates:
                break
        spans, self._spans = tuple(self._spans), []
        return StepReport(
            sums=_added(verdict.sums for verdict in verdicts),
            values={
                **{_NORMS[name]: total / len(verdicts) for name, total in _added(v.norms for v in verdicts).items()},
                "lr": rate,
            },
            outcomes=tuple(outcomes),
            spans=spans,
        )

    def _outcome(
        self, verdict: Verdict, plan: RankPlan, position: int, tokens: Mapping[int, GroupTokens], known: Known
    ) -> UpdateOutcome:
        """Count an update that was stopped, and write it down."""
        from dapo_openrlhf.backend.trainer.bad_batch import write_rank

        if verdict.overflow and self._gate.loss_scaled:
            return UpdateOutcome(not_finite=verdict.not_finite, overflow=True)
        if verdict.sound:
            self._bad_in_a_row = 0
            return UpdateOutcome(not_finite={})
        self._bad_in_a_row += 1
        self._bad += 1
        folder = folder_of(self._guard.folder, plan.step, position)
        if self._bad > MOST_WRITTEN:
            problem = f"{MOST_WRITTEN} batches are written down already"
            return UpdateOutcome(not_finite=verdict.not_finite, problem=problem)
        try:
            write_rank(folder, self.strategy.get_rank(), plan.updates[position], tokens, known)
        except OSError as error:
            problem = f"its batch could not be written to {folder}: {error}"
            return UpdateOutcome(not_finite=verdict.not_finite, problem=problem)
        return UpdateOutcome(not_finite=verdict.not_finite)

    def _look_ahead(self, plan: RankPlan, tokens: Mapping[int, GroupTokens]) -> Known:
        """Everything that depends on the weights at the start of the step."""
        from dapo_openrlhf.backend.trainer.per_sample import Known, token_advantages

        kl_in_reward = self._advantages.kl_coef > 0
        old, reference, values, advantages, returns = {}, {}, {}, {}, {}
        with self._span("old_logprobs"):
            if self._loss.old_logprobs == "recompute":
                # During the first update the weights still are those of the start: its own forward pass has them, also
                # for later passes over the same samples, where no other rank will be dealt them.
                once = plan.updates[0].micro_batches if self._alone and not kl_in_reward else ()
                updates = plan.updates if kl_in_reward else plan.updates[1:]
                old = self._forward_all(self._logprobs, updates, tokens, without=once)
            elif kl_in_reward:
                old = self._forward_all(lambda batch: batch.rollout_logprobs, plan.updates, tokens)
        if self._reference is not None:
            with self._span("ref_logprobs"):
                reference = self._forward_all(self._ref_logprobs, plan.updates, tokens)
        if self._critic is not None:
            with self._span("values"):
                values = self._forward_all(self._critic.values, plan.updates, tokens)
        if self._advantages.by_token:
            advantages, returns = token_advantages(
                [s for update in plan.updates for samples in update.micro_batches for s in samples],
                self._advantages,
                old_logprobs=old,
                ref_logprobs=reference,
                values=values,
                sum_over_ranks=self._sum_over_ranks,
            )
        return Known(old_logprobs=old, ref_logprobs=reference, values=values, advantages=advantages, returns=returns)

    @property
    def _alone(self) -> bool:
        return self.strategy.world_size == 1

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        import torch.distributed

        total = tensor.to(self._device)
        torch.distributed.all_reduce(total)
        return total.cpu()

    def _forward_all(
        self,
        forward: Callable[[Tensors], Tensor],
        updates: Sequence[Update],
        tokens: Mapping[int, GroupTokens],
        without: Sequence[Sequence[Sample]] = (),
    ) -> PerSample:
        """[B, T] of every micro-batch, without gradient, by sample; not of those ``without`` consists of."""
        import torch

        from dapo_openrlhf.backend.trainer.per_sample import key_of, remember

        known: PerSample = {}
        done = {key_of(sample) for samples in without for sample in samples}
        with torch.no_grad():
            for update in updates:
                for samples in update.micro_batches:
                    # A forward pass is a collective under ZeRO-3, and ranks deal samples anew in each epoch: what one
                    # rank knows already another may not, so only a single rank may leave a pass out.
                    if self._alone and all(key_of(s) in known or key_of(s) in done for s in samples):
                        continue
                    batch = self._collate(samples, tokens)
                    remember(known, batch.samples, forward(batch))
        return known

    def _collate(self, samples: Sequence[Sample], tokens: Mapping[int, GroupTokens]) -> Tensors:
        from dapo_openrlhf.backend.trainer.collate import collate

        return collate(tuple(samples), tokens, device=self._device)

    def _forward(self, engine: Any, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [B, T] of a micro-batch's responses."""
        logprobs, entropies = engine(
            **self._models.inputs(batch), targets=batch.targets, temperature=self._loss.temperature
        )
        return batch.unflatten(logprobs), batch.unflatten(entropies)

    def _logprobs(self, batch: Tensors) -> Tensor:
        return self._forward(self._engine, batch)[0]

    def _ref_logprobs(self, batch: Tensors) -> Tensor:
        return self._forward(self._reference, batch)[0]

    def _update(self, update: Update, tokens: Mapping[int, GroupTokens], known: Known, *, first: bool) -> Verdict:
        """One update of policy and critic, or of neither: all gradients are known before either steps."""
        from dapo_openrlhf.backend.trainer.tally import Tally

        tally = Tally(self._device)
        with self._span("update"):
            self._policy_gradient(update, tokens, known, tally, first=first)
            tally.norm("gradient norm", self._gate.norm())
        if self._critic is not None:
            with self._span("update_critic"):
                self._critic_gradient(update, tokens, known, tally)
                tally.norm("critic gradient norm", self._critic.gate.norm())
        with self._span("update"):
            verdict = tally.close()
            self._gate.step(sound=verdict.sound)
        if self._critic is not None:
            with self._span("update_critic"):
                self._critic.gate.step(sound=verdict.sound)
        return verdict

    def _policy_gradient(
        self, update: Update, tokens: Mapping[int, GroupTokens], known: Known, tally: Tally, *, first: bool
    ) -> None:
        from dapo_openrlhf.backend.trainer.per_sample import remember
        from dapo_openrlhf.backend.trainer.policy_loss import advantages_of, policy_loss

        known.logprobs.clear()
        for position, samples in enumerate(update.micro_batches):
            # DeepSpeed steps once an update, however many micro-batches it took.
            self._engine.set_gradient_accumulation_boundary(position == len(update.micro_batches) - 1)
            batch = self._collate(samples, tokens)
            logprobs, entropies = self._forward(self._engine, batch)
            remember(known.logprobs, batch.samples, logprobs)
            tally.look("log-probs", logprobs)
            tally.look("rollout log-probs", batch.rollout_logprobs, batch.mask)
            if first and self._alone:
                remember(known.old_logprobs, batch.samples, logprobs)
            tally.look("rewards or advantages", advantages_of(batch, known), batch.mask)
            loss, metrics = policy_loss(
                batch, logprobs, entropies, known, self._loss, total_tokens=update.total_tokens, first=first
            )
            tally.look("loss", loss)
            self._engine.backward(loss * self.strategy.world_size)  # DeepSpeed averages over the ranks
            tally.add(metrics)

    def _critic_gradient(self, update: Update, tokens: Mapping[int, GroupTokens], known: Known, tally: Tally) -> None:
        from dapo_openrlhf.backend.trainer.per_sample import recall

        for position, samples in enumerate(update.micro_batches):
            batch = self._collate(samples, tokens)
            metrics = self._critic.learn(
                batch,
                old_values=recall(known.values, batch.samples, like=batch.mask),
                returns=recall(known.returns, batch.samples, like=batch.mask),
                total_tokens=update.total_tokens,
                last=position == len(update.micro_batches) - 1,
            )
            tally.look("critic loss", metrics["value_loss"])
            tally.add(metrics)

    # ------------------------------------------------------------------ weights out

    def _refuse_not_finite(self, what: str) -> None:
        from dapo_openrlhf.backend.trainer.finite import refuse_not_finite

        refuse_not_finite(what, *self._engines)

    def export_weights(self) -> tuple[WeightManifest | None, NDArray[np.uint8] | None]:
        """All parameters in one flat buffer of bytes. Every rank must call it; rank 0 returns something."""
        with self._span("export_weights"):
            self._refuse_not_finite(NOT_PUBLISHED)
            tensors = self._published.tensors()
            if self.strategy.is_rank_0():
                if self._object_store is None:
                    from dapo_openrlhf.backend.transfer.senders.object_store import ObjectStoreSender

                    self._object_store = ObjectStoreSender(self._published.layout)
                return self._object_store.pack(tensors)
            for _ in tensors:  # gathering takes every rank
                pass
            return None, None

    def weight_layout(self) -> WeightLayout:
        """Which tensors a publication consists of, as the model's checkpoint has them."""
        return self._published.layout

    def transfer_address(self) -> tuple[str, int]:
        """A free port of this rank's machine, for engines to meet it."""
        return self._master_addr, self._get_free_port()

    def open_nccl(self, address: str, port: int, world_size: int) -> None:
        """Meet the engines' workers, on rank 0. Blocks until all have joined."""
        from dapo_openrlhf.backend.transfer.senders.nccl import NcclSender

        self._nccl = NcclSender(address=address, port=port, world_size=world_size)

    def open_ipc(self) -> None:
        """Get ready to show the weights to the engine on this rank's GPU."""
        from dapo_openrlhf.backend.transfer.senders.ipc import IpcSender

        self._ipc = IpcSender()

    def broadcast_weights(self) -> int | None:
        """Send all parameters to the engines. Every rank must call it; rank 0 returns their checksum."""
        with self._span("export_weights"):
            self._refuse_not_finite(NOT_PUBLISHED)
            tensors = self._published.tensors()
            if self.strategy.is_rank_0():
                return self._nccl.send(tensors)
            for _ in tensors:  # gathering takes every rank
                pass
            return None

    def stage_weights(self) -> StagedWeights:
        """Copy all parameters aside for the engine on this rank's GPU. Every rank must call it."""
        with self._span("export_weights"):
            self._refuse_not_finite(NOT_PUBLISHED)
            return self._ipc.stage(self._published.tensors(), size=self._published.layout.bytes)

    def compare(self, engines: Sequence[Sequence[GroupTokens]]) -> Agreement:
        """How far the log-probs are from the model's own and the engines'. Every rank must be asked."""
        return self._comparison().agreement(engines)

    def where_packed_differs(self, groups: Sequence[GroupTokens]) -> str:
        """From where on packed sequences come out otherwise. Every rank must be asked."""
        return self._comparison().where_packed_differs(groups)

    def _comparison(self) -> Comparison:
        from dapo_openrlhf.backend.trainer.agreement import Comparison

        return Comparison(self._engine, self._models, temperature=self._loss.temperature, device=self._device)

    def score_logprobs(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        """Log-probs of a response under the current weights, for comparison with an engine's."""
        (logprobs,) = self._comparison().packed([np.asarray([*prompt_ids, *response_ids], np.int32)])
        return logprobs[-len(response_ids) :].tolist()

    def save(self, path: str) -> None:
        """Write a Hugging Face checkpoint, with the critic's in its folder ``critic`` if that is to be kept.

        ``path`` appears only once it is whole. Every rank must call it.
        """
        unfinished = path + ".unfinished"
        with self._span("save"):
            self._refuse_not_finite(f"the model is not saved to {path}")
            self.strategy.save_model(self.actor, self.tokenizer, unfinished)
            if self._critic is not None and self.strategy.args.critic.save_value_network:
                self.strategy.save_model(self._critic.engine, self.tokenizer, os.path.join(unfinished, "critic"))
            if self.strategy.is_rank_0():
                shutil.rmtree(path, ignore_errors=True)
                os.rename(unfinished, path)

    def save_state(self, path: str) -> None:
        """Write DeepSpeed's checkpoints beside a saved model. Every rank must call it."""
        from dapo_openrlhf.backend.trainer.finite import refuse_moments_not_finite

        with self._span("save"):
            self._refuse_not_finite(f"no checkpoint is made in {path}")
            refuse_moments_not_finite(f"no checkpoint is made in {path}", *self._engines)
            self._engine.save_checkpoint(os.path.join(path, TRAINER_FOLDER), tag=STATE_TAG)
            if self._critic is not None:
                self._critic.engine.save_checkpoint(os.path.join(path, TRAINER_FOLDER), tag=CRITIC_TAG)


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            sums[name] += value
    return dict(sums)
