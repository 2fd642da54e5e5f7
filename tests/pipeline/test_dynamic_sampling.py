"""Dynamic sampling: which groups carry a gradient (DAPO eq. 11)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dapo_openrlhf.pipeline.dynamic_sampling import GroupFilter
from dapo_openrlhf.types import FilterDecision, PolicyVersion, Prompt, Rollout, RolloutGroup


def group(correct: list[bool], rewards: list[float] | None = None) -> RolloutGroup:
    rewards = rewards or [1.0 if right else -1.0 for right in correct]
    return RolloutGroup(
        id=0,
        prompt=Prompt(id=0, text="1 + 1", label="2"),
        prompt_length=4,
        rollouts=tuple(
            Rollout(length=3, truncated=False, cut=False, correct=right, reward=reward)
            for right, reward in zip(correct, rewards, strict=True)
        ),
        oldest_version=PolicyVersion(0),
        newest_version=PolicyVersion(0),
        engine=0,
        tokens=None,
    )


@pytest.mark.parametrize(
    ("right", "decision"),
    [
        (0, FilterDecision(False, "all_wrong")),
        (1, FilterDecision(True, "kept")),
        (2, FilterDecision(True, "kept")),
        (3, FilterDecision(True, "kept")),
        (4, FilterDecision(False, "all_right")),
    ],
)
def test_kept_iff_some_are_right_and_some_are_wrong(right: int, decision: FilterDecision) -> None:
    assert GroupFilter(enabled=True).decide(group([True] * right + [False] * (4 - right))) == decision


def test_the_place_of_the_right_one_does_not_matter() -> None:
    for position in range(4):
        assert GroupFilter(enabled=True).decide(group([i == position for i in range(4)])).keep


@pytest.mark.parametrize(("correct", "reason"), [(True, "all_right"), (False, "all_wrong")])
def test_shaped_rewards_do_not_save_a_group(correct: bool, reason: str) -> None:
    # Length shaping makes the rewards differ although the answers are all alike: such a group teaches length only.
    judged = GroupFilter(enabled=True).decide(group([correct] * 3, rewards=[0.9, 0.4, -0.1]))
    assert judged == FilterDecision(False, reason)


def test_shaped_rewards_do_not_condemn_a_group() -> None:
    # A right answer with the full overlong punishment and a wrong one without: rewards -1 + 1 = 0 against 0.
    assert GroupFilter(enabled=True).decide(group([True, False], rewards=[0.0, 0.0])).keep


@pytest.mark.parametrize(
    ("scores", "score_range", "reason"),
    [
        ([0.3, 0.3], (0.0, 1.0), "kept"),  # a reward that gives shares of tests passed: none is 1, none is right
        ([1.0, 1.0], (0.0, 1.0), "all_right"),
        ([0.0, 0.0], (0.0, 1.0), "all_wrong"),
        ([0.0, 1.0], (0.5, 1.0), "all_wrong"),  # neither bound is within
        ([0.0, 1.0], (0.0, 0.5), "all_right"),
        ([-1.0, 1.0], (0.0, 1.0), "all_wrong"),  # as OpenRLHF decides of scores of 1 and -1
        ([-1.0, 1.0], None, "kept"),
        ([-1.0, -1.0], None, "all_wrong"),
        ([1.0, 1.0], None, "all_right"),
    ],
)
def test_a_group_is_kept_if_its_mean_score_is_within_the_range(
    scores: list[float], score_range: tuple[float, float] | None, reason: str
) -> None:
    judged = GroupFilter(enabled=True, score_range=score_range).decide(
        replace(
            group([False] * len(scores)),
            rollouts=tuple(
                Rollout(length=3, truncated=False, cut=False, correct=score >= 1, reward=score, score=score)
                for score in scores
            ),
        )
    )
    assert judged == FilterDecision(reason == "kept", reason)


@pytest.mark.parametrize("right", [0, 2, 4])
def test_switched_off_everything_is_kept(right: int) -> None:
    decision = GroupFilter(enabled=False).decide(group([True] * right + [False] * (4 - right)))
    assert decision == FilterDecision(True, "kept")
