"""Runs that lose an engine, end early, or cut and replace weights in other ways, on Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from patience import HANG_SECONDS
from tiny_run import make_config

from dapo_openrlhf.backend.run import rank_watch
from dapo_openrlhf.backend.run.cluster import ray_cluster
from dapo_openrlhf.backend.run.inputs import check_inputs
from dapo_openrlhf.backend.run.workers import start_workers
from dapo_openrlhf.cli.train import train
from dapo_openrlhf.pipeline.ports import GroupError, Sampling
from dapo_openrlhf.pipeline.resume import check_resume
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
    point = newest_point(run, print)
    point = replace(point, changes=tuple(check_resume(longer, run=run, checkpoint=point.checkpoint)))
    assert train(longer, started=time.monotonic(), resume=point, stream=said) == 0
    assert "resuming after 4 rollout steps" in said.getvalue()
    assert "actor.adam.lr 1e-06 -> 1e-05, train.batch_size 16 -> 8" in said.getvalue()
    events = events_of(run)
    resumed = next(number for number, event in enumerate(events) if event.get("first_step") == 4)
    first, second = events[:resumed], events[resumed:]
    assert [event["version"] for event in second if event["event"] == "batch_taken"] == [4, 5]
    versions = [event["version"] for event in second if event["event"] == "group_dispatched"]
    assert (versions[0], max(versions) <= 6, versions == sorted(versions)) == (4, True, True)
    # The state is that of the snapshot; while it was written, groups were dispatched and judged.
    saved = next(
        number for number, event in enumerate(first) if (event["event"], event.get("step")) == ("snapshot_taken", 4)
    )
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


def pids_of(actor: str) -> list[int]:
    """Processes of the actors of a class, in the order of their start; Ray names processes by what they run."""
    mine = psutil.Process().children(recursive=True)
    found = [process for process in mine if actor in what_runs_in(process)]
    return [process.pid for process in sorted(found, key=psutil.Process.create_time)]


def what_runs_in(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline()[:1])
    except psutil.Error:  # it has ended
        return ""


def pid_of(actor: str) -> int:
    (pid,) = pids_of(actor)
    return pid


def test_a_trainer_that_loses_a_rank_is_replaced_within_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank of two is killed, then one of the new ones is stopped; no other time counts as a hang."""
    monkeypatch.setattr(rank_watch, "HUNG_SECONDS", HANG_SECONDS)
    settings = {"train.max_steps": 4, "ckpt.save_steps": 1, "train.max_restarts": 2, "actor.num_gpus_per_node": 2}
    config = make_config(tmp_path, **settings)
    faults = {" 1/4 ": (signal.SIGKILL, 1), "a new trainer goes on after": (signal.SIGSTOP, 0)}
    engines: list[list[int]] = []
    ended: list[int] = []

    class Killer(io.StringIO):
        """The terminal of the run."""

        def write(self, text: str) -> int:
            for words in [words for words in faults if words in text]:
                end, rank = faults.pop(words)
                engines.append(pids_of("EngineActor"))
                ended.extend(pids_of("PolicyActor"))
                os.kill(ended[rank - 2], end)
                if end == signal.SIGSTOP:
                    rank_watch.HUNG_SECONDS = 30.0
            if " hangs: " in text:
                rank_watch.HUNG_SECONDS = HANG_SECONDS
            if " 4/4 " in text:
                engines.append(pids_of("EngineActor"))
            return super().write(text)

    terminal = Killer()
    assert train(config, started=time.monotonic(), stream=terminal) == 0
    assert len(engines) == 3 and engines[0] == engines[1] == engines[2], "engines stay"
    assert len(ended) == 4 and not any(map(psutil.pid_exists, ended))
    run = tmp_path / "runs" / "dapo"
    events = events_of(run)
    first, second = [event for event in events if event["event"] == "rewound"]
    assert "trainer rank 1 died: it was killed" in first["message"]
    assert re.match(r"trainer rank [01] hangs: its process has not answered for 30 s", second["message"])
    assert [event["restart"] for event in (first, second)] == [1, 2]
    assert terminal.getvalue().count("a new trainer goes on from") == 2
    assert "lost and replaced 2 times" in terminal.getvalue()
    check_lineage(run, events)
    groups = [event["group"] for event in events if event["event"] == "group_dispatched"]
    assert groups == list(range(len(groups)))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["trainer/restarts"] == 2
    same_age = [row["rollout_kl"] for row in rows if row["policy_age/max"] == 0]
    assert all(abs(kl) < 1e-4 for kl in same_age), "engines and trainer are the same policy"


def check_lineage(run: Path, events: list[dict[str, object]]) -> None:
    """Every step was trained once in the final weights, and every prompt in them once."""
    prompt_of = {event["group"]: event["prompt"] for event in events if event["event"] == "group_dispatched"}
    batches: list[list[object]] = []
    for event in events:
        if event["event"] == "rewound":
            del batches[event["to_step"] :]
        elif event["event"] == "batch_taken":
            assert event["version"] == len(batches)
            batches.append([prompt_of[group] for group in event["groups"]])
    prompts = [prompt for batch in batches for prompt in batch]
    assert len(batches) == 4 and len(set(prompts)) == len(prompts) == 16
    counters = json.loads((run / "summary.json").read_text())["counters"]
    assert (counters["trained"], counters["training"]) == (16, 0)
    assert counters["dropped"]["rewound"] > 0
    ended = 16 + sum(counters["dropped"].values()) + sum(counters["failed"].values())
    assert counters["dispatched"] == ended + counters["in_flight"] + counters["ready"]


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
    for row in rows:
        assert 0 <= row["policy_age/token_mean"] <= row["stale_token_share"] * row["policy_age/max"]
    same_age = [row["rollout_kl"] for row in rows if row["policy_age/max"] == 0]
    assert all(abs(kl) < 1e-4 for kl in same_age), same_age
