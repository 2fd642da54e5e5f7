"""The average of the policy's weights: by hand, through a rank's updates, saved and gone on from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_model import Bigram, PlainModel, random_batch
from safetensors.torch import load_file
from torch import nn

from dapo_openrlhf.backend.trainer import attention
from dapo_openrlhf.backend.trainer.average import Average
from dapo_openrlhf.backend.trainer.packing import Packing
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.policy import Policy
from dapo_openrlhf.backend.trainer.rank import Rank
from dapo_openrlhf.backend.trainer.saving import Saving
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings, GuardSettings, LossSettings, TrainSettings
from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch

BETA = 0.75
TOKENIZER: Any = None


class Trainer:
    """A rank that averages, and what it is made of."""

    def __init__(self, folder: Path) -> None:
        self.policy = PlainModel(Bigram(11, seed=0), lr=0.1)
        self.average = Average(self.policy, beta=BETA)
        self.saving = Saving([self.policy], TOKENIZER, keep_critic=False, peers=Peers(), average=self.average)
        loss = LossSettings(
            eps_clip_low_high=(0.2, 0.28), dual_clip=None, policy_loss_type="ppo", kl_coef=0.0, kl_estimator="k3",
            old_logprobs="recompute", is_correction_level="off", is_correction_mode="clip",
            is_correction_threshold=(0.0, 2.0), temperature=1.0,
        )  # fmt: skip
        nothing = AdvantageSettings(
            critic=False, whitened=False, gamma=1.0, lambd=1.0, no_std_norm=False, kl_coef=0.0, kl_estimator="k3"
        )
        guard = GuardSettings(max_bad_updates=9, folder=str(folder))
        self.rank = Rank(
            Policy(self.policy, Packing(attention.NAME), temperature=1.0, reference=None),
            None,
            TrainSettings(loss=loss, advantages=nothing, guard=guard),
            peers=Peers(),
            spans=Spans("trainer 0"),
            average=self.average,
        )

    @property
    def table(self) -> torch.Tensor:
        table: torch.Tensor = self.policy.inner.table.detach()
        return table.clone()

    @property
    def averaged(self) -> torch.Tensor:
        part: torch.Tensor = self.average.state()["table"]
        return part.clone().view(11, 11)

    def train(self, step: int, *, updates: int = 1) -> None:
        batch, tokens = random_batch(step, groups=4, responses=4, longest=8, vocabulary=11)
        plan = PlanSettings(
            train_batch_size=16 // updates, max_epochs=1, max_tokens=40, overlong_filtering=False, seed=0,
            estimator="group_norm", loss_agg_mode="token-mean", longest_response=8,
        )  # fmt: skip
        (cut,) = plan_batch(batch, plan, ranks=1)
        self.rank.train(cut, tokens)


def test_three_updates_by_hand() -> None:
    """From 1 with a share of 3/4: 3 gives 3/4 + 3/4 = 1.5; 5 gives 1.125 + 1.25 = 2.375; 2 gives 1.78125 + 0.5 = 2.28125."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = Average(PlainModel(layer, lr=0.0), beta=0.75)
    found = [average.state()["weight"].item()]
    for weight in (3.0, 5.0, 2.0):
        layer.weight.data.fill_(weight)
        average.update()
        found.append(average.state()["weight"].item())
    assert found == [1.0, 1.5, 2.375, 2.28125]


def test_weights_of_16_bits_are_averaged_in_float32() -> None:
    """In bfloat16, 1 + 0.008 / 128 is 1 again, and an average would never leave it."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    layer.weight.data.fill_(1.0)
    average = Average(PlainModel(layer, lr=0.0), beta=0.992)
    layer.weight.data.fill_(1.0078125)
    for _ in range(1000):
        average.update()
    (part,) = average.state().values()
    assert part.dtype == torch.float32
    assert part.item() == pytest.approx(1.0078125 - 0.0078125 * 0.992**1000, abs=2e-5)


def test_what_is_not_trained_is_not_averaged() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    module[0].requires_grad_(False)
    assert Average(PlainModel(module, lr=0.0), beta=0.5).state().keys() == {"1.weight", "1.bias"}


def test_it_moves_with_each_gradient_step_and_with_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tmp_path)
    expected = trainer.table
    taken = []
    step = trainer.policy.step

    def observed(*, sound: bool) -> None:
        step(sound=sound)
        taken.append(trainer.table)

    monkeypatch.setattr(trainer.policy, "step", observed)
    trainer.train(0, updates=2)
    assert len(taken) == 2 and not torch.equal(*taken)
    for weights in taken:
        expected = BETA * expected + (1 - BETA) * weights
    torch.testing.assert_close(trainer.averaged, expected, rtol=1e-6, atol=1e-7)
    trainer.policy.gradient_norm = lambda: torch.tensor(math.nan)  # type: ignore[method-assign]  # a step that is not done
    before = trainer.averaged
    trainer.train(1)
    assert len(taken) == 3 and torch.equal(trainer.averaged, before)


def test_it_is_saved_beside_the_policy_and_gone_on_from(tmp_path: Path) -> None:
    trainer, resumed = Trainer(tmp_path), Trainer(tmp_path)
    trainer.train(0)
    trainer.train(1)
    trainer.saving.snapshot(str(tmp_path / "checkpoint"))
    table, averaged = trainer.table, trainer.averaged
    trainer.train(2)  # while the files are being written
    trainer.saving.write_snapshot()
    for folder, weights in (("", table), ("ema", averaged)):
        assert torch.equal(load_file(tmp_path / "checkpoint" / folder / "model.safetensors")["table"], weights)
    assert not torch.equal(table, averaged)
    resumed.train(7)
    resumed.saving.resume(str(tmp_path / "checkpoint"), 2)
    assert torch.equal(resumed.averaged, averaged) and torch.equal(resumed.table, table)
    resumed.train(2)
    assert torch.equal(resumed.averaged, trainer.averaged) and torch.equal(resumed.table, trainer.table)
    trainer.saving.save(str(tmp_path / "model"))
    assert torch.equal(load_file(tmp_path / "model" / "ema" / "model.safetensors")["table"], trainer.averaged)
    assert torch.equal(load_file(tmp_path / "model" / "model.safetensors")["table"], trainer.table)


def test_a_checkpoint_without_one_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    without = Saving([trainer.policy], TOKENIZER, keep_critic=False, peers=Peers())
    trainer.train(0)
    without.snapshot(str(tmp_path / "checkpoint"))
    without.write_snapshot()
    with pytest.raises(RuntimeError, match=r"holds no average of the weights: .* train\.enable_ema false"):
        trainer.saving.resume(str(tmp_path / "checkpoint"), 1)
