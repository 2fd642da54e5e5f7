"""What a trainer makes of rollouts in which an environment's tokens stand between those of the policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_model import random_batch
from test_rank import DAPO, PLAN, PPO, VOCABULARY, Trainer

from dapo_openrlhf.backend.messages import GroupTokens, Observations, one_version
from dapo_openrlhf.backend.trainer.bad_batch import write_rank
from dapo_openrlhf.backend.trainer.collate import collate
from dapo_openrlhf.backend.trainer.per_sample import Known
from dapo_openrlhf.pipeline.batch import Sample, Update, plan_batch, split_mini_batch
from dapo_openrlhf.types import TrainBatch


def observations(*runs: tuple[int, list[int]]) -> Observations:
    """From (number of actions before, tokens)."""
    return Observations(
        ids=np.asarray([token for _, ids in runs for token in ids], np.int32),
        ends=np.cumsum([len(ids) for _, ids in runs]).astype(np.int64),
        after=np.asarray([after for after, _ in runs], np.int64),
    )


def group(prompt: list[int], *rollouts: tuple[list[int], Observations]) -> GroupTokens:
    actions = [token for ids, _ in rollouts for token in ids]
    return GroupTokens(
        prompt_ids=np.asarray(prompt, np.int32),
        response_ids=np.asarray(actions, np.int32),
        rollout_logprobs=-np.asarray(actions, np.float32),
        offsets=np.cumsum([0, *(len(ids) for ids, _ in rollouts)]),
        versions=one_version(0, len(actions)),
        observations=tuple(observed for _, observed in rollouts),
    )


TOKENS = group(
    [1, 2],
    ([10, 11, 12], observations((0, [50]), (2, [51, 52]), (3, [53]))),  # 1 2 50 10 11 51 52 12 53
    ([20], observations()),  # 1 2 20
)
SAMPLES = (
    Sample(group=0, index=0, prompt_length=2, length=3, observed=4, advantage=1.0, trained=True),
    Sample(group=0, index=1, prompt_length=2, length=1, observed=0, advantage=-1.0, trained=True),
)


def test_a_context_has_every_token_where_the_engine_saw_it() -> None:
    ids, positions = TOKENS.context(0)
    assert ids.tolist() == [1, 2, 50, 10, 11, 51, 52, 12, 53] and ids.dtype == np.int32
    assert positions.tolist() == [3, 4, 7]
    ids, positions = TOKENS.context(1)
    assert (ids.tolist(), positions.tolist()) == ([1, 2, 20], [2])


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 99), min_size=1, max_size=4)), min_size=1, max_size=8),
)
def test_any_order_of_segments_comes_back(prompt: list[int], segments: list[tuple[bool, list[int]]]) -> None:
    actions: list[int] = []
    runs, whole, places = [], list(prompt), list[int]()
    for acts, ids in segments:
        if acts:
            places += range(len(whole), len(whole) + len(ids))
            actions += ids
        else:
            runs.append((len(actions), ids))
        whole += ids
    ids, positions = group(prompt, ([7], observations()), (actions, observations(*runs))).context(1)
    assert (ids.tolist(), positions.tolist()) == (whole, places)


def test_only_actions_are_predicted_and_all_of_the_context_is_read() -> None:
    batch = collate(SAMPLES, {0: TOKENS}, device=torch.device("cpu"))
    assert batch.input_ids.tolist() == [[1, 2, 50, 10, 11, 51, 52, 12, 53, 1, 2, 20]]
    assert batch.position_ids.tolist() == [[*range(9), *range(3)]]
    assert batch.targets.tolist() == [10, 11, 12, 20]
    assert batch.positions.tolist() == [2, 3, 6, 10], "the token before each action token, whoever wrote it"
    assert batch.lengths == (9, 3)
    assert batch.mask.sum() == 4
    assert batch.rollout_logprobs.tolist() == [[-10, -11, -12], [-20, 0, 0]]


def test_micro_batches_are_balanced_by_what_is_read() -> None:
    samples = [
        Sample(group=0, index=index, prompt_length=1, length=1, observed=observed, advantage=1.0, trained=True)
        for index, observed in enumerate((98, 8, 8, 8))
    ]
    (one,) = split_mini_batch(samples, 1, max_tokens=100)
    assert [[sample.tokens for sample in micro_batch] for micro_batch in one] == [[100], [10, 10, 10]]


def unnoticed(batch: TrainBatch, tokens: Mapping[int, GroupTokens]) -> tuple[TrainBatch, dict[int, GroupTokens]]:
    """The same with observations that a bigram model cannot notice: each ends with the token before it."""
    groups, observed = [], {}
    for position, of in enumerate(batch.groups):
        old = tokens[position]
        runs = []
        for index, rollout in enumerate(of.rollouts):
            response = old.response(index)[0].tolist()
            whole = [int(old.prompt_ids[-1]), *response]
            places = sorted({0, rollout.length // 2, rollout.length})
            runs.append(observations(*((place, [3, 5, 4, whole[place]][index % 3 :]) for place in places)))
        observed[position] = dataclasses.replace(old, observations=tuple(runs))
        rollouts = [dataclasses.replace(r, observed=len(o.ids)) for r, o in zip(of.rollouts, runs, strict=True)]
        groups.append(dataclasses.replace(of, rollouts=tuple(rollouts)))
    return dataclasses.replace(batch, groups=tuple(groups)), observed


def test_advantages_values_loss_and_statistics_skip_what_was_observed() -> None:
    """With a critic, GAE, a KL in the reward and whitening, or with none of these."""
    plan = dataclasses.replace(PLAN, max_tokens=10**6)
    batch, tokens = random_batch(0, groups=4, responses=8, longest=8, vocabulary=VOCABULARY)
    turns, observed = unnoticed(batch, tokens)
    assert sum(s.observed for p in plan_batch(turns, plan, ranks=1) for s in p.updates[0].micro_batches[0]) > 50
    for advantages in (DAPO, PPO):
        steps = []
        for a_batch, a_tokens in ((batch, tokens), (turns, observed)):
            trainer = Trainer(advantages, plan=plan)
            report = trainer.rank.train(plan_batch(a_batch, plan, ranks=1)[0], a_tokens)
            steps.append((report, trainer.policy.inner.table.detach(), trainer.critic))
        (one, table, critic), (other, other_table, other_critic) = steps
        for name, value in one.sums.items():
            assert abs(value - other.sums[name]) <= 1e-5 * max(1.0, abs(value)), name
        torch.testing.assert_close(other_table, table)
        if critic is not None and other_critic is not None:
            torch.testing.assert_close(other_critic.inner.values, critic.inner.values)


def test_a_stopped_update_shows_the_contexts(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, Update(micro_batches=(SAMPLES,), total_tokens=4, read_tokens=4), {0: TOKENS}, Known())
    with np.load(tmp_path / "rank-0.npz", allow_pickle=False) as arrays:
        assert arrays["context_ids"].tolist() == [1, 2, 50, 10, 11, 51, 52, 12, 53, 1, 2, 20]
        assert arrays["context_offsets"].tolist() == [0, 9, 12]
        assert arrays["context_positions"].tolist() == [3, 4, 7, 2]
        assert arrays["response_offsets"].tolist() == [0, 3, 4]
