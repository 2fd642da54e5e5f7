"""Which weights sampled which token, from the engine's steps to the trained batch and the metrics. No vLLM."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dapo_openrlhf.backend.engine.unfinished import Made, UnfinishedGroup, UnfinishedResponse
from dapo_openrlhf.backend.messages import GenerationReport, GroupTokens, VersionRuns, one_version
from dapo_openrlhf.backend.trainer.collate import collate
from dapo_openrlhf.pipeline.batch import Sample
from dapo_openrlhf.types import PolicyVersion, Prompt, Rollout, RolloutGroup, TrainBatch


def generate(*versions: str) -> tuple[GenerationReport, GroupTokens]:
    """A group as an engine samples it: a text for each response with the version of each of its tokens as a digit.

    All responses get their tokens of a version before the weights change to the next one. Token ids count from 0 over
    the group.
    """
    done: Future[Made] = Future()
    group = UnfinishedGroup(name="g", prompt_ids=[5, 6], done=done, unfinished=len(versions))
    group.responses += [UnfinishedResponse(group) for _ in versions]
    everything = "".join(versions)
    starts = np.cumsum([0, *map(len, versions)])
    for version in range(int(min(everything)), int(max(everything)) + 1):
        for response, text, start in zip(group.responses, versions, starts, strict=False):
            for _ in range(text.count(str(version))):
                response.add([int(start) + len(response.ids)], np.full((1, 1), -float(version), np.float32))
            if len(response.ids) == len(text) and response.ends[-1:] != [len(text)]:
                response.close_run(version)
                group.end_one()
        for response in group.responses:  # new weights
            response.close_run(version)
    made = done.result(timeout=0)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("versions", "oldest", "counts", "runs"),
    [
        (["0000", "00"], 0, (6,), 2),
        (["3334", "33"], 3, (5, 1), 3),
        (["2233", "2", "23"], 2, (4, 3), 5),
        (["0123", "0", "33", "0223"], 0, (3, 1, 3, 4), 9),
        (["5", "8"], 5, (1, 0, 0, 1), 2),
    ],
)
def test_each_token_keeps_the_version_that_sampled_it(
    versions: Sequence[str], oldest: int, counts: tuple[int, ...], runs: int
) -> None:
    """Over no, one or three publications, in responses of the same and of different lengths."""
    report, tokens = generate(*versions)
    assert (report.oldest_version, report.newest_version) == (oldest, oldest + len(counts) - 1)
    assert report.version_tokens == counts
    assert report.lengths == tuple(map(len, versions))
    assert "".join(map(str, tokens.versions.per_token())) == "".join(versions)
    assert len(tokens.versions.ends) == runs, "memory goes with the publications, not with the tokens"
    assert tokens.versions.versions.dtype == np.int32
    for index, text in enumerate(versions):
        part = tokens.response_versions(index)
        assert "".join(map(str, part.per_token())) == text
        ids, logprobs = tokens.response(index)
        assert logprobs.tolist() == [-float(version) for version in text]
        assert ids.tolist() == sorted(ids.tolist())
        assert part.ends[-1] == len(text)


def test_the_end_of_a_group_joins_as_many_arrays_however_long_its_responses_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It happens on the engine's thread, where a group of 16 x 20,480 tokens would hold up everybody's next step."""
    joined: list[int] = []
    concatenate = np.concatenate

    def counting(arrays: Sequence[Any], *rest: Any, **options: Any) -> Any:
        joined.append(len(arrays))
        return concatenate(arrays, *rest, **options)

    monkeypatch.setattr(np, "concatenate", counting)
    generate("0" * 5, "0" * 3)
    short, joined = joined, []
    _, tokens = generate("0" * 5000, "0" * 3000)
    assert joined == short and max(short) == 2
    assert len(tokens.response_ids) == 8000 and tokens.response_ids[-1] == 7999


def test_weights_that_come_before_a_response_s_first_token_leave_no_run() -> None:
    done: Future[Made] = Future()
    group = UnfinishedGroup(name="g", prompt_ids=[5], done=done, unfinished=1)
    response = UnfinishedResponse(group)
    group.responses.append(response)
    for version in range(3):
        response.close_run(version)
    response.add([1], np.zeros((1, 1), np.float32))
    response.close_run(3)
    response.close_run(3)
    group.end_one()
    made = done.result(timeout=0)
    assert made is not None
    assert (made[0].oldest_version, made[0].version_tokens) == (3, (1,))
    assert (made[1].versions.versions.tolist(), made[1].versions.ends.tolist()) == ([3], [1])


def test_a_group_of_which_a_response_has_no_token_is_not_made() -> None:
    done: Future[Made] = Future()
    group = UnfinishedGroup(name="g", prompt_ids=[5], done=done, unfinished=2)
    group.responses += [UnfinishedResponse(group) for _ in range(2)]
    group.responses[0].add([1], np.zeros((1, 1), np.float32))
    for response in group.responses:
        response.close_run(0)
        group.end_one()
    assert done.result(timeout=0) is None


def test_any_part_of_runs_is_that_part_of_the_tokens() -> None:
    runs = VersionRuns(versions=np.asarray([4, 7, 7, 2], np.int32), ends=np.asarray([1, 3, 6, 10]))
    whole = runs.per_token().tolist()
    assert whole == [4, 7, 7, 7, 7, 7, 2, 2, 2, 2]
    for start in range(10):
        for end in range(start + 1, 11):
            part = runs.part(start, end)
            assert part.per_token().tolist() == whole[start:end]
            assert (np.diff(part.ends, prepend=0) > 0).all()
    assert one_version(9, 4).per_token().tolist() == [9, 9, 9, 9]


def batch(version: int, *reports: GenerationReport) -> TrainBatch:
    return TrainBatch(
        step=version,
        version=PolicyVersion(version),
        groups=tuple(
            RolloutGroup(
                id=index,
                prompt=Prompt(id=index, text=""),
                prompt_length=report.prompt_length,
                rollouts=tuple(
                    Rollout(length=length, truncated=False, cut=False, correct=True, reward=1.0)
                    for length in report.lengths
                ),
                oldest_version=PolicyVersion(report.oldest_version),
                newest_version=PolicyVersion(report.newest_version),
                version_tokens=report.version_tokens,
                engine=0,
                tokens=None,
            )
            for index, report in enumerate(reports)
        ),
    )


def test_ages_of_groups_are_those_of_their_oldest_tokens_and_ages_of_tokens_their_own() -> None:
    first, second = generate("2233", "2")[0], generate("34", "4444")[0]
    taken = batch(4, first, second)
    assert taken.ages == (2, 1)
    assert taken.token_ages == (5, 3, 3)
    assert sum(taken.token_ages) == sum(group.response_tokens for group in taken.groups)


def test_on_policy_tokens_have_no_age() -> None:
    taken = batch(7, generate("777", "7")[0], generate("77", "77")[0])
    assert (taken.ages, taken.token_ages) == ((0, 0), (8,))


def test_what_nobody_counted_has_no_ages() -> None:
    report = generate("22", "2")[0]
    group = batch(2, report).groups[0]
    uncounted = RolloutGroup(
        id=0, prompt=group.prompt, prompt_length=2, rollouts=group.rollouts, oldest_version=PolicyVersion(2),
        newest_version=PolicyVersion(2), engine=0, tokens=None,
    )  # fmt: skip
    assert TrainBatch(step=2, version=PolicyVersion(2), groups=(uncounted,)).token_ages == ()


def test_the_trainer_knows_the_version_of_each_token_of_a_micro_batch() -> None:
    """Longest first, as micro-batches are; and after a journey through pickle."""
    tokens = pickle.loads(pickle.dumps({0: generate("2233", "2")[1], 1: generate("34", "44455")[1]}))
    samples = tuple(
        Sample(group=group, index=index, prompt_length=2, length=length, advantage=0.0, trained=True)
        for group, index, length in ((0, 0, 4), (0, 1, 1), (1, 0, 2), (1, 1, 5))
    )
    tensors = collate(samples, tokens, device=torch.device("cpu"))
    assert tensors.token_versions().tolist() == [
        [4, 4, 4, 5, 5],
        [2, 2, 3, 3, -1],
        [3, 4, -1, -1, -1],
        [2, -1, -1, -1, -1],
    ]
    assert torch.equal(tensors.token_versions() >= 0, tensors.present)
    assert torch.equal(-tensors.rollout_logprobs[tensors.present], tensors.token_versions()[tensors.present].float())


@pytest.mark.parametrize("logprobs", [None, np.zeros((1, 1), np.float64), np.zeros((1, 2), np.float32)])
def test_anything_but_one_float32_for_each_token_is_an_error(logprobs: NDArray[Any] | None) -> None:
    """vLLM returns as many columns as log-probs were asked for, of its own type."""
    group = UnfinishedGroup(name="g", prompt_ids=[5], done=Future(), unfinished=1)
    response = UnfinishedResponse(group)
    group.responses.append(response)
    response.add([1], logprobs)
    response.close_run(0)
    with pytest.raises(RuntimeError, match="bytes of log-probs for 1 tokens; one float32 for each was asked for"):
        group.end_one()


def test_a_cut_group_keeps_what_each_of_its_tokens_was_drawn_from() -> None:
    """Several tokens of a step, weights that change between two, and a response that was cut before the other ended."""
    done: Future[Made] = Future()
    group = UnfinishedGroup(name="g", prompt_ids=[5], done=done, unfinished=2, kept_of=40)
    first, second = (UnfinishedResponse(group) for _ in range(2))
    group.responses += [first, second]
    for response, ids, sets in ((first, [3], [[3]]), (second, [7, 8], [[7, 9], [8, 2, 30]]), (first, [4], [[1, 4]])):
        for one in sets:
            one.sort()
        response.add(ids, np.zeros((len(ids), 1), np.float32))
        response.keep(np.concatenate(sets).astype(np.int32), np.cumsum([0, *map(len, sets)]))
        response.close_run(0)
    for _ in range(2):
        group.end_one()
    made = done.result(timeout=0)
    assert made is not None
    tokens = pickle.loads(pickle.dumps(made[1]))
    of_first, of_second = tokens.response_kept(0), tokens.response_kept(1)
    assert (of_first.counts.tolist(), of_first.ids().tolist()) == ([1, 2], [3, 1, 4])
    assert (of_second.counts.tolist(), of_second.ids().tolist()) == ([2, 3], [7, 9, 2, 8, 30])
    samples = tuple(
        Sample(group=0, index=index, prompt_length=1, length=2, advantage=0.0, trained=True) for index in (1, 0)
    )
    kept = collate(samples, {0: tokens}, device=torch.device("cpu")).kept
    assert kept is not None
    assert (kept.ids.tolist(), kept.counts.tolist()) == ([7, 9, 2, 8, 30, 3, 1, 4], [2, 3, 1, 2])


def test_a_token_of_which_the_core_does_not_say_what_it_was_drawn_from_is_an_error() -> None:
    group = UnfinishedGroup(name="g", prompt_ids=[5], done=Future(), unfinished=1, kept_of=40)
    response = UnfinishedResponse(group)
    group.responses.append(response)
    response.add([1, 2], np.zeros((2, 1), np.float32))
    response.keep(np.asarray([1], np.int32), np.asarray([0, 1]))
    response.close_run(0)
    with pytest.raises(RuntimeError, match="said of 1 of 2 tokens what they were drawn from"):
        group.end_one()
