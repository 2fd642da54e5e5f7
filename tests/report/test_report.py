"""What a user sees of a run: progress lines, TensorBoard, the picture, the run folder, the closing words."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dapo_openrlhf.pipeline.evaluation import ProblemResult, Response
from dapo_openrlhf.pipeline.events import Evaluated, Rewound
from dapo_openrlhf.pipeline.metrics import METRICS
from dapo_openrlhf.program import beside
from dapo_openrlhf.report.progress import LINES_PER_HEADER, NARROW, EvaluationProgress, ProgressLine, clock_time
from dapo_openrlhf.report.run_folder import RunFolder
from dapo_openrlhf.report.summary import Summary, closing_words
from dapo_openrlhf.report.tensorboard import CHARTS, TensorBoardSink
from dapo_openrlhf.types import PolicyVersion, Prompt

ROW = {
    "reward": -0.25,
    "accuracy": 0.375,
    "groups/kept": 16.0,
    "groups/all_right": 2.0,
    "groups/all_wrong": 7.0,
    "groups/failed": 0.0,
    "policy_age/mean": 0.75,
    "policy_age/max": 1.0,
    "tokens_per_second/trained": 12345.0,
    "seconds/step": 3.0,
}

SUMMARY = Summary(
    accuracy_before=0.125,
    accuracy_after=0.4125,
    max_staleness=1,
    max_policy_age=1,
    steps=120,
    first_step_seconds=31.5,
    train_seconds=500.0,
    generated_tokens=1_000_000,
    trained_tokens=600_000,
    counters={
        "dispatched": 3000,
        "trained": 1920,
        "dropped": {"all_wrong": 900, "all_right": 150},
        "failed": {},
    },
)


def progress(max_steps: int, steps: Sequence[tuple[int, dict[str, float], float]]) -> list[str]:
    stream = io.StringIO()
    line = ProgressLine(max_steps, stream)
    for step, row, elapsed in steps:
        line.step(step, row, elapsed)
    return stream.getvalue().splitlines()


# --- progress ---------------------------------------------------------------------------------------------------------


def test_a_progress_line_has_the_steps_numbers() -> None:
    _, line = progress(120, [(4, ROW | {"eval/accuracy": 0.5}, 15.0)])
    seen = "5/120 -0.250 37.5% 50.0% 16 9 0.75/1 12,345 3.00 0:15 5:45"  # left: 115 steps of 3 s
    assert " ".join(line.split()) == seen


def test_the_header_stands_above_its_columns() -> None:
    header, line = progress(9, [(0, ROW, 3.0)])
    assert len(header) == len(line)
    assert header.index("reward") + len("reward") == line.index("-0.250") + len("-0.250")


@pytest.mark.parametrize("row", [{}, {"reward": math.nan, "seconds/step": math.nan}, ROW | {"eval/accuracy": 1.0}])
def test_lines_align_whatever_a_row_has(row: dict[str, float]) -> None:
    header, line = progress(9, [(0, row, 0.0)])
    assert len(line) == len(header)


MOST = {
    "reward": -999.999,
    "accuracy": 1.0,
    "eval/accuracy": 1.0,
    "groups/kept": 9999.0,
    "groups/all_right": 5000.0,
    "groups/all_wrong": 4999.0,
    "groups/failed": 9999.0,
    "prompts/dropped": 9999.0,
    "updates/empty": 9999.0,
    "updates/bad": 9999.0,
    "truncated_share": 1.0,
    "policy_age/mean": 8.88,
    "policy_age/max": 16.0,
    "tokens_per_second/trained": 9.99e7,
    "seconds/step": 9999.9,
}


@pytest.mark.parametrize("row", [{}, ROW, MOST])
@pytest.mark.parametrize("max_steps", [1, 40, 400, 10_000, 999_999])
def test_no_line_is_wider_than_any_terminal(row: dict[str, float], max_steps: int) -> None:
    lines = progress(max_steps, [(max_steps - 1, row, 359_999.0)])
    assert max(map(len, lines)) <= NARROW
    stream = io.StringIO()
    ProgressLine(max_steps, stream, width=200).step(max_steps - 1, row, 0.0)
    assert "elapsed" in stream.getvalue() and "s/step" in stream.getvalue(), "where there is room all columns are there"


def test_time_left_is_exact_for_constant_steps_and_zero_at_the_end() -> None:
    lines = progress(200, [(step, ROW | {"seconds/step": 30.0}, 30.0 * (step + 1)) for step in range(200)])
    left = [line.split()[-1] for line in lines if "kept" not in line]
    assert left == [clock_time(30.0 * (199 - step)) for step in range(200)]
    assert left[0] == "1:39:30" and left[-1] == "0:00"


def test_one_slow_step_does_not_change_the_time_left() -> None:
    seconds = [2.0, 2.0, 500.0, 2.0, 2.0]
    lines = progress(105, [(step, {"seconds/step": s}, 1000.0 * step) for step, s in enumerate(seconds)])
    assert lines[-1].split()[-1] == "3:20"


def test_fast_steps_are_thinned_but_first_and_last_are_there() -> None:
    steps = [(step, ROW | {"seconds/step": 0.5}, 0.5 * (step + 1)) for step in range(199)]
    lines = [line for line in progress(199, steps) if "kept" not in line]
    assert [line.split()[0] for line in lines] == [f"{step}/199" for step in (*range(1, 199, 4), 199)]


def test_an_evaluation_tells_what_is_done_and_how_long_the_rest_takes() -> None:
    """Of 40 problems one is sure from the second on. After 20 s 4 are done and 12 begun: 10 take 20 s, the rest 60 s."""
    problem, wrong = Prompt(id=0, text="1+1=", label="2"), Response(correct=False, length=30)
    results = [
        (wrong, Response(correct=True, length=10)),
        (wrong, wrong),
        (Response(error="late"),) * 2,
        (wrong, wrong),
    ]
    progress = EvaluationProgress(40, at_once=12)
    assert " ".join(progress.words(10.0).split()) == "0/40 problems accuracy - - tokens/s elapsed 0:10 left -"
    progress.answered(ProblemResult(problem=problem, responses=results[0]))
    assert " ".join(progress.words(10.0).split()) == "1/40 problems accuracy 50.0% - tokens/s elapsed 0:10 left -"
    for responses in results[1:]:
        progress.answered(ProblemResult(problem=problem, responses=responses))
    assert " ".join(progress.words(20.0).split()) == "4/40 problems accuracy 16.7% 8 tokens/s elapsed 0:20 left 1:00"


def test_thinning_loses_neither_held_out_accuracy_nor_failed_groups() -> None:
    failed = ROW | {"groups/failed": 1.0}
    steps = [
        (0, ROW, 0.0),
        (1, failed | {"eval/accuracy": 0.625}, 0.5),
        (2, failed, 1.0),
        (3, ROW, 2.0),
        (4, ROW, 4.0),
    ]
    _, first, carried, failures, after = progress(9, steps)
    assert "62.5%" in carried and failures == "  2 failed", "which has no room beside it"
    assert "failed" not in first + after and "62.5%" not in first + after


def test_a_rising_share_of_reward_errors_is_reported_once_and_again_after_it_fell() -> None:
    # Means over the last steps, 20 at most: 0, 0, 0.3/3 = 10 % (warned), 0.3/4 (still above), ..., 0.3/7 = 4.3 %, then
    # 1.3/8 = 16.3 %: warned again.
    shares = [0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 1.0]
    lines = progress(9, [(step, ROW | {"reward_errors": share}, 3.0 * step) for step, share in enumerate(shares)])
    warnings = [line for line in lines if line.startswith("warning")]
    assert [line.split(" of the ")[0] for line in warnings] == ["warning: 10.0%", "warning: 16.2%"]
    assert "last 3 steps could not be scored" in warnings[0] and "events.jsonl" in warnings[0]


def test_the_header_comes_again_after_a_screenful() -> None:
    lines = progress(50, [(step, ROW, 3.0 * step) for step in range(50)])
    assert [number for number, line in enumerate(lines) if "reward" in line] == [
        0,
        LINES_PER_HEADER + 1,
        2 * (LINES_PER_HEADER + 1),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.7, "1:00:00"), (200000, "55:33:20")],
)
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


@pytest.mark.parametrize("rest", ["", '{"time":7.5,"ev', "x" * 200_000])
def test_an_unfinished_last_line_is_dropped_before_a_run_goes_on(tmp_path: Path, rest: str) -> None:
    folder = RunFolder.create(tmp_path, "run")
    for file in (folder.events, folder.metrics):
        file.write_text('{"step": 0}\n{"step": 1}\n' + rest)
    RunFolder.reopen(folder.path)
    for file in (folder.events, folder.metrics):
        assert file.read_text() == '{"step": 0}\n{"step": 1}\n'
    folder.events.write_text(rest)
    RunFolder.reopen(folder.path)
    assert folder.events.read_text() == ""


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    sink = TensorBoardSink(tmp_path / "board")
    rows = [dict.fromkeys(METRICS, 0.5 * step) | {"trainers_own": step + 0.25} for step in range(3)]
    for step, row in enumerate(rows):
        sink.write(step, row)
    sink.write(3, {"eval/accuracy": 0.625})
    sink.close()

    read = EventAccumulator(str(tmp_path / "board")).Reload()
    assert set(read.Tags()["scalars"]) == {*METRICS, "trainers_own"}
    assert [(e.step, e.value) for e in read.Scalars("policy_age/mean")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert [(e.step, e.value) for e in read.Scalars("trainers_own")] == [(0, 0.25), (1, 1.25), (2, 2.25)]
    assert [(e.step, e.value) for e in read.Scalars("eval/accuracy")][-1] == (3, 0.625)
    assert read.SummaryMetadata("entropy").summary_description == (
        "mean entropy of the policy per trained token (nats per token)"
    )


def test_a_row_is_on_disk_before_the_sink_is_closed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.write(7, {"reward": math.nan, "loss": 1.5})
    read = EventAccumulator(str(tmp_path)).Reload()
    sink.close()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(7, 1.5)]
    assert math.isnan(read.Scalars("reward")[0].value)


def test_after_a_resume_steps_that_are_done_anew_are_shown_once(tmp_path: Path) -> None:
    """The first run did 7 steps after its checkpoint of step 5; the second goes on from there."""
    for first_step, last_step in ((0, 7), (5, 9)):
        sink = TensorBoardSink(tmp_path, first_step=first_step)
        for step in range(first_step, last_step):
            sink.write(step + 1, {"loss": first_step + 0.5})
        sink.close()
    check_shown_once(tmp_path)


def test_after_a_rewind_steps_that_are_done_anew_are_shown_once(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    for first_step, last_step in ((0, 7), (5, 9)):
        if first_step:
            sink.event(Rewound(from_step=7, to_step=5, restart=1, max_restarts=3, pause=2.0, message="rank 0 died"))
        for step in range(first_step, last_step):
            sink.write(step + 1, {"loss": first_step + 0.5})
    sink.close()
    check_shown_once(tmp_path)


def check_shown_once(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = [(e.step, e.value) for e in EventAccumulator(str(folder)).Reload().Scalars("loss")]
    assert shown == [(step, 0.5 if step <= 5 else 5.5) for step in range(1, 10)]


def test_tensorboard_gets_an_evaluation_where_it_belongs_and_no_second_time(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.event(
        Evaluated(
            step=2,
            version=PolicyVersion(2),
            accuracy=0.5,
            problems=4,
            responses=8,
            estimates={"pass@2": 0.75},
            seconds=1.0,
        )
    )
    sink.step(2, {"loss": 1.5, "eval/accuracy": 0.5}, 9.0)
    sink.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    points = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert points == {"eval/accuracy": [(2, 0.5)], "eval/pass@2": [(2, 0.75)], "loss": [(3, 1.5)]}


def test_the_charts_draw_metrics_that_exist(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata  # type: ignore[import-untyped]

    assert {name for charts in CHARTS.values() for names in charts.values() for name in names} <= set(METRICS)
    TensorBoardSink(tmp_path).close()
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert {c.title: [chart.title for chart in c.chart] for c in layout.category} == {
        section: list(charts) for section, charts in CHARTS.items()
    }


def test_two_sinks_in_one_folder_write_two_files(tmp_path: Path) -> None:
    for _ in range(2):
        TensorBoardSink(tmp_path).close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


def test_reporting_needs_no_framework_and_loads_nothing_heavy_early() -> None:
    """The package imports in a moment; a sink and a picture do not bring PyTorch, TensorFlow or pyplot in."""
    script = (
        "import sys, tempfile, pathlib\n"
        "from dapo_openrlhf.report import progress, run_folder, summary, tensorboard\n"
        "early = {'matplotlib', 'tensorboard', 'numpy'} & set(sys.modules)\n"
        "from dapo_openrlhf.report.picture import draw_run\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "tensorboard.TensorBoardSink(folder).close()\n"
        "draw_run([], [], folder / 'curves.png', 'x')\n"
        "late = {'torch', 'tensorflow', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "print(sorted(early), sorted(late))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


# --- picture ----------------------------------------------------------------------------------------------------------


def curves(steps: int, *, end: float = 0.5) -> list[dict[str, float]]:
    names = ("reward", "accuracy", "entropy", "token_probability", "truncated_share", "response_length/mean")
    ages = {"policy_age/mean": 0.5, "policy_age/max": 1.0}
    return [dict.fromkeys(names, 0.1 + end * step / steps) | ages for step in range(steps)]


def drawn(path: Path, rows: Sequence[dict[str, float]], evaluations: Sequence[tuple[int, float]] = ()) -> bytes:
    from dapo_openrlhf.report.picture import draw_run

    draw_run(rows, evaluations, path, "a run that costs $5 or $6")
    return path.read_bytes()


def test_the_picture_is_a_png_of_the_promised_size_and_leaves_nothing_else(tmp_path: Path) -> None:
    from dapo_openrlhf.report.picture import DOTS_PER_INCH, SIZE_INCHES

    png = drawn(tmp_path / "curves.png", curves(40), [(0, 0.1), (40, 0.4)])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == tuple(int(inches * DOTS_PER_INCH) for inches in SIZE_INCHES)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.long
def test_every_metric_of_the_picture_is_drawn(tmp_path: Path) -> None:
    rows = curves(12)
    before = drawn(tmp_path / "curves.png", rows)
    assert before == drawn(tmp_path / "curves.png", rows)
    for name in rows[0]:
        changed = [*rows[:5], rows[5] | {name: 0.9 * rows[5][name]}, *rows[6:]]
        assert before != drawn(tmp_path / "curves.png", changed), name


def test_held_out_points_are_drawn(tmp_path: Path) -> None:
    one, other = (drawn(tmp_path / "a.png", curves(12), [(0, 0.1), (12, after)]) for after in (0.3, 0.4))
    assert one != other
    assert drawn(tmp_path / "a.png", [], [(0, 0.1)]) != drawn(tmp_path / "a.png", [])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        [],
        curves(1),
        curves(2),
        [{}],
        [dict.fromkeys(METRICS, math.nan)] * 30,
        [dict.fromkeys(METRICS, math.inf)] * 30,
        [row if number % 3 else {} for number, row in enumerate(curves(30))],
        [dict.fromkeys(METRICS, 0.0)] * 30,
    ],
    ids=["none", "one", "two", "empty", "nan", "inf", "gaps", "zeros"],
)
def test_the_picture_works_with_little_or_broken_data(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    assert drawn(tmp_path / "curves.png", rows, [(0, math.nan)]).startswith(b"\x89PNG")


def test_smoothing_averages_skips_nan_and_keeps_gaps() -> None:
    from dapo_openrlhf.report.picture import smooth

    smoothed = smooth([0.0, 3.0, 6.0, math.nan, 2.0], 3)
    assert smoothed[:3] == [1.5, 3.0, 4.5]  # (0+3)/2, (0+3+6)/3, (3+6)/2
    assert math.isnan(smoothed[3]) and smoothed[4] == 2.0


@pytest.mark.parametrize("steps", [0, 1, 9, 10, 120, 5000])
def test_the_smoothing_window_has_a_middle(steps: int) -> None:
    from dapo_openrlhf.report.picture import smoothing_window

    assert smoothing_window(steps) % 2 == 1


# --- run folder -------------------------------------------------------------------------------------------------------


def test_runs_of_one_name_get_folders_of_their_own_and_latest_follows(tmp_path: Path) -> None:
    parent = tmp_path / "deep" / "runs"
    for expected in ("dapo", "dapo-2", "dapo-3"):
        folder = RunFolder.create(parent, "dapo")
        assert folder.path == parent / expected and folder.path.is_dir()
        assert os.readlink(parent / "latest") == expected
    assert sorted(path.name for path in parent.iterdir()) == ["dapo", "dapo-2", "dapo-3", "latest"]


def test_runs_that_start_at_once_share_nothing(tmp_path: Path) -> None:
    start = threading.Barrier(16)
    made: list[Path] = []

    def run() -> None:
        start.wait()
        made.append(RunFolder.create(tmp_path, "dapo").path)

    threads = [threading.Thread(target=run) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16
    assert (tmp_path / "latest").resolve() in {path.resolve() for path in made}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in made} | {"latest"}


def test_a_run_that_begins_anew_sets_aside_what_was_left(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "dapo")
    RunFolder.create(tmp_path, "other")
    for start in ("first", "second"):
        folder.config.write_text(start)
        (folder.path / ".unfinished-1").touch()
        (folder.path / ".lock").touch()
        anew = RunFolder.begin_anew(tmp_path / "dapo")
        assert anew.path == folder.path and anew.set_aside is not None
        assert [entry.name for entry in anew.set_aside.iterdir()] == ["config.yaml"]
        assert anew.set_aside.joinpath("config.yaml").read_text() == start
    assert sorted(entry.name for entry in folder.path.iterdir()) == [".lock", "earlier", "earlier-2"]
    assert (tmp_path / "latest").readlink() == Path("dapo")


def test_a_refused_run_leaves_nothing_and_latest_where_it_was(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    RunFolder.create(parent, "dapo").discard()
    assert not parent.exists()
    RunFolder.create(parent, "good")
    refused = RunFolder.create(parent, "good")
    (refused.path / "events.jsonl").write_text("")
    assert os.readlink(parent / "latest") == "good-2"
    refused.discard()
    assert os.readlink(parent / "latest") == "good" and {path.name for path in parent.iterdir()} == {"good", "latest"}
    overtaken, newer = RunFolder.create(parent, "a"), RunFolder.create(parent, "b")
    overtaken.discard()
    assert (parent / "latest").resolve() == newer.path.resolve() and not overtaken.path.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "latest", "a/b", "/a", "a/"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="run name"):
        RunFolder.create(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_summary_file_round_trip(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "dapo")
    folder.write_summary({"old": 1})
    folder.write_summary(SUMMARY.as_dict())
    text = folder.summary.read_text()
    assert Summary(**json.loads(text)) == SUMMARY
    assert list(json.loads(text)) == sorted(SUMMARY.as_dict())
    assert [path.name for path in folder.path.iterdir()] == ["summary.json"]


def test_summary_file_has_null_for_what_json_cannot_say(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "dapo")
    folder.write_summary({"a": math.nan, "b": {"c": [1.5, math.inf], "d": True}, "e": None})
    assert json.loads(folder.summary.read_text()) == {
        "a": None,
        "b": {"c": [1.5, None], "d": True},
        "e": None,
    }


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "dapo")
    folder.write_summary({"a": 1})
    with pytest.raises(TypeError):
        folder.write_summary({"a": object()})
    assert json.loads(folder.summary.read_text()) == {"a": 1}


# --- closing words ----------------------------------------------------------------------------------------------------


def closing(summary: Summary, folder: RunFolder) -> dict[str, str]:
    words = closing_words(summary, folder)
    assert words.isascii()
    assert not [line for line in words.splitlines() if len(line) > NARROW and "/" not in line]
    unfolded = words.replace("\n" + " " * 19, " ")
    return {line[:17].strip(): line[19:] for line in unfolded.splitlines()}


def test_closing_words_say_what_came_out_and_where_it_lies(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "my run")
    for path in (folder.config, folder.events, folder.picture):
        path.touch()
    folder.checkpoint.mkdir()
    assert closing(SUMMARY, folder) == {
        "held-out accuracy": "12.5% -> 41.2% (+28.7 percentage points)",
        "steps": "120 in 500.0 s (8:20), the first after 31.5 s",
        "tokens per second": "2,000 generated, 1,200 trained",
        "groups": "3,000 dispatched, 1,920 trained, 1,050 dropped (900 all wrong, 150 all right)",
        "policy age": "at most 1 (max_staleness 1)",
        "config": str(folder.config),
        "events": str(folder.events),
        "summary": f"{folder.summary} (not written)",
        "curves": str(folder.picture),
        "checkpoint": str(folder.checkpoint),
        "TensorBoard": f"{beside('tensorboard')} --logdir '{folder.tensorboard}'",
    }


def test_closing_words_name_the_engines_that_were_lost(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "dapo")
    assert "engines" not in closing(SUMMARY, folder)
    summary = replace(SUMMARY, engines_lost=["engine 0 was lost once", "engine 2 was lost twice"])
    assert closing(summary, folder)["engines"] == "engine 0 was lost once; engine 2 was lost twice"


def test_closing_words_of_a_resumed_run_say_so(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "dapo")
    words = "120 in 500.0 s (8:20) in 2 lives, the first after 31.5 s"
    assert closing(replace(SUMMARY, lives=2), folder)["steps"] == words


def test_closing_words_of_a_run_without_steps_and_evaluation(tmp_path: Path) -> None:
    summary = Summary(
        accuracy_before=None,
        accuracy_after=None,
        max_staleness=0,
        max_policy_age=0,
        steps=0,
        first_step_seconds=None,
        train_seconds=0.0,
        generated_tokens=0,
        trained_tokens=0,
        counters={},
    )
    lines = closing(summary, RunFolder.create(tmp_path, "dapo"))
    assert lines["held-out accuracy"] == "not measured"
    assert lines["steps"] == "0 in 0.0 s (0:00)"
    assert lines["tokens per second"] == "- generated, - trained"
    assert lines["groups"] == "none"


def test_the_closing_words_name_the_trainers_that_were_lost(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    assert "trainer" not in closing_words(SUMMARY, folder).split()
    lost = closing_words(replace(SUMMARY, restarts=2, steps_undone=5), folder)
    assert "trainer            lost and replaced 2 times, 5 steps done again" in lost
