"""Signs that a run learns nothing are said once, and settings that cannot be meant are said at the start."""

from __future__ import annotations

import io

import pytest

from dapo_openrlhf.config.cautions import cautions
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.events import Event, GroupGenerated, GroupJudged, StepTrained
from dapo_openrlhf.report.progress import ProgressLine
from dapo_openrlhf.report.watch import Watch
from dapo_openrlhf.types import PolicyVersion


def generated(truncated: int, responses: int = 4) -> Event:
    version = PolicyVersion(0)
    return GroupGenerated(
        group=0,
        engine=0,
        seconds=1.0,
        response_tokens=8,
        responses=responses,
        truncated=truncated,
        oldest_version=version,
        newest_version=version,
    )


def judged(reason: str) -> Event:
    keep = reason == "kept"
    return GroupJudged(group=0, keep=keep, reason=reason, accuracy=0.5, reward=0.0, response_tokens=8, seconds=0.1)


def said(*events: Event, batch_size: int = 4) -> list[str]:
    lines: list[str] = []
    watch = Watch(batch_size=batch_size, max_new_tokens=24, say=lines.append)
    for event in events:
        watch.add(event)
    return lines


def test_that_no_response_ends_is_said_once_before_the_first_step() -> None:
    assert said(*[generated(4)] * 3) == []
    (line,) = said(*[generated(4)] * 20)
    assert "none of the last 16 responses ended by itself: 16 of 16 reached rollout.max_new_tokens 24" in line
    assert "eos_token_id" in line and "raise rollout.max_new_tokens" in line


def test_a_few_that_end_do_not_hide_it_and_many_do() -> None:
    (line,) = said(*[generated(10, 10)] * 3, generated(9, 10))
    assert "only 1 of the last 40 responses ended by themselves: 39 of 40 reached" in line
    assert said(*[generated(3)] * 40) == []


def test_that_no_group_is_kept_for_long_is_said_once() -> None:
    assert said(*[judged("all_wrong")] * 15) == []
    (line,) = said(*[judged("all_wrong")] * 13, *[judged("all_right")] * 30)
    assert "none of the last 16 groups is kept for training: 3 all right, 13 all wrong" in line
    assert said(*[*[judged("all_wrong")] * 15, judged("kept")] * 5) == []
    assert said(*[judged("all_wrong")] * 19, batch_size=10) == []
    assert len(said(*[judged("all_wrong")] * 20, batch_size=10)) == 1


def test_updates_without_a_token_and_steps_without_a_gradient_are_said() -> None:
    def trained(**statistics: float) -> Event:
        return StepTrained(step=2, seconds=1.0, statistics=statistics)

    assert said(trained(**{"updates/empty": 0, "grad_norm": 0.3})) == []
    (line,) = said(*[trained(**{"updates/empty": 2, "grad_norm": 0.0})] * 3)
    assert "2 update(s) of step 3 trained not a single token" in line
    (line,) = said(trained(**{"updates/empty": 0, "grad_norm": 0.0}))
    assert "step 3 has a gradient of zero" in line


def test_the_progress_line_counts_what_went_wrong_since_the_last_line() -> None:
    stream = io.StringIO()
    progress = ProgressLine(9, stream, width=200)
    row = {"truncated_share": 1.0, "updates/empty": 2.0, "prompts/dropped": 1.0, "groups/failed": 3.0}
    progress.step(0, row, 1.0)
    progress.step(1, row, 1.5)
    progress.step(2, row | {"truncated_share": 0.9}, 9.0)
    progress.step(3, {"truncated_share": 0.0}, 19.0)
    first, second, third = stream.getvalue().splitlines()[1:]
    assert first.endswith("  3 failed  1 prompt(s) dropped  2 update(s) without a token  1 step(s) all truncated")
    assert second.endswith("  6 failed  2 prompt(s) dropped  4 update(s) without a token  1 step(s) all truncated")
    assert "failed" not in third and "truncated" not in third


def config(**settings: dict[str, object]) -> Config:
    base: dict[str, dict[str, object]] = {
        "actor": {"model_name_or_path": "m", "lr_warmup_steps": 5},
        "train": {"max_steps": 10},
        "data": {"prompt_dataset": "p.jsonl"},
    }
    merged = {name: base.get(name, {}) | settings.get(name, {}) for name in {*base, *settings}}
    return build_config(merged, source="test")


@pytest.mark.parametrize(
    ("settings", "prompts", "words"),
    [
        ({}, 512, []),
        ({"actor": {"lr_warmup_steps": 9}}, 512, []),
        ({"actor": {"lr_warmup_steps": 10}}, 512, ["the learning rate only grows, to 100% of actor.adam.lr 1e-06"]),
        ({"actor": {"lr_warmup_steps": 40}}, 512, ["to 25% of actor.adam.lr"]),
        ({"eval": {"steps": 3}}, 512, ["eval.steps: 3 measures nothing without eval.dataset"]),
        ({"eval": {"steps": 10, "dataset": "h.jsonl"}}, 512, ["there is no evaluation between"]),
        ({"eval": {"steps": 9, "dataset": "h.jsonl"}}, 512, []),
        ({"ckpt": {"save_steps": 11}}, 512, ["the first checkpoint to resume from is the one at the end"]),
        ({}, 511, ["511 prompts are fewer than rollout.batch_size 512"]),
    ],
)
def test_settings_that_cannot_be_meant_are_said(
    settings: dict[str, dict[str, object]], prompts: int, words: list[str]
) -> None:
    found = list(cautions(config(**settings), prompts=prompts))
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))
