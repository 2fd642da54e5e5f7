"""Settings at a resume: every one is obeyed, or refused with the reason before anything is touched."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny_model import make_looks, make_tiny_tokenizer

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.backend.run.inputs import read_prompts
from dapo_openrlhf.cli.train import train
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config, dump_config, load_config
from dapo_openrlhf.config.settings import Config, settings_of
from dapo_openrlhf.pipeline.checkpoint import SETTINGS_FILE, STATE_FILE, Checkpoints, RunState
from dapo_openrlhf.pipeline.prompts import PromptState, PromptStream
from dapo_openrlhf.pipeline.resume import CHANGEABLE, FIXED, check_resume, resume_table
from dapo_openrlhf.pipeline.resume_point import newest_point
from dapo_openrlhf.report.run_lock import LOCK_FILE
from dapo_openrlhf.types import Prompt

DOCS = Path(__file__).parents[2] / "docs" / "resume.md"

BASE: dict[str, Any] = {
    "device": "cpu",
    "ds.attn_implementation": "sdpa",
    "ds.param_dtype": "fp32",
    "algo.advantage.estimator": "gae",
    "algo.kl.init_coef": 0.1,
    "rollout.batch_size": 8,
    "rollout.n_samples_per_prompt": 4,
    "rollout.max_new_tokens": 64,
    "train.batch_size": 16,
    "data.max_len": 128,
    "actor.model_name_or_path": "model",
    "data.prompt_dataset": "prompts.jsonl",
}
OTHER: dict[str, Any] = {
    "preset": "grpo",
    "device": "cuda",
    "run.name": "other",
    "run.dir": "others",
    "report.wandb": "offline",
    "logger.wandb.org": "other",
    "logger.wandb.group": "other",
    "logger.wandb.run_name": "other",
    "actor.model_name_or_path": "other",
    "actor.policy_loss_type": "gspo",
    "actor.loss_agg_mode": "seq-mean-token-mean",
    "actor.lr_scheduler": "cosine",
    "actor.eps_clip_low_high": [0.1, 0.3],
    "actor.dual_clip": 3.0,
    "actor.adam.betas": [0.9, 0.95],
    "critic.adam.betas": [0.9, 0.95],
    "critic.model_name_or_path": "other",
    "critic.value_clip": None,
    "ds.zero_stage": 3,
    "ds.param_dtype": "bf16",
    "ds.adam_offload": True,
    "ds.lora.target_modules": "q_proj",
    "ds.attn_implementation": "flash_attention_2",
    "vllm.gpu_memory_utilization": 0.5,
    "vllm.kv_cache_memory_bytes": 1 << 20,
    "vllm.max_num_seqs": 8,
    "vllm.max_num_batched_tokens": 512,
    "vllm.sync_backend": "object_store",
    "rollout.max_new_tokens": 32,
    "ds.grad_accum_dtype": "bf16",
    "train.max_rollout_kl": 0.5,
    "reward.answer_form": "number",
    "data.chat_template_kwargs": {"enable_thinking": False},
    "data.system_prompt": "Sum.",
    "data.on_bad_row": "skip",
    "train.batch_size": 8,
    "train.max_steps": 10,
    "async.at_deadline": "cut",
    "async.over_sampling": 2.0,
    "async.kv_cache": "recompute",
    "async.old_logprobs": "rollout",
    "actor.sapo_tau": [1.1, 1.0],
    "actor.entropy_coef": 0.01,
    "algo.kl.unbiased_gradient": True,
    "reward.stop_properly_penalty_coef": -0.5,
    "reward.clip_range": [-5.0, 5.0],
    "algo.advantage.is_correction": "tis",
    "algo.advantage.is_correction_gating": "tv",
    "algo.advantage.is_correction_cap": 2.0,
    "algo.advantage.estimator": "group_norm",
    "algo.advantage.gamma": 0.9,
    "algo.advantage.lambd": 0.9,
    "algo.advantage.is_correction_level": "off",
    "algo.advantage.is_correction_mode": "mask",
    "algo.advantage.is_correction_threshold": [0.5, 2.0],
    "algo.kl.use_loss": True,
    "algo.kl.estimator": "k3",
    "algo.dynamic_filtering_range": [0.2, 0.8],
    "reward.remote_url": "https://reward.example",
    "reward.weights": [2.0],
    "reward.batch_size": 4,
    "reward.overlong_buffer_len": 8,
    "data.prompt_dataset": ["other.jsonl"],
    "data.prompt_probs": [1.0],
    "data.max_samples": 5,
    "data.input_template": "Q: {}",
    "data.prompt_split": "test",
    "eval.dataset": ["heldout.jsonl"],
    "eval.split": "test",
    "eval.sets": {"heldout": {"temperature": 0.5}},
    "eval.max_samples": 5,
    "eval.steps": 2,
    "eval.target": 0.9,
    "eval.patience": 3,
    "train.max_hours": 2.0,
    "eval.top_p": 0.7,
    "eval.max_new_tokens": 32,
    "ckpt.save_steps": 2,
    "ckpt.best_metric_key": "none",
    "vllm.tensor_parallel_size": 2,
    "train.agent_func_path": "environment.py",
    "rollout.max_action_tokens": 4,
}
"""Another value for each setting that its type alone does not give one."""
BESIDE: dict[str, dict[str, Any]] = {
    "actor.policy_loss_type": {"actor.loss_agg_mode": "seq-mean-token-mean"},
    "algo.advantage.is_correction_mode": {"algo.advantage.is_correction_level": "token"},
    "algo.advantage.is_correction_gating": {"algo.advantage.is_correction_mode": "mask"},
    "algo.advantage.is_correction_cap": {"algo.advantage.is_correction_mode": "mask"},
    "device": {"ds.attn_implementation": "sdpa"},
    "ds.adam_offload": {"device": "cuda"},
    "ds.use_liger_kernel": {"device": "cuda"},
    "ds.lora.rank": {"algo.advantage.estimator": "group_norm"},
    "ds.lora.alpha": {"algo.advantage.estimator": "group_norm", "ds.lora.rank": 8},
    "ds.lora.target_modules": {"algo.advantage.estimator": "group_norm", "ds.lora.rank": 8},
    "ds.attn_implementation": {"device": "cuda", "ds.param_dtype": "bf16"},
    "train.colocate_all": {"device": "cuda", "vllm.gpu_memory_utilization": 0.4},
    "vllm.tensor_parallel_size": {"device": "cuda"},
    "algo.kl.use_loss": {"algo.kl.estimator": "k3"},
    "algo.kl.unbiased_gradient": {"algo.kl.use_loss": True, "algo.kl.estimator": "k3"},
    "data.chat_template_kwargs": {"data.apply_chat_template": True},
    "data.system_prompt": {"data.apply_chat_template": True},
    "train.ema_beta": {"train.enable_ema": True},
    "environment.timeout": {"train.agent_func_path": "environment.py"},
    "environment.memory": {"train.agent_func_path": "environment.py"},
    "environment.workers": {"train.agent_func_path": "environment.py"},
    "eval.sets": {"eval.dataset": "heldout.jsonl"},
    "eval.target": {"eval.dataset": "heldout.jsonl", "eval.steps": 2},
    "eval.patience": {"eval.dataset": "heldout.jsonl", "eval.steps": 2},
}
"""What a setting's other value needs that the base has not; it is so on both sides."""


def config(**dotted: Any) -> Config:
    nested: dict[str, Any] = {}
    for name, value in {**BASE, **dotted}.items():
        *sections, key = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return build_config(nested, source="test")


def other_value(name: str) -> Any:
    if name in OTHER:
        return OTHER[name]
    value: Any = config()
    for part in name.split("."):
        value = value.async_ if part == "async" else value.__getattribute__(part)
    match value:
        case bool():
            return not value
        case int():
            return value * 2 or 3
        case float():
            return value / 2 or 0.5
        case str():
            return "other"
    raise AssertionError(f"{name}: give it another value in OTHER")


def make_run(folder: Path, settings: Config, *, lies: bool = True) -> Path:
    """A run with a checkpoint after two steps; ``lies``: the checkpoint has the settings with it."""
    run = folder / "run"
    checkpoints = Checkpoints(run / "checkpoints", max_num=3, settings=dump_config(settings))
    checkpoints.begin(2)
    made = Path(checkpoints.finish(RunState(step=2, prompts=PromptState(drawn=5, returned=(), prompt_count=9))))
    if not lies:
        (made / SETTINGS_FILE).unlink()
    (run / "config.yaml").write_text(dump_config(settings))
    return run


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK_FILE]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def check(run: Path, now: Config) -> list[str]:
    changes = check_resume(now, run=run, checkpoint=run / "checkpoints" / "step-000002")
    return [change.name for change in changes]


def test_every_setting_is_in_one_of_the_two_tables() -> None:
    names = {name for name, _ in settings_of()}
    assert set(FIXED) & set(CHANGEABLE) == set()
    assert names - set(FIXED) - set(CHANGEABLE) == set(), (
        "say in resume.py whether a resumed run may change it, and why"
    )
    assert (set(FIXED) | set(CHANGEABLE)) - names == set(), "resume.py speaks of settings that are not there"


ONE_VALUE = {"ds.lora.dropout"}
"""Settings of which a training takes one value only."""


@pytest.mark.parametrize("name", [name for name, _ in settings_of() if name not in ONE_VALUE])
def test_every_setting_is_obeyed_or_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    beside = BESIDE.get(name, {})
    value = other_value(name)
    run = make_run(tmp_path, config(**{**beside, **({"device": "cpu"} if name == "device" else {})}))
    now = config(**{**beside, name: value})
    if name in CHANGEABLE or name in ("data.prompt_dataset", "data.prompt_split", "algo.advantage.estimator"):
        assert check(run, now) == [name]
        return
    before = contents(tmp_path)
    with pytest.raises(ConfigError) as refused:
        check(run, now)
    said = str(refused.value)
    assert f"  {name} " in said and FIXED[name].reason in said
    if FIXED[name].remedy:
        assert FIXED[name].remedy in said
    else:
        words = shlex.split(said.splitlines()[-1])
        shown = "1" if value == [1.0] else str(value).replace("True", "true")
        assert words[words.index(f"--{name}") + 1] == shown
    assert contents(tmp_path) == before


def test_a_refused_resume_shows_the_command_that_goes_on_from_the_model(tmp_path: Path) -> None:
    run = make_run(tmp_path, config())
    with pytest.raises(ConfigError) as refused:
        check(
            run, config(**{"actor.num_gpus_per_node": 2, "actor.adam.lr": 1e-5, "actor.eps_clip_low_high": [0.1, 0.2]})
        )
    command = str(refused.value).splitlines()[-1].split()
    assert command[:2] == ["dapo-openrlhf", "train"]
    assert command[2:6] == [
        "--config", f"{run}/config.yaml", "--actor.model_name_or_path", f"{run}/checkpoints/step-000002",
    ]  # fmt: skip
    from dapo_openrlhf.config.loading import parse_overrides

    new = load_config(run / "config.yaml", parse_overrides(command[4:]))
    assert (new.actor.num_gpus_per_node, new.actor.adam.lr, new.actor.eps_clip_low_high) == (2, 1e-5, (0.1, 0.2))


def test_ranks_may_be_spread_over_nodes_otherwise(tmp_path: Path) -> None:
    run = make_run(tmp_path, config(**{"actor.num_gpus_per_node": 4}))
    assert check(run, config(**{"actor.num_nodes": 2, "actor.num_gpus_per_node": 2})) == [
        "actor.num_nodes", "actor.num_gpus_per_node",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="each trainer rank has saved its own part"):
        check(run, config(**{"actor.num_nodes": 2, "actor.num_gpus_per_node": 4}))


def test_a_critic_cannot_appear_in_a_run_that_has_none(tmp_path: Path) -> None:
    run = make_run(tmp_path, config(**{"algo.advantage.estimator": "rloo"}))
    assert check(run, config(**{"algo.advantage.estimator": "dr_grpo"})) == ["algo.advantage.estimator"]
    with pytest.raises(ConfigError, match=r"algo.advantage.estimator rloo -> gae: the checkpoint holds no critic"):
        check(run, config())


def test_what_was_written_over_the_run_s_configuration_hides_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, config())
    (run / "config.yaml").write_text(dump_config(config(**{"ds.zero_stage": 3})))
    with pytest.raises(ConfigError, match=r"ds.zero_stage 2 -> 3"):
        check(run, load_config(run / "config.yaml"))
    old = make_run(tmp_path / "old", config(), lies=False)  # of a version that kept no settings in its checkpoints
    with pytest.raises(ConfigError, match=r"ds.zero_stage 2 -> 3"):
        check(old, load_config(old / "config.yaml", {"ds.zero_stage": 3}))


def test_the_command_refuses_before_anything_is_started_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, config())
    before = contents(tmp_path)
    for command in ("train", "submit"):
        assert main([command, "--resume", str(run), "--ds.zero_stage", "3", "--actor.adam.lr", "1e-5"]) == 2
        said = capsys.readouterr().err
        assert "ds.zero_stage 2 -> 3" in said
        assert "--actor.adam.lr 1e-05 --ds.zero_stage 3" in said.splitlines()[-1]
    assert contents(tmp_path) == before


@pytest.mark.long
def test_other_prompts_are_refused_before_anything_is_started_or_written(tmp_path: Path) -> None:
    def write(name: str, rows: list[tuple[str, str]]) -> str:
        file = tmp_path / name
        file.write_text("".join(json.dumps({"input": text, "label": label}) + "\n" for text, label in rows))
        return str(file)

    rows = [(f"{index}+1=", str(index + 1)) for index in range(9)]
    make_tiny_tokenizer(tmp_path / "model")
    make_looks(tmp_path / "model", {"model_type": "qwen2", "vocab_size": 99})
    model = {"actor.model_name_or_path": str(tmp_path / "model"), "data.prompt_dataset": write("p.jsonl", rows)}
    run = make_run(tmp_path, config(**model))
    prompts = read_prompts(config(**model))
    stream = PromptStream(prompts, seed=0, prompt_set=prompts.identity)
    state = RunState(step=2, prompts=stream.state([]))
    checkpoints = Checkpoints(run / "checkpoints", max_num=3, settings=dump_config(config(**model)))
    checkpoints.begin(2)
    checkpoints.finish(state)
    before = contents(run)
    for name, changed in {"reversed": rows[::-1], "fewer": rows[:-1], "edited": [("1+1=2", "2"), *rows[1:]]}.items():
        other = config(**model | {"data.prompt_dataset": write(f"{name}.jsonl", changed)})
        with pytest.raises(ConfigError, match=r"data.prompt_dataset: holds \d prompts, .*the run to resume"):
            train(other, started=0.0, resume=newest_point(run, print), stream=io.StringIO())
    assert contents(run) == before


def test_an_answer_may_be_corrected_and_the_file_moved() -> None:
    def prompts(label: str) -> list[Prompt]:
        return [Prompt(id=0, text="1+1=", label=label), Prompt(id=1, text="2+2=", label="4")]

    state = PromptStream(prompts("3"), seed=0).state([])
    assert PromptStream(prompts("2"), seed=0, state=state).state([]) == state
    read = json.loads(json.dumps({"drawn": 0, "returned": [], "prompt_count": 2}))  # of an earlier version
    assert PromptStream(prompts("2"), seed=0, state=PromptState(**read)).state([]).prompt_count == 2


def test_a_checkpoint_remembers_its_prompts(tmp_path: Path) -> None:
    run = make_run(tmp_path, config())
    folder = run / "checkpoints" / "step-000002"
    state = RunState(step=2, prompts=PromptState(drawn=5, returned=(1,), prompt_count=9, prompt_set="ab"))
    (folder / STATE_FILE).unlink()
    checkpoints = Checkpoints(run / "checkpoints", max_num=3)
    checkpoints.begin(2)
    assert RunState.read(Path(checkpoints.finish(state))) == state


def test_the_documentation_has_the_tables_of_the_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert resume_table() in text, (
        "run: python -m dapo_openrlhf.pipeline.resume, and put its output into docs/resume.md"
    )
    assert not re.search(r"TODO|FIXME", text)
