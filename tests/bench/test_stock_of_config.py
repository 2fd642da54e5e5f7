"""A user's configuration as stock OpenRLHF's: what is said, what cannot be, and how its responses are judged."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.bench.arm import ArmSettings
from dapo_openrlhf.bench.config_arm import Variant, variants
from dapo_openrlhf.bench.stock.command import StockMode
from dapo_openrlhf.bench.stock.of_config import check_sayable
from dapo_openrlhf.bench.stock.said import EPISODES, arguments, unsayable
from dapo_openrlhf.bench.stock.steps import complete_steps
from dapo_openrlhf.bench.stock.terms import JUDGE, Terms, label_of, question_of
from dapo_openrlhf.bench.stock.work import StockWork
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.not_there import FEWER, HOW, NOT_THERE, ON_CPU, ON_CUDA
from dapo_openrlhf.config.reward_origin import PythonFile
from dapo_openrlhf.config.settings import Config, setting_names
from dapo_openrlhf.rewards.settings import RewardSettings

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart_cpu.yaml"
TERMS = Terms(settings=RewardSettings(), unheard=("<eos>", "<pad>"), by_scores=False)


def a_config(settings: Mapping[str, Any] | None = None, *, device: str = "cpu") -> Config:
    nested: dict[str, Any] = {
        "device": device,
        "actor": {"model_name_or_path": "OWNER/MODEL"},
        "data": {"prompt_dataset": "prompts.jsonl"},
        "reward": {"overlong_filtering_enable": False},
    }
    if device == "cpu":
        nested["ds"] = {"attn_implementation": "sdpa", "param_dtype": "fp32"}
    for name, value in (settings or {}).items():
        *sections, key = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return build_config(nested, source="test")


def said(config: Config, mode: StockMode = "async") -> dict[str, list[str]]:
    """The options of the command with their values."""
    options: dict[str, list[str]] = {}
    for word in arguments(config, mode, StockWork(prompts=Path("p.jsonl"), count=1000, terms=TERMS), Path("out")):
        if word.startswith("--"):
            options[word[2:]] = []
        else:
            options[[*options][-1]].append(word)
    return options


def test_every_setting_is_said_or_stands_where_it_is_told_why_not() -> None:
    known = set(setting_names())
    assert {*NOT_THERE, *FEWER, *ON_CUDA, *ON_CPU, *HOW} <= known
    assert not NOT_THERE.keys() & HOW
    assert not (NOT_THERE.keys() | HOW) & FEWER.keys()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"reward.overlong_filtering_enable": True}, ["reward.overlong_filtering_enable: true"]),
        ({"rollout.min_p": 0.1, "rollout.top_k": 20}, ["rollout.min_p: 0.1", "rollout.top_k: 20"]),
        ({"rollout.top_k": -1}, []),
        ({"async.at_deadline": "cut"}, ["async.at_deadline: cut"]),
        ({"async.old_logprobs": "rollout"}, ["async.old_logprobs: rollout"]),
        ({"actor.policy_loss_type": "cispo"}, ["actor.policy_loss_type: cispo"]),
        ({"actor.lr_scheduler": "cosine"}, ["actor.lr_scheduler: cosine"]),
        ({"ds.lora.rank": 8}, ["ds.lora.rank: 8"]),
        ({"train.agent_func_path": "agent.py"}, ["train.agent_func_path: agent.py"]),
        (
            {"data.prompt_dataset": ["a.jsonl", "b.jsonl"], "data.prompt_probs": [0.5, 0.5]},
            ["data.prompt_probs: 0.5 0.5"],
        ),
        ({"vllm.tensor_parallel_size": 2}, ["vllm.tensor_parallel_size: 2"]),
        ({"vllm.max_num_seqs": 64, "vllm.kv_cache_memory_bytes": 1 << 28}, []),
    ],
)
def test_what_openrlhf_lacks_is_named_with_its_value(settings: dict[str, Any], names: list[str]) -> None:
    found = [": ".join(sentence.split(": ")[:2]) for sentence in unsayable(a_config(settings), "async")]
    assert sorted(found) == sorted(names)


def test_a_gpu_and_a_trainer_have_limits_of_their_own() -> None:
    sdpa = a_config({"ds.attn_implementation": "sdpa", "vllm.max_num_seqs": 64}, device="cuda")
    assert [sentence.split(":")[0] for sentence in unsayable(sdpa, "async")] == [
        "ds.attn_implementation",
        "vllm.max_num_seqs",
    ]
    shared = a_config({"train.colocate_all": True, "vllm.gpu_memory_utilization": 0.4}, device="cuda")
    assert not [*unsayable(shared, "sync")]
    assert [sentence.split(":")[0] for sentence in unsayable(shared, "async")] == ["train.colocate_all"]
    assert said(shared, "sync").keys() >= {"train.colocate_all", "vllm.enable_sleep", "ds.enable_sleep"}
    critic = a_config({"preset": "ppo"})
    assert not [*unsayable(critic, "async")]
    assert [sentence.split(":")[0] for sentence in unsayable(critic, "sync")] == ["algo.advantage.estimator"]


def test_a_model_with_one_tensor_for_both_ends_is_refused_on_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    (sentence,) = unsayable(a_config({"actor.model_name_or_path": str(tmp_path)}), "async")
    assert sentence.startswith(f"actor.model_name_or_path: {tmp_path}: its output layer is its embedding")
    on_gpu = a_config({"actor.model_name_or_path": str(tmp_path)}, device="cuda")
    assert not [*unsayable(on_gpu, "async")]


def test_the_command_says_the_same_work() -> None:
    options = said(
        a_config(
            {
                "rollout.batch_size": 16,
                "rollout.n_samples_per_prompt": 8,
                "rollout.max_new_tokens": 40,
                "train.batch_size": 64,
                "actor.adam.lr": 2e-4,
                "actor.lr_warmup_steps": 5,
                "actor.num_gpus_per_node": 2,
                "data.max_len": 96,
                "data.apply_chat_template": True,
                "data.system_prompt": "Be brief.",
                "reward.stop_properly_penalty_coef": -0.5,
                "vllm.num_engines": 2,
            }
        )
    )
    assert options["rollout.batch_size"] == ["16"] and options["train.batch_size"] == ["64"]
    assert (options["actor.adam.lr"], options["actor.eps_clip_low_high"]) == (["0.0002"], ["0.2", "0.28"])
    assert (options["actor.num_gpus_per_node"], options["vllm.num_engines"]) == (["2"], ["2"])
    assert (options["rollout.max_new_tokens"], options["data.max_len"]) == (["40"], ["96"])
    assert options["algo.dynamic_filtering_enable"] == [] and options["algo.dynamic_filtering_range"] == ["0", "1"]
    assert options["reward.clip_range"] == ["-1000000000", "1000000000"], "OpenRLHF's default would clip"
    assert options["reward.stop_properly_penalty_coef"] == ["-0.5"]
    assert (options["data.prompt_dataset"], options["data.input_key"]) == (["p.jsonl"], ["input"])
    assert "data.apply_chat_template" not in options, "the prompts are written as the model sees them"
    assert Path(options["reward.remote_url"][0]).name == "judge.py"
    updates = 1000 * 8 // 64 * EPISODES
    assert float(options["actor.lr_warmup_ratio"][0]) * updates == pytest.approx(5 * 2 - 0.5), "rounded up: 10"
    assert options["train.async_enable"] == [] and "train.partial_rollout_enable" not in options
    assert not options.keys() & {"vllm.gpu_memory_utilization", "actor.entropy_coef", "ref.num_nodes", "critic.adam.lr"}


def test_reference_and_critic_lie_on_the_trainers_ranks() -> None:
    options = said(a_config({"preset": "ppo", "actor.num_gpus_per_node": 2, "critic.value_clip": None}))
    assert options.keys() >= {"train.colocate_all", "train.colocate_actor_ref"}
    assert options["ref.num_gpus_per_node"] == options["critic.num_gpus_per_node"] == ["2"]
    assert options["critic.adam.lr"] == ["9e-06"] and options["critic.adam.betas"] == ["0.9", "0.999"]
    assert options["critic.value_clip"] == ["1000000000"]
    assert options["critic.lr_warmup_ratio"] == options["actor.lr_warmup_ratio"]


def test_arms_that_cannot_be_said_are_refused_together_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    command = ["bench", "--config", str(QUICKSTART), "--arms", "k1,stock-async,stock-sync", "--json", str(file)]
    assert main([*command, "--rollout.min_p", "0.1", "--actor.model_name_or_path", "there/is/none"]) == 2
    error = capsys.readouterr().err
    assert "--arms: stock-async, stock-sync: this configuration cannot be said in OpenRLHF's options:" in error
    assert "  rollout.min_p: 0.1: " in error and "  reward.overlong_filtering_enable: true: " in error
    assert error.count("rollout.min_p") == 1
    assert not file.exists()
    assert main([*command, "--eval", "--reward.overlong_filtering_enable", "false"]) == 2
    assert "--eval: stock-async, stock-sync" in capsys.readouterr().err


def test_a_setting_that_one_trainer_lacks_is_said_of_that_one() -> None:
    with pytest.raises(ConfigError, match=r"algo.advantage.estimator: gae: .* \(stock-sync\)\n"):
        check_sayable(a_config({"preset": "ppo"}), {"stock-async": "async", "stock-sync": "sync"})


def test_variants_of_stock_have_splits_and_no_k() -> None:
    assert variants("stock-async", "1:1,2:2") == [
        Variant(key="stock-async", split=(1, 1)),
        Variant(key="stock-async", split=(2, 2)),
    ]
    (one,) = variants("stock-sync", None)
    assert (one.stock, one.max_staleness, one.name) == ("sync", None, "stock OpenRLHF, synchronous")
    with pytest.raises(ValueError, match=r"'stock' is no arm; use .* stock-sync, stock-async"):
        variants("stock", None)


def judge(monkeypatch: pytest.MonkeyPatch, terms: Terms) -> Any:
    """The reward file as OpenRLHF loads it: by its path, outside of any package."""
    monkeypatch.setenv(JUDGE, terms.to_json())
    file = Path(str(importlib.util.find_spec("dapo_openrlhf.bench.stock.said").origin)).with_name("judge.py")  # type: ignore[union-attr]
    spec = importlib.util.spec_from_file_location("reward_func", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reward_func


def test_the_rule_judges_stocks_responses_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = judge(monkeypatch, TERMS)
    label = label_of("12", {"level": 1})
    assert reward(["5+7=Answer: 12<eos>"], ["5+7="], [label]) == {"rewards": 1.0, "scores": 1.0}
    assert reward(["5+7=Answer: 13<eos>"], ["5+7="], [label]) == {"rewards": -1.0, "scores": 0.0}
    with pytest.raises(ValueError, match="does not give the prompt back"):
        reward(["5 + 7=Answer: 12"], ["5+7="], [label])


def test_a_users_reward_gets_the_row_and_decides_what_is_filtered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def reward_func(queries, prompts, labels):\n"
        "    return {'rewards': [len(queries[0]) / 4], 'scores': [labels[0]['worth']]}\n"
    )
    settings = RewardSettings(sources=(PythonFile(str(file)),), correct_from=0.5)
    label = label_of({"worth": 0.75}, {})
    by_right = judge(monkeypatch, Terms(settings=settings, unheard=(), by_scores=False))
    assert by_right(["ab"], ["a"], [label]) == {"rewards": 0.5, "scores": 1.0}
    by_scores = judge(monkeypatch, Terms(settings=settings, unheard=(), by_scores=True))
    assert by_scores(["ab"], ["a"], [label]) == {"rewards": 0.5, "scores": 0.75}


def test_a_question_is_without_the_tokens_that_end_it() -> None:
    question = question_of("<bos>2+2=4<eos><pad>", "<bos>2+2=", json.dumps(["4", {"level": 3}]), ("<eos>", "<pad>"))
    assert (question.responses, question.label, question.columns) == (["4"], "4", {"level": 3})


def test_a_step_that_is_not_written_in_full_does_not_count() -> None:
    names = ("timing/generation", "timing/make_experience", "timing/ppo_train", "timing/broadcast")
    scalars = {name: {1: (5.0, 1.0), 2: (9.0, 1.0)} for name in (*names, "rollout/response_length_mean")}
    scalars["rollout/num_samples"] = {1: (5.0, 128.0), 2: (9.0, 128.0), 3: (12.0, 128.0)}
    unfiltered = [*complete_steps(scalars, ArmSettings(), 0.0)]
    assert [(step.finished, step.generated_groups) for step in unfiltered] == [(5.0, 16.0), (9.0, 16.0)]
    scalars["dynamic_filtering_pass_rate"] = {1: (5.0, 400.0)}
    assert [step.generated_groups for step in complete_steps(scalars, ArmSettings(), 0.0)] == [32.0]
