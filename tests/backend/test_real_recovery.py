"""Runs that lose an engine, end early, or cut and replace weights in other ways, on Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import ray
from tiny_run import make_config

from dapo_openrlhf.backend.run.cluster import ray_cluster
from dapo_openrlhf.backend.run.inputs import check_inputs
from dapo_openrlhf.backend.run.workers import start_workers
from dapo_openrlhf.cli.train import train
from dapo_openrlhf.pipeline.ports import GroupError, Sampling
from dapo_openrlhf.pipeline.resume_point import newest_point

pytestmark = pytest.mark.real


def events_of(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_run_goes_on_from_its_checkpoint_where_it_was(tmp_path: Path) -> None:
    schedule = {"actor.lr_scheduler": "cosine", "ckpt.save_steps": 1}
    config = make_config(tmp_path, **schedule, **{"ckpt.max_num": 2})
    assert train(config, started=time.monotonic(), stream=io.StringIO()) == 0
    run = tmp_path / "runs" / "dapo"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000003", "step-000004"]

    changes = {"train.max_steps": 6, "actor.adam.lr": 1e-5, "train.batch_size": 8}
    longer = make_config(tmp_path, **schedule, **changes)
    said = io.StringIO()
    assert train(longer, started=time.monotonic(), resume=newest_point(run, print), stream=said) == 0
    assert "resuming after 4 rollout steps" in said.getvalue()
    assert "actor.adam.lr 1e-06 -> 1e-05, train.batch_size 16 -> 8" in said.getvalue()
    events = events_of(run)
    resumed = next(number for number, event in enumerate(events) if event.get("first_step") == 4)
    first, second = events[:resumed], events[resumed:]
    assert [event["version"] for event in second if event["event"] == "batch_taken"] == [4, 5]
    versions = [event["version"] for event in second if event["event"] == "group_dispatched"]
    assert (versions[0], max(versions) <= 6, versions == sorted(versions)) == (4, True, True)
    saved = next(number for number, event in enumerate(first) if event.get("path", "").endswith("step-000004"))
    prompts = [event["prompt"] for event in first[:saved] if event["event"] == "group_dispatched"]
    ended = {group for event in first[:saved] if event["event"] == "batch_taken" for group in event["groups"]}
    ended |= {event["group"] for event in first[:saved] if event["event"] == "group_judged" and not event["keep"]}
    # Which groups were surplus, only timing decides: their prompts come again, and a prompt's last group counts.
    newest = {prompt: group for group, prompt in enumerate(prompts)}
    unfinished = {prompt for prompt, group in newest.items() if group not in ended}
    again = [*dict.fromkeys(event["prompt"] for event in second if event["event"] == "group_dispatched")]
    assert unfinished, "nothing was in flight at the checkpoint"
    assert unfinished == set(again[: len(unfinished)]), "what was in flight at the checkpoint comes first"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    # One update a step of 4 steps, then two of 6: the last updates of the six steps are the 0th to 3rd of 4, and the 9th
    # and 11th of 12.
    shares = [0 / 4, 1 / 4, 2 / 4, 3 / 4, 9 / 12, 11 / 12]
    peaks = [1e-6] * 4 + [1e-5] * 2
    cosine = [peak * 0.5 * (1 + math.cos(math.pi * share)) for peak, share in zip(peaks, shares, strict=True)]
    assert [row["lr"] for row in rows] == pytest.approx(cosine)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_hanging_engine_is_replaced_with_the_newest_weights(tmp_path: Path, end: signal.Signals) -> None:
    """From outside, in the middle of the run; one engine of one, so that groups must wait.

    Every other limit is far away: what is found is found by the engine's health.
    """
    limit = {"vllm.health_timeout": 20.0} if end == signal.SIGSTOP else {}
    config = make_config(tmp_path, **{"train.max_steps": 6, **limit})
    killed = []
    terminal = []

    class Killer(io.StringIO):
        """The terminal of the run, on which a line appears with every few steps."""

        def write(self, text: str) -> int:
            if " 1/6 " in text and not killed:
                killed.append(pid_of("EngineActor"))
                os.kill(killed[0], end)
            terminal.append(text)
            return super().write(text)

    assert train(config, started=time.monotonic(), stream=Killer()) == 0
    events = events_of(tmp_path / "runs" / "dapo")
    names = [event["event"] for event in events]
    assert names.count("engine_lost") == names.count("engine_replaced") == 1
    cause = "did not answer within 20 s (vllm.health_timeout)" if end == signal.SIGSTOP else "engine 0 died"
    assert cause in events[names.index("engine_lost")]["message"]
    said = "".join(terminal)
    assert ("engine 0 has not answered for 1" in said) == (end == signal.SIGSTOP)
    assert "engine 0 was lost once, replaced once" in said
    assert not psutil.pid_exists(killed[0])
    back = names.index("engine_replaced")
    live = max((event["version"] for event in events[:back] if event["event"] == "publication_live"), default=0)
    later = [event for event in events[back:] if event["event"] == "group_generated"]
    assert later
    assert min(event["oldest_version"] for event in later) >= live
    assert max(event["newest_version"] for event in later) > 0
    assert [event["version"] for event in events if event["event"] == "batch_taken"] == [0, 1, 2, 3, 4, 5]


def pid_of(actor: str) -> int:
    """Process of the only actor of a class; Ray names processes by what they run."""
    mine = psutil.Process().children(recursive=True)
    (process,) = [process for process in mine if process.cmdline()[:1] and actor in process.cmdline()[0]]
    return process.pid


def test_a_killed_trainer_rank_ends_the_run_at_once_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, **{"train.max_steps": 50})
    killed = []

    class Killer(io.StringIO):
        """The terminal of the run."""

        def write(self, text: str) -> int:
            if " 1/50 " in text and not killed:
                killed.append(pid_of("PolicyActor"))
                os.kill(killed[0], signal.SIGKILL)
            return super().write(text)

    assert train(config, started=time.monotonic(), stream=Killer()) == 1
    steps = [event for event in events_of(tmp_path / "runs" / "dapo") if event["event"] == "step_trained"]
    assert killed and len(steps) < 50
    assert "trainer rank 0 died" in capsys.readouterr().err


def test_a_cut_group_has_the_tokens_so_far(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    inputs = check_inputs(config, training=True)

    async def main() -> None:
        workers = await start_workers(config, inputs)
        engine = workers.engines[0]
        sampling = Sampling(n=4, max_new_tokens=40, temperature=1.0, top_p=1.0)
        prompt = inputs.prompts[0]
        whole = await engine.generate("whole", prompt, sampling)
        assert whole.cut == (False,) * 4
        pause = 0.01
        for attempt in range(1000):  # until a cut falls between the first and the last token, however long they take
            task = asyncio.create_task(engine.generate(f"cut {attempt}", prompt, sampling))
            await asyncio.sleep(pause)
            engine.cut(f"cut {attempt}")
            try:
                generation = await task
            except GroupError as error:
                assert error.reason == "cut_too_early"
                pause *= 1.3
                continue
            pause *= 0.8
            if any(generation.cut):
                tokens = ray.get(generation.tokens)
                assert tuple(len(tokens.response(index)[0]) for index in range(4)) == generation.lengths
                assert all(t for t, c in zip(generation.truncated, generation.cut, strict=True) if c)
                assert min(generation.lengths) >= 1
                return
        raise AssertionError("no cut fell into a generation")

    with ray_cluster(config, inputs.device):
        asyncio.run(main())


@pytest.mark.parametrize(
    "settings",
    [
        {"train.partial_rollout_enable": False},
        {"async.kv_cache": "recompute", "async.max_staleness": 2},
        {"async.at_deadline": "cut", "async.over_sampling": 3.0, "async.max_staleness": 0},
    ],
)
def test_other_ways_to_take_weights_and_groups_run_and_stay_within_the_contract(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    config = make_config(tmp_path, **settings)
    assert train(config, started=time.monotonic(), stream=io.StringIO()) == 0
    events = events_of(tmp_path / "runs" / "dapo")
    ages = [age for event in events if event["event"] == "batch_taken" for age in event["ages"]]
    assert len(ages) == 16
    assert max(ages) <= config.async_.max_staleness
    generated = [event for event in events if event["event"] == "group_generated"]
    if not config.train.partial_rollout_enable:
        assert all(event["oldest_version"] == event["newest_version"] for event in generated)
    rows = [json.loads(line) for line in (tmp_path / "runs" / "dapo" / "metrics.jsonl").read_text().splitlines()]
    same_age = [row["rollout_kl"] for row in rows if row["policy_age/max"] == 0]
    assert all(abs(kl) < 1e-4 for kl in same_age), same_age
