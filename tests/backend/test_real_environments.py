"""Rollouts by turns on Ray, vLLM and DeepSpeed: what is trained is what was sampled, and each turn keeps its cache."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_run import make_config

from dapo_openrlhf.cli.train import train

pytestmark = pytest.mark.real

ENVIRONMENT = '''
from dapo_openrlhf.environments.messages import Observation, Step


class Environment:
    """Answers twice; right by chance, a third of the reward at each turn."""

    async def reset(self, prompt):
        self.turns = 0
        return Observation(text="-" * 66 + prompt.text)

    async def step(self, action):
        self.turns += 1
        right = float(sum(map(ord, action.observed + action.text)) % 2)
        print("turn", self.turns)
        return Step(observation="[again]", reward=right / 3, score=right, done=self.turns == 3, logs={"right": right})
'''


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_with_environments_trains_exactly_what_was_sampled(tmp_path: Path) -> None:
    (tmp_path / "environment.py").write_text(ENVIRONMENT)
    (tmp_path / "problems.jsonl").write_text(json.dumps({"input": "1+1="}) + "\n")
    config = make_config(
        tmp_path,
        **{
            "reward.remote_url": "rule",
            "train.agent_func_path": str(tmp_path / "environment.py"),
            "environment.workers": 1,
            "rollout.max_action_tokens": 6,
            "rollout.max_turns": 3,
            "data.max_len": 128,
            "train.max_steps": 3,
            "train.max_rollout_kl": 1e-4,
            "eval.dataset": str(tmp_path / "problems.jsonl"),
            "eval.n_samples_per_prompt": 2,
        },
    )
    said = io.StringIO()
    assert train(config, started=time.monotonic(), stream=said) == 0, said.getvalue()
    run = tmp_path / "runs" / "dapo"
    events = rows(run / "events.jsonl")
    judged = [event for event in events if event["event"] == "group_judged"]
    assert {round(event["logs"]["turns"]) for event in judged} == {3}
    reused = sum(event["logs"]["kv_reused"] for event in judged) / len(judged)
    assert reused > 0.5, "blocks of 32 tokens, of contexts of some 100"
    assert all(event["accuracy"] == pytest.approx(event["logs"]["right"]) for event in judged)
    assert not [event for event in events if event["event"] == "group_failed"]
    steps = [event for event in events if event["event"] == "step_trained"]
    assert steps[0]["statistics"]["rollout_kl/age_0"] < 1e-5, "the engine saw the ids that the trainer reads"
    taken = [event for event in events if event["event"] == "batch_taken"]
    assert all(age <= 1 for event in taken for age in event["ages"])
    assert "environment: turn 1" in said.getvalue()
