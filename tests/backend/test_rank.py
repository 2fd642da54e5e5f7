"""A trainer rank without Ray and DeepSpeed: its steps on the smallest models that it can have."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_model import Bigram, PlainModel, TokenValues, random_batch
from safetensors.torch import load_file

from dapo_openrlhf.backend.messages import GroupTokens, StagedWeights
from dapo_openrlhf.backend.run.step_statistics import SUMS, step_statistics
from dapo_openrlhf.backend.trainer import attention
from dapo_openrlhf.backend.trainer import rank as rank_module
from dapo_openrlhf.backend.trainer.critic import Critic
from dapo_openrlhf.backend.trainer.finite import NotFinite
from dapo_openrlhf.backend.trainer.packing import Packing
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.policy import Policy
from dapo_openrlhf.backend.trainer.rank import Rank
from dapo_openrlhf.backend.trainer.reports import StepReport
from dapo_openrlhf.backend.trainer.saving import NotWritten, Saving
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.state_tree import tensors_of
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings, GuardSettings, LossSettings, TrainSettings
from dapo_openrlhf.backend.trainer.weights_out import WeightsOut
from dapo_openrlhf.backend.transfer.checksum import Checksum
from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch
from dapo_openrlhf.pipeline.metrics import METRICS
from dapo_openrlhf.types import TrainBatch

VOCABULARY, RATE = 11, 0.01
LOSS = LossSettings(
    eps_clip_low_high=(0.2, 0.28), dual_clip=None, policy_loss_type="ppo", kl_coef=0.0, kl_estimator="k3",
    old_logprobs="recompute", is_correction_level="off", is_correction_mode="clip",
    is_correction_threshold=(0.0, 2.0), temperature=1.0,
)  # fmt: skip
DAPO = AdvantageSettings(
    critic=False, whitened=False, gamma=1.0, lambd=1.0, no_std_norm=False, kl_coef=0.0, kl_estimator="k3"
)
PPO = dataclasses.replace(DAPO, critic=True, whitened=True, kl_coef=0.01, kl_estimator="k1")
PLAN = PlanSettings(
    train_batch_size=16, max_epochs=1, max_tokens=40, overlong_filtering=False, seed=0, estimator="group_norm",
    loss_agg_mode="token-mean", longest_response=8,
)  # fmt: skip


class Trainer:
    """A rank and what it is made of."""

    def __init__(
        self,
        advantages: AdvantageSettings = DAPO,
        *,
        loss: LossSettings = LOSS,
        plan: PlanSettings = PLAN,
        folder: str = "unused",
        max_bad_updates: int = 3,
    ) -> None:
        self.policy = PlainModel(Bigram(VOCABULARY, seed=0), lr=RATE)
        self.critic = PlainModel(TokenValues(VOCABULARY), lr=0.1) if advantages.critic else None
        kl = max(advantages.kl_coef, loss.kl_coef) > 0
        packing = Packing(attention.NAME)
        guard = GuardSettings(max_bad_updates=max_bad_updates, folder=folder)
        self.rank = Rank(
            Policy(self.policy, packing, temperature=loss.temperature, reference=Bigram(VOCABULARY, seed=0) if kl else None),
            Critic(self.critic, packing, clip=None) if self.critic else None,
            TrainSettings(loss=loss, advantages=advantages, guard=guard),
            peers=Peers(),
            spans=Spans("trainer 0"),
        )  # fmt: skip
        self.plan = plan

    @property
    def models(self) -> list[PlainModel]:
        return [self.policy] if self.critic is None else [self.policy, self.critic]

    def train(self, batch: TrainBatch, tokens: Mapping[int, GroupTokens]) -> StepReport:
        (plan,) = plan_batch(batch, self.plan, ranks=1)
        return self.rank.train(plan, tokens)

    def state(self) -> list[Any]:
        """Weights and moments."""
        tensors = [tensor for model in self.models for _, tensor in model.held()]
        moments = [tensor for model in self.models for _, tensor in tensors_of(model.state())]
        return [tensor.clone() for tensor in tensors + moments]


def a_batch(step: int) -> tuple[TrainBatch, Mapping[int, GroupTokens]]:
    return random_batch(step, groups=4, responses=4, longest=8, vocabulary=VOCABULARY)


def with_reward(batch: TrainBatch, value: float) -> TrainBatch:
    """With another reward for one response."""
    group = batch.groups[1]
    rollouts = (dataclasses.replace(group.rollouts[0], reward=value), *group.rollouts[1:])
    bad = dataclasses.replace(group, rollouts=rollouts)
    return dataclasses.replace(batch, groups=(batch.groups[0], bad, *batch.groups[2:]))


def test_one_update_is_the_gradient_of_the_formula_and_a_step_of_adamw() -> None:
    """On policy the ratio is 1, so the loss is minus the mean advantage, and its gradient that of -A log p over tokens."""
    trainer = Trainer()
    batch, tokens = a_batch(0)
    (plan,) = plan_batch(batch, PLAN, ranks=1)
    assert len(plan.updates[0].micro_batches) > 1, "gradients must add up"
    table = trainer.policy.inner.table.detach().clone().requires_grad_()
    rows = table.log_softmax(-1)
    total, advantages, objective = 0, 0.0, torch.zeros(())
    for sample in (s for micro_batch in plan.updates[0].micro_batches for s in micro_batch):
        ids, _ = tokens[sample.group].response(sample.index)
        before = np.concatenate([tokens[sample.group].prompt_ids[-1:], ids[:-1]])
        objective = objective + sample.advantage * rows[torch.tensor(before).long(), torch.tensor(ids).long()].sum()
        total += sample.length
        advantages += sample.advantage * sample.length
    (gradient,) = torch.autograd.grad(-objective / total, table)
    report = trainer.train(batch, tokens)
    assert report.sums["tokens"] == total
    assert report.sums["loss"] == pytest.approx(-advantages / total, abs=1e-6)
    assert report.sums["ratio"] == pytest.approx(total)
    assert report.values == {"grad_norm": pytest.approx(gradient.norm().item(), rel=1e-5), "lr": RATE}
    # AdamW's first step: both moments are the gradient's, whatever the betas.
    stepped = table - RATE * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(trainer.policy.inner.table, stepped, atol=1e-6)
    assert {span.kind for span in report.spans} == {"old_logprobs", "update"}


@pytest.mark.parametrize("advantages", [DAPO, PPO])
def test_a_step_does_not_depend_on_how_it_is_cut(advantages: AdvantageSettings) -> None:
    """Micro-batches of one sequence and of all; two passes of two updates, which know old log-probs in two ways."""
    twice = dataclasses.replace(PLAN, max_epochs=2, train_batch_size=8)
    cut = Trainer(advantages, plan=dataclasses.replace(twice, max_tokens=1))
    whole = Trainer(advantages, plan=dataclasses.replace(twice, max_tokens=10_000))
    for step in range(2):
        one, other = cut.train(*a_batch(step)), whole.train(*a_batch(step))
        assert dict(one.sums) == pytest.approx(dict(other.sums), rel=1e-4, abs=1e-4)
        assert dict(one.values) == pytest.approx(dict(other.values), rel=1e-4)
        assert len(one.outcomes) == 4
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(cut.state(), whole.state(), strict=True))


@pytest.mark.parametrize("advantages", [DAPO, PPO])
def test_later_updates_are_compared_with_the_weights_of_the_steps_start(advantages: AdvantageSettings) -> None:
    """Weights that do not move have ratio 1 in every update, wherever its old log-probs were computed."""
    trainer = Trainer(advantages, plan=dataclasses.replace(PLAN, max_epochs=2, train_batch_size=8))
    for group in trainer.policy._optimizer.param_groups:
        group["lr"] = 0.0
    report = trainer.train(*a_batch(0))
    assert len(report.outcomes) == 4
    assert report.sums["ratio"] == pytest.approx(report.sums["tokens"], rel=1e-6)


def test_a_critic_learns_returns_beside_the_policy() -> None:
    trainer = Trainer(PPO)
    batch, tokens = a_batch(0)
    steps = [step_statistics([trainer.train(batch, tokens)]) for _ in range(30)]
    assert steps[0]["value"] == 0.0 and steps[0]["kl"] == 0.0
    assert steps[-1]["value_loss"] < 0.8 * steps[0]["value_loss"]
    assert steps[-1]["explained_variance"] > steps[0]["explained_variance"] + 0.1
    assert steps[-1]["kl"] != 0.0 and steps[-1]["critic_grad_norm"] > 0.0


@pytest.mark.parametrize("advantages", [DAPO, PPO])
def test_an_update_with_a_reward_that_is_no_number_leaves_no_trace(
    advantages: AdvantageSettings, tmp_path: Path
) -> None:
    trainer, undisturbed = Trainer(advantages, folder=str(tmp_path)), Trainer(advantages)
    for each in (trainer, undisturbed):
        each.train(*a_batch(0))
    before = trainer.state()
    batch, tokens = a_batch(1)
    stopped = trainer.train(with_reward(batch, math.nan), tokens)
    (outcome,) = stopped.outcomes
    assert outcome.bad and not outcome.problem
    assert {"rewards or advantages", "loss"} <= set(outcome.not_finite)
    assert stopped.sums == {} and stopped.values == {"lr": RATE}
    assert all(map(torch.equal, trainer.state(), before))
    with np.load(tmp_path / "step-000001-update-0" / "rank-0.npz") as arrays:
        assert np.isnan(arrays["advantage"]).sum() == 4, "the whole group's, and no other's"
    after, expected = trainer.train(batch, tokens), undisturbed.train(batch, tokens)
    assert after.sums == expected.sums and after.values == expected.values
    assert all(map(torch.equal, trainer.state(), undisturbed.state()))


def test_a_rank_gives_up_after_so_many_bad_updates_in_a_row(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, max_epochs=4)
    trainer = Trainer(plan=plan, folder=str(tmp_path), max_bad_updates=2)
    batch, tokens = a_batch(0)
    assert len(trainer.train(with_reward(batch, math.inf), tokens).outcomes) == 2
    assert len(trainer.train(batch, tokens).outcomes) == 4


def test_everything_that_ranks_report_is_shown_and_has_a_meaning() -> None:
    """Of policy and critic, with a KL, and with the step's own weights; nothing else is declared."""
    with_kl = dataclasses.replace(LOSS, kl_coef=0.1, aux_loss_coef=0.1)
    reports = [Trainer(PPO).train(*a_batch(0)), Trainer(loss=with_kl).train(*a_batch(0)), Trainer().train(*a_batch(0))]
    assert {name for report in reports for name in report.sums} == SUMS
    for report in reports:
        shown = step_statistics([report])
        assert shown.keys() <= METRICS.keys()
        assert report.values.keys() <= shown.keys()


def test_a_state_is_gone_on_from_as_if_nothing_had_been_in_between(tmp_path: Path) -> None:
    trainer, resumed = Trainer(PPO), Trainer(PPO)
    trainer.train(*a_batch(0))
    tokenizer: Any = None
    saving = Saving(trainer.models, tokenizer, keep_critic=True, peers=Peers())
    saving.snapshot(str(tmp_path / "checkpoint"))
    saving.write_snapshot()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".pt", ".bin", ".pkl"}]
    saving.save(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "model" / "critic" / "model.safetensors").is_file()
    assert not (tmp_path / "model.unfinished").exists()
    other = Saving(resumed.models, tokenizer, keep_critic=True, peers=Peers())
    other.resume(str(tmp_path / "checkpoint"), 1)
    assert trainer.train(*a_batch(1)).sums == resumed.train(*a_batch(1)).sums
    assert all(map(torch.equal, trainer.state(), resumed.state()))
    with pytest.raises(RuntimeError, match="holds no state of the optimizer"):
        other.resume(str(tmp_path / "model"), 1)
    for file in (tmp_path / "checkpoint" / "trainer" / "state").iterdir():
        shutil.copy(file, file.with_name(file.name.replace("rank-0", "rank-1")))
    with pytest.raises(RuntimeError, match=r"holds the state of 2 trainer ranks, and this run has 1: .* use 2 \(actor"):
        other.resume(str(tmp_path / "checkpoint"), 1)
    saving_without = Saving(Trainer().models, tokenizer, keep_critic=False, peers=Peers())
    saving_without.snapshot(str(tmp_path / "without"))
    saving_without.write_snapshot()
    with pytest.raises(RuntimeError, match="holds no critic"):
        other.resume(str(tmp_path / "without"), 1)


def test_weights_go_out_whole_and_not_if_a_number_is_not_finite(tmp_path: Path) -> None:
    trainer = Trainer(PPO)
    weights = WeightsOut(trainer.models, Peers(), version=7)
    assert (weights.layout.names, weights.layout.shapes) == (("table",), ((VOCABULARY, VOCABULARY),))
    bucket, staged = weights.export()
    assert isinstance(staged, StagedWeights) and not isinstance(bucket, StagedWeights)
    published = torch.from_numpy(bucket).view(torch.float32)[: VOCABULARY**2]
    assert torch.equal(published.view(VOCABULARY, VOCABULARY), trainer.policy.inner.table)
    assert len(bucket) == 512, "484 bytes to the next multiple of 64"
    checksum = Checksum()
    checksum.add(torch.from_numpy(bucket))
    assert staged == StagedWeights(version=7, checksum=checksum.value())
    assert trainer.critic is not None
    trainer.critic.inner.values.data[3] = math.inf
    tokenizer: Any = None
    saving = Saving(trainer.models, tokenizer, keep_critic=True, peers=Peers())
    what = "1 of 2 tensors hold NaN or infinity: values"
    with pytest.raises(NotFinite, match=f"these weights are not published: {what}"):
        next(weights.export())
    with pytest.raises(NotFinite, match=f"these weights are not published: {what}"):
        weights.send()
    with pytest.raises(NotFinite, match=f"the model is not saved to .*: {what}"):
        saving.save(str(tmp_path / "model"))
    with pytest.raises(NotFinite, match=f"no checkpoint is made in .*: {what}"):
        saving.snapshot(str(tmp_path / "state"))
    assert not list(tmp_path.iterdir())


def test_moments_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = Trainer(PPO)
    trainer.train(*a_batch(0))
    tokenizer: Any = None
    saving = Saving(trainer.models, tokenizer, keep_critic=False, peers=Peers())
    assert trainer.critic is not None
    trainer.critic.state()["optimizer"]["state"][0]["exp_avg_sq"][1] = math.nan
    saving.snapshot(str(tmp_path / "state"))
    named = "1 of 4 tensors hold NaN or infinity: optimizer/state/0/exp_avg_sq"
    with pytest.raises(NotFinite, match=f"no checkpoint is made in .*state: {named}"):
        saving.write_snapshot()
    assert not list(tmp_path.iterdir())


def test_a_snapshot_is_what_was_trained_when_it_was_taken(tmp_path: Path) -> None:
    trainer, resumed = Trainer(PPO), Trainer(PPO)
    trainer.train(*a_batch(0))
    before = trainer.state()
    tokenizer: Any = None
    saving = Saving(trainer.models, tokenizer, keep_critic=True, peers=Peers())
    saving.snapshot(str(tmp_path / "state"))
    trainer.train(*a_batch(1))
    assert not any(map(torch.equal, before, trainer.state()))
    saving.write_snapshot()
    Saving(resumed.models, tokenizer, keep_critic=True, peers=Peers()).resume(str(tmp_path / "state"), 1)
    assert all(map(torch.equal, before, resumed.state()))
    assert torch.equal(load_file(tmp_path / "state" / "model.safetensors")["table"], resumed.policy.inner.table)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    trainer = Trainer()
    tokenizer: Any = None
    saving = Saving(trainer.models, tokenizer, keep_critic=False, peers=Peers())
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "checkpoint"
    saving.snapshot(str(place))
    with pytest.raises(NotWritten, match=f"{place} cannot be written: NotADirectoryError"):
        saving.write_snapshot()
    with pytest.raises(NotWritten, match=f"{place} cannot be written: "):
        saving.save(str(place))


def test_deepspeeds_engines_are_touched_in_one_file_only() -> None:
    folder = Path(rank_module.__file__).parents[1]
    touched = re.compile(
        r"\.module\b|set_gradient_accumulation_boundary|(save|load)_checkpoint|fp16_enabled|\.optimizer\b"
    )
    found = {path.name for path in folder.rglob("*.py") if touched.search(path.read_text())}
    assert found == {"deepspeed_model.py"}


def test_a_rank_knows_neither_ray_nor_deepspeed() -> None:
    check = (
        "import sys\n"
        "from dapo_openrlhf.backend.trainer import rank, saving, weights_out\n"
        "found = {'ray', 'deepspeed', 'openrlhf', 'vllm'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
