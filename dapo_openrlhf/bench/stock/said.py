"""A configuration of this project as a command line of stock OpenRLHF, and what of it cannot be said there."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from dapo_openrlhf.algorithm.choices import ESTIMATORS
from dapo_openrlhf.bench.stock.command import FLAGS, MODE_FLAGS, ON_CPU, StockMode, written
from dapo_openrlhf.bench.stock.work import StockWork
from dapo_openrlhf.config import not_there
from dapo_openrlhf.config.settings import Config, settings_of

NO_BOUND = 10**9
"""In place of none where OpenRLHF has a bound by default; its parser takes no infinite one below zero."""
EPISODES = 1000
"""Passes over the prompts, more than are ever done: a run is ended after its steps."""

OTHERWISE = ("ckpt.", "critic.", "data.", "environment.", "eval.", "logger.", "report.", "run.")
"""Sections that are said as a whole, or not at all."""
SHARING = ("train.colocate_all", "vllm.enable_sleep", "ds.enable_sleep")
"""Options by which OpenRLHF's synchronous trainer has engine and trainer take turns on a GPU."""


def unsayable(config: Config, mode: StockMode) -> Iterator[str]:
    """Yield a sentence for each setting that cannot be said in OpenRLHF's options, with what would be needed."""
    limits = {**not_there.NOT_THERE, **not_there.FEWER}
    limits |= not_there.ON_CUDA if config.device == "cuda" else not_there.ON_CPU
    dumped = config.model_dump(by_alias=True)
    for name, only in limits.items():
        value = _value(dumped, name)
        if value not in only.values:
            yield f"{name}: {_shown(value)}: {only.reason}"
    if config.train.colocate_all and mode != "sync":
        yield "train.colocate_all: true: OpenRLHF's engines have GPUs of their own there; use stock-sync, or false"
    if ESTIMATORS[config.algo.advantage.estimator].critic and mode == "sync" and not config.train.colocate_all:
        yield (
            f"algo.advantage.estimator: {config.algo.advantage.estimator}: OpenRLHF's synchronous trainer gives a critic GPUs of "
            "its own beside the trainer's; use stock-async, or an estimator without a critic"
        )
    if config.device == "cpu" and _tied(config.actor.model_name_or_path):
        yield (
            f"actor.model_name_or_path: {config.actor.model_name_or_path}: its output layer is its embedding "
            "(tie_word_embeddings), which cannot be loaded into OpenRLHF's engines again on a CPU; use a model that has two, or "
            "a GPU"
        )


def arguments(config: Config, mode: StockMode, work: StockWork, folder: Path) -> list[str]:
    """OpenRLHF's command line for a configuration of which nothing is :func:`unsayable`. It writes into ``folder``."""
    dumped = config.model_dump(by_alias=True)
    known = {name: _value(dumped, name) for name, _ in settings_of() if _as_it_is(name)}
    values: dict[str, object] = known | _lengths(config, work) | _placed(config, mode)
    if config.device == "cpu":
        for name in ("ds.attn_implementation", "vllm.enforce_eager", "vllm.gpu_memory_utilization"):
            del values[name]
    advantage, reward, critic = config.algo.advantage, config.reward, config.critic
    if not config.actor.entropy_coef:
        del values["actor.entropy_coef"]  # which would have it computed for nothing
    if ESTIMATORS[advantage.estimator].critic:
        values |= {
            "critic.model_name_or_path": critic.model_name_or_path or config.actor.model_name_or_path,
            **{f"critic.adam.{name}": value for name, value in critic.adam},
            "critic.value_clip": NO_BOUND if critic.value_clip is None else critic.value_clip,
            **{f"critic.{name}": values[f"actor.{name}"] for name in ("lr_scheduler", "lr_warmup_ratio", "max_norm")},
        }
    values |= {
        "algo.dynamic_filtering_range": config.algo.dynamic_filtering_range or (0, 1),
        "ckpt.output_dir": folder / "model",
        "ckpt.path": folder / "checkpoints",
        "logger.tensorboard_dir": folder / "tensorboard",
        "reward.clip_range": reward.clip_range or (-NO_BOUND, NO_BOUND),
        "reward.overlong_buffer_len": reward.overlong_buffer_len or None,
        "reward.remote_url": Path(__file__).with_name("judge.py"),
    }
    on_cpu = ON_CPU if config.device == "cpu" else ()
    flags = [flag for flag in FLAGS if flag.removeprefix("--") not in known]
    return [*MODE_FLAGS[mode], *flags, *written(values), *on_cpu]


def _as_it_is(name: str) -> bool:
    """Whether a setting is said by its own name and value."""
    said_elsewhere = name.startswith(OTHERWISE) or name in not_there.HOW or name in not_there.NOT_THERE
    return not said_elsewhere and name not in (
        "train.colocate_all",
        "train.partial_rollout_enable",
        "vllm.sync_backend",
    )


def _lengths(config: Config, work: StockWork) -> dict[str, object]:
    """Prompts, and the warm-up as a share of all gradient steps that there could be."""
    responses = work.count * config.rollout.n_samples_per_prompt
    updates = responses // config.train.batch_size * EPISODES * config.train.max_epochs
    warm_up = max(0.0, config.actor.lr_warmup_steps * config.updates_per_step - 0.5)  # rounded up there
    return {
        "actor.lr_warmup_ratio": warm_up / updates,
        "data.input_key": "input",
        "data.label_key": "label",
        "data.max_len": config.data.max_len,
        "data.prompt_dataset": work.prompts,
        "rollout.max_tokens_per_gpu": config.train.max_tokens_per_gpu,
        "train.num_episodes": EPISODES,
    }


def _placed(config: Config, mode: StockMode) -> dict[str, object]:
    """Reference and critic on the trainer's ranks, as here."""
    ranks = {"num_nodes": config.actor.num_nodes, "num_gpus_per_node": config.actor.num_gpus_per_node}
    placed: dict[str, object] = {}
    if config.algo.kl.init_coef > 0:
        placed |= {"train.colocate_actor_ref": True, **{f"ref.{name}": value for name, value in ranks.items()}}
    if ESTIMATORS[config.algo.advantage.estimator].critic:
        placed |= {"train.colocate_all": True, **{f"critic.{name}": value for name, value in ranks.items()}}
    if config.train.colocate_all and mode == "sync":
        placed |= dict.fromkeys(SHARING, True)
    return placed


def _value(settings: Mapping[str, Any], name: str) -> Any:
    """The value of a setting by its dotted name."""
    return reduce(operator.getitem, name.split("."), settings)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _tied(model: str) -> bool:
    """Whether a model in a folder has one tensor for its embedding and its output layer; False for a name on the hub."""
    file = Path(model) / "config.json"
    if not file.is_file():
        return False
    values: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return bool(values.get("tie_word_embeddings", False))
