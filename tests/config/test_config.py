"""Every setting is checked before anything starts, and refusals name key, value and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config, build_reward, dump_config, load_config, parse_overrides
from dapo_openrlhf.config.settings import Config, setting_names

SHIPPED = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The least that a configuration must say."""
    path = tmp_path / "run.yaml"
    path.write_text("actor: {model_name_or_path: some/model}\ndata: {prompt_dataset: prompts.jsonl}\n")
    return path


def load(file: Path, *arguments: str) -> Config:
    return load_config(file, parse_overrides(arguments))


def refusal(file: Path, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, *arguments)
    return str(caught.value)


# ---------------------------------------------------------------- defaults and shipped files


def test_defaults_are_the_papers_main_run(file: Path) -> None:
    config = load(file)
    assert (config.rollout.batch_size, config.rollout.n_samples_per_prompt, config.train.batch_size) == (512, 16, 512)
    assert config.updates_per_step == 16
    assert config.rollout.max_new_tokens == 20480
    assert config.actor.eps_clip_low_high == (0.2, 0.28)
    assert config.actor.loss_agg_mode == "token-mean"
    assert config.actor.dual_clip is None
    assert (config.actor.adam.lr, config.actor.lr_scheduler, config.actor.lr_warmup_steps) == (
        1e-6,
        "constant_with_warmup",
        20,
    )
    assert (config.rollout.temperature, config.rollout.top_p) == (1.0, 1.0)
    assert config.algo.dynamic_filtering_enable
    assert config.reward.overlong_filtering_enable


def test_staleness_is_off_by_one_and_corrected_by_default(file: Path) -> None:
    config = load(file)
    assert config.async_.max_staleness == 1
    assert config.async_.old_logprobs == "recompute"
    assert config.algo.advantage.is_correction_level == "token"
    assert config.algo.advantage.is_correction_threshold == (0.0, 2.0)


def test_updates_count_all_epochs(file: Path) -> None:
    assert load(file, "--train.max_epochs", "3", "--train.batch_size", "1024").updates_per_step == 3 * 8


def test_trainer_ranks_count_all_nodes(file: Path) -> None:
    assert load(file, "--actor.num_nodes", "2", "--actor.num_gpus_per_node", "8").trainer_ranks == 16


def test_configurations_are_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configuration_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


# ---------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("rollout.batchsize", "rollout.batch_size"),
        ("rollout.n_samples", "rollout.n_samples_per_prompt"),
        ("actor.eps_clip_low_hi", "actor.eps_clip_low_high"),
        ("async.max_stalenes", "async.max_staleness"),
        ("async_.max_staleness", "async"),
        ("rolout.batch_size", "rollout"),
        ("batch_size", "train.batch_size"),
        ("actor.lr", "actor.adam.lr"),
        ("reward.overlong_buffer", "reward.overlong_buffer_len"),
        ("devise", "device"),
    ],
)
def test_unknown_key_names_the_nearest(file: Path, wrong: str, meant: str) -> None:
    message = refusal(file, f"--{wrong}", "1")
    assert wrong.split(".")[0] in message
    assert "there is no such setting" in message
    assert f"did you mean {meant}?" in message


def test_unknown_key_far_from_everything_suggests_nothing(file: Path) -> None:
    message = refusal(file, "--zzzz", "1")
    assert "zzzz: there is no such setting" in message
    assert "did you mean" not in message


def test_a_setting_is_not_a_section(file: Path) -> None:
    assert "device.kind: device is a setting, not a section" in refusal(file, "--device", "cpu", "--device.kind", "1")


# ---------------------------------------------------------------- single values


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("rollout.batch_size", "many", "'many' is not accepted: input should be a valid integer"),
        ("rollout.batch_size", "2.5", "2.5 is not accepted"),
        ("rollout.batch_size", "true", "True is not accepted"),
        ("rollout.batch_size", "0", "0 is not accepted: input should be greater than or equal to 1"),
        ("rollout.temperature", "0", "0 is not accepted: input should be greater than or equal to 0.01"),
        ("rollout.temperature", "2.1", "2.1 is not accepted: input should be less than or equal to 2"),
        ("eval.temperature", "0.001", "0.001 is colder than vLLM samples; use 0, which is greedy, or at least 0.01"),
        ("rollout.top_p", "1.5", "1.5 is not accepted: input should be less than or equal to 1"),
        ("actor.adam.lr", "fast", "'fast' is not accepted: input should be a valid number"),
        ("actor.adam.lr", ".nan", "nan is not accepted"),
        ("actor.dual_clip", "1", "1 is not accepted: input should be greater than 1"),
        (
            "actor.loss_agg_mode",
            "mean",
            "'mean' is not accepted: input should be 'token-mean', 'seq-mean-token-mean', 'prompt-mean-token-mean' or "
            "'seq-mean-token-sum-norm'",
        ),
        ("algo.dynamic_filtering_enable", "maybe", "'maybe' is not accepted: input should be a valid boolean"),
        ("async.max_staleness", "-1", "-1 is not accepted: input should be greater than or equal to 0"),
        ("vllm.gpu_memory_utilization", "0", "0 is not accepted: input should be greater than 0"),
        ("ds.zero_stage", "0", "0 is not accepted: input should be 1, 2 or 3"),
        ("preset", "dappo", "'dappo' is not accepted: input should be 'dapo', 'dapo-paper', 'dapo-recipe', 'grpo' or"),
        ("preset", "[ppo]", "['ppo'] is not accepted"),
        ("algo.advantage.estimator", "mc", "'mc' is not accepted: input should be 'group_norm', 'dr_grpo', 'rloo'"),
        ("algo.advantage.lambd", "1.1", "1.1 is not accepted: input should be less than or equal to 1"),
        ("algo.kl.init_coef", "-0.1", "-0.1 is not accepted: input should be greater than or equal to 0"),
        ("critic.value_clip", "0", "0 is not accepted: input should be greater than 0"),
        ("device", "tpu", "'tpu' is not accepted: input should be 'cpu' or 'cuda'"),
        ("rollout", "3", "3 is not accepted"),
        ("data.input_key", "", "an empty value (null) is not accepted: input should be a valid string"),
    ],
)
def test_wrong_value_is_refused_with_key_value_and_reason(file: Path, key: str, value: str, reason: str) -> None:
    assert f"{key}: {reason}" in refusal(file, f"--{key}", value)


def test_commas_between_values_are_pointed_at(file: Path) -> None:
    told = refusal(file, "--data.prompt_probs", "0.5,0.5")
    assert "data.prompt_probs.0: '0.5,0.5' is not accepted; several values are given with blanks between them" in told


@pytest.mark.parametrize("values", [["0.2"], ["0.2", "0.28", "0.3"], ["0.2", "high"], ["0.2", "-0.1"]])
def test_a_range_has_two_numbers(file: Path, values: list[str]) -> None:
    assert "actor.eps_clip_low_high" in refusal(file, "--actor.eps_clip_low_high", *values)


def test_missing_settings_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({"actor": {}, "data": {}}, source="here")
    message = str(caught.value)
    assert message.startswith("here cannot be run:")
    assert "actor.model_name_or_path: must be set" in message
    assert "data.prompt_dataset: must be set" in message


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    message = refusal(file, "--rollout.batch_size", "x", "--train.batchsize", "1", "--device", "tpu")
    assert len(message.splitlines()) == 4  # the source, and a line for each


def test_settings_cannot_change_afterwards(file: Path) -> None:
    config = load(file)
    with pytest.raises(ValueError, match="frozen"):
        config.rollout.batch_size = 1


# ---------------------------------------------------------------- impossible combinations


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            "--train.batch_size 500",
            ["train.batch_size: 500 does not divide", "512 x", "16 = 8192", "use a divisor of 8192, such as 512"],
        ),
        (
            "--train.batch_size 512 --actor.num_gpus_per_node 3",
            ["train.batch_size: 512 is not a multiple of the 3 trainer ranks", "use a multiple of 3"],
        ),
        (
            "--rollout.n_samples_per_prompt 1",
            ["rollout.n_samples_per_prompt: 1 leaves", "algo.advantage.estimator group_norm needs at least 2"],
        ),
        (
            "--rollout.n_samples_per_prompt 1 --algo.advantage.estimator rloo",
            ["rollout.n_samples_per_prompt: 1 leaves", "algo.advantage.estimator rloo needs at least 2"],
        ),
        (
            "--rollout.n_samples_per_prompt 1 --algo.advantage.estimator gae",
            ["algo.dynamic_filtering_enable: true drops every prompt of a single response", "use false"],
        ),
        (
            "--algo.advantage.gamma 0.9",
            ["algo.advantage.gamma: 0.9 has no meaning for algo.advantage.estimator group_norm", "use 1, or gae"],
        ),
        (
            "--algo.advantage.lambd 0.95 --algo.advantage.estimator dr_grpo",
            ["algo.advantage.lambd: 0.95 has no meaning for algo.advantage.estimator dr_grpo", "use 1, or gae"],
        ),
        (
            "--algo.advantage.no_std_norm",
            ["algo.advantage.no_std_norm: true has no meaning", "group_norm", "use false"],
        ),
        (
            "--critic.model_name_or_path some/model",
            ["critic.model_name_or_path: some/model is not used by", "group_norm", "use null, or gae"],
        ),
        (
            "--algo.kl.init_coef 0.1 --algo.kl.use_loss",
            ["algo.kl.estimator: k1 as a loss has no gradient on average", "use k3 or k2, or algo.kl.use_loss false"],
        ),
        (
            "--reward.overlong_buffer_len 101 --rollout.max_new_tokens 100",
            ["reward.overlong_buffer_len: 101", "rollout.max_new_tokens 100", "use at most 100"],
        ),
        (
            "--data.max_len 100 --rollout.max_new_tokens 100",
            ["data.max_len: 100 leaves no room", "rollout.max_new_tokens 100", "use more than 100"],
        ),
        (
            "--algo.advantage.is_correction_threshold 2.0 0.5",
            ["algo.advantage.is_correction_threshold: 2.0 0.5 is not a range", "0 <= LOW < HIGH"],
        ),
        (
            "--algo.advantage.is_correction_threshold -1.0 2.0",
            ["algo.advantage.is_correction_threshold: -1.0 2.0 is not a range", "0 <= LOW < HIGH"],
        ),
        ("--data.input_template Question:", ["data.input_template: 'Question:'", "has no {} where the prompt goes"]),
        ("--rollout.top_k -2", ["rollout.top_k", "-2", "greater than or equal to -1"]),
        ("--rollout.min_p 1", ["rollout.min_p", "less than 1"]),
        (
            "--ds.zero_stage 1",
            ["ds.zero_stage: 1", "ds.grad_accum_dtype fp32", "use 2", "ds.grad_accum_dtype bf16"],
        ),
        (
            "--device cuda --ds.adam_offload",
            ["ds.adam_offload: true with ds.zero_stage 2", "use ds.zero_stage 3, or ds.grad_accum_dtype bf16"],
        ),
        ("--train.max_rollout_kl 0", ["train.max_rollout_kl: 0 is not accepted", "greater than 0"]),
        (r"--data.input_template {}\\boxed{}", ["data.input_template", "has 2 {}", "write {{}} for mere braces"]),
        (
            "--data.input_template Q:{} --data.apply_chat_template",
            ["data.input_template: has no place beside data.apply_chat_template true", "data.system_prompt"],
        ),
        ("--data.system_prompt Sum.", ["data.system_prompt: 'Sum.'", "set data.apply_chat_template true"]),
        (
            "--data.chat_template_kwargs.enable_thinking false",
            ["data.chat_template_kwargs: {'enable_thinking': False}", "set data.apply_chat_template true"],
        ),
        (
            "--data.apply_chat_template --data.chat_template_kwargs.tokenize true",
            ["data.chat_template_kwargs: tokenize is not for the template to be told"],
        ),
        (
            "--data.apply_chat_template --data.chat_template_kwargs [1]",
            ["data.chat_template_kwargs: [1] is not accepted", "dictionary"],
        ),
        ("--data.label_key null", ["data.label_key: null", "name the column with the answers"]),
        ("--data.on_bad_row drop", ["data.on_bad_row: 'drop' is not accepted", "'refuse' or 'skip'"]),
        (
            "--data.prompt_dataset a b --data.prompt_probs 0.7 0.2",
            ["data.prompt_probs: 0.7 0.2 are 0.9 together, not 1", "use 0.7778 0.2222"],
        ),
        ("--data.prompt_probs 0.7 0.3", ["data.prompt_probs: 2 for 1 files", "give one for each file"]),
        ("--data.prompt_dataset a b --data.prompt_probs 1 0", ["data.prompt_probs.1: 0 is not accepted"]),
        ("--data.prompt_dataset a b a", ["data.prompt_dataset: a stands there 2 times", "name each file once"]),
        ("--data.max_samples 0", ["data.max_samples: 0 is not accepted"]),
        (
            "--data.curriculum --algo.dynamic_filtering_enable false",
            ["data.curriculum: true", "algo.dynamic_filtering_enable true"],
        ),
        ("--eval.target 0.9", ["eval.target: 0.9 needs evaluations", "set eval.dataset and eval.steps"]),
        ("--eval.patience 2 --eval.dataset h", ["eval.patience: 2 needs evaluations"]),
        ("--eval.target 90", ["eval.target: 90 is not accepted"]),
        ("--train.max_hours 0", ["train.max_hours: 0 is not accepted"]),
        ("--eval.steps 0", ["eval.steps: 0 is neither -1 nor a positive number"]),
        ("--eval.steps -2", ["eval.steps: -2 is neither -1 nor a positive number"]),
        ("--eval.max_samples 0", ["eval.max_samples: 0 is not accepted", "greater than or equal to 1"]),
        (
            "--eval.max_new_tokens 30000",
            ["eval.max_new_tokens: 30000 leaves no room", "data.max_len", "use less than"],
        ),
        ("--ckpt.save_steps 0", ["ckpt.save_steps: 0 is neither -1 nor a positive number"]),
        (
            "--ckpt.best_metric_key pass@3 --eval.n_samples_per_prompt 4",
            ["ckpt.best_metric_key: 'pass@3'", "use one of avg@4, pass@1, pass@2, pass@4, maj@2, maj@4, or none"],
        ),
        ("--ckpt.save_steps -2", ["ckpt.save_steps: -2 is neither -1 nor a positive number"]),
        (
            "--device cpu --ds.attn_implementation flash_attention_2",
            ["ds.attn_implementation: flash_attention_2 needs a GPU", "use sdpa"],
        ),
        (
            "--device cpu --ds.attn_implementation sdpa --ds.adam_offload",
            ["ds.adam_offload: true", "device: cpu", "use false"],
        ),
        (
            "--device cpu --ds.attn_implementation sdpa --ds.param_dtype fp16",
            ["ds.param_dtype: fp16", "use fp32 or bf16 with device: cpu"],
        ),
        (
            "--device cuda --ds.param_dtype fp32",
            ["ds.param_dtype: fp32 is not supported by flash_attention_2", "use bf16, or sdpa"],
        ),
        (
            "--device cpu --ds.attn_implementation sdpa --train.colocate_all",
            ["train.colocate_all: true is for GPUs", "use false"],
        ),
        (
            "--device cpu --ds.attn_implementation sdpa --vllm.sync_backend nccl",
            ["vllm.sync_backend: nccl needs GPUs", "use auto or object_store"],
        ),
        ("--vllm.sync_backend gloo", ["vllm.sync_backend: gloo needs a CPU", "use auto or nccl with device: cuda"]),
        (
            "--train.colocate_all --vllm.gpu_memory_utilization 0.4 --vllm.sync_backend nccl",
            ["vllm.sync_backend: nccl refuses two processes on one GPU", "use auto or ipc"],
        ),
        (
            "--vllm.sync_backend ipc",
            ["vllm.sync_backend: ipc needs engine and trainer on the same GPU", "auto or nccl"],
        ),
        ("--train.colocate_all", ["vllm.gpu_memory_utilization: 0.9 leaves the trainer", "at most 0.7, such as 0.4"]),
        (
            "--algo.advantage.is_correction_level seq",
            ["algo.advantage.is_correction_mode: clip has no meaning", "use mask, or level token"],
        ),
        ("--actor.policy_loss_type gspo", ["actor.loss_agg_mode: token-mean", "use seq-mean-token-mean"]),
        (
            "--algo.dynamic_filtering_range 0.5 0.5",
            ["algo.dynamic_filtering_range: 0.5 0.5 is not a range", "use LOW <"],
        ),
        ("--reward.remote_url http://a/x,http://b/x", ["OpenRLHF asks addresses", "give one address"]),
        (
            "--train.colocate_all --vllm.gpu_memory_utilization 0.4 --vllm.num_engines 2",
            ["vllm.num_engines: 2 engines", "1 trainer ranks", "use 1"],
        ),
        (
            "--train.colocate_all --vllm.gpu_memory_utilization 0.4 --vllm.tensor_parallel_size 2",
            ["vllm.tensor_parallel_size: 2 needs GPUs of its own", "use 1 with train.colocate_all"],
        ),
        ("--environment.memory 100", ["environment.memory: has no meaning", "set train.agent_func_path"]),
        (
            "--train.agent_func_path calculator",
            ["train.agent_func_path: calculator is no Python file", "AgentExecutor"],
        ),
        (
            "--train.agent_func_path a.py --reward.remote_url b.py",
            ["reward.remote_url: b.py would never be asked", "leave one of the two out"],
        ),
        (
            "--train.agent_func_path a.py --environment.timeout 61 --async.generate_timeout 60",
            ["environment.timeout: 61 s", "more than async.generate_timeout 60 s"],
        ),
    ],
)
def test_impossible_combination_is_refused(file: Path, arguments: str, parts: list[str]) -> None:
    message = refusal(file, *arguments.split())
    assert len(message.splitlines()) == 2, message  # the source, and this one problem
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "arguments",
    [
        "--train.batch_size 8192",
        "--actor.num_gpus_per_node 8 --actor.num_nodes 2",
        "--rollout.n_samples_per_prompt 2",
        "--rollout.n_samples_per_prompt 1 --algo.advantage.estimator gae --algo.dynamic_filtering_enable false",
        "--algo.advantage.estimator gae --algo.advantage.gamma 0.99 --algo.advantage.lambd 0 --critic.value_clip null",
        "--algo.advantage.estimator gae --algo.advantage.no_std_norm --critic.model_name_or_path some/model",
        "--algo.advantage.estimator reinforce_baseline --algo.advantage.no_std_norm",
        "--algo.kl.init_coef 0.1 --algo.kl.use_loss --algo.kl.estimator k2",
        "--algo.kl.use_loss",  # without a coefficient there is no KL
        "--actor.policy_loss_type gspo --actor.eps_clip_low_high 3e-4 4e-4 --actor.loss_agg_mode seq-mean-token-mean",
        "--algo.advantage.estimator reinforce --algo.advantage.gamma 0.9",
        "--algo.advantage.is_correction_threshold 3",
        "--algo.advantage.is_correction_level seq --algo.advantage.is_correction_mode mask",
        "--algo.dynamic_filtering_range 0.2 0.8",
        "--reward.overlong_buffer_len 100 --rollout.max_new_tokens 100",
        "--reward.overlong_buffer_len 0",
        "--data.max_len 101 --rollout.max_new_tokens 100",
        "--algo.advantage.is_correction_threshold 0 .inf",
        "--data.input_template Q:{}",
        "--eval.steps 1 --ckpt.save_steps 1",
        "--eval.steps -1 --ckpt.save_steps -1",
        "--device cpu --ds.attn_implementation sdpa --ds.param_dtype fp32",
        "--device cuda --ds.attn_implementation sdpa --ds.param_dtype fp32",
        "--device cuda --ds.adam_offload --ds.zero_stage 3",
        "--device cuda --ds.adam_offload --ds.grad_accum_dtype null",
        "--device cuda --ds.zero_stage 1 --ds.grad_accum_dtype bf16",
        "--train.max_rollout_kl .inf",
        "--train.colocate_all --vllm.gpu_memory_utilization 0.7",
        "--train.colocate_all --vllm.kv_cache_memory_bytes 1000000000 --vllm.sync_backend ipc",
        "--train.colocate_all --vllm.gpu_memory_utilization 0.4 --vllm.sync_backend object_store",
        "--actor.eps_clip_low_high 0.2 0.2",
        "--async.max_staleness 0",
        "--train.agent_func_path a.py --data.label_key null --environment.timeout 3600 --environment.workers 1",
    ],
)
def test_combination_on_the_edge_is_accepted(file: Path, arguments: str) -> None:
    load(file, *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "way", "devices"),
    [
        ("", "nccl", 2),
        ("--vllm.tensor_parallel_size 4 --vllm.num_engines 2", "nccl", 9),
        ("--train.colocate_all --vllm.gpu_memory_utilization 0.4", "ipc", 1),
        ("--vllm.sync_backend object_store --vllm.tensor_parallel_size 2", "object_store", 3),
        ("--device cpu --ds.attn_implementation sdpa", "object_store", 2),
    ],
)
def test_placement_decides_how_weights_travel(file: Path, arguments: str, way: str, devices: int) -> None:
    config = load(file, *arguments.split())
    assert (config.weight_transfer, config.devices) == (way, devices)


def test_several_impossible_combinations_are_told_at_once(file: Path) -> None:
    message = refusal(file, "--train.batch_size", "500", "--eval.steps", "0")
    assert len(message.splitlines()) == 3


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        ([], {}),
        (["--a.b", "3"], {"a.b": 3}),
        (["--a.b=3"], {"a.b": 3}),
        (["a.b=3"], {"a.b": 3}),
        (["--a.b", "1e-6"], {"a.b": 1e-6}),
        (["--a.b=2.5E+3"], {"a.b": 2500.0}),
        (["--a.b", "-1"], {"a.b": -1}),
        (["--a.b", "0.2", "0.28"], {"a.b": [0.2, 0.28]}),
        (["--a.b", "[0.2, 0.28]"], {"a.b": [0.2, 0.28]}),
        (["--a.b"], {"a.b": True}),
        (["--a.b", "--c.d", "1"], {"a.b": True, "c.d": 1}),
        (["--a.b", "false"], {"a.b": False}),
        (["--a.b", "null"], {"a.b": None}),
        (["--a.b", "some/model-1.5B"], {"a.b": "some/model-1.5B"}),
        (["--a.b=x=y"], {"a.b": "x=y"}),
        (["--a.b", "Solve: {}"], {"a.b": "Solve: {}"}),
        (["--a.b=[unclosed"], {"a.b": "[unclosed"}),
        (["run.name=x", "--train.seed", "2", "device=cpu"], {"run.name": "x", "train.seed": 2, "device": "cpu"}),
        (["--data.input_template", "Q={} A="], {"data.input_template": "Q={} A="}),  # names no section: a value
        (["--run.dir", "on=disk/1"], {"run.dir": "on=disk/1"}),
        (["--a.b", "1", "--a.b", "2"], {"a.b": 2}),
    ],
)
def test_override_forms(arguments: list[str], overrides: dict[str, Any]) -> None:
    assert parse_overrides(arguments) == overrides


def test_evaluation_may_truncate_what_training_may_not(file: Path) -> None:
    assert load(file, "--eval.top_p", "0.7").eval.top_p == 0.7


def test_how_far_engines_and_trainer_may_differ_depends_on_the_data_type(file: Path) -> None:
    sdpa = ("--ds.attn_implementation", "sdpa")
    assert load(file).max_rollout_kl == 0.1
    assert load(file, *sdpa, "--ds.param_dtype", "fp32").max_rollout_kl == 1e-3
    assert load(file, *sdpa, "--ds.param_dtype", "fp32", "--train.max_rollout_kl", "0.5").max_rollout_kl == 0.5


def test_gradients_add_up_in_float32_unless_told_otherwise(file: Path) -> None:
    assert load(file).ds.grad_accum_dtype == "fp32"
    assert load(file, "--ds.grad_accum_dtype", "null").ds.grad_accum_dtype is None


def test_a_value_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the argument '64'; settings are given as --section\.key"):
        parse_overrides(["64", "--a.b", "1"])


def test_overrides_win_over_the_file(file: Path) -> None:
    file.write_text(file.read_text() + "rollout: {batch_size: 8, temperature: 0.5}\ntrain: {batch_size: 8}\n")
    config = load(file, "--rollout.batch_size", "16", "--actor.adam.lr", "5e-7")
    assert config.rollout.batch_size == 16
    assert config.rollout.temperature == 0.5  # its neighbours stay
    assert config.actor.adam.lr == 5e-7


# ---------------------------------------------------------------- files


def test_scientific_notation_without_a_point_is_a_number(file: Path) -> None:
    file.write_text("actor: {model_name_or_path: m, adam: {lr: 1e-6}}\ndata: {prompt_dataset: d}\n")
    assert load(file).actor.adam.lr == 1e-6


def test_dump_and_load_round_trip(file: Path, tmp_path: Path) -> None:
    arguments = (
        "--actor.adam.lr 3e-7 --actor.eps_clip_low_high 0.1 0.3 --actor.dual_clip 10 --async.max_staleness 4 "
        "--algo.advantage.is_correction_threshold 0.5 .inf --reward.overlong_buffer_len 64 --run.name übung"
    )
    config = load(file, *arguments.split(), "--data.input_template", "Question: {}\nAnswer:")
    assert config.data.input_template == "Question: {}\nAnswer:"
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config
    assert "async" in yaml.safe_load(copy.read_text())  # the names that people write


def test_dump_says_every_setting(file: Path) -> None:
    config = load(file)
    dumped = yaml.safe_load(dump_config(config))
    for name in setting_names():
        inner = dumped
        for part in name.split("."):
            inner = inner[part]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "is not valid YAML"),
        ("- a\n- b\n", "holds list, not a mapping"),
        ("", "holds NoneType, not a mapping"),
    ],
)
def test_unreadable_file_is_named(file: Path, text: str, reason: str) -> None:
    file.write_text(text)
    message = refusal(file)
    assert str(file) in message
    assert reason in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent.yaml: No such file"):
        load_config(tmp_path / "absent.yaml")


def test_yaml_cannot_run_code(file: Path) -> None:
    file.write_text("actor: !!python/object/apply:os.getcwd []\n")
    assert "is not valid YAML" in refusal(file)


# ---------------------------------------------------------------- descriptions


SELF_EXPLANATORY = {
    "actor.num_nodes",
    "actor.adam.eps",
    "critic.adam.eps",
    "actor.gradient_checkpointing_enable",
    "ds.attn_implementation",
    "train.seed",
    "eval.temperature",
    "eval.top_p",
}
"""Settings whose name says all there is to say."""


def test_every_setting_has_a_description() -> None:
    names = setting_names()
    assert "async.max_staleness" in names and "actor.adam.lr" in names
    assert sorted(name for name, description in names.items() if not description and name not in SELF_EXPLANATORY) == []


def test_setting_names_are_all_names_in_the_order_of_the_file(file: Path) -> None:
    dumped = yaml.safe_load(dump_config(load(file)))

    def leaves(settings: dict[str, Any], prefix: str = "") -> list[str]:
        return [
            name
            for key, value in settings.items()
            for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [prefix + key])
        ]

    assert leaves(dumped) == list(setting_names())


def test_dotted_keys_and_empty_sections_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "flat.yaml"
    file.write_text("actor: {model_name_or_path: m}\ndata.prompt_dataset: d\nreward:\nrollout.batch_size: 3\n")
    config = load_config(file, {"reward.num_workers": 2, "train.batch_size": 48})
    assert (config.data.prompt_dataset, config.rollout.batch_size, config.reward.num_workers) == (("d",), 3, 2)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("device: cpu # für".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not a text file"):
        load_config(file)


@pytest.mark.parametrize(
    ("given", "sources"),
    [
        (None, ("rule",)),
        ("rule", ("rule",)),
        ("mine.py", ("mine.py",)),
        (["rule", "http://host:5000/get_reward"], ("rule", "http://host:5000/get_reward")),
    ],
)
def test_rewards_are_one_or_several(given: object, sources: tuple[str, ...]) -> None:
    assert build_reward({"remote_url": given}, source="x").remote_url == sources


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"remote_url": "reward"}, "reward is no reward; give rule"),
        ({"remote_url": "ftp://host"}, "ftp://host is no reward"),
        ({"remote_url": []}, "remote_url"),
        ({"remote_url": ["rule", "a.py"], "weights": [1]}, "1 weights for 2 rewards"),
        ({"weights": float("nan")}, "weights"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_impossible_rewards_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_reward(given, source="x")
    assert words in str(caught.value)


def test_a_response_may_not_take_longer_than_its_group() -> None:
    settings = {"actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "d"}, "reward": {"timeout": 61.0}}
    with pytest.raises(
        ConfigError, match=r"reward\.timeout: 61 s for one response is more than async\.reward_timeout 60 s"
    ):
        build_config(settings, source="x")


def test_the_chat_template_is_told_what_is_given_in_parts_or_as_a_mapping(file: Path) -> None:
    parts = ["--data.chat_template_kwargs.enable_thinking", "false", "--data.chat_template_kwargs.depth=3"]
    whole = ["--data.chat_template_kwargs", "{enable_thinking: false, depth: 3}"]
    for arguments in (parts, whole):
        config = load(file, "--data.apply_chat_template", *arguments)
        assert config.data.chat_template_kwargs == {"enable_thinking": False, "depth": 3}
