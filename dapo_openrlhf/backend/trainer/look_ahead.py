"""What a rank computes before a step's first update, with the initial weights (torch; runs inside trainer ranks)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.correction import SQUARE_EDGES, largest_square_kept, square_counts
from dapo_openrlhf.backend.messages import GroupTokens
from dapo_openrlhf.backend.trainer.collate import Tensors, collate
from dapo_openrlhf.backend.trainer.critic import Critic
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.per_sample import Known, PerSample, key_of, recall, remember, token_advantages
from dapo_openrlhf.backend.trainer.policy import Policy
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.step_settings import TrainSettings
from dapo_openrlhf.pipeline.batch import RankPlan, Sample, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAhead:
    """Computes old and reference log-probabilities, values, and advantages per token, as the settings need them."""

    policy: Policy
    critic: Critic | None
    settings: TrainSettings
    peers: Peers
    spans: Spans

    def known(self, plan: RankPlan, tokens: Mapping[int, GroupTokens]) -> Known:
        """Compute everything that depends on the weights at the start of the step."""
        settings, updates = self.settings.advantages, plan.updates
        reference: PerSample = {}
        values: PerSample = {}
        advantages: PerSample = {}
        returns: PerSample = {}
        with self.spans.span("old_logprobs"):
            old = self._old_logprobs(updates, tokens)
        if self.policy.has_reference:
            with self.spans.span("ref_logprobs"):
                reference = self._forward_all(self.policy.ref_logprobs, updates, tokens)
        if self.critic is not None:
            with self.spans.span("values"):
                values = self._forward_all(self.critic.values, updates, tokens)
        if settings.by_token:
            advantages, returns = token_advantages(
                [s for update in updates for samples in update.micro_batches for s in samples],
                settings,
                old_logprobs=old,
                ref_logprobs=reference,
                values=values,
                sum_over_ranks=lambda sums: self.peers.total(sums.to(self.policy.model.device)).cpu(),
            )
        return Known(
            old_logprobs=old,
            ref_logprobs=reference,
            values=values,
            advantages=advantages,
            returns=returns,
            version=plan.step,
            largest_square=self._largest_square(updates, tokens, old),
        )

    def _old_logprobs(self, updates: Sequence[Update], tokens: Mapping[int, GroupTokens]) -> PerSample:
        kl_in_reward = self.settings.advantages.kl_coef > 0
        every = kl_in_reward or self._judges_whole_batch
        if self.settings.loss.old_logprobs == "recompute":
            # During the first update the weights are still those of the start, so its own forward pass computes the old
            # log-probabilities, also for later passes over the same samples if no other rank may be dealt them.
            once = updates[0].micro_batches if self.peers.alone and not every else ()
            return self._forward_all(self.policy.logprobs, updates if every else updates[1:], tokens, without=once)
        if kl_in_reward:
            return self._forward_all(lambda batch: batch.rollout_logprobs, updates, tokens)
        return {}

    @property
    def _judges_whole_batch(self) -> bool:
        loss = self.settings.loss
        return loss.is_correction_level != "off" and loss.is_correction_gating == "second_moment"

    def _largest_square(
        self, updates: Sequence[Update], tokens: Mapping[int, GroupTokens], old_logprobs: PerSample
    ) -> float:
        """The bound of M2PO over all ranks and updates. Every rank must call it."""
        if not self._judges_whole_batch:
            return math.inf
        counts = torch.zeros(2, len(SQUARE_EDGES), dtype=torch.float64, device=self.policy.model.device)
        for update in updates:
            for samples in update.micro_batches:
                batch = collate(samples, tokens, device=self.policy.model.device)
                old = recall(old_logprobs, batch.samples, like=batch.mask)
                counts += square_counts(old, batch.rollout_logprobs, batch.mask)
        _, largest_mean = self.settings.loss.is_correction_threshold
        return largest_square_kept(self.peers.total(counts), largest_mean=largest_mean)

    def _forward_all(
        self,
        forward: Callable[[Tensors], Tensor],
        updates: Sequence[Update],
        tokens: Mapping[int, GroupTokens],
        without: Sequence[Sequence[Sample]] = (),
    ) -> PerSample:
        """Run ``forward`` without gradient on every micro-batch, and return its rows by sample.

        A single rank leaves out micro-batches whose samples are all known already or in ``without``.
        """
        known: PerSample = {}
        done = {key_of(sample) for samples in without for sample in samples}
        with torch.no_grad():
            for update in updates:
                for samples in update.micro_batches:
                    # A forward pass is a collective under ZeRO-3, and samples are dealt to the ranks anew in each
                    # epoch: what one rank knows already another may not, so only a single rank may leave a pass out.
                    if self.peers.alone and all(key_of(s) in known or key_of(s) in done for s in samples):
                        continue
                    batch = collate(samples, tokens, device=self.policy.model.device)
                    remember(known, batch.samples, forward(batch))
        return known
