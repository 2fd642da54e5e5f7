"""What is reported of an evaluation of several sets: each by its name, and the first one where there is room for one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from event_files import run_started, write_events

from dapo_openrlhf.cli import eval as eval_command
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.pipeline.evaluation import Evaluation, Evaluations, ProblemResult, Response
from dapo_openrlhf.pipeline.evaluator import evaluated
from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import Evaluated, Rewound
from dapo_openrlhf.report.history import Measured
from dapo_openrlhf.report.notices import measured as words_of
from dapo_openrlhf.report.page.page import page
from dapo_openrlhf.report.page.past_run import read_runs
from dapo_openrlhf.report.responses import Responses
from dapo_openrlhf.report.run_folder import RunFolder
from dapo_openrlhf.report.summary import Summary, closing_words
from dapo_openrlhf.report.tensorboard import TensorBoardSink
from dapo_openrlhf.types import PolicyVersion, Prompt

SUMMARY = Summary(
    accuracy_before=0.25,
    accuracy_after=0.5,
    max_staleness=1,
    max_policy_age=1,
    steps=2,
    first_step_seconds=None,
    train_seconds=1.0,
    generated_tokens=0,
    trained_tokens=0,
    counters={},
)


def evaluation(prompt: str, *correct: bool | None) -> Evaluation:
    """A problem for each response."""
    return Evaluation(
        results=tuple(
            ProblemResult(
                problem=Prompt(id=place, text=f"{prompt} {place}", label="3"),
                responses=(Response(text=f"it is {right}", correct=right, error="" if right is not None else "late"),),
            )
            for place, right in enumerate(correct)
        ),
        samples=1,
        seconds=1.0,
        with_texts=True,
    )


def event(step: int, a: tuple[bool | None, ...], b: tuple[bool | None, ...]) -> Evaluated:
    sets = Evaluations(sets={"aime": evaluation("hard", *a), "math": evaluation("easy", *b)})
    return evaluated(sets, step=step, version=PolicyVersion(step), seconds=1.0)


BEFORE = event(0, (True, False, False, False), (True, False))
AFTER = event(2, (True, True, None, False), (True, True))


def test_an_evaluation_is_one_line_with_every_set_and_its_errors() -> None:
    assert words_of(BEFORE) == "held-out accuracy after 0 steps: aime 25.0% on 4 problems, math 50.0% on 2 problems"
    assert words_of(AFTER) == (
        "held-out accuracy after 2 steps: aime 66.7% on 4 problems, math 100.0% on 2 problems; 1 of 4 responses of aime were "
        "errors"
    )


def test_the_log_has_every_set(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    write_events(file, [(0.0, BEFORE), (1.0, AFTER)])
    assert [logged.event for logged in read(file)] == [BEFORE, AFTER]
    line = json.loads(file.read_text().splitlines()[1])
    assert line["sets"]["math"] == {"accuracy": 1.0, "problems": 2, "responses": 2, "errors": 0}
    assert line["estimates"]["math/accuracy"] == 1.0 and line["estimates"]["aime/pass@1"] == line["estimates"]["pass@1"]


def test_a_log_of_an_earlier_version_has_no_sets(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    write_events(file, [(0.0, replace(BEFORE, sets={}))])
    line = json.loads(file.read_text())
    del line["sets"]
    file.write_text(json.dumps(line) + "\n")
    assert [logged.event for logged in read(file)] == [replace(BEFORE, sets={})]


def test_tensorboard_has_a_curve_for_each_number_of_each_set(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.event(AFTER)
    sink.step(2, {"loss": 1.5, "eval/accuracy": 0.5, "eval/math/accuracy": 1.0}, 9.0)
    sink.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    points = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert points["eval/math/accuracy"] == [(2, 1.0)] and points["eval/math/pass@1"] == [(2, 1.0)]
    assert {tag.rpartition("/")[0] for tag in points} == {"", "eval", "eval/aime", "eval/math"}
    assert points["eval/aime/accuracy"] == points["eval/accuracy"], "the first one's"


def test_each_set_has_its_responses_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    Responses(folder.responses).event(AFTER)
    files = {str(file.relative_to(tmp_path)): file for file in tmp_path.rglob("*.jsonl")}
    assert sorted(files) == ["eval/aime/step-2.jsonl", "eval/math/step-2.jsonl"]
    rows = [json.loads(line) for line in files["eval/math/step-2.jsonl"].read_text().splitlines()]
    assert [(row["prompt"], row["correct"]) for row in rows] == [("easy 0", True), ("easy 1", True)]


def test_the_page_has_a_row_for_each_set_and_the_first_ones_responses(tmp_path: Path) -> None:
    write_events(tmp_path / "events.jsonl", [(0.0, run_started(0.0)), (1.0, BEFORE), (2.0, AFTER)])
    for one in (BEFORE, AFTER):
        Responses(RunFolder(path=tmp_path).responses).event(one)
    text = page(read_runs([tmp_path]))
    assert ">set</th>" in text and "hard 0" in text and "easy 0" not in text
    row = text[text.index(">math<") :]
    assert "50.0" in row[: row.index("</tr>")] and "avg@1" in row[: row.index("</tr>")] and "math/" not in text


def test_summary_and_closing_words_have_every_set(tmp_path: Path) -> None:
    history = Measured({}, first_step=0)
    history.event(BEFORE)
    history.event(AFTER)
    held_out = history.held_out(ended=True)
    assert held_out == {"aime": {"before": 0.25, "after": 2 / 3}, "math": {"before": 0.5, "after": 1.0}}
    told = closing_words(replace(SUMMARY, held_out=held_out), RunFolder(path=tmp_path))
    words = " ".join(told.split())
    assert (
        "held-out accuracy aime 25.0% -> 66.7% (+41.7 percentage points); math 50.0% -> 100.0% (+50.0 percentage points)"
    ) in words


def test_what_a_rewind_undid_and_what_was_not_measured_at_the_end_is_not_after(tmp_path: Path) -> None:
    history = Measured({0: BEFORE}, first_step=2)
    history.event(AFTER)
    assert history.start is BEFORE and history.held_out(ended=False)["math"] == {"before": 0.5, "after": None}
    back = Rewound(from_step=2, to_step=1, restart=1, max_restarts=3, pause=0.0, message="")
    history.event(back)
    assert list(history.evaluations) == [0]


def test_a_set_that_is_new_in_a_resumed_run_has_no_before() -> None:
    alone = evaluated(
        Evaluations(sets={"aime": evaluation("hard", True)}), step=0, version=PolicyVersion(0), seconds=1.0
    )
    history = Measured({0: alone}, first_step=1)
    now = replace(BEFORE, step=1)
    history.event(now)
    history.event(AFTER)
    assert history.start is now, "other sets than at the first start"
    assert history.held_out(ended=True)["math"] == {"before": 0.5, "after": 1.0}


def test_eval_writes_a_file_for_each_set_beside_the_one_that_was_named() -> None:
    settings = {"actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "p.jsonl"}}
    several = build_config(settings | {"eval": {"dataset": ["aime=a.jsonl", "b.jsonl"]}}, source="test")
    assert eval_command.response_files(several, Path("out/r.jsonl")) == {
        "aime": Path("out/r.aime.jsonl"),
        "b": Path("out/r.b.jsonl"),
    }
    single = build_config(settings | {"eval": {"dataset": "a.jsonl"}}, source="test")
    assert eval_command.response_files(single, Path("r.jsonl")) == {"": Path("r.jsonl")}
    assert eval_command.response_files(single, None) == {}


def test_evals_summary_of_several_sets_has_each_by_its_name() -> None:
    settings = {"actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "p.jsonl"}}
    sets = {"aime": evaluation("hard", True, False), "b": evaluation("easy", True)}
    config = build_config(
        settings | {"eval": {"dataset": ["aime=a.jsonl", "b.jsonl"], "sets": {"b": {"temperature": 0}}}}, source="test"
    )
    summary = eval_command.summary_of_all(config, Evaluations(sets=sets))
    assert (summary["model"], summary["accuracy"]) == ("m", 0.5), "the first one's"
    found = summary["sets"]
    assert isinstance(found, dict) and list(found) == ["aime", "b"]
    assert (found["b"]["accuracy"], found["b"]["temperature"], found["b"]["dataset"]) == (1.0, 0, "b.jsonl")
    single = build_config(settings | {"eval": {"dataset": "a.jsonl"}}, source="test")
    alone = eval_command.summary_of_all(single, Evaluations(sets={"": sets["aime"]}))
    assert alone["dataset"] == "a.jsonl" and "sets" not in alone
