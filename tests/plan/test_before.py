"""A plan before any run: shapes of known models, divisions that fit, advice, and refusals."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.plan import splits as splits_module
from dapo_openrlhf.plan.bound import Bound
from dapo_openrlhf.plan.gpus import GPUS
from dapo_openrlhf.plan.prediction import Prediction
from dapo_openrlhf.plan.roofline import Machine, engine_fits, engine_speed, trainer_fits, trainer_speed
from dapo_openrlhf.plan.scenario import EngineSpeed, Sample, Scenario, SyncSpeed, TrainerSpeed, Work
from dapo_openrlhf.plan.shape import ModelShape
from dapo_openrlhf.plan.splits import Candidate, Split, advise, pareto, predict, splits

QWEN_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
H100 = Machine(gpu=GPUS["h100"])


@pytest.mark.parametrize(
    ("values", "parameters"),
    [
        (QWEN_7B, 7_615_616_512),
        (  # Qwen2.5-0.5B
            {**QWEN_7B, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
            494_032_768,
        ),
        (  # Llama 3 8B
            {**QWEN_7B, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
            8_030_261_248,
        ),
        (  # Qwen3-4B, whose heads are larger than hidden size over heads
            {**QWEN_7B, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
            4_022_468_096,
        ),
    ],
)  # fmt: skip
def test_parameters_of_known_models(values: dict[str, Any], parameters: int) -> None:
    """All but biases and norms of heads."""
    assert ModelShape.of(values).parameters == pytest.approx(parameters, rel=1e-4)


def test_speeds_follow_from_bytes_and_operations() -> None:
    shape = ModelShape.of(QWEN_7B)
    one, four = (engine_speed(H100, shape, tensor_parallel=size, context=1000) for size in (1, 4))
    assert one.step == pytest.approx(5e-3 + 15.23e9 / (0.7 * 3.35e12), rel=1e-3)
    assert one.per_context_token == pytest.approx(28 * 2 * 2 * 512 / (0.7 * 3.35e12))
    assert four.step - 5e-3 == pytest.approx((one.step - 5e-3) / 4)
    assert four.most_sequences > one.most_sequences
    trained = trainer_speed(H100, shape, ranks=8, old_logprobs=True)
    assert trained.per_token == pytest.approx(8 * 7.6154e9 / (0.3 * 989e12 * 8), rel=1e-3)
    assert engine_fits(H100, shape, tensor_parallel=1)
    assert (trainer_fits(H100, shape, ranks=2), trainer_fits(H100, shape, ranks=3)) == (False, True)


def test_divisions_use_every_device_and_stay_in_a_machine() -> None:
    found = list(splits(16, per_node=8, fits=lambda split: split.ranks >= 4))
    assert {split.devices for split in found} == {16}
    assert {split.tensor_parallel for split in found} == {1, 2, 4, 8}
    assert max(split.engines * split.tensor_parallel for split in found) == 12
    assert len(found) == len(set(found))
    assert len(list(splits(10_000, per_node=8, fits=lambda split: True))) < 100


def candidate(max_staleness: int, rate: float, age: float) -> Candidate:
    """One of two devices that trains ``rate`` tokens per second on each."""
    ages = Counter({0: round(100 * (1 - age % 1)), int(age) + 1: round(100 * (age % 1))}) if age else Counter({0: 1})
    prediction = Prediction(
        max_staleness=max_staleness,
        step_seconds=(1.0, 1.0),
        trained_tokens=round(4 * rate),
        generated_tokens=round(4 * rate),
        engines_idle=0.0,
        trainer_idle=0.0,
        ages=ages,
    )
    return Candidate(
        split=Split(engines=1, tensor_parallel=1, ranks=1),
        prediction=prediction,
        bound=Bound(trainer=1.0, engines=0.5, round_trip=0.5),
    )


def test_the_smallest_k_that_brings_nearly_all_is_recommended() -> None:
    found = [candidate(0, 100, 0.0), candidate(1, 180, 0.5), candidate(2, 184, 0.75), candidate(4, 150, 0.9)]
    assert [c.prediction.max_staleness for c in pareto(found)] == [0, 1, 2]
    advice = advise(found)
    assert advice.chosen.prediction.max_staleness == 1
    assert "1.80 times" in advice.reason and "at most" in advice.reason


def test_it_is_said_when_asynchrony_does_not_pay() -> None:
    advice = advise([candidate(0, 100, 0.0), candidate(1, 108, 0.5)])
    assert advice.chosen.prediction.max_staleness == 0
    assert "does not pay here" in advice.reason and "1.08 times" in advice.reason


def test_a_large_run_is_predicted_by_a_smaller_one() -> None:
    """A hundred engines with a batch of 6,400 groups behave as eight with 512 of the same."""
    work = Work(samples=[Sample(lengths=(100, 100), correct=(True, False))], prompt_tokens=10, reward_seconds=0.1)
    large = Scenario(
        engines=100,
        engine=EngineSpeed(step=0.01),
        trainer=TrainerSpeed(step=1.0, per_token=1e-6),
        sync=SyncSpeed(send=0.2, deliver=0.3, pause=0.0),
        work=work,
        batch_size=6400,
        max_staleness=0,
    )
    found = predict(Split(engines=100, tensor_parallel=1, ranks=8), large)
    seconds = 1.0 + 0.1 + 1.0 + 1e-6 * 6400 * 220 + 0.5
    assert found.prediction.step == pytest.approx(seconds)
    assert found.prediction.tokens_per_second == pytest.approx(6400 * 200 / seconds, rel=1e-6)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    return tmp_path


def _plan(model: Path, *arguments: str) -> int:
    config = Path(__file__).parents[2] / "configs" / "node_8gpu_qwen2.5_7b.yaml"
    return main(["plan", "--config", str(config), "--actor.model_name_or_path", str(model), *arguments])


def test_the_command_writes_table_json_and_picture(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits_module, "STALENESS", (0, 1))
    small = ("--rollout.batch_size", "8", "--rollout.n_samples_per_prompt", "4", "--train.batch_size", "32")
    files = ("--json", str(model / "plan.json"), "--picture", str(model / "plan.png"))
    assert _plan(model, "--gpu", "h100", "--devices", "8", *small, *files) == 0
    printed = capsys.readouterr().out
    assert "recommended: async.max_staleness" in printed and "engines idle" in printed
    written = json.loads((model / "plan.json").read_text())
    assert {one["max_staleness"] for one in written["candidates"]} == {0, 1}
    assert all(one["max_age"] <= one["max_staleness"] for one in written["candidates"])
    assert (model / "plan.png").read_bytes().startswith(b"\x89PNG")


SHORT = ["--data.max_len", "96", "--rollout.max_new_tokens", "40", "--reward.overlong_buffer_len", "0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", "1"], "--devices: 1 cannot be divided"),
        (["--devices", "-8"], "--devices: -8 is no number of GPUs"),
        (["--devices", "8", "--per-node", "0"], "--per-node: 0 is no number of GPUs"),
        (["--devices", "8", "--picture", "p.gif"], "--picture: p.gif is no picture that can be drawn"),
        (["--devices", "1", *SHORT], "--devices: 1 cannot be divided"),  # prompts are taken to fit
        (["--devices", "2", "--gpu", "l40s"], "7.6 billion parameters do not fit into 2 GPUs of 48 GB"),
        (["--devices", "8", "--pass-rate", "1.5"], "--pass-rate: 1.5 is out of range; use 0.02 to 1"),
        (["--devices", "8", "--response-tokens", "1e9"], "--response-tokens: 1e+09 is out of range"),
    ],
)
def test_what_cannot_be_planned_is_said(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert _plan(model, *arguments) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_is_not_here_or_no_dense_decoder_is_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _plan(model / "nowhere", "--devices", "8") == 2
    assert "a plan needs the model's config.json" in capsys.readouterr().err
    (model / "config.json").write_text(json.dumps(QWEN_7B | {"num_experts": 8}))
    assert _plan(model, "--devices", "8") == 2
    assert "dense" in capsys.readouterr().err


def test_every_gpu_says_where_its_figures_are_from() -> None:
    for gpu in GPUS.values():
        assert "data sheet" in gpu.source
        assert all(getattr(gpu, field.name) for field in dataclasses.fields(gpu))
