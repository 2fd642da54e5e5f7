"""The reward actor and what its pool makes of judgements, without Ray running."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest
from fake_actors import FakeActor
from patience import Clock
from ray.exceptions import RayActorError

from dapo_openrlhf.backend.messages import GroupTexts
from dapo_openrlhf.backend.run import reward_pool as rewards
from dapo_openrlhf.backend.run.reward_pool import Judged, RewardActor, RewardPool, RewardTimes, scores_of
from dapo_openrlhf.config.reward_origin import PythonFile
from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.rewards.process import RewardProcess, RewardUnavailable, Scored
from dapo_openrlhf.rewards.settings import RewardSettings
from dapo_openrlhf.types import Prompt, Score

PROMPT = Prompt(id=4, text="3+4=", label="7")
SOURCE = """
import time
def reward_func(queries, prompts, labels):
    assert queries[0] != "3+4=bad", "bad"
    if queries[0] == "3+4=slow": open(__file__ + ".slow", "w").close(); time.sleep(1e6)
    return {"rewards": float(queries[0] == prompts[0] + labels[0])}
"""


TIMES = RewardTimes(group=60.0, start=60.0, server=100.0)


def texts(*responses: str) -> GroupTexts:
    return GroupTexts(responses=responses)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RewardActor:
    """Its deadline passes when its reward has begun to be slow, and not before."""
    file, clock = tmp_path / "reward.py", Clock()
    file.write_text(SOURCE)
    slow = Path(f"{file}.slow")
    clock.passes = slow.exists
    monkeypatch.setattr(rewards, "RewardProcess", functools.partial(RewardProcess, clock=clock))
    worker = RewardActor(settings=RewardSettings(sources=(PythonFile(str(file)),)), start_timeout=60.0)
    score = worker.score

    def fresh(texts: GroupTexts, prompt: Prompt) -> Judged:
        slow.unlink(missing_ok=True)
        return score(texts, prompt)

    monkeypatch.setattr(worker, "score", fresh)
    return worker


def test_a_group_is_scored_in_order(worker: RewardActor) -> None:
    assert worker.ready() > 0
    scores = scores_of(worker.score(texts("7", "8", "7"), PROMPT).scored, PROMPT)
    assert scores == tuple(Score(correct=right, reward=float(right)) for right in (True, False, True))


@pytest.mark.parametrize(("response", "reason"), [("bad", "reward_error"), ("slow", "reward_timeout")])
def test_one_error_fails_its_group_and_ends_it(worker: RewardActor, response: str, reason: str) -> None:
    scored = worker.score(texts("7", response, "7"), PROMPT).scored
    assert len(scored) == 2, "nothing is judged for a group that has failed"
    with pytest.raises(GroupError, match="response 1 to prompt 4") as caught:
        scores_of(scored, PROMPT)
    assert (caught.value.reason, caught.value.permanent) == (reason, False)
    assert scores_of(worker.score(texts("7"), PROMPT).scored, PROMPT)[0].correct


def test_a_worker_that_cannot_load_its_reward_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("import nowhere")
    with pytest.raises(RewardUnavailable, match="nowhere"):
        RewardActor(
            settings=RewardSettings(sources=(PythonFile(str(tmp_path / "reward.py")),)), start_timeout=60.0
        ).ready()


def test_training_and_a_file_of_responses_are_judged_alike() -> None:
    responses = ["Answer: 7", r"\boxed{\sqrt{49}}", "Answer: 8", "7"]
    worker = RewardActor(settings=RewardSettings(), start_timeout=60.0)
    with RewardProcess(RewardSettings()) as process:
        alone = [process.score(response, label="7").score for response in responses]
    assert list(scores_of(worker.score(texts(*responses), PROMPT).scored, PROMPT)) == alone


def test_a_worker_whose_group_was_given_up_is_free_when_it_is_done_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next group has the whole of its own time then."""

    busy = asyncio.Lock()

    async def one_at_a_time(seconds: float) -> Judged:
        async with busy:
            await asyncio.sleep(seconds)
        return Judged(
            scored=(Scored(score=Score(correct=True, reward=1.0), error=None, reason="judged", seconds=seconds),)
        )

    async def score(texts: str, prompt: Prompt, begin: int) -> Judged:
        """As Ray, goes on when nobody waits for it."""
        return await asyncio.shield(asyncio.ensure_future(one_at_a_time(float(texts))))

    async def main() -> float:
        monkeypatch.setattr(RewardPool, "_start", lambda self: FakeActor(score=score))
        pool = RewardPool(workers=1, settings=RewardSettings(), times=TIMES)
        given_up = asyncio.create_task(pool.score("50", PROMPT))
        await asyncio.sleep(1.0)
        given_up.cancel()
        (scored,) = await pool.score("40", PROMPT)
        assert scored.correct
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 90.0


def test_a_group_outlives_workers_whose_machine_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker that a group meets may be dead, once; what replaces them all is not."""
    started: list[FakeActor] = []
    ended: list[FakeActor] = []
    right = Judged(scored=(Scored(score=Score(correct=True, reward=1.0), error=None, reason="judged", seconds=1.0),))

    def start(dead: int) -> FakeActor:
        def score(texts: str, prompt: Prompt, begin: int) -> Judged:
            if number < dead:
                raise RayActorError(error_msg=f"worker {number}\nwas killed")
            return right

        number = len(started)
        started.append(FakeActor(score=score))
        return started[-1]

    async def main(groups: int) -> list[tuple[Score, ...]]:
        pool = RewardPool(workers=3, settings=RewardSettings(), times=TIMES)
        return await asyncio.gather(*(pool.score("7", PROMPT) for _ in range(groups)))

    monkeypatch.setattr(rewards.ray, "kill", ended.append)
    monkeypatch.setattr(RewardPool, "_start", lambda self: start(dead=3))
    assert [score.reward for (score,) in run_virtual(main(groups=6))] == [1.0] * 6
    assert ended == started[:3] and len(started) == 6
    monkeypatch.setattr(RewardPool, "_start", lambda self: start(dead=10))
    with pytest.raises(GroupError, match="4 reward workers died one after the other: worker 9 was killed") as caught:
        run_virtual(main(groups=1))
    assert (caught.value.reason, caught.value.permanent) == ("reward_died", False)
