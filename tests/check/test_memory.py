"""The sums of memory: right to the byte, near what was measured, and judged by what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapo_openrlhf.check.memory import judge, judge_engine
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.plan.gpus import GPUS
from dapo_openrlhf.plan.memory import checkpoint_bytes, engine_memory, trainer_memory
from dapo_openrlhf.plan.shape import ModelShape

HALF_BILLION = ModelShape.of(
    {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
    }
)  # fmt: skip
"""The shape that docs/gpus.md measures."""
SEVEN_BILLION = ModelShape.of(
    {
        "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "vocab_size": 152064,
    }
)  # fmt: skip


SEVEN_BILLION_ADAPTERS = 28 * 16 * (2 * 7168 + 2 * 4096 + 3 * 22528)
"""Parameters of adapters of rank 16 in every linear layer: inputs and outputs of each, 28 times."""


def config(**sections: dict[str, object]) -> Config:
    settings: dict[str, object] = {
        "actor": {"model_name_or_path": "model"},
        "data": {"prompt_dataset": "p.jsonl", "max_len": 2048},
        "rollout": {"max_new_tokens": 1024},
        "reward": {"overlong_buffer_len": 0},
        "train": {"max_tokens_per_gpu": 16384},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}  # type: ignore[dict-item]
    return build_config(settings, source="test")


def test_the_sum_is_what_was_measured() -> None:
    """At the peak 81 GB were in use on an H200 that engine and trainer share (docs/gpus.md)."""
    run = config(
        train={"colocate_all": True, "max_tokens_per_gpu": 16384},
        vllm={"gpu_memory_utilization": 0.3},
    )
    total = engine_memory(run, HALF_BILLION, GPUS["h200"].memory).claim + sum(
        trainer_memory(run, HALF_BILLION).values()
    )
    assert total == pytest.approx(81e9, rel=0.03)


@pytest.mark.parametrize(("stage", "weights", "gradients", "optimizer"), [(1, 2, 2, 3), (2, 2, 1, 3), (3, 0.5, 1, 3)])
def test_zero_divides_what_its_stage_says(stage: int, weights: float, gradients: float, optimizer: float) -> None:
    dtype = "bf16" if stage == 1 else "fp32"
    run = config(ds={"zero_stage": stage, "grad_accum_dtype": dtype}, actor={"num_gpus_per_node": 4})
    parts, count = trainer_memory(run, HALF_BILLION), HALF_BILLION.parameters
    assert [parts[name] / count for name in ("weights", "gradients", "optimizer")] == [weights, gradients, optimizer]


def test_offloading_and_checkpointing_take_their_parts_away() -> None:
    plain = trainer_memory(config(), HALF_BILLION)
    spared = trainer_memory(
        config(ds={"adam_offload": True, "zero_stage": 3}, actor={"gradient_checkpointing_enable": True}), HALF_BILLION
    )
    assert plain["activations"] == 16384 * 24 * 34 * 896 * 2
    assert spared["activations"] == 16384 * (24 + 34) * 896 * 2
    assert spared["optimizer"] == 0 and plain["optimizer"] == 12 * HALF_BILLION.parameters


def test_a_reference_and_a_critic_count() -> None:
    run = config(algo={"kl": {"init_coef": 0.1}, "advantage": {"estimator": "gae"}})
    parts, count = trainer_memory(run, HALF_BILLION), HALF_BILLION.parameters
    assert parts["weights"] == 3 * 2 * count and parts["optimizer"] == 2 * 12 * count
    model, checkpoint = checkpoint_bytes(run, HALF_BILLION)
    assert (model, checkpoint) == (2 * count, 2 * count + 24 * count)


def test_the_cache_is_what_the_claim_leaves() -> None:
    engine = engine_memory(config(), SEVEN_BILLION, 80e9)
    assert engine.claim == 72e9 and engine.weights == 2 * SEVEN_BILLION.parameters
    assert engine.cache == pytest.approx(72e9 - engine.weights - 2e9 - 0.512e9)
    assert engine.cache_tokens == int(engine.cache / (4 * 28 * 512))  # keys and values of 28 layers, in bf16
    fixed = engine_memory(config(vllm={"kv_cache_memory_bytes": 10**9}), SEVEN_BILLION, 80e9)
    assert fixed.cache == 1e9


@pytest.mark.parametrize(("used", "level"), [(50e9, "pass"), (75e9, "warn"), (85e9, "warn"), (100e9, "fail")])
def test_a_sum_near_the_memory_warns_and_one_far_beyond_it_fails(used: float, level: str) -> None:
    finding = judge("a GPU", {"weights": used / 2, "others": used / 2}, 80e9, "use more")
    assert finding.level == level
    assert (finding.remedy == "use more") == (level != "pass")


@pytest.mark.parametrize(
    ("gpu_bytes", "level", "words"),
    [(80e9, "pass", "longest sequences at once"), (19e9, "fail", "fewer than one sequence of data.max_len 2,048")],
)
def test_a_cache_must_hold_one_sequence(gpu_bytes: float, level: str, words: str) -> None:
    run = config()
    (finding,) = judge_engine(run, engine_memory(run, SEVEN_BILLION, gpu_bytes))
    assert (finding.level, words in finding.words) == (level, True), finding


def test_adapters_alone_have_gradients_and_an_optimizers_state() -> None:
    """And a KL takes no second model."""
    whole, adapters = (
        trainer_memory(config(ds={"lora": {"rank": rank}}, algo={"kl": {"init_coef": 0.01}}), SEVEN_BILLION)
        for rank in (0, 16)
    )
    assert adapters["gradients"] == SEVEN_BILLION_ADAPTERS * 4
    assert adapters["optimizer"] == SEVEN_BILLION_ADAPTERS * 12
    assert adapters["weights"] == (SEVEN_BILLION.parameters + SEVEN_BILLION_ADAPTERS) * 2
    assert whole["weights"] == 2 * SEVEN_BILLION.parameters * 2
    two = config(ds={"lora": {"rank": 16, "target_modules": ["self_attn.q_proj", "v_proj"]}})
    assert trainer_memory(two, SEVEN_BILLION)["optimizer"] == 28 * 16 * (7168 + 4096) * 12
    assert checkpoint_bytes(two, SEVEN_BILLION)[1] == SEVEN_BILLION.parameters * 2 + 28 * 16 * (7168 + 4096) * 12


def test_an_average_of_the_weights_is_a_model_more_and_four_bytes_a_parameter() -> None:
    """Of the policy's parameters; with adapters of the adapters' alone."""
    average: dict[str, object] = {"enable_ema": True}
    run, critic = config(train=average), config(train=average, algo={"advantage": {"estimator": "gae"}})
    count = HALF_BILLION.parameters
    assert checkpoint_bytes(run, HALF_BILLION) == (4 * count, 4 * count + 12 * count + 4 * count)
    assert checkpoint_bytes(critic, HALF_BILLION)[1] == 4 * count + 24 * count + 4 * count
    adapters = config(train=average, ds={"lora": {"rank": 16}})
    assert checkpoint_bytes(adapters, SEVEN_BILLION)[1] == SEVEN_BILLION.parameters * 4 + SEVEN_BILLION_ADAPTERS * 16


# ---------------------------------------------------------------- docs/gpus.md: where the trainer ends

SHAPES = {
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
    "14B": (5120, 48, 40, 8, 13824, 152064, False),
    "32B": (5120, 64, 40, 8, 27648, 152064, False),
    "72B": (8192, 80, 64, 8, 29568, 152064, False),
}
"""Hidden size, layers, heads, heads of keys and values, inner size, vocabulary, and whether the head is tied, of Qwen2.5."""
NAMES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
    "tie_word_embeddings",
)  # fmt: skip


def where_it_ends() -> list[list[str]]:
    page = (Path(__file__).parents[2] / "docs" / "gpus.md").read_text(encoding="utf-8")
    lines = page.split("## Where the trainer ends")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]


def largest_sums(
    model: str, ranks: int, stage: int, besides: str, *, checkpointing: bool = True
) -> tuple[float, float]:
    """What a rank holds besides activations, and the longest sequence in 92 % of 80 GB beside it."""
    shape = ModelShape.of(dict(zip(NAMES, SHAPES[model], strict=True)))
    run = config(
        actor={"num_gpus_per_node": ranks, "gradient_checkpointing_enable": checkpointing},
        data={"max_len": 1025},
        train={"max_tokens_per_gpu": 1000, "batch_size": 64},
        ds={"zero_stage": stage, "adam_offload": "adam_offload" in besides, "lora": {"rank": 16 * ("lora" in besides)}},
    )
    parts = trainer_memory(run, shape)
    held = sum(parts.values()) - parts["activations"]
    return held, max(0.0, 0.92 * 80e9 - held) / (parts["activations"] / 1025)


def test_the_page_says_where_the_trainer_ends_as_the_sums_do() -> None:
    rows = where_it_ends()
    assert len(rows) == 12
    for model, ranks, stage, besides, held, longest in rows:
        sums = largest_sums(model, int(ranks), int(stage), besides)
        assert (held, int(longest.replace(",", ""))) == (f"{sums[0] / 1e9:.1f}", int(sums[1] // 1000 * 1000)), model
    assert largest_sums("7B", 8, 3, "", checkpointing=False)[1] == pytest.approx(7613, abs=20)
    assert largest_sums("32B", 32, 3, "", checkpointing=False)[1] == pytest.approx(2273, abs=20)
    paper = 22528
    assert largest_sums("32B", 8, 3, "")[1] == 0 and largest_sums("32B", 16, 3, "")[1] > paper
    assert largest_sums("32B", 8, 3, "ds.adam_offload")[1] > paper
