"""Reads and checks everything that a run needs before any actor is started."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.environment_checks import check_environment, environment_settings
from dapo_openrlhf.backend.run.model_files import read_model_files
from dapo_openrlhf.backend.run.model_weights import WEIGHTS_REMEDY, weights_trouble
from dapo_openrlhf.backend.run.needs import check_devices, check_packages
from dapo_openrlhf.backend.run.ray_address import asked_address
from dapo_openrlhf.backend.run.reward_servers import check_servers
from dapo_openrlhf.backend.run.stop_tokens import StopTokens, text_parts
from dapo_openrlhf.backend.run.unfit_models import check_trainable
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.dataset.hub import check_name
from dapo_openrlhf.dataset.hub_sets import local_path
from dapo_openrlhf.dataset.joined import JoinedSets
from dapo_openrlhf.dataset.own_code import own_code, refuse_own_code
from dapo_openrlhf.dataset.reading import read_prompt_set, show
from dapo_openrlhf.dataset.remarks import NamedSet, remarks_on
from dapo_openrlhf.dataset.rules import RowRules
from dapo_openrlhf.dataset.store import PromptSet
from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.pipeline.prompts import check_same_prompts
from dapo_openrlhf.rewards.process import RewardProcess, RewardUnavailable
from dapo_openrlhf.rewards.settings import RewardSettings, reward_settings
from dapo_openrlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that a run needs before any actor is started."""

    device: Device
    prompts: Sequence[Prompt]
    problems: Sequence[Sequence[Prompt]]
    """The held-out problems of each set; empty without ``eval.dataset``."""
    stop: StopTokens
    """The tokens that end a response."""
    prompt_set: str = ""
    """Identity by which a resumed run recognises its prompts; see ``PromptState``."""
    set_sizes: tuple[int, ...] = ()
    """Number of prompts from each file."""
    prompt_lengths: Sequence[int] = ()
    """Number of tokens of each prompt; empty without ``data.curriculum``."""
    checkpoint: Path | None = None
    """The checkpoint folder to resume from."""
    state: RunState | None = None
    """The state recorded in that folder."""
    bad_batches: Path = Path("bad_batch")
    """Folder for the batches of updates that were stopped; created when it is needed."""

    @property
    def first_step(self) -> int:
        """Number of rollout steps that an earlier run has done; also the version of the weights at the start."""
        return self.state.step if self.state else 0


def check_inputs(
    config: Config,
    *,
    training: bool,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Inputs:
    """Read the data, and check model and devices. Raises ``ConfigError`` for anything that would fail later.

    ``say`` receives what is worth knowing about the data, including the first prompt.
    """
    check_packages(config, training=training)
    engines = config.vllm.num_engines * config.vllm.tensor_parallel_size
    if config.weight_transfer == "ipc":
        _check_allocator()
    device = Device.of(config.device, processes=engines + (config.trainer_ranks if training else 0))
    check_models(config, checkpoint, say, training=training)
    if trouble := weights_trouble(config.actor.model_name_or_path):
        raise ConfigError(f"actor.model_name_or_path: {trouble}; {WEIGHTS_REMEDY}")
    if (environment := environment_settings(config)) is not None:
        check_environment(environment)
    else:
        check_rewards(reward_settings(config.reward))
    if not asked_address():
        check_devices(config, device, device.count(), "this machine")
    state = None if checkpoint is None else RunState.read(checkpoint)
    if state is not None and state.step >= config.train.max_steps:
        raise ConfigError(
            f"train.max_steps {config.train.max_steps}: {state.step} rollout steps are done already in {checkpoint}; use "
            "more to go on"
        )
    files = read_model_files(
        local_model(config.actor.model_name_or_path),
        chat=config.data.apply_chat_template,
        trust_remote_code=config.actor.trust_remote_code,
        lora=config.ds.lora if training else None,
        balanced=training and config.actor.aux_loss_coef > 0,
    )
    if training:
        check_trainable(config, files.config)
    check_context(config, files.config)
    if files.adapters is not None:
        say(str(files.adapters))
    prompts, problems = read_sets(config, say, training=training)
    _tell(config, prompts, problems, say)
    prompt_set = prompts.identity if prompts else ""
    if state is not None:
        check_same_prompts(state.prompts, count=len(prompts or ()), prompt_set=prompt_set)
    return Inputs(
        device=device,
        prompts=prompts or [],
        problems=problems,
        stop=files.stop,
        prompt_set=prompt_set,
        set_sizes=prompts.sizes if prompts else (),
        prompt_lengths=prompts.lengths() if prompts and config.data.curriculum else (),
        checkpoint=checkpoint,
        state=state,
    )


def _tell(
    config: Config, prompts: JoinedSets | None, problems: Sequence[PromptSet], say: Callable[[str], None]
) -> None:
    """Say what is remarkable about the prompts, and show the first one."""
    for remark in remarks_on(named_sets(config, prompts, problems)):
        say(remark)
    if first := prompts or next(iter(problems), None):
        say(f"first {'prompt' if prompts else 'problem'}, {show(first[0])}")


def _check_allocator() -> None:
    allocator = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "") + os.environ.get("PYTORCH_ALLOC_CONF", "")
    if "expandable_segments:True" in allocator:
        raise ConfigError(
            "PYTORCH_CUDA_ALLOC_CONF: with expandable_segments:True processes share memory slowly or, in most containers, "
            "not at all, which vllm.sync_backend ipc needs; unset it, or use vllm.sync_backend object_store"
        )


def check_rewards(settings: RewardSettings) -> None:
    """Load users' reward files once, in a reward process, and see whether reward servers answer.

    Raises ``ConfigError`` with the error that a file raises, or the address of a server that is away.
    """
    check_servers(settings)
    if any(source.loads_code for source in settings.sources):
        with RewardProcess(settings) as process:
            try:
                process.wait_ready()
            except RewardUnavailable as error:
                printed = "".join(f"\nreward: {line}" for line in process.printed())
                names = " ".join(source.name for source in settings.sources)
                raise ConfigError(f"reward.remote_url: {names}: {error}{printed}") from error


def local_model(name_or_path: str) -> str:
    """The model's absolute path if it is a folder, otherwise its name on the hub."""
    path = Path(name_or_path)
    return str(path.resolve()) if path.is_dir() else name_or_path


def check_models(config: Config, checkpoint: Path | None, say: Callable[[str], None], *, training: bool) -> None:
    """Refuse paths and names without a model, and folders with Python that is not trusted; say which is trusted."""
    models = {"actor.model_name_or_path": config.actor.model_name_or_path}
    if training and config.critic.model_name_or_path is not None:
        models["critic.model_name_or_path"] = config.critic.model_name_or_path
    for setting, model in models.items():
        check_model(model, setting)
        if not Path(model).is_dir():
            check_name(setting, model, say=say)
    if checkpoint is not None:
        models["--resume"] = str(checkpoint)
    folders = {setting: model for setting, model in models.items() if Path(model).is_dir()}
    if not config.actor.trust_remote_code:
        for setting, model in folders.items():
            refuse_own_code(model, setting=setting, remedy="actor.trust_remote_code true")
        return
    named = ", ".join(str(file) for model in folders.values() for file, _ in own_code(model))
    say(
        f"actor.trust_remote_code true: Python that comes with the models runs in this run ({named or 'no folder has any'})"
    )


def check_model(name_or_path: str, setting: str = "actor.model_name_or_path") -> None:
    """Refuse a path that holds no model; a name on the Hugging Face hub is left to transformers."""
    path = Path(name_or_path)
    looks_like_path = path.is_absolute() or name_or_path.startswith(".") or len(path.parts) > 2 or path.exists()
    if (path / "adapter_config.json").is_file():  # transformers would load the adapter into the model
        raise ConfigError(
            f"{setting}: {name_or_path} holds adapters (adapter_config.json), which are trained only from the beginning; add "
            "them to their model's weights first, with merge_and_unload of peft, and name the folder that this is saved in"
        )
    if looks_like_path and not (path / "config.json").is_file():
        raise ConfigError(f"{setting}: there is no model in {name_or_path} (no config.json)")


def check_context(config: Config, values: Mapping[str, Any]) -> None:
    """Refuse more tokens than the model has positions. If positions are scaled, vLLM checks this itself.

    ``values`` are those of the model's config.json.
    """
    parts = [*text_parts(values)]
    ropes = [part[name] for part in parts for name in ("rope_parameters", "rope_scaling") if part.get(name)]
    scaled = any(set(rope) - {"rope_type", "type", "rope_theta"} for rope in ropes)
    positions = [part[name] for part in parts for name in ("max_position_embeddings", "n_positions") if part.get(name)]
    if positions and not scaled and config.data.max_len > max(positions):
        raise ConfigError(
            f"data.max_len: {config.data.max_len} tokens of prompt and response are more than the {max(positions)} positions of "
            f"{config.actor.model_name_or_path} (max_position_embeddings); use at most {max(positions)}, and "
            "rollout.max_new_tokens and eval.max_new_tokens below it"
        )


def read_sets(
    config: Config, say: Callable[[str], None], *, training: bool
) -> tuple[JoinedSets | None, Sequence[PromptSet]]:
    """Read training prompts, None if there is no training, and held-out problems concurrently. Raises ``ConfigError``."""
    with ThreadPoolExecutor(2) as threads:
        prompts = threads.submit(read_prompts, config, say) if training else None
        problems = threads.submit(read_problems, config, say)
        return prompts.result() if prompts else None, problems.result()


def read_prompts(
    config: Config, say: Callable[[str], None] = lambda text: None, *, most: int | None = None
) -> JoinedSets:
    """Read ``data.prompt_dataset`` as the configuration says, at most ``most`` rows of each. Raises ``ConfigError``."""
    rows = min((limit for limit in (most, config.data.max_samples) if limit is not None), default=None)
    rules = replace(row_rules(config, "rollout.max_new_tokens", config.rollout.max_new_tokens), max_rows=rows)
    files = config.data.prompt_dataset
    return JoinedSets([_read_set(config, file, "data.prompt_dataset", rules, say) for file in files])


def read_problems(
    config: Config, say: Callable[[str], None] = lambda text: None, *, most: int | None = None
) -> list[PromptSet]:
    """Read the sets of ``eval.dataset`` as the configuration says, at most ``most`` rows of each. Raises ``ConfigError``."""
    sets = []
    for one in config.eval_sets:
        rows = min((limit for limit in (most, one.max_samples) if limit is not None), default=None)
        rules = replace(
            row_rules(config, one.room, one.max_new_tokens),
            max_rows=rows,
            input_key=one.input_key,
            label_key=one.label_key,
            input_setting=one.column("input_key"),
            label_setting=one.column("label_key"),
        )
        sets.append(_read_set(config, one.path, "eval.dataset", rules, say))
    return sets


def named_sets(config: Config, prompts: JoinedSets | None, problems: Sequence[PromptSet]) -> list[NamedSet]:
    """All sets that were read, by the names that the configuration has for them."""
    trained = zip(config.data.prompt_dataset, prompts.sets if prompts else (), strict=bool(prompts))
    held_out = zip(config.eval_sets, problems, strict=True)
    return [
        *(NamedSet(name=name, setting="data.prompt_dataset", prompts=one) for name, one in trained),
        *(NamedSet(name=of.path, setting="eval.dataset", prompts=one) for of, one in held_out),
    ]


def _read_set(config: Config, name: str, setting: str, rules: RowRules, say: Callable[[str], None]) -> PromptSet:
    split = config.data.prompt_split if setting == "data.prompt_dataset" else config.eval.split
    path = local_path(name, setting=setting, say=say, split=split)
    return read_prompt_set(path, rules, setting=setting, on_bad_row=config.data.on_bad_row, say=say)


def row_rules(config: Config, room: str, max_new_tokens: int) -> RowRules:
    """The rules that rows must satisfy. ``room`` names the setting that ``max_new_tokens`` comes from."""
    data = config.data
    return RowRules(
        model=local_model(config.actor.model_name_or_path),
        input_key=data.input_key,
        label_key=data.label_key,
        needs_answer=config.needs_answers,
        may_lack_label=config.train.agent_func_path is not None,
        max_tokens=data.max_len - max_new_tokens,
        why_max=f"data.max_len {data.max_len:,} less {room} {max_new_tokens:,}",
        input_template=data.input_template,
        apply_chat_template=data.apply_chat_template,
        chat_template_kwargs=data.chat_template_kwargs,
        system_prompt=data.system_prompt,
        trust_remote_code=config.actor.trust_remote_code,
    )
