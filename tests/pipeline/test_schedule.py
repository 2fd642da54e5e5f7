"""Learning-rate schedules and step counts mean rollout steps and gradient steps, never generation rounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fakes import FakeScorer, build, filtered

from dapo_openrlhf.backend.run.train_settings import plan_settings
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.batch import plan_batch
from dapo_openrlhf.pipeline.events import GroupGenerated
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import TrainBatch


def config(**changes: Any) -> Config:
    """100 rollout steps of 8 x 4 responses in updates of 8; dotted names with ``__``."""
    settings: dict[str, dict[str, Any]] = {
        "actor": {"model_name_or_path": "m", "lr_warmup_steps": 10},
        "data": {"prompt_dataset": "d"},
        "rollout": {"batch_size": 8, "n_samples_per_prompt": 4},
        "train": {"batch_size": 8, "max_steps": 100},
        "algo": {},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        settings[section][key] = value
    return build_config(settings, source="test")


def warmup_updates(config: Config) -> int:
    """As OpenRLHF makes it of what it is handed."""
    return math.ceil(config.gradient_steps * config.lr_warmup_ratio)


def test_schedule_counts_updates_of_full_batches() -> None:
    # 8 x 4 / 8 = 4 updates a step, 400 in all; warm-up over 10 steps is 40 updates.
    assert config().gradient_steps == 400
    assert warmup_updates(config()) == 40
    assert config(train__max_epochs=2).gradient_steps == 800
    assert warmup_updates(config(train__max_epochs=2)) == 80


@pytest.mark.parametrize("scheduler", ["constant_with_warmup", "linear", "cosine"])
def test_generation_rounds_do_not_change_the_learning_rate(scheduler: str) -> None:
    """Whatever dynamic sampling drops and generates anew, the numbers behind the schedule stay."""
    numbers = {
        (c.gradient_steps, c.lr_warmup_ratio, c.updates_per_step)
        for filtering in (True, False)
        for rounds in (1, 20, 1000)
        if (
            c := config(
                actor__lr_scheduler=scheduler,
                algo__dynamic_filtering_enable=filtering,
                algo__max_filtered_batches=rounds,
            )
        )
    }
    assert len(numbers) == 1


def gradient_steps(filtered_share: float, c: Config) -> tuple[list[int], int]:
    """Gradient steps of each rollout step of a whole run on fakes, and how many groups were generated for it."""
    updates: list[int] = []

    def count(batch: TrainBatch) -> None:
        (plan,) = plan_batch(batch, plan_settings(c), ranks=1)
        updates.append(len(plan.updates))

    async def main() -> int:
        world = build(
            batch_size=c.rollout.batch_size,
            samples=c.rollout.n_samples_per_prompt,
            steps=c.train.max_steps,
            scorer=FakeScorer(pattern=filtered(filtered_share, seed=1)),
            work=count,
        )
        await world.run()
        return len(world.of(GroupGenerated))

    generated = run_virtual(main())
    return updates, generated


def test_a_run_takes_the_gradient_steps_it_planned_however_many_groups_are_dropped() -> None:
    c = config(train__max_steps=12, train__max_epochs=2)
    few, little = gradient_steps(0.0, c)
    many, much = gradient_steps(0.7, c)
    assert few == many == [c.updates_per_step] * 12
    assert sum(few) == c.gradient_steps
    assert much > 2 * little


@pytest.mark.parametrize("warmup", [0, 1, 7, 20, 99, 100, 150])
@pytest.mark.parametrize("train_batch_size", [1, 2, 8, 32])
def test_warmup_lands_on_whole_rollout_steps(warmup: int, train_batch_size: int) -> None:
    c = config(actor__lr_warmup_steps=warmup, train__batch_size=train_batch_size)
    assert warmup_updates(c) == warmup * c.updates_per_step
