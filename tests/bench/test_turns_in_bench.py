"""The work with turns: what each side is told about it, and the environment that both load."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dapo_openrlhf.bench.arm import ArmSettings
from dapo_openrlhf.bench.pipeline_arm import pipeline_settings
from dapo_openrlhf.bench.stock.command import stock_arguments
from dapo_openrlhf.bench.stock.steps import complete_steps
from dapo_openrlhf.bench.workload import chain_folder
from dapo_openrlhf.bench.workload.chain import Recipe
from dapo_openrlhf.bench.workload.workload import Workload
from dapo_openrlhf.config.loading import build_config

PLAIN = Workload(folder=Path("work"), prompt_count=4096, prompt_tokens=12, max_new_tokens=100, pass_rate=0.4)
TURNS = replace(PLAIN, agent=Path("agent.py"), observed_tokens=1)


@pytest.mark.parametrize(
    ("work", "setting", "file", "max_len"),
    [(PLAIN, "reward.remote_url", PLAIN.reward, 112), (TURNS, "train.agent_func_path", TURNS.agent, 113)],
)
def test_both_sides_are_told_who_judges(work: Workload, setting: str, file: Path, max_len: int) -> None:
    config = build_config(pipeline_settings(1, work, ArmSettings(), Path()), source="bench")
    arguments = stock_arguments("async", work, ArmSettings(), Path())
    named = config.reward.remote_url if work.agent is None else (config.train.agent_func_path,)
    assert named == (str(file),)
    assert arguments[arguments.index(f"--{setting}") + 1] == str(file)
    assert ("--train.agent_func_path" in arguments) is (config.train.agent_func_path is not None)
    assert ("--reward.remote_url" in arguments) is (work.agent is None)
    assert config.data.max_len == max_len == int(arguments[arguments.index("--data.max_len") + 1])


def test_what_an_environment_says_is_not_among_stocks_trained_tokens() -> None:
    values = {
        "rollout/num_samples": 128.0,
        "rollout/response_length_mean": 31.5,
        "dynamic_filtering_pass_rate": 320.0,
        **dict.fromkeys(("generation", "make_experience", "ppo_train", "broadcast"), 0.0),
    }
    timings = {"generation", "make_experience", "ppo_train", "broadcast"}
    scalars = {f"timing/{name}" if name in timings else name: {1: (9.0, value)} for name, value in values.items()}
    (step,) = complete_steps(scalars, ArmSettings(), 2.0, observed_tokens=1)
    assert (step.response_tokens, step.generated_groups, step.finished) == (128 * 30.5, 40.0, 7.0)


@pytest.mark.real
def test_the_environment_takes_as_long_for_the_same_words_and_judges_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    agent: Any = importlib.import_module("dapo_openrlhf.bench.workload.agent")  # OpenRLHF's, which needs the stack
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def play(end: str) -> list[dict[str, Any]]:
        one = agent.Agent()
        assert await one.reset({"observation": "12A", "label": "right"}) == {"observation": "12A"}
        first = {"observation_text": "12A", "action_text": f"abc{end}", "label": "right"}
        second = {"observation_text": f"12Aabc{end}A", "action_text": f"fed{end}", "label": "right"}
        return [await one.step(first), await one.step(second)]

    first, last = asyncio.run(play("<eos>"))
    asyncio.run(play(""))
    assert slept[:2] == slept[2:], "one side leaves the end token out"
    assert (first["environment_feedback"], first["done"], first["rewards"].item()) == ("A", False, 0.0)
    assert (last["environment_feedback"], last["done"], last["rewards"].item(), last["scores"]) == ("", True, 1.0, 1.0)
    taken = sorted(agent.seconds(f"{number}A") for number in range(4000))
    assert taken[0] >= 0.1 and taken[-1] == 5.0
    assert taken[2000] == pytest.approx(0.2, rel=0.1) and sum(taken) / 4000 == pytest.approx(0.49, rel=0.15)
    assert sum(one >= 5.0 for one in taken) / 4000 == pytest.approx(0.02, abs=0.01)


def test_what_libraries_print_while_the_work_is_built_is_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def build(recipe: Recipe, folder: Path) -> int:
        os.write(1, b"chatter\n")
        os.write(2, b"warning\n")
        return 7

    monkeypatch.setattr(chain_folder, "_build", build)
    work = chain_folder.chain_workload(tmp_path / "work")
    print("heard")
    assert capfd.readouterr() == ("heard\n", "")
    assert (work.folder / chain_folder.LOG).read_text() == "chatter\nwarning\n"
    assert json.loads((work.folder / "manifest.json").read_text())["parameters"] == 7
