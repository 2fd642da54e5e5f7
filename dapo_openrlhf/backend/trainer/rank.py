"""One rank of the trainer: trains policy and critic in a rollout step (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from dapo_openrlhf.backend.messages import GroupTokens
from dapo_openrlhf.backend.trainer.average import Average
from dapo_openrlhf.backend.trainer.collate import collate
from dapo_openrlhf.backend.trainer.critic import Critic
from dapo_openrlhf.backend.trainer.guard import Guard
from dapo_openrlhf.backend.trainer.look_ahead import LookAhead
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.per_sample import Known, recall, remember
from dapo_openrlhf.backend.trainer.policy import Policy
from dapo_openrlhf.backend.trainer.policy_loss import advantages_of, policy_loss
from dapo_openrlhf.backend.trainer.reports import StepReport
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.step_settings import TrainSettings
from dapo_openrlhf.backend.trainer.tally import Tally, Verdict
from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome
from dapo_openrlhf.pipeline.batch import RankPlan, Update

NORMS = {"gradient norm": "grad_norm", "critic gradient norm": "critic_grad_norm"}
"""Metric names of the norms in a tally."""


class Rank:
    """Trains the models that it is given, and uses them only as ``ShardedModel``."""

    def __init__(
        self,
        policy: Policy,
        critic: Critic | None,
        settings: TrainSettings,
        *,
        peers: Peers,
        spans: Spans,
        average: Average | None = None,
    ) -> None:
        """``critic``, and the policy's reference, are present exactly if the settings need them.

        ``spans`` collects the spans that are reported with each step. ``average``: of the policy's weights, if one is kept.
        """
        assert (critic is not None) == settings.advantages.critic
        assert policy.has_reference == (max(settings.loss.kl_coef, settings.advantages.kl_coef) > 0)
        self._policy = policy
        self._critic = critic
        self._settings = settings
        self._peers = peers
        self._spans = spans
        self._average = average
        self._device = policy.model.device
        self._look_ahead = LookAhead(policy=policy, critic=critic, settings=settings, peers=peers, spans=spans)
        self._guard = Guard(settings.guard, rank=peers.rank, loss_scaled=policy.model.loss_scaled)

    def train(self, plan: RankPlan, tokens: Mapping[int, GroupTokens]) -> StepReport:
        """Run all updates of one rollout step; ``tokens`` are those of ``plan.groups``. Every rank must call it."""
        known = self._look_ahead.known(plan, tokens)
        verdicts: list[Verdict] = []
        outcomes: list[UpdateOutcome] = []
        rate = 0.0
        for position, update in enumerate(plan.updates):
            rate = self._policy.model.learning_rate
            verdict = self._update(update, tokens, known, progress=position / len(plan.updates))
            if verdict.sound:
                verdicts.append(verdict)
            outcomes.append(self._guard.outcome(verdict, plan, position, tokens, known))
            if self._guard.gives_up:
                break
        norms = _added(verdict.norms for verdict in verdicts)
        return StepReport(
            sums=_added(verdict.sums for verdict in verdicts),
            values={**{NORMS[name]: total / len(verdicts) for name, total in norms.items()}, "lr": rate},
            outcomes=tuple(outcomes),
            spans=self._spans.take(),
        )

    def _update(self, update: Update, tokens: Mapping[int, GroupTokens], known: Known, *, progress: float) -> Verdict:
        """Update both policy and critic, or neither: all gradients are computed before either of them steps.

        ``progress``: share of the step's updates that are done.
        """
        tally = Tally(self._device, self._peers)
        with self._spans.span("update"):
            self._policy_gradient(update, tokens, known, tally, progress=progress)
            tally.norm("gradient norm", self._policy.model.gradient_norm())
        if self._critic is not None:
            with self._spans.span("update_critic"):
                _critic_gradient(self._critic, update, tokens, known, tally)
                tally.norm("critic gradient norm", self._critic.model.gradient_norm())
        with self._spans.span("update"):
            verdict = tally.close()
            self._policy.model.step(sound=verdict.sound)
            if verdict.sound and self._average is not None:
                self._average.update()
        if self._critic is not None:
            with self._spans.span("update_critic"):
                self._critic.model.step(sound=verdict.sound)
        return verdict

    def _policy_gradient(
        self, update: Update, tokens: Mapping[int, GroupTokens], known: Known, tally: Tally, *, progress: float
    ) -> None:
        first = progress == 0
        known.logprobs.clear()
        for position, samples in enumerate(update.micro_batches):
            batch = collate(samples, tokens, device=self._device)
            logprobs, entropies, imbalance = self._policy.forward(batch)
            remember(known.logprobs, batch.samples, logprobs)
            tally.look("log-probs", logprobs)
            tally.look("rollout log-probs", batch.rollout_logprobs, batch.mask)
            if first and self._peers.alone:
                remember(known.old_logprobs, batch.samples, logprobs)
            tally.look("rewards or advantages", advantages_of(batch, known), batch.mask)
            loss, sums = policy_loss(
                batch,
                logprobs,
                entropies,
                known,
                self._settings.loss,
                total_tokens=update.total_tokens,
                first=first,
                progress=progress,
            )
            if self._settings.loss.aux_loss_coef:
                share = imbalance * (batch.input_ids.numel() / update.read_tokens)
                loss = loss + self._settings.loss.aux_loss_coef * share
                sums["aux_loss"] = share
            tally.look("loss", loss)
            self._policy.model.backward(loss, last=position == len(update.micro_batches) - 1)
            tally.add(sums)


def _critic_gradient(
    critic: Critic, update: Update, tokens: Mapping[int, GroupTokens], known: Known, tally: Tally
) -> None:
    for position, samples in enumerate(update.micro_batches):
        batch = collate(samples, tokens, device=critic.model.device)
        sums = critic.learn(
            batch,
            old_values=recall(known.values, batch.samples, like=batch.mask),
            returns=recall(known.returns, batch.samples, like=batch.mask),
            total_tokens=update.total_tokens,
            last=position == len(update.micro_batches) - 1,
        )
        tally.look("critic loss", sums["value_loss"])
        tally.add(sums)


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            sums[name] += value
    return dict(sums)
