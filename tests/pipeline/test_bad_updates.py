"""Numbers that are not finite: what counts, what is written down, when a run ends, and what bounds keep them away."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import some_group

from dapo_openrlhf.algorithm.correction import importance_weights
from dapo_openrlhf.backend.messages import GroupTokens, VersionRuns
from dapo_openrlhf.backend.run.launch import stall_timeout
from dapo_openrlhf.backend.trainer.bad_batch import write_rank
from dapo_openrlhf.backend.trainer.collate import collate
from dapo_openrlhf.backend.trainer.per_sample import Known
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.pipeline.bad_updates import BadUpdates, TooManyBadUpdates, UpdateOutcome
from dapo_openrlhf.pipeline.batch import Sample, Update
from dapo_openrlhf.pipeline.events import GroupJudged, UpdateSkipped
from dapo_openrlhf.pipeline.metrics import StepMetrics
from dapo_openrlhf.report.progress import ProgressLine
from dapo_openrlhf.types import PolicyVersion, TrainBatch

GOOD = UpdateOutcome(not_finite={})
BAD = UpdateOutcome(not_finite={"log-probs": 3, "loss": 1})
SCALED = UpdateOutcome(not_finite={"gradient norm": 1}, overflow=True)


def batch(step: int = 7) -> TrainBatch:
    return TrainBatch(
        step=step, version=PolicyVersion(step), groups=(some_group(0, version=6), some_group(1, version=7))
    )


def watch(folder: Path, steps: Sequence[Sequence[UpdateOutcome]], most: int = 3) -> list[UpdateSkipped]:
    events: list[UpdateSkipped] = []
    watcher = BadUpdates(str(folder), most=most, on_event=events.append)
    for step, outcomes in enumerate(steps):
        watcher.note(batch(step), outcomes)
    return events


def test_bad_updates_in_a_row_end_the_run_over_steps(tmp_path: Path) -> None:
    assert watch(tmp_path, [[GOOD, BAD], [BAD, GOOD], [BAD, SCALED, BAD, GOOD]], most=3)[-1].in_a_row == 2
    with pytest.raises(
        TooManyBadUpdates, match=r"step 2: 3 updates in a row .*max_bad_updates 3.*log-probs \(3\), loss \(1\)"
    ):
        watch(tmp_path, [[GOOD, BAD], [BAD], [SCALED, BAD]])
    with pytest.raises(TooManyBadUpdates):
        watch(tmp_path, [[BAD]], most=1)


def test_overflows_of_the_loss_scale_are_none_of_them(tmp_path: Path) -> None:
    assert watch(tmp_path, [[SCALED] * 20], most=1) == []
    assert list(tmp_path.iterdir()) == []


def test_the_batch_is_written_down_as_json(tmp_path: Path) -> None:
    (event,) = watch(tmp_path, [[GOOD, BAD]])
    assert event.path == str(tmp_path / "step-000000-update-1")
    content = json.loads((Path(event.path) / "batch.json").read_text())
    assert (content["step"], content["update"], content["not_finite"]) == (0, 1, {"log-probs": 3, "loss": 1})
    first = content["groups"][0]
    assert (first["prompt"], first["label"], first["oldest_version"]) == ("question 0", "answer 0", 6)
    assert (first["rewards"], first["correct"], first["lengths"]) == ([1.0, -1.0], [True, False], [5, 5])


def test_a_batch_that_cannot_be_written_down_does_not_hide_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (event,) = watch(tmp_path / "file", [[BAD]])
    assert event.path == "" and "could not be written" in event.problem
    assert event.not_finite == {"log-probs": 3, "loss": 1}


def sample(index: int, *, length: int, trained: bool = True) -> Sample:
    return Sample(
        group=0, index=index, prompt_length=2, length=length, advantage=0.5 - index, trained=trained, weight=0.25
    )


TOKENS = GroupTokens(
    prompt_ids=np.asarray([5, 6], np.int32),
    response_ids=np.asarray([7, 8, 9], np.int32),
    rollout_logprobs=np.asarray([-0.5, math.nan, -math.inf], np.float32),
    offsets=np.asarray([0, 1, 3]),
    versions=VersionRuns(versions=np.asarray([4, 4, 6], np.int32), ends=np.asarray([1, 2, 3])),
)


def test_a_rank_s_arrays_are_read_without_pickle(tmp_path: Path) -> None:
    update = Update(micro_batches=((sample(1, length=2),), (sample(0, length=1),)), total_tokens=3, read_tokens=3)
    write_rank(tmp_path / "bad", 1, update, {0: TOKENS}, Known(logprobs={(0, 1): torch.tensor([-1.0, -2.0])}))
    with np.load(tmp_path / "bad" / "rank-1.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name].tolist() for name in arrays.files}
    assert found["response"] == [1, 0] and found["advantage"] == [-0.5, 0.5]
    assert (found["prompt_ids"], found["prompt_offsets"]) == ([5, 6, 5, 6], [0, 2, 4])
    assert (found["response_ids"], found["response_offsets"]) == ([8, 9, 7], [0, 2, 3])
    assert str(found["rollout_logprobs"]) == "[nan, -inf, -0.5]"
    assert found["versions"] == [4, 6, 4]
    assert str(found["logprobs"]) == "[-1.0, -2.0, nan]"
    assert "values" not in found


def test_log_probs_without_a_gradient_spoil_no_sum() -> None:
    """A truncated response of a sick engine: 0 times infinity would be no number."""
    device = torch.device("cpu")
    tensors = collate((sample(1, length=2, trained=False), sample(0, length=1)), {0: TOKENS}, device=device)
    assert tensors.rollout_logprobs.tolist() == [[0.0, 0.0], [-0.5, 0.0]]
    trained = collate((sample(1, length=2),), {0: TOKENS}, device=device)
    assert str(trained.rollout_logprobs.tolist()) == "[[nan, -inf]]", "the update is stopped because of these"


@pytest.mark.parametrize("level", ["token", "seq", "off"])
def test_importance_weights_are_bounded_in_log_space(level: str) -> None:
    old = torch.tensor([[-1.0, -2000.0, -0.5]])
    rollout = torch.tensor([[-3000.0, -1.0, -0.5]])
    weights, sums = importance_weights(
        old, rollout, torch.ones(1, 3), level=level, mode="mask" if level == "seq" else "clip", threshold=(0.0, 1e30)  # type: ignore[arg-type]
    )  # fmt: skip
    assert all(torch.isfinite(value).all() for value in (weights, *sums.values()))
    if level == "token":
        assert weights[0].tolist() == pytest.approx([math.exp(20), math.exp(-20), 1.0])


def test_a_server_s_absence_is_no_stall() -> None:
    def stall(remote_url: object) -> float:
        settings = {
            "actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "d"},
            "async": {"start_timeout": 1.0, "publish_timeout": 20.0, "generate_timeout": 300.0, "reward_timeout": 4000.0},
            "reward": {"remote_url": remote_url, "server_timeout": 50000.0},
        }  # fmt: skip
        return stall_timeout(build_config(settings, source="test"))

    assert (stall("rule"), stall("http://judge:1/"), stall(["rule", "https://judge/"])) == (4321.0, 54321.0, 54321.0)


# --------------------------------------------------------------------------------------------- what a user sees


def judged(group: int, **logs: float) -> GroupJudged:
    return GroupJudged(
        group=group, keep=True, reason="kept", accuracy=0.5, reward=0.0, response_tokens=4, seconds=0.1, logs=logs
    )


def test_extra_logs_are_metrics_of_the_step_in_which_they_came() -> None:
    metrics = StepMetrics(started=0.0)
    for event in (judged(0, length=10.0, found=1.0), judged(1, length=20.0), judged(2)):
        metrics.add(event)
    row = metrics.row(now=1.0)
    assert (row["reward/length"], row["reward/found"]) == (15.0, 1.0)
    assert not any(name.startswith("reward/") for name in metrics.row(now=2.0))


def test_stopped_updates_are_counted_in_the_progress_line() -> None:
    stream = io.StringIO()
    progress = ProgressLine(3, stream, width=200)
    for step, row in enumerate([{"updates/bad": 2.0}, {"updates/bad": 1.0, "updates/overflow": 1.0}, {}]):
        progress.step(step, row, float(step))
    first, last = stream.getvalue().splitlines()[1:]
    assert first.endswith("  2 update(s) stopped") and last.endswith("  2 update(s) stopped")
