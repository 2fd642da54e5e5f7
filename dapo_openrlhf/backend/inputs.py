"""What a run needs before anything is started: read, and refused if it could not run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.backend.cluster import check_devices
from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.checkpoint import RunState
from dapo_openrlhf.config import Config, ConfigError
from dapo_openrlhf.judge.process import Judge, JudgeUnavailable
from dapo_openrlhf.judge.settings import JudgeSettings, judge_settings
from dapo_openrlhf.prompts import check_same_prompts, load_prompts
from dapo_openrlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a run needs before anything is started."""

    device: Device
    prompts: list[Prompt]
    problems: list[Prompt]
    """Held-out problems; empty without ``eval.dataset``."""
    checkpoint: Path | None = None
    """Folder to resume from."""
    state: RunState | None = None
    """What that folder says."""

    @property
    def first_step(self) -> int:
        """Rollout steps that an earlier run has done; also the version of the weights at the start."""
        return self.state.step if self.state else 0


def check_inputs(config: Config, *, training: bool, checkpoint: Path | None = None) -> Inputs:
    """Read the data and look for model and devices. Raises ``ConfigError`` for whatever would fail later."""
    engines = config.vllm.num_engines * config.vllm.tensor_parallel_size
    allocator = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "") + os.environ.get("PYTORCH_ALLOC_CONF", "")
    if config.weight_transfer == "ipc" and "expandable_segments:True" in allocator:
        raise ConfigError(
            "PYTORCH_CUDA_ALLOC_CONF: with expandable_segments:True processes share memory slowly or, in most containers, "
            "not at all, which vllm.sync_backend ipc needs; unset it, or use vllm.sync_backend object_store"
        )
    device = Device.of(config.device, processes=engines + (config.trainer_ranks if training else 0))
    check_model(config.actor.model_name_or_path)
    if training and config.critic.model_name_or_path is not None:
        check_model(config.critic.model_name_or_path, "critic.model_name_or_path")
    check_rewards(judge_settings(config.reward))
    prompts = read_prompts(config, config.data.prompt_dataset) if training else []
    problems = read_prompts(config, config.eval.dataset)[: config.eval.max_samples] if config.eval.dataset else []
    if not os.environ.get("RAY_ADDRESS"):
        check_devices(config, device, device.count(), "this machine")
    state = None if checkpoint is None else RunState.read(checkpoint)
    if state is not None and state.step >= config.train.max_steps:
        raise ConfigError(
            f"train.max_steps: {config.train.max_steps} rollout steps are done already in {checkpoint}; use more to go on"
        )
    if state is not None:
        check_same_prompts(prompts, state.prompts)
    return Inputs(device=device, prompts=prompts, problems=problems, checkpoint=checkpoint, state=state)


def check_rewards(settings: JudgeSettings) -> None:
    """Load users' files once, here. Raises ``ConfigError`` with what they raise."""
    if any(source.endswith(".py") for source in settings.sources):
        with Judge(settings) as judge:
            try:
                judge.wait_ready()
            except JudgeUnavailable as error:
                raise ConfigError(f"reward.remote_url: {' '.join(settings.sources)}: {error}") from error


def local_model(name_or_path: str) -> str:
    """Absolute if it is a folder, else a hub's name."""
    path = Path(name_or_path)
    return str(path.resolve()) if path.is_dir() else name_or_path


def check_model(name_or_path: str, setting: str = "actor.model_name_or_path") -> None:
    """Refuse a path that holds no model; a name on the Hugging Face hub is left to transformers."""
    path = Path(name_or_path)
    looks_like_path = path.is_absolute() or name_or_path.startswith(".") or len(path.parts) > 2 or path.exists()
    if looks_like_path and not (path / "config.json").is_file():
        raise ConfigError(f"{setting}: there is no model in {name_or_path} (no config.json)")


def read_prompts(config: Config, dataset: str) -> list[Prompt]:
    """The prompts of a data set as the configuration says."""
    data = config.data
    return load_prompts(
        Path(dataset), input_key=data.input_key, label_key=data.label_key, input_template=data.input_template
    )
