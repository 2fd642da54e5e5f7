"""Closed choices are closed: each value of each has an implementation of its own, and another value has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from dapo_openrlhf.algorithm.advantage import CREDITS
from dapo_openrlhf.algorithm.aggregation import token_weights
from dapo_openrlhf.algorithm.choices import ESTIMATORS, POLICY_LOSSES
from dapo_openrlhf.algorithm.correction import importance_weights
from dapo_openrlhf.algorithm.kl import kl_estimate
from dapo_openrlhf.algorithm.objective import Limits, Policies, objective
from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.actor_settings import engine_args, openrlhf_settings
from dapo_openrlhf.backend.trainer import attention
from dapo_openrlhf.backend.trainer.per_sample import Known
from dapo_openrlhf.backend.trainer.policy_loss import policy_loss
from dapo_openrlhf.backend.trainer.step_settings import LossSettings
from dapo_openrlhf.config.generation import AsyncSection
from dapo_openrlhf.config.loading import build_config, build_reward
from dapo_openrlhf.config.presets import PRESETS
from dapo_openrlhf.config.reports import ReportSection
from dapo_openrlhf.config.reward_origin import RewardOrigin, origin_of
from dapo_openrlhf.config.settings import Config, settings_of
from dapo_openrlhf.config.transports import TRANSPORTS
from dapo_openrlhf.dataset import reading
from dapo_openrlhf.dataset.bad_rows import BadRows
from dapo_openrlhf.pipeline.batch import Sample
from dapo_openrlhf.rewards.function import FunctionReward
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.server import ServerReward
from dapo_openrlhf.rewards.settings import RewardSettings, reward_settings
from dapo_openrlhf.rewards.sources import RuleReward, open_source

NEW = torch.tensor([[0.5, 0.2, 0.1], [0.4, 0.3, 1.0]]).log()
OLD = torch.tensor([[0.2, 0.3, 0.1], [0.1, 0.4, 1.0]]).log()
ROLLOUT = torch.tensor([[0.05, 0.3, 0.3], [0.3, 0.4, 1.0]]).log()
MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
SAMPLES = [
    Sample(group=0, index=index, prompt_length=1, length=length, advantage=1.0, trained=True)
    for index, length in enumerate((3, 2))
]


def literals(annotation: object) -> Iterator[object]:
    """The values of all closed choices in an annotation."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from literals(part)


CHOICES = {name: values for name, field in settings_of() if (values := tuple(literals(field.annotation)))}
"""Every closed choice of the configuration, by dotted name."""


def config_with(dotted: str, value: Any, **others: Any) -> Config:
    """A configuration whose choice may be one that no reading would allow."""
    config = Config.model_validate(
        {"actor": {"model_name_or_path": "some/model"}, "data": {"prompt_dataset": "prompts.jsonl"}, **others}
    )
    section, _, name = dotted.rpartition(".")
    if not section:
        return config.model_copy(update={name: value})
    changed = getattr(config, section).model_copy(update={name: value})
    return config.model_copy(update={section: changed})


def preset(value: Any) -> object:
    return PRESETS[value].settings


def device(value: Any) -> object:
    machine = Device.of(value, processes=1)
    settings = machine.engine_settings(kv_cache_memory_bytes=None, gpu_memory_utilization=0.5)
    return machine.distributed_backend, machine.environment(), settings, machine.count()


def ratio(value: Any) -> object:
    policies = Policies(logprobs=NEW, denominator=OLD, rollout=ROLLOUT)
    tokens = objective(value, policies, torch.tensor([[1.0], [-1.0]]), MASK, Limits(eps_low=0.2, eps_high=0.28))
    return POLICY_LOSSES[value].of_response, tokens.losses.tolist()


def aggregation(value: Any) -> object:
    return token_weights([0, 0, 1], [3, 2, 4], mode=value, longest=7)


def estimator(value: Any) -> object:
    return CREDITS[value]([1.0, 0.0, 0.0]), ESTIMATORS[value]


def kl(value: Any) -> object:
    return kl_estimate(NEW, OLD, estimator=value).tolist()


def level(value: Any) -> object:
    return importance_weights(OLD, ROLLOUT, MASK, level=value, mode="mask", threshold=(0.6, 1.5))[0].tolist()


def mode(value: Any) -> object:
    return importance_weights(OLD, ROLLOUT, MASK, level="token", mode=value, threshold=(0.6, 1.5))[0].tolist()


def gating(value: Any) -> object:
    return importance_weights(
        OLD, ROLLOUT, MASK, level="token", mode="mask", threshold=(0.0, 0.18), gating=value, largest_square=1.5
    )[0].tolist()


def correction(value: Any) -> object:
    """The settings that a run with such a name has."""
    settings = {"actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "p"}}
    advantage = build_config(
        {**settings, "algo": {"advantage": {"is_correction": value}}}, source="test"
    ).algo.advantage
    return advantage.model_dump(exclude={"is_correction"})


def old_logprobs(value: Any) -> object:
    nothing = torch.zeros(2, 1)
    batch: Any = SimpleNamespace(
        mask=MASK,
        rollout_logprobs=ROLLOUT,
        advantages=nothing + 1,
        weights=nothing + 0.2,
        fresh=nothing,
        samples=SAMPLES,
        token_versions=lambda: torch.tensor([[3, 3, 4], [4, 4, -1]]),
    )
    settings = LossSettings(
        eps_clip_low_high=(0.2, 0.28), dual_clip=None, policy_loss_type="ppo", kl_coef=0.0, kl_estimator="k3",
        old_logprobs=value, is_correction_level="token", is_correction_mode="clip",
        is_correction_threshold=(0.0, 2.0), temperature=1.0,
    )  # fmt: skip
    known = Known(old_logprobs={(0, 0): OLD[0], (0, 1): OLD[1, :2]}, version=4)
    loss, _ = policy_loss(batch, NEW, torch.zeros(2, 3), known, settings, total_tokens=5, first=False, progress=0.5)
    return float(loss)


def answer_form(value: Any) -> object:
    question = Question(responses=[r"\boxed{17*23}"], queries=[""], prompt="", label="391")
    return RuleReward(answer_form=value)(question)


def on_bad_row(value: Any) -> object:
    """Words of a refusal, or what is said where the run goes on."""

    class Rows(SimpleNamespace):
        def __len__(self) -> int:
            return 2

    bad = BadRows()
    bad.add("prompt", 1, "no text")
    said: list[str] = []
    rows: Any = Rows(description={"rows": 3, "bad": bad.as_dict(), "remarks": {}})
    try:
        reading._judge(Path("rows.jsonl"), rows, "data.prompt_dataset", value, said.append)
    except reading.ConfigError as error:
        return f"refused: {error}"
    return said


def sync_backend(value: Any) -> object:
    """The row of the transport, on one GPU that is shared; ``test_transports.py`` has what is made of it."""
    return TRANSPORTS[config_with("vllm.sync_backend", value, train={"colocate_all": True}).weight_transfer]


def param_dtype(value: Any) -> object:
    return engine_args(config_with("ds.param_dtype", value), Device(kind="cuda", threads=1), 0)["dtype"]


def lr_scheduler(value: Any) -> object:
    """Learning rates of six updates, two of which are warm-up."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(value, optimizer, num_warmup_steps=2, num_training_steps=6)
    rates = []
    for _ in range(6):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def over_sampling(value: Any) -> object:
    factor = AsyncSection.model_construct(over_sampling=value).over_sampling_factor
    assert factor is None or isinstance(factor, float)
    return factor


def attended(value: Any) -> object:
    return attention.implementation(value, flash_attention=True)


def told_deepspeed(dotted: str, value: Any) -> Any:
    """What DeepSpeed is told with a choice made."""
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    import_openrlhf_lightly()
    from dapo_openrlhf.backend.trainer.strategy import Strategy

    args = openrlhf_namespace(openrlhf_settings(config_with(dotted, value)))
    optimizer = {"type": "AdamW", "params": {"lr": 1e-6}}
    return Strategy(args, device=Device(kind="cuda", threads=1)).get_ds_train_config(optimizer, max_norm=1.0)


def zero_stage(value: Any) -> object:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return DeepSpeedZeroConfig(**told_deepspeed("ds.zero_stage", value)["zero_optimization"]).stage


def grad_accum_dtype(value: Any) -> object:
    from deepspeed.runtime.config import DtypeEnum

    return DtypeEnum(told_deepspeed("ds.grad_accum_dtype", value)["data_types"]["grad_accum_dtype"])


def at_once(value: Any) -> object:
    settings = reward_settings(build_reward({"remote_url": "http://judge:80", "batch_size": value}, source="x"))
    return settings.batch_size, settings.files_one_by_one


IMPLEMENTED: Mapping[str, Callable[[Any], object]] = {
    "preset": preset,
    "device": device,
    "actor.policy_loss_type": ratio,
    "actor.loss_agg_mode": aggregation,
    "actor.lr_scheduler": lr_scheduler,
    "ds.param_dtype": param_dtype,
    "ds.attn_implementation": attended,
    "vllm.sync_backend": sync_backend,
    "async.at_deadline": lambda value: AsyncSection.model_construct(at_deadline=value).cut_late,
    "async.over_sampling": over_sampling,
    "async.kv_cache": lambda value: AsyncSection.model_construct(kv_cache=value).recompute_kv_cache,
    "async.old_logprobs": old_logprobs,
    "algo.advantage.estimator": estimator,
    "algo.advantage.is_correction_level": level,
    "algo.advantage.is_correction_mode": mode,
    "algo.advantage.is_correction_gating": gating,
    "algo.advantage.is_correction": correction,
    "algo.kl.estimator": kl,
    "reward.answer_form": answer_form,
    "reward.batch_size": at_once,
    "data.on_bad_row": on_bad_row,
    "report.wandb": lambda value: ReportSection.model_construct(wandb=value).wandb_uploads,
}
"""What acts on a choice."""

BY_DEEPSPEED: Mapping[str, Callable[[Any], object]] = {
    "ds.zero_stage": zero_stage,
    "ds.grad_accum_dtype": grad_accum_dtype,
}
"""The same, where it is DeepSpeed that acts."""

TRIED = [
    *(pytest.param(name, act, id=name) for name, act in IMPLEMENTED.items()),
    *(pytest.param(name, act, id=name, marks=pytest.mark.real) for name, act in BY_DEEPSPEED.items()),
]


def test_every_choice_of_the_configuration_is_tried() -> None:
    assert set(CHOICES) == IMPLEMENTED.keys() | BY_DEEPSPEED.keys()


@pytest.mark.parametrize(("name", "act"), TRIED)
def test_each_value_of_a_choice_does_something_of_its_own(name: str, act: Callable[[Any], object]) -> None:
    own = [
        value for value in CHOICES[name] if value != "auto" or name != "vllm.sync_backend"
    ]  # which is one of the others
    done = {value: repr(act(value)) for value in CHOICES[name]}
    assert len({done[value] for value in own}) == len(own) >= 1, done


@pytest.mark.parametrize(("name", "act"), TRIED)
def test_a_value_that_a_choice_does_not_have_is_done_by_nobody(name: str, act: Callable[[Any], object]) -> None:
    """Or a value that somebody adds would be taken for another one."""
    with pytest.raises((AssertionError, KeyError, ValueError)):
        act("something-else")


def test_each_kind_of_reward_is_opened_as_one_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def reward_func(queries, prompts, labels):\n    return [0.0] * len(queries)\n")
    origins = [origin_of(name) for name in ("rule", str(file), "https://host/get_reward")]
    assert {type(origin) for origin in origins} == set(get_args(RewardOrigin))
    opened = [type(open_source(origin, RewardSettings())) for origin in origins]
    assert opened == [RuleReward, FunctionReward, ServerReward]
    with pytest.raises(AssertionError):
        open_source("rule", RewardSettings())  # type: ignore[arg-type]
