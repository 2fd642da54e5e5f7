"""Sample responses of training: a few of each step, in a file, in TensorBoard and on the page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import Event, ResponseSampled, Rewound, StepDone
from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.pipeline.samples import SampledScorer
from dapo_openrlhf.report.page.past_run import read_runs
from dapo_openrlhf.report.run_folder import RunFolder
from dapo_openrlhf.report.samples import LONGEST, Samples
from dapo_openrlhf.report.tensorboard import TensorBoardSink
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Score, Transcript

PROMPT = Prompt(id=7, text="1+1=", label="2")


class Scorer:
    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        return Score(correct=True, reward=1.0, answer="2"), Score(correct=False, reward=-1.0)


class Texts:
    lost = False

    async def fetch(self, texts: object) -> Sequence[Transcript]:
        if self.lost:
            raise GroupError("texts_lost", "gone")
        return Transcript(text="so 2"), Transcript(text="so 3")


def generated(*scores: Score) -> Generation:
    return Generation(
        prompt_length=4, lengths=(2, 2), truncated=(False, False), cut=(False, False), oldest_version=PolicyVersion(0),
        newest_version=PolicyVersion(0), version_tokens=(4,), engine=0, tokens=None, texts=object(), scores=scores or None,
    )  # fmt: skip


def sampled(*, response: str = "so 2", prompt: str = "1+1=") -> ResponseSampled:
    return ResponseSampled(
        prompt=7, correct=True, reward=1.0, prompt_text=prompt, label="2", response=response, answer="2"
    )


def done(step: int) -> StepDone:
    return StepDone(step=step, laps={})


def back(to_step: int) -> Rewound:
    return Rewound(from_step=2, to_step=to_step, restart=1, max_restarts=3, pause=0.0, message="lost")


@pytest.mark.parametrize(("per_step", "seen"), [(0, [0, 0]), (2, [2, 4])])
def test_a_few_responses_of_each_step_are_shown(per_step: int, seen: list[int]) -> None:
    log, heard = EventLog(None, clock=lambda: 0.0), list[Event]()
    scorer = SampledScorer(Scorer(), texts=Texts(), per_step=per_step, log=log)
    log.listen(lambda event: heard.append(event) if isinstance(event, ResponseSampled) else None)

    async def main() -> list[int]:
        counts = []
        for step in range(2):
            for _ in range(5):
                assert len(await scorer.score(generated(), PROMPT)) == 2
            counts.append(len(heard))
            log.emit(done(step))
        return counts

    assert asyncio.run(main()) == seen
    assert all(event == sampled() for event in heard)


def test_rollouts_that_an_environment_has_scored_are_shown_too() -> None:
    log, heard = EventLog(None, clock=lambda: 0.0), list[Event]()
    log.listen(lambda event: heard.append(event) if isinstance(event, ResponseSampled) else None)
    scorer = SampledScorer(Scorer(), texts=Texts(), per_step=1, log=log)
    given = (Score(correct=False, reward=0.25), Score(correct=True, reward=0.5))
    assert asyncio.run(scorer.score(generated(*given), PROMPT)) == given
    (shown,) = heard
    assert isinstance(shown, ResponseSampled)
    assert (shown.response, shown.correct, shown.reward, shown.answer) == ("so 2", False, 0.25, None)


def test_a_text_that_is_lost_costs_its_group_nothing() -> None:
    texts = Texts()
    texts.lost = True
    scorer = SampledScorer(Scorer(), texts=texts, per_step=1, log=EventLog(None, clock=lambda: 0.0))
    assert [score.correct for score in asyncio.run(scorer.score(generated(), PROMPT))] == [True, False]


def test_texts_are_not_written_to_the_event_log(tmp_path: Path) -> None:
    with (tmp_path / "events.jsonl").open("w") as file:
        EventLog(file, clock=lambda: 0.0).emit(sampled())
    assert json.loads((tmp_path / "events.jsonl").read_text()) == {
        "time": 0.0, "event": "response_sampled", "prompt": 7, "correct": True, "reward": 1.0
    }  # fmt: skip


def test_samples_have_their_step_and_those_that_are_undone_go(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text('{"step": 1, "prompt": "old"}\n{"step": 5}\ndamaged\n[]\n')
    sink = Samples(file, first_step=2)
    for event in (sampled(), done(2), sampled(response="\ud800" + "x" * 2 * LONGEST), back(3), sampled(), done(3)):
        sink.event(event)
    sink.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 4]
    assert lines[1]["response"] == "so 2" and lines[1]["label"] == "2" and lines[1]["correct"] is True
    sink = Samples(file, first_step=4)
    sink.event(sampled(response="\ud800" + "x" * 2 * LONGEST))
    sink.close()
    last = json.loads(file.read_text().splitlines()[-1])
    assert (last["step"], len(last["response"]), last["characters"]) == (5, LONGEST, 2 * LONGEST + 1)


def test_tensorboard_has_the_samples_as_texts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    sink = TensorBoardSink(tmp_path)
    for event in (sampled(), done(0), sampled(response="<b>\ud800\n# no heading")):
        sink.event(event)
    sink.close()
    texts = EventAccumulator(str(tmp_path)).Reload().Tensors("samples")
    assert [text.step for text in texts] == [1, 2]
    first, second = (text.tensor_proto.string_val[0].decode() for text in texts)
    assert first == "right, reward +1, label '2'\n\n    1+1=\n    so 2"
    assert second.endswith("    1+1=\n    <b>?\n    # no heading"), "quoted, so that it is no Markdown"


def test_the_page_shows_some_from_the_first_to_the_last(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    folder.metrics.write_text("")
    sink = Samples(folder.samples)
    for step in range(40):
        sink.event(sampled(response=f"step {step + 1}"))
        sink.event(done(step))
    sink.close()
    (run,) = read_runs([tmp_path])
    assert [sample.step for sample in run.samples] == [1, 9, 17, 24, 32, 40]
    assert run.samples[-1].response == "step 40" and run.samples[-1].length == "7 characters"
    folder.samples.write_bytes(b"\xff\n{}\n" + folder.samples.read_bytes()[:-9])
    (run,) = read_runs([tmp_path])
    assert 1 < len(run.samples) < 6, "lines that are none are left out"
