"""Rollouts that are printed for somebody who debugs an environment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.backend.messages import GroupTokens, VersionRuns
from dapo_openrlhf.backend.run.rollouts import LookedAt, _with_tokens
from dapo_openrlhf.cli.rollout import words
from dapo_openrlhf.types import Prompt, Score, Segment

PROMPT = Prompt(id=4, text="2+2=", token_ids=(5, 6, 5, 7), label="4", source="p.jsonl, line 5")
SEGMENTS = (
    Segment(kind="action", text="<call>\n2+2", tokens=2, reward=0.0),
    Segment(kind="observation", text="[4]", tokens=3),
    Segment(kind="action", text="4", tokens=1, reward=1.0),
)
TOKENS = GroupTokens(
    prompt_ids=np.asarray(PROMPT.token_ids, np.int32),
    response_ids=np.asarray([10, 11, 12], np.int32),
    rollout_logprobs=np.asarray([-0.5, -1.5, -0.25], np.float32),
    offsets=np.asarray([0, 3]),
    versions=VersionRuns(versions=np.asarray([3, 4], np.int32), ends=np.asarray([1, 3])),
)


def looked_at(score: Score | None, error: str = "") -> LookedAt:
    return LookedAt(prompt=PROMPT, segments=tuple(_with_tokens(SEGMENTS, TOKENS)), score=score, error=error)


def test_each_action_has_its_own_tokens() -> None:
    parts = looked_at(None).segments
    assert [part.ids for part in parts] == [(10, 11), (), (12,)]
    assert [part.logprobs for part in parts] == [(-0.5, -1.5), (), (-0.25,)]
    assert [part.versions for part in parts] == [(3, 4), (), (4,)]


def test_a_rollout_is_printed_with_all_that_is_known_of_it() -> None:
    score = Score(correct=True, reward=1.0, score=1.0, logs={"turns": 2.0})
    assert "\n".join(words(looked_at(score), "rollout 1 of 3")).splitlines() == [
        "rollout 1 of 3: prompt 4 (p.jsonl, line 5), label '4'",
        "  prompt, 4 tokens",
        "    | 2+2=",
        "  action, 2 tokens, versions 3 to 4, log-probs -1.000 on average, lowest -1.500, reward 0",
        "    | <call>",
        "    | 2+2",
        "  observation, 3 tokens",
        "    | [4]",
        "  action, 1 tokens, version 4, log-probs -0.250 on average, lowest -0.250, reward 1",
        "    | 4",
        "  reward 1, score 1, right; ended by itself",
        "    turns 2",
    ]


def test_one_that_could_not_be_scored_says_why() -> None:
    *_, last = words(looked_at(None, "environment_timeout: no answer within 30 s"), "rollout 1 of 1")
    assert last == "  not scored: environment_timeout: no answer within 30 s"


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--n", "0"], "--n: 0 is no number"), (["--json", "/nowhere/a.json"], "--json: /nowhere/a.json")],
)
def test_wrong_options_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "p.jsonl"}}))
    assert main(["rollout", "--config", str(file), *options]) == 2
    assert said in capsys.readouterr().err
