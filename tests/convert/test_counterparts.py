"""What other programs' names mean here where there is a setting by now, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config

Captured = pytest.CaptureFixture[str]
MODEL, ACTOR, ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
CORRECTION = "algorithm.rollout_correction"
VERL = (
    f"algorithm.adv_estimator=grpo {MODEL}.path=m {ROLLOUT}.n=8 trainer.n_gpus_per_node=2 "
    f"{ROLLOUT}.tensor_model_parallel_size=1 data.train_files=a.parquet"
)
OPENRLHF = (
    "--pretrain m --prompt_data a.jsonl --actor_num_gpus_per_node 1 --vllm_num_engines 1 "
    "--advantage_estimator group_norm --n_samples_per_prompt 8"
)


def converted(capsys: Captured, *words: str) -> tuple[Config, str]:
    status = main(["convert", *words])
    out, said = capsys.readouterr()
    assert status == 0, said
    return build_config(yaml.safe_load(out), source="test"), said


def verl(capsys: Captured, *words: str, module: str = "verl.trainer.main_ppo") -> tuple[Config, str]:
    return converted(capsys, "python3", "-m", module, *VERL.split(), *words)


def openrlhf(capsys: Captured, words: str) -> tuple[Config, str]:
    return converted(capsys, "python3", "-m", "openrlhf.cli.train_ppo_ray", *OPENRLHF.split(), *words.split(" "))


def value(config: Config, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, "async_" if part == "async" else part)
    return config


@pytest.mark.parametrize(
    ("word", "name", "wanted"),
    [
        (f"{MODEL}.use_liger=True", "ds.use_liger_kernel", True),
        (f"{MODEL}.use_liger=False", "ds.use_liger_kernel", False),
        (f"{MODEL}.lora_rank=32", "ds.lora.rank", 32),
        (f"{MODEL}.override_config.attn_implementation=eager", "ds.attn_implementation", "sdpa"),
        (f"{ACTOR}.optim.betas=[0.9,0.95]", "actor.adam.betas", (0.9, 0.95)),
        (f"{ACTOR}.optim.clip_grad=0.5", "actor.max_norm", 0.5),
        (f"{ROLLOUT}.max_num_seqs=64", "vllm.max_num_seqs", 64),
        (f"{ROLLOUT}.max_num_batched_tokens=8192", "vllm.max_num_batched_tokens", 8192),
        ("data.seed=7", "train.seed", 7),
        ("data.filter_overlong_prompts=True", "data.on_bad_row", "skip"),
        ("data.trust_remote_code=True", "actor.trust_remote_code", True),
        ("+data.apply_chat_template_kwargs.enable_thinking=False", "data.chat_template_kwargs", {"enable_thinking": False}),
        ('trainer.logger=["console","wandb"]', "report.wandb", "online"),
        ("trainer.max_actor_ckpt_to_keep=2", "ckpt.max_num", 2),
        (f"{CORRECTION}.bypass_mode=True", "async.old_logprobs", "rollout"),
        ("async_training.staleness_threshold=0.5", "async.max_staleness", 1),
    ],
)  # fmt: skip
def test_verls_names_that_are_settings_by_now(capsys: Captured, word: str, name: str, wanted: Any) -> None:
    config, said = verl(capsys, word)
    assert value(config, name) == wanted
    assert "no counterpart" not in said


def test_verls_adapters_keep_their_scale_and_layers(capsys: Captured) -> None:
    config, said = verl(
        capsys, f"{MODEL}.lora_rank=8", f"{MODEL}.lora_alpha=32", f"{MODEL}.target_modules=[q_proj,v_proj]"
    )
    assert (config.ds.lora.rank, config.ds.lora.alpha) == (8, 32)
    assert config.ds.lora.target_modules == ("q_proj", "v_proj")
    config, said = verl(capsys, f"{MODEL}.lora_rank=0", f"{MODEL}.lora_alpha=16", f"{MODEL}.target_modules=all-linear")
    assert config.ds.lora.rank == 0 and "lora" not in said


def test_verls_length_of_a_run_follows_from_its_prompts(capsys: Captured) -> None:
    config, said = verl(capsys, "trainer.total_epochs=2", "data.train_max_samples=10240", "data.train_batch_size=512")
    assert config.train.max_steps == 40 and "40 is 2 x 10240 prompts / 512" in said


def test_verls_critic_is_left_out_where_none_is_trained(capsys: Captured) -> None:
    config, said = verl(capsys, "critic.model.path=c", "critic.optim.lr=3e-6", "critic.ppo_epochs=2")
    assert config.critic.model_name_or_path is None and "critic" not in said
    config, said = verl(
        capsys,
        "algorithm.adv_estimator=gae",
        "critic.model.path=c",
        "critic.cliprange_value=0.3",
        "critic.ppo_epochs=2",
    )
    assert (config.critic.model_name_or_path, config.critic.value_clip) == ("c", 0.3)
    assert "critic.ppo_epochs: 2 has no counterpart" in said


@pytest.mark.parametrize(
    ("words", "level", "bounds", "cap"),
    [
        ("rollout_rs=geometric rollout_rs_threshold=1.01 rollout_rs_threshold_lower=0.99", "seq", (0.99, 1.01), None),
        ("rollout_rs=seq_mean_k1 rollout_rs_threshold=0.999_1.001 rollout_is=token", "seq", (0.999, 1.001), 2),
        ("rollout_rs=token rollout_rs_threshold=4", "token", (0.25, 4), None),
        ("rollout_rs=token_k1 rollout_is=token rollout_is_threshold=3", "token", (0.5, 2), 3),
    ],
)
def test_verls_rejection_is_a_mask(
    capsys: Captured, words: str, level: str, bounds: tuple[float, float], cap: float | None
) -> None:
    config, said = verl(capsys, *(f"{CORRECTION}.{word}" for word in words.split()))
    advantage = config.algo.advantage
    assert (advantage.is_correction_level, advantage.is_correction_mode) == (level, "mask")
    assert (advantage.is_correction_threshold, advantage.is_correction_cap) == (bounds, cap)
    assert ("what is not rejected is weighted" in said) == (cap is None)


def test_verls_runs_ahead_keep_their_gpus_and_age(capsys: Captured) -> None:
    config, said = verl(
        capsys, "rollout.nnodes=1", "rollout.n_gpus_per_node=6", module="recipe.one_step_off_policy.main_ppo"
    )
    assert (config.async_.max_staleness, config.vllm.num_engines, config.actor.num_gpus_per_node) == (1, 6, 2)
    assert "no counterpart" not in said
    config, _ = verl(capsys, module="recipe.fully_async_policy.fully_async_main")
    assert config.async_.max_staleness == 1


@pytest.mark.parametrize(
    ("word", "remark"),
    [
        (f"{MODEL}.lora_adapter_path=/x", "merge_and_unload"),
        (f"{ROLLOUT}.multi_turn.enable=True", "train.agent_func_path"),
        (f"{ROLLOUT}.val_kwargs.top_k=20", "20 is no setting of evaluations"),
        (f"{CORRECTION}.rollout_rs=sequence", "sequence is not here"),
        ("data.sampler.class_path=s.py", "data.curriculum"),
        ("data.truncation=left", "left cuts long prompts, which are refused here"),
        ("reward_model.enable=True", "serve one with openrlhf.cli.serve_rm"),
        ("trainer.val_only=True", "dapo-openrlhf eval"),
        ("trainer.logger=mlflow", "mlflow is not here"),
        ("algorithm.use_pf_ppo=True", "algorithm.use_pf_ppo: True has no counterpart"),
    ],
)
def test_verls_names_without_a_setting_say_the_way(capsys: Captured, word: str, remark: str) -> None:
    assert remark in verl(capsys, word)[1]


def test_what_verls_own_defaults_say_of_how_is_no_remark(capsys: Captured) -> None:
    words = (
        f"{ACTOR}.policy_loss.clip_cov_ratio=0.0002 {ACTOR}.checkpoint.save_contents=[model] {ACTOR}.optim.num_cycles=0.5 "
        f"{ACTOR}.optim.min_lr_ratio=0.0 {ROLLOUT}.response_length=512 {ROLLOUT}.multi_turn.format=hermes "
        f"{ROLLOUT}.agent.num_workers=8 algorithm.kl_ctrl.horizon=10000 algorithm.pf_ppo.weight_pow=2.0 data.image_key=images "
        "reward_model.model.path=rm reward_model.strategy=fsdp trainer.device=cuda trainer.max_actor_ckpt_to_keep=null"
    )
    assert "no counterpart" not in verl(capsys, *words.split())[1]


def test_openrlhfs_optimizer_is_named_only_where_it_is_another(capsys: Captured) -> None:
    _, said = openrlhf(capsys, "--actor.optim adam --critic.optim adam --actor.muon.lr 0.02")
    assert "optim" not in said and "muon" not in said
    _, said = openrlhf(capsys, "--actor.optim muon --actor.muon.lr 0.02")
    assert "--actor.optim: AdamW is the only" in said and "--actor.muon.lr" in said


@pytest.mark.parametrize(
    ("sets", "wanted"), [("a.jsonl", "pass@1"), ("math.jsonl,aime.jsonl", "aime/pass@1")]
)  # fmt: skip
def test_openrlhfs_best_metric_has_its_name_here(capsys: Captured, sets: str, wanted: str) -> None:
    config, said = openrlhf(capsys, f"--eval_dataset {sets} --eval_steps 5 --best_metric_key eval_aime_pass1")
    assert config.ckpt.best_metric_key == wanted
    assert f"eval_aime_pass1 is {wanted} here" in said
    assert openrlhf(capsys, "--best_metric_key none")[0].ckpt.best_metric_key == "none"


def test_openrlhfs_adapters_lose_their_dropout_aloud(capsys: Captured) -> None:
    config, said = openrlhf(capsys, "--lora_rank 8 --lora_dropout 0.05 --target_modules q_proj v_proj")
    assert (config.ds.lora.rank, config.ds.lora.dropout) == (8, 0)
    assert config.ds.lora.target_modules == ("q_proj", "v_proj") and "--lora_dropout: " in said


def test_an_agent_gives_the_rewards(capsys: Captured) -> None:
    config, said = openrlhf(capsys, "--agent_func_path agent.py --remote_rm_url http://a/get_reward")
    assert config.reward.remote_url == ("rule",) and "--remote_rm_url: left out" in said


@pytest.mark.parametrize("behind", ["$EXTRA", '$([ "$DEBUG" = 1 ] && echo "--seed 3")'])
def test_a_variable_behind_a_value_is_no_value(capsys: Captured, tmp_path: Path, behind: str) -> None:
    script = tmp_path / "run.sh"
    script.write_text(f"python3 -m openrlhf.cli.train_ppo_ray {OPENRLHF} --rollout_batch_size 16 {behind} --seed 7\n")
    config, said = converted(capsys, str(script))
    assert (config.rollout.batch_size, config.train.seed) == (16, 7)
    assert f"{behind}: is not set in there; if it holds options" in said
    _, said = openrlhf(capsys, "--target_modules q_proj --lora_rank 8 --eps_clip_low_high 0.2 0.28")
    assert "is not set in there" not in said


def test_a_variable_among_several_values_is_one(capsys: Captured) -> None:
    command = f"python3 -m openrlhf.cli.train_ppo_ray {OPENRLHF} --adam_betas 0.9 $B"
    assert main(["convert", *command.split()]) == 1
    out, said = capsys.readouterr()
    assert yaml.safe_load(out)["actor"]["adam"]["betas"] == [0.9, "$B"] and "$B holds a variable" in said


def test_an_empty_value_is_none(capsys: Captured) -> None:
    config, _ = openrlhf(capsys, "--best_metric_key  --eval_dataset  --seed 7")  # two blanks: a word of nothing
    assert (config.ckpt.best_metric_key, config.eval.dataset, config.train.seed) == ("", None, 7)
