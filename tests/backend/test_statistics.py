"""Sums of trainer ranks as the means that are shown."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from fake_actors import FakeActor
from fakes import some_group

from dapo_openrlhf.backend.run.remote_trainer import RemoteTrainer
from dapo_openrlhf.backend.run.step_statistics import UnknownSum, step_statistics
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.reports import StepReport
from dapo_openrlhf.backend.trainer.tally import Tally
from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome
from dapo_openrlhf.pipeline.batch import PlanSettings
from dapo_openrlhf.pipeline.metrics import METRICS
from dapo_openrlhf.types import PolicyVersion, TrainBatch

POLICY = {
    "tokens": 0.0, "loss": 0.0, "entropy": 0.0, "token_probability": 0.0, "clip_fraction": 0.0, "ratio": 0.0,
    "is_weight": 0.0, "is_weight_squared": 0.0, "is_outside": 0.0, "rollout_kl": 0.0,
}  # fmt: skip


DONE = UpdateOutcome(not_finite={})


def report(outcomes: tuple[UpdateOutcome, ...] = (DONE,), **sums: float) -> StepReport:
    return StepReport(sums=POLICY | sums, values={"grad_norm": 1.0, "lr": 0.1}, outcomes=outcomes, spans=())


def test_sums_over_ranks_become_means_per_token_and_update() -> None:
    # 3 and 1 tokens, entropies 6 and 2, so 2 per token; losses 0.5 and 0.3 over 4 updates, so 0.2 each.
    # Weights 3 and 1, squares 5 and 1: (3 + 1)^2 / (6 * 4 tokens) = 2/3.
    statistics = step_statistics(
        [
            report((DONE,) * 4, tokens=3, entropy=6, loss=0.5, is_weight=3, is_weight_squared=5, kl=0.5),
            report(tokens=1, entropy=2, loss=0.3, is_weight=1, is_weight_squared=1, kl=0.3),
        ],
    )
    assert statistics["entropy"] == 2.0
    assert statistics["loss"] == pytest.approx(0.2)
    assert statistics["is_weight/mean"] == 1.0
    assert statistics["is_weight/ess"] == pytest.approx(2 / 3)
    assert statistics["kl"] == pytest.approx(0.2)


def test_explained_variance_by_hand() -> None:
    # Returns 1, -1, 1, -1: variance 1. Values 0.5, -0.5, 0.5, 0.5, so errors 0.5, -0.5, 0.5, -1.5: mean -1/4, mean
    # square 3/4, variance 11/16. 5/16 is explained. Two tokens on each rank.
    one = {"tokens": 2, "value_loss": 1.0, "value": 0.0, "return": 0.0, "return_squared": 2.0}
    statistics = step_statistics(
        [
            report((DONE,) * 4, **one, value_error=0.0, value_error_squared=0.5),
            report(**one | {"value": 1.0}, value_error=-1.0, value_error_squared=2.5),
        ],
    )
    assert statistics["explained_variance"] == pytest.approx(5 / 16)
    assert statistics["value"] == 0.25
    assert statistics["value_loss"] == 0.5


def test_disagreement_is_a_mean_over_fresh_tokens_only() -> None:
    statistics = step_statistics(
        [report(tokens=10, fresh_tokens=3, fresh_kl=0.5), report(tokens=10, fresh_tokens=1, fresh_kl=0.3)]
    )
    assert statistics["rollout_kl/age_0"] == pytest.approx(0.2)
    assert "rollout_kl/age_0" not in step_statistics([report(tokens=10, fresh_tokens=0.0, fresh_kl=0.0)])


def test_what_was_not_measured_is_not_shown() -> None:
    statistics = step_statistics([report(tokens=1)])
    assert {"kl", "value_loss", "value", "explained_variance"} & set(statistics) == set()


def test_everything_shown_has_a_meaning() -> None:
    with_all = report(
        tokens=1, kl=0, value_loss=0, value=0, return_squared=0, value_error=0, value_error_squared=0, **{"return": 0}
    )
    assert set(step_statistics([with_all])) <= set(METRICS)


def test_a_sum_that_nothing_is_made_of_is_refused() -> None:
    with pytest.raises(UnknownSum, match="trainer ranks report entropie, of which"):
        step_statistics([report(tokens=1), report(tokens=1, entropie=1.0)])


def test_updates_that_were_stopped_count_apart() -> None:
    bad = UpdateOutcome(not_finite={"loss": 2})
    scaled = UpdateOutcome(not_finite={"gradient norm": 1}, overflow=True)
    statistics = step_statistics([report((DONE, bad, scaled, DONE), tokens=1, loss=0.5)])
    assert (statistics["updates/bad"], statistics["updates/overflow"]) == (1.0, 1.0)
    assert statistics["loss"] == 0.25, "over the two that were done"
    nothing = StepReport(sums={}, values={"lr": 0.1}, outcomes=(bad,), spans=())
    assert step_statistics([nothing]) == {"updates/bad": 1.0, "updates/overflow": 0.0, "lr": 0.1}


def test_updates_that_train_no_token_are_counted() -> None:
    """4 groups of 2 in updates of 4: of the groups whose responses are all truncated, two fill an update by themselves."""

    def empty(truncated: set[int]) -> float:
        async def main() -> float:
            rank = FakeActor(train=lambda plan, tokens: report(tokens=1), alive=asyncio.sleep)
            plan = PlanSettings(
                train_batch_size=4, max_epochs=1, max_tokens=100, overlong_filtering=True, seed=0,
                estimator="group_norm", loss_agg_mode="token-mean", longest_response=100,
            )  # fmt: skip
            trainer = RemoteTrainer([rank], plan, timeout=9.0)
            groups = [some_group(index) for index in range(4)]
            groups = [
                replace(group, rollouts=tuple(replace(r, truncated=group.id in truncated) for r in group.rollouts))
                for group in groups
            ]
            batch = TrainBatch(step=0, version=PolicyVersion(0), groups=tuple(groups))
            return (await trainer.train(batch))["updates/empty"]

        return asyncio.run(main())

    assert empty(set()) == 0
    assert empty({0}) == 0
    assert empty({0, 1, 2, 3}) == 2
    assert sorted(empty({first, second}) for first in range(4) for second in range(first)) == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("micro_batches", [1, 50])
def test_a_rank_reads_the_numbers_of_an_update_from_its_device_once(
    micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def counted(name: str) -> None:
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *rest: (reads.append(name), read(tensor, *rest))[1])

    tally = Tally(torch.device("cpu"), Peers())
    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "numpy"):
        counted(name)
    for _ in range(micro_batches):
        tally.add({"tokens": torch.tensor(3.0), "loss": torch.tensor(0.5)})
        tally.look("log-probs", torch.tensor([1.0, -2.0]))
        tally.look("loss", torch.tensor([1.0, float("nan")]), torch.tensor([1, 0]))
    tally.norm("gradient norm", torch.tensor(2.0))
    assert reads == []
    verdict = tally.close()
    assert reads == ["tolist"]
    assert verdict.sums == {"tokens": 3.0 * micro_batches, "loss": 0.5 * micro_batches}
    assert verdict.norms == {"gradient norm": 2.0} and verdict.sound
