"""Commands of OpenRLHF and configurations of verl as configurations: what is written passes, and nothing is lost in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.config.foreign import NOT_HERE
from dapo_openrlhf.config.loading import build_config, load_config
from dapo_openrlhf.config.settings import Config, setting_names
from dapo_openrlhf.convert.openrlhf_names import DOTTED, HARMLESS, SINCE_REMOVED
from dapo_openrlhf.convert.shell import commands

Captured = pytest.CaptureFixture[str]

DAPO = """\
set -x

python3 -m openrlhf.cli.train_ppo_ray \\
   --ref_num_nodes 1 --ref_num_gpus_per_node 8 \\
   --actor_num_nodes 1 --actor_num_gpus_per_node 8 \\
   --vllm_num_engines 4 --vllm_tensor_parallel_size 2 \\
   --colocate_all_models \\
   --vllm_gpu_memory_utilization 0.6 \\
   --init_kl_coef 1e-3 --gamma 1.0 --use_kl_loss --kl_estimator k3 \\
   --advantage_estimator group_norm \\
   --dynamic_filtering --dynamic_filtering_reward_range 0 1 \\
   --eps_clip_low_high 0.2 0.3 \\
   --pretrain some/sft-model \\
   --remote_rm_url /home/me/reward_func.py \\
   --save_path /out/final --ckpt_path /out/ckpt --save_steps 20 --save_hf_ckpt \\
   --micro_train_batch_size 8 --train_batch_size 128 \\
   --micro_rollout_batch_size 16 --rollout_batch_size 128 --n_samples_per_prompt 8 \\
   --max_epochs 1 --prompt_max_len 1024 --max_samples 20000 --generate_max_len 1024 \\
   --zero_stage 3 --bf16 --actor_learning_rate 5e-7 \\
   --prompt_data some/prompts --input_key context_messages --apply_chat_template \\
   --gradient_checkpointing --packing_samples --vllm_sync_backend nccl --enforce_eager \\
   --vllm_enable_sleep --deepspeed_enable_sleep

# You could also try
#   --kl_estimator k2 \\
"""
"""The flags of OpenRLHF's DAPO script for one machine of eight GPUs."""

VERL = """\
#!/usr/bin/env bash
set -euxo pipefail
exp_name='DAPO-32B'
clip_ratio_low=0.2
max_prompt_length=$((1024 * 2))
max_response_length=$((1024 * 20))
overlong_buffer_len=$((1024 * 4))
loss_agg_mode="token-mean"
train_prompt_bsz=512
gen_prompt_bsz=$((train_prompt_bsz * 3))
n_resp_per_prompt=16
NNODES=${NNODES:-16}
HOME_OF_DATA=${HOME_OF_DATA:-"${HOME}/verl"}
MODEL_PATH=${MODEL_PATH:-"${HOME_OF_DATA}/models/32B"}
TEST_FILE="['/a/aime-2024.parquet','/b/other.parquet']"
ray job submit --no-wait --runtime-env="${RUNTIME_ENV}" --working-dir "${WORKING_DIR}" \\
    -- python3 -m recipe.dapo.main_dapo \\
    data.train_files="/data/dapo-math-17k.parquet" \\
    data.val_files="${TEST_FILE}" data.prompt_key=prompt data.truncation='left' \\
    data.max_prompt_length=${max_prompt_length} data.max_response_length=${max_response_length} \\
    data.gen_batch_size=${gen_prompt_bsz} data.train_batch_size=${train_prompt_bsz} \\
    actor_rollout_ref.rollout.n=${n_resp_per_prompt} \\
    algorithm.adv_estimator=grpo algorithm.use_kl_in_reward=False algorithm.kl_ctrl.kl_coef=0.0 \\
    actor_rollout_ref.actor.use_kl_loss=False actor_rollout_ref.actor.kl_loss_coef=0.0 \\
    actor_rollout_ref.actor.clip_ratio_low=${clip_ratio_low} actor_rollout_ref.actor.clip_ratio_high=0.28 \\
    actor_rollout_ref.actor.clip_ratio_c=10.0 \\
    algorithm.filter_groups.enable=True algorithm.filter_groups.max_num_gen_batches=10 \\
    algorithm.filter_groups.metric=acc +actor_rollout_ref.model.override_config.attention_dropout=0. \\
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=$(((max_prompt_length + max_response_length) * 2)) \\
    actor_rollout_ref.model.path="${MODEL_PATH}" actor_rollout_ref.model.enable_gradient_checkpointing=True \\
    actor_rollout_ref.actor.optim.lr=1e-6 actor_rollout_ref.actor.optim.lr_warmup_steps=10 \\
    actor_rollout_ref.actor.optim.weight_decay=0.1 actor_rollout_ref.actor.ppo_mini_batch_size=32 \\
    actor_rollout_ref.actor.entropy_coeff=0 actor_rollout_ref.actor.loss_agg_mode=${loss_agg_mode} \\
    actor_rollout_ref.rollout.gpu_memory_utilization=0.80 actor_rollout_ref.rollout.tensor_model_parallel_size=4 \\
    actor_rollout_ref.rollout.val_kwargs.top_p=0.7 actor_rollout_ref.rollout.quantization=fp8 \\
    reward_model.reward_manager=dapo reward_model.overlong_buffer.enable=True \\
    reward_model.overlong_buffer.len=${overlong_buffer_len} reward_model.overlong_buffer.penalty_factor=1.0 \\
    trainer.logger='["console","wandb"]' trainer.experiment_name="${exp_name}" \\
    trainer.n_gpus_per_node=8 trainer.nnodes="${NNODES}" trainer.test_freq=5 trainer.save_freq=5 \\
    trainer.total_epochs=1 $@ 2>&1 | tee log.txt
"""
"""The settings of verl's DAPO recipe for 32B."""

LEAST = "--pretrain some/model --prompt_data prompts.jsonl --actor_num_gpus_per_node 1 --vllm_num_engines 1"


def run(capsys: Captured, *arguments: str) -> tuple[int, dict[str, Any], str]:
    status = main(["convert", *arguments])
    out, err = capsys.readouterr()
    return status, yaml.safe_load(out) or {}, err


def converted(capsys: Captured, tmp_path: Path, script: str, name: str = "run.sh") -> tuple[Config, str]:
    """The configuration, which must pass, and what was said."""
    file = tmp_path / name
    file.write_text(script)
    status, settings, said = run(capsys, str(file))
    assert status == 0, said
    return build_config(settings, source="test"), said


def test_openrlhfs_dapo(capsys: Captured, tmp_path: Path) -> None:
    config, said = converted(capsys, tmp_path, DAPO)
    assert (config.rollout.batch_size, config.rollout.n_samples_per_prompt, config.train.batch_size) == (128, 8, 128)
    assert config.actor.eps_clip_low_high == (0.2, 0.3)
    assert (config.algo.kl.init_coef, config.algo.kl.use_loss, config.algo.kl.estimator) == (1e-3, True, "k3")
    assert config.algo.dynamic_filtering_range == (0, 1)
    assert (config.rollout.max_new_tokens, config.data.max_len) == (1024, 2048)
    assert config.actor.adam.lr == 5e-7
    assert config.async_.max_staleness == 0, "the command is synchronous"
    assert config.algo.advantage.is_correction_level == "off", "its default, not ours"
    assert config.reward.clip_range == (-10, 10) and not config.reward.overlong_filtering_enable
    assert config.devices == 8
    assert config.train.max_steps == 157  # 20,000 prompts / 128
    assert "--ckpt_path: " in said and "--colocate_all_models: engines and trainer run at once" in said
    assert config.data.prompt_dataset == ("hf:some/prompts:train",) and config.data.max_samples == 20000
    assert "--prompt_data: some/prompts is taken as a set of the hub" in said


def test_verls_dapo(capsys: Captured, tmp_path: Path) -> None:
    config, said = converted(capsys, tmp_path, VERL)
    assert (config.rollout.batch_size, config.rollout.n_samples_per_prompt) == (512, 16)
    assert config.train.batch_size == 32 * 16, "verl counts prompts"
    assert config.actor.eps_clip_low_high == (0.2, 0.28) and config.actor.dual_clip == 10
    assert (config.rollout.max_new_tokens, config.data.max_len) == (20480, 22528)
    assert (config.reward.overlong_buffer_len, config.reward.overlong_penalty_factor) == (4096, 1.0)
    assert config.algo.dynamic_filtering_enable and config.algo.kl.init_coef == 0
    assert config.train.max_tokens_per_gpu == 45056
    assert (config.data.label_key, config.eval.dataset) == (
        "reward_model.ground_truth",
        ("/a/aime-2024.parquet", "/b/other.parquet"),
    )
    assert config.run.name == "DAPO-32B" and config.devices == 128
    assert config.actor.model_name_or_path == "$HOME/verl/models/32B"
    assert "holds a variable that is not set" in said
    assert "actor_rollout_ref.rollout.quantization: 'fp8' has no counterpart" in said
    assert "data.val_files" not in said


def test_verls_yaml(capsys: Captured, tmp_path: Path) -> None:
    text = yaml.safe_dump(
        {
            "data": {"train_files": ["a.parquet"], "train_batch_size": 64, "max_response_length": 1024, "max_prompt_length": 512},
            "actor_rollout_ref": {
                "model": {"path": "some/model"},
                "actor": {"ppo_mini_batch_size": 16, "policy_loss": {"loss_mode": "geo_mean"}, "clip_ratio_low": 0.4, "clip_ratio_high": 0.4},
                "rollout": {"n": 8, "tensor_model_parallel_size": 1},
            },
            "algorithm": {"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False},
            "trainer": {"total_training_steps": 50, "n_gpus_per_node": 2, "project_name": "${trainer.experiment_name}"},
        }
    )  # fmt: skip
    config, _ = converted(capsys, tmp_path, text, "verl.yaml")
    assert config.algo.advantage.estimator == "dr_grpo"
    assert config.actor.policy_loss_type == "gmpo" and config.actor.dual_clip is None
    assert config.actor.eps_clip_low_high == pytest.approx((0.32968, 0.491825), abs=1e-5), "verl's range is of the log"
    assert config.train.batch_size == 128 and config.train.max_steps == 50


@pytest.mark.parametrize(
    "command",
    [
        f"python3 -m openrlhf.cli.train_ppo_ray {LEAST}",
        f"deepspeed --include localhost:0,1 --module openrlhf.cli.train_ppo_ray {LEAST}",
        'ray job submit --address=http://127.0.0.1:8265 --runtime-env-json=\'{"working_dir": "/x y"}\' '
        f"-- python3 -m openrlhf.cli.train_ppo_ray {LEAST}",
        f"python openrlhf/cli/train_ppo_ray.py {LEAST} 2>&1 | tee out.log",
        f"CUDA_VISIBLE_DEVICES=0 nohup python3 -m openrlhf.cli.train_ppo_ray {LEAST} > log &",
        f"read -r -d '' training <<EOF\nopenrlhf.cli.train_ppo_ray {LEAST}\nEOF\ndeepspeed --module $training",
        f'ARGS="{LEAST}"\npython3 -m openrlhf.cli.train_ppo_ray $ARGS',
        f"ARGS=(\n  {LEAST}\n  # --zero_stage 3\n)\npython3 -m openrlhf.cli.train_ppo_ray \"${{ARGS[@]}}\"",
        "python3 -m openrlhf.cli.train_ppo_ray \\\r\n   " + LEAST.replace(" --", " \\\r\n   # a comment \\\r\n --") + "\r\n",
    ],
)  # fmt: skip
def test_forms_of_a_command(capsys: Captured, tmp_path: Path, command: str) -> None:
    config, _ = converted(capsys, tmp_path, command)
    assert (config.actor.model_name_or_path, config.data.prompt_dataset) == ("some/model", ("prompts.jsonl",))
    assert config.vllm.num_engines == 1


def test_the_command_itself_as_arguments(capsys: Captured) -> None:
    for arguments in (
        ["--", "python3", "-m", "openrlhf.cli.train_ppo_ray", *LEAST.split()],
        ["python3", "-m", "openrlhf.cli.train_ppo_ray", *LEAST.split()],
        LEAST.split(),
        [f"python3 -m openrlhf.cli.train_ppo_ray {LEAST}"],
    ):
        status, settings, said = run(capsys, *arguments)
        assert status == 0, said
        assert settings["actor"]["model_name_or_path"] == "some/model"


def test_dotted_names_values_with_equals_and_repeated_flags(capsys: Captured) -> None:
    words = [
        "--actor.model_name_or_path=some/model", "--data.prompt_dataset", "p.jsonl", "--actor.num_gpus_per_node=1",
        "--vllm.num_engines", "1", "--rollout.n_samples_per_prompt", "4", "--rollout.n_samples_per_prompt=8",
        "--algo.advantage.is_correction_level", "token", "--algo.advantage.is_correction_threshold", "2",
        "--actor.adam.betas", "0.9", "0.98", "--actor.entropy_coef", "-0.01", "--ds.ring_attn_size", "2",
        "--algo.advantage.estimator", "group_norm", "--train.async_enable",
    ]  # fmt: skip
    status, settings, said = run(capsys, "python3", "-m", "openrlhf.cli.train_ppo_ray", *words)
    assert status == 0, said
    config = build_config(settings, source="test")
    assert config.rollout.n_samples_per_prompt == 8, "the last one counts"
    assert config.algo.advantage.is_correction_threshold == (0, 2)
    assert config.actor.adam.betas == (0.9, 0.98) and config.actor.entropy_coef == -0.01
    assert config.async_.max_staleness == 1
    assert f"--ds.ring_attn_size: {NOT_HERE['ds.ring_attn_size']}" in said


def test_balance_average_and_layers_come_over(capsys: Captured) -> None:
    words = f"{LEAST} --aux_loss_coef 0.001 --enable_ema --ema_beta 0.99 --use_liger_kernel"
    status, settings, said = run(capsys, *words.split())
    assert status == 0, said
    config = build_config(settings, source="test")
    assert (config.actor.aux_loss_coef, config.train.enable_ema, config.train.ema_beta) == (0.001, True, 0.99)
    assert config.ds.use_liger_kernel and config.device == "cuda"
    status, settings, said = run(capsys, *f"{LEAST} --aux_loss_coef 0 --ema_beta 0.99".split())
    assert status == 0, said
    config = build_config(settings, source="test")
    assert (config.actor.aux_loss_coef, config.train.enable_ema, config.train.ema_beta) == (0.0, False, 0.992)


def test_nothing_is_left_out_in_silence(capsys: Captured) -> None:
    words = f"{LEAST} --frobnicate 3 --lora_rank 8 --advantage_estimator reinforce --ptx_coef 0.05 --use_wandb key --wandb_project sums".split()
    status, settings, said = run(capsys, *words)
    assert status == 0
    assert settings["ds"]["lora"] == {"rank": 8}
    assert (settings["report"]["wandb"], settings["logger"]["wandb"]) == ("online", {"project": "sums"}), "and no key"
    for flag in (
        "--frobnicate: no option of OpenRLHF",
        "--ptx_coef: ",
        "--use_wandb: ",
    ):
        assert flag in said


def test_several_sets_splits_and_addresses(capsys: Captured) -> None:
    words = (
        "--pretrain m --prompt_data a.jsonl,b.csv.gz,some/set --prompt_data_probs 0.5,0.3,0.2 --prompt_split main "
        "--eval_dataset some/other --eval_split test --remote_rm_url http://x/get,http://y/get --max_samples 300 "
        "--actor_num_gpus_per_node 1 --vllm_num_engines 1"
    )
    status, settings, said = run(capsys, *words.split())
    assert status == 0, said
    config = build_config(settings, source="test")
    assert config.data.prompt_dataset == ("a.jsonl", "b.csv.gz", "hf:some/set:main")
    assert config.data.prompt_split is None, "files have no split main"
    assert config.data.prompt_probs == (0.5, 0.3, 0.2) and config.data.max_samples == 300
    assert config.eval.dataset == ("hf:some/other",) and config.eval.split == "test" and config.eval.max_samples == 300
    assert "--remote_rm_url: only the first of 2 addresses" in said


def test_one_set_needs_no_share_and_a_file_has_no_split(capsys: Captured) -> None:
    status, settings, said = run(capsys, *f"{LEAST} --prompt_data_probs 1.0 --prompt_split test".split())
    assert status == 0 and "prompt_probs" not in settings["data"]
    assert "--prompt_split: a file has the split train only" in said


def test_a_split_of_sets_of_the_hub_stays_an_option_of_its_own(capsys: Captured) -> None:
    words = LEAST.replace("prompts.jsonl", "some/set") + " --prompt_split main --eval_dataset some/set,other/set"
    status, settings, said = run(capsys, *words.split())
    config = build_config(settings, source="test")
    assert (status, config.data.prompt_dataset, config.data.prompt_split) == (0, ("hf:some/set",), "main"), said
    assert config.eval.dataset == ("set-1=hf:some/set:train", "set-2=hf:other/set:train"), (
        "both would have the name set"
    )


def test_a_constant_learning_rate_stays_one(capsys: Captured) -> None:
    _, settings, said = run(
        capsys, *f"{LEAST} --lr_scheduler constant --lr_warmup_ratio 0.1 --max_samples 10240".split()
    )
    actor = build_config(settings, source="test").actor
    assert (actor.lr_scheduler, actor.lr_warmup_steps) == ("constant_with_warmup", 0)
    assert "lr_scheduler" not in said


def verl(capsys: Captured, *words: str) -> tuple[Config, str]:
    least = "algorithm.adv_estimator=grpo actor_rollout_ref.model.path=m actor_rollout_ref.rollout.n=8 trainer.n_gpus_per_node=2 "
    more = "actor_rollout_ref.rollout.tensor_model_parallel_size=1 data.train_files=['a.parquet','b.parquet']"
    status, settings, said = run(capsys, "python3", "-m", "verl.trainer.main_ppo", *(least + more).split(), *words)
    assert status == 0, said
    return build_config(settings, source="test"), said


def test_verls_files_rows_and_greedy_evaluation(capsys: Captured) -> None:
    val = "actor_rollout_ref.rollout.val_kwargs"
    words = [
        "data.train_max_samples=100",
        "data.val_max_samples=-1",
        f"{val}.do_sample=False",
        f"{val}.temperature=1.0",
    ]
    config, _ = verl(capsys, *words)
    assert config.data.prompt_dataset == ("a.parquet", "b.parquet")
    assert (config.data.max_samples, config.eval.max_samples, config.eval.temperature) == (100, None, 0)
    assert (config.rollout.batch_size, config.train.batch_size) == (1024, 256 * 8), "verl's defaults, in prompts"
    config, _ = verl(capsys, "algorithm.adv_estimator=gae", "data.train_batch_size=64", "critic.optim.lr=3e-6")
    assert (config.train.batch_size, config.critic.adam.lr, config.critic.adam.weight_decay) == (64 * 8, 3e-6, 0.01)


def test_verls_losses_keep_their_limits(capsys: Captured) -> None:
    actor = "actor_rollout_ref.actor"
    config, _ = verl(capsys, f"{actor}.policy_loss.loss_mode=gspo", f"{actor}.clip_ratio=3e-4")
    assert config.actor.dual_clip is None, "verl bounds only the loss of tokens a second time"
    config, _ = verl(capsys, f"{actor}.policy_loss.loss_mode=sapo", f"{actor}.tau_pos=1.5", f"{actor}.tau_neg=2.0")
    assert config.actor.sapo_tau == (2.0, 1.5)
    _, said = verl(capsys, f"{actor}.policy_loss.loss_mode=cispo", f"{actor}.clip_ratio_low=0.4")
    assert f"{actor}.clip_ratio_low: ratios below 0.6" in said
    _, said = verl(capsys, f"{actor}.policy_loss.loss_mode=dppo_tv", f"{actor}.clip_ratio_low=0.1")
    assert f"{actor}.clip_ratio_low: one bound for both directions" in said


@pytest.mark.parametrize(
    ("words", "level", "threshold", "remark"),
    [
        (
            "algorithm.rollout_correction.rollout_is=null algorithm.rollout_correction.rollout_is_threshold=2.0",
            "off",
            None,
            "",
        ),
        ("algorithm.rollout_is=False algorithm.rollout_is_threshold=2.0", "off", None, ""),
        (
            "algorithm.rollout_is=True algorithm.rollout_is_threshold=3.0 algorithm.rollout_is_level=token",
            "token",
            3,
            "",
        ),
        ("algorithm.rollout_correction.rollout_is=token", "token", 2, ""),
        ("algorithm.rollout_correction.rollout_is=sequence", "token", 2, "sequence weights are not here"),
        ("actor_rollout_ref.actor.tis_imp_ratio_cap=5", "token", 5, ""),
        ("actor_rollout_ref.actor.tis_imp_ratio_cap=-1", "off", None, ""),
    ],
)
def test_verls_correction_is_on_where_it_is(
    capsys: Captured, words: str, level: str, threshold: float | None, remark: str
) -> None:
    config, said = verl(capsys, *words.split())
    advantage = config.algo.advantage
    assert advantage.is_correction_level == level
    assert threshold is None or advantage.is_correction_threshold == (0, threshold)
    assert remark in said and ("weights are not here" in said) == bool(remark)


def test_verls_kl_keeps_its_meaning_or_is_spoken_of(capsys: Captured) -> None:
    actor = "actor_rollout_ref.actor"
    config, said = verl(
        capsys, f"{actor}.use_kl_loss=True", f"{actor}.kl_loss_type=k3+", "algorithm.use_kl_in_reward=True"
    )
    assert (config.algo.kl.estimator, config.algo.kl.use_loss, config.algo.kl.unbiased_gradient) == ("k3", True, True)
    assert "algorithm.use_kl_in_reward: there is one KL here" in said
    config, said = verl(
        capsys, "algorithm.use_kl_in_reward=True", "algorithm.kl_penalty=abs", "algorithm.kl_ctrl.type=adaptive"
    )
    assert (config.algo.kl.estimator, config.algo.kl.use_loss) == ("k1", False)
    assert "algorithm.kl_penalty: abs is not here" in said and "stays at 0.001" in said
    _, said = verl(capsys, "algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=seq_reward")
    assert "algorithm.filter_groups.metric: seq_reward" in said


def test_no_setting_is_refused_as_an_option_that_is_not_here() -> None:
    assert NOT_HERE.keys() & setting_names().keys() == set()


def test_the_correction_flags_of_older_versions(capsys: Captured) -> None:
    _, settings, _ = run(capsys, *f"{LEAST} --enable_vllm_is_correction --vllm_is_truncated_threshold 2".split())
    advantage = build_config(settings, source="test").algo.advantage
    assert (advantage.is_correction_level, advantage.is_correction_mode) == ("token", "clip")
    assert advantage.is_correction_threshold == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/file.sh"], "cannot read /no/such/file.sh"),
        (["echo hello world"], "no command of OpenRLHF"),
        ([], "give a script"),
        (["python3 -m openrlhf.cli.train_sft --pretrain x"], "train_sft of OpenRLHF is not"),
        (["python3 -m openrlhf.cli.train_ppo_ray --prompt_data p.jsonl"], "has no --pretrain"),
        (["python3 -m openrlhf.cli.train_ppo_ray --pretrain x --prompt_data p --rollout_batch_size $BATCH"], "$BATCH"),
        (["python3 -m verl.trainer.main_ppo algorithm.adv_estimator=opo data.train_files=x "
          "actor_rollout_ref.model.path=m"], "opo has no counterpart"),
        (["python3 -m verl.trainer.main_ppo data.train_files=x algorithm.adv_estimator=grpo"], "actor_rollout_ref.model.path"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_said_in_one_line(capsys: Captured, arguments: list[str], words: str) -> None:
    status, settings, said = run(capsys, *arguments)
    assert status == 2 and settings == {}
    assert words in said and len(said.splitlines()) == 1


def test_broken_yaml_and_others_yaml(capsys: Captured, tmp_path: Path) -> None:
    for name, text, words in (
        ("a.yaml", "a: [", "is not valid YAML"),
        ("b.yaml", "- 1", "holds list"),
        ("c.yaml", "model: x", "none of verl's sections"),
    ):
        (tmp_path / name).write_text(text)
        status, _, said = run(capsys, str(tmp_path / name))
        assert status == 2 and words in said


def test_what_does_not_pass_yet_is_written_and_not_a_success(capsys: Captured, tmp_path: Path) -> None:
    output = tmp_path / "run.yaml"
    words = f"{LEAST} --train_batch_size 1000 --rollout_batch_size 7".split()
    status, _, said = run(capsys, "--output", str(output), "--", *words)
    assert status == 1
    assert "train.batch_size: 1000 does not divide" in said and "put that right" in said
    assert yaml.safe_load(output.read_text())["train"]["batch_size"] == 1000


def test_the_output_is_read_by_train(capsys: Captured, tmp_path: Path) -> None:
    output = tmp_path / "run.yaml"
    assert main(["convert", "--output", str(output), "--", *LEAST.split()]) == 0
    assert load_config(output).actor.model_name_or_path == "some/model"


@pytest.mark.parametrize("command", ["train", "submit"])
def test_an_openrlhf_command_behind_train_points_to_convert(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("dapo_openrlhf.__main__.check_packages", lambda names: None)
    for words in (LEAST.split(), ["python3", "-m", "openrlhf.cli.train_ppo_ray", *LEAST.split()]):
        assert main([command, *words]) == 2
        said = capsys.readouterr().err
        assert "dapo-openrlhf convert" in said and len(said.splitlines()) == 1


def test_every_flat_name_leads_somewhere() -> None:
    known = setting_names().keys() | NOT_HERE.keys() | {"train.async_enable"}
    assert {dotted for dotted in DOTTED.values() if dotted not in known} == set()
    assert set(DOTTED) & set(SINCE_REMOVED) == set()
    assert {name for name in HARMLESS if "." in name} <= known


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("A=$((2 * (3 + 4)))\nx --n $A", ["x", "--n", "14"]),
        ("A=$((B * 2))\nx $A", ["x", "$((B*2))"]),
        ("A='a b'\nx --k \"$A\"", ["x", "--k", "a b"]),
        ("x ${Z:-7} ${Y}", ["x", "7", "$Y"]),
        ("x '{\"a\": \"b c\"}' && y", ["x", '{"a": "b c"}']),
        ("export A=3\nx $A", ["x", "3"]),
        ("x $(rm -rf /)", ["x", "$(rm -rf /)"]),
        ("A=$((__import__('os')))\nx $A", ["x", "$((__import__('os')))"]),
        ("A=$A$A\nB=$A$A\nx $B", ["x", "$A$A$A$A"]),
    ],
)  # fmt: skip
def test_words_of_a_script(script: str, words: list[str] | None) -> None:
    found = list(commands(script))
    assert words is None or found[0] == words


def test_the_help_names_every_form(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["convert", "--help"])
    assert ended.value.code == 0
    assert "SCRIPT.sh | VERL.yaml" in capsys.readouterr().out
