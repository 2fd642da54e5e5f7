"""The page about runs: complete for any folder that a run may leave, and harmless whatever a response holds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from event_files import evaluated, run_started, write_events

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.pipeline.events import EngineLost, Event, Rewound
from dapo_openrlhf.pipeline.metrics import METRICS
from dapo_openrlhf.plan.scenario import EngineSpeed, Scenario, SyncSpeed, TrainerSpeed, Work
from dapo_openrlhf.plan.simulation import simulate
from dapo_openrlhf.report.page.curves import AS_BARS, TOGETHER
from dapo_openrlhf.report.page.drawing import COLOURS, MOST_POINTS, Line, chart, thinned, ticks
from dapo_openrlhf.report.page.markup import brief, shown
from dapo_openrlhf.report.page.page import page
from dapo_openrlhf.report.page.past_run import PastRun, read_runs
from dapo_openrlhf.report.run_lock import run_lock

LONG_RUN = Scenario(
    engines=1,
    engine=EngineSpeed(step=0.01),
    trainer=TrainerSpeed(step=0.5, per_token=1e-3),
    sync=SyncSpeed(send=0.05, deliver=0.1, pause=0.02),
    work=Work.drawn(
        groups=50, responses=2, mean=20, spread=0.5, most=60, pass_rate=1.0, prompt_tokens=5, reward_seconds=0.1
    ),
    batch_size=64,
    max_staleness=1,
    steps=8,
)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>'\"&amp; \u202egnorw\u202c \x00\x1b[31m \ud800 \ufeff"
VOID = {"meta", "link", "br", "img", "input"}
SHAPES = {"line", "rect", "circle", "polyline"}


class Read(HTMLParser):
    """What a page holds: its tags are closed in order, and its text is as a browser would show it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        text.encode("utf-8")
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def row(step: int, **numbers: Any) -> dict[str, Any]:
    return {
        "step": step,
        "reward": 0.1 * step,
        "entropy": 1.0,
        "token_probability": 0.5,
        "response_length/mean": 10.0,
        "seconds/step": 2.0,
        "seconds/train": 1.5,
        "seconds/wait_batch": 0.5,
        "groups/kept": 3.0,
        "groups/all_right": 1.0,
        "policy_age/mean": 0.5,
        "policy_age/0": 2.0,
        "policy_age/1": 2.0,
        "idle_share/engines": 0.0,
        "idle_share/trainer": 0.8,
        "tokens_per_second/generated": 100.0,
        "tokens_per_second/kept": 80.0,
        "tokens_per_second/trained": 60.0,
        **numbers,
    }


def make_run(
    folder: Path, *, steps: int = 4, events: list[tuple[float, Event]] | None = None, settings: str = ""
) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row(step)) + "\n" for step in range(steps)))
    write_events(folder / "events.jsonl", [(0.0, run_started(0.0)), *(events or [])])
    (folder / "config.yaml").write_text(settings or f"run: {{name: sums}}\ntrain: {{max_steps: {steps}, seed: 1}}\n")
    return folder


def make_responses(folder: Path, step: int, *texts: object, **columns: object) -> None:
    lines = [
        json.dumps(
            {"prompt": f"problem {place}", "label": "3", "response": text, "correct": True, "length": 9} | columns
        )
        for place, text in enumerate(texts)
    ]
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval" / f"step-{step}.jsonl").write_text("\n".join(lines) + "\n")


def of_runs(*folders: Path) -> tuple[str, Read]:
    text = page(read_runs(folders))
    return text, Read(text)


def test_a_page_shows_every_kind_of_thing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sums", events=[(1.0, evaluated(0, 0.25)), (9.0, evaluated(4, 0.5))])
    make_responses(run, 0, "I think 2")
    make_responses(run, 4, "3")
    _, seen = of_runs(run)
    for part in (
        "The four monitors",
        "Where each second",
        "Trained groups of each age",
        "Filter and waste",
        "Responses",
    ):
        assert part in seen.text, part
    assert "25.0% → 50.0%" in seen.text
    assert "I think 2" in seen.text and "step 4: right, 9 tokens" in seen.text
    assert "the engines limit" in seen.text, "the verdict"
    assert "40%" in seen.text, "of 100 tokens per second 60 were trained"
    assert "0:08" in seen.text, "four steps of two seconds"


def test_no_number_of_a_row_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sums", steps=0)
    numbers = {name: 0.5 for name in METRICS} | {"policy_age/0": 1.0, "policy_age/17": 3.0, "reward/mine": 2.0}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0, **numbers}) + "\n")
    text, seen = of_runs(run)
    assert "age 17" in seen.text and "reward/mine" in seen.text
    drawn = {name for group in TOGETHER for names in group.values() for name in names}
    assert not [name for name in METRICS if name not in drawn | AS_BARS and f"<figcaption>{name} " not in text]


def test_a_page_runs_nothing_and_loads_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<i>&'\"", events=[(1.0, EngineLost(engine=0, message=HOSTILE))])
    (run / "metrics.jsonl").write_text(json.dumps(row(0, **{"reward/<b onclick=x>": 1.0})) + "\n")
    make_responses(run, 0, HOSTILE, prompt=HOSTILE, label={"a": HOSTILE}, length=HOSTILE, correct="yes")
    text, seen = of_runs(run)
    assert "script-src" not in text and "default-src 'none'" in text
    assert not seen.tags.keys() & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "b", "i"} - {
        "i"
    }
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name == "src"]
    assert all((value or "").startswith("#s") for name, value in seen.attributes if name == "href")
    assert "<script>alert(1)</script>" in seen.text, "it can still be read"
    assert not re.search("[\u202a-\u202e\x00\x1b\ud800]", seen.text)
    assert "[U+202E]gnorw" in seen.text and "[U+D800]" in seen.text


def test_huge_responses_and_lines_that_are_none_are_borne(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sums")
    make_responses(run, 0, "x" * 2_000_000)
    make_responses(run, 2, "é\u0301\u0301\u0301\u0301\u0301\u0301\u0301\u0301 שלום")
    with (run / "eval" / "step-2.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[]\n"text"\n{"prompt": 3}\n{"prompt": "p", "response": null}\n')
    (run / "eval" / "step-9.jsonl").write_bytes(b"\x00\xff" * 50)
    (run / "eval" / "step-x.jsonl").write_text("")
    text, seen = of_runs(run)
    assert len(text) < 200_000
    assert "1,997,000 more characters" in seen.text and "שלום" in seen.text
    assert seen.text.count("\u0301") == 4, "marks that would cover other lines are left out"
    assert "step-9.jsonl has no response that could be read" in seen.text


def test_a_resumed_and_rewound_run_is_one_without_what_was_undone(tmp_path: Path) -> None:
    back = Rewound(from_step=3, to_step=2, restart=1, max_restarts=3, pause=2.0, message="trainer rank 0 died")
    events: list[tuple[float, Event]] = [(1.0, evaluated(0, 0.1)), (2.0, evaluated(3, 0.9)), (3.0, back)]
    run = make_run(tmp_path / "sums", steps=5, events=events)
    write_events(run / "events.jsonl", [(0.0, run_started(9.0)), (4.0, evaluated(5, 0.4))])
    (found,) = read_runs([run])
    assert list(found.evaluations) == [0, 5]
    assert [step for step in found.rows] == [1, 2, 3, 4, 5]
    _, seen = of_runs(run)
    assert "10.0% → 40.0%" in seen.text and "trainer rank 0 died" in seen.text


def test_runs_of_unequal_length_share_their_axes_and_differ_in_settings(tmp_path: Path) -> None:
    short = make_run(tmp_path / "a" / "sums", steps=2, settings="train: {max_steps: 8, seed: 1}\nx: {}\n")
    long = make_run(tmp_path / "b" / "sums", steps=30, settings="train: {max_steps: 30, seed: 1}\ny: [1, 2]\n")
    text, seen = of_runs(short, long, short)
    assert "a/sums" in seen.text and "b/sums" in seen.text
    assert "ended after 2 of 8 steps" in seen.text and "done, 30 steps" in seen.text
    differing = seen.text.split("Settings in which the runs differ:")[1].split("all settings")[0]
    assert "train.max_steps" in differing and "train.seed" not in differing and "1 2" in differing
    assert "nan" not in text.lower().replace("tenant", "")


def test_what_is_damaged_is_left_out_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sums", events=[(1.0, evaluated(0, 0.25))])
    damaged = b'{"time": 1\n\xff\xff\n[[]]\n{"time":1,"event":"no_such_thing"}\n' + b"[" * 100_000 + b"\n"
    (run / "events.jsonl").write_bytes(damaged + (run / "events.jsonl").read_bytes() + b'{"time": 2, "ev')
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 7, "reward": NaN, "entropy": "much", "kl": 1' + "0" * 400 + ', "lr": true}\n{"step": 8, "rew\n'
        )
        file.write('{"step": -1}\n{"step": "x"}\nnull\n')
    (run / "config.yaml").write_bytes(b"\xff: [")
    (found,) = read_runs([run])
    assert found.rows[8] == {} and list(found.evaluations) == [0]
    _, seen = of_runs(run)
    assert "5 lines of events.jsonl could not be read, the first is line 1" in seen.text
    assert "config.yaml could not be read" in seen.text
    assert "3 lines of metrics.jsonl could not be read, the first is line " in seen.text


@pytest.mark.parametrize("left_out", ["metrics.jsonl", "events.jsonl", "config.yaml", "eval"])
def test_a_part_may_be_missing(tmp_path: Path, left_out: str) -> None:
    run = make_run(tmp_path / "sums")
    if left_out != "eval":
        (run / left_out).unlink()
    _, seen = of_runs(run)
    assert "Overview" in seen.text and "No evaluation was made" in seen.text
    assert ("no step is done yet" in seen.text) == (left_out == "metrics.jsonl")


def test_a_run_in_progress_is_told_from_one_that_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sums", steps=2, settings="train: {max_steps: 8}")
    with run_lock(run):
        assert "running, 2 of 8 steps" in of_runs(run)[1].text
    assert "ended after 2 of 8 steps" in of_runs(run)[1].text


def test_what_could_not_be_measured_is_a_dash(tmp_path: Path) -> None:
    nothing = float("nan")
    events: list[tuple[float, Event]] = [(1.0, replace(evaluated(0, nothing), estimates={"pass@2": nothing}))]
    text, seen = of_runs(make_run(tmp_path / "sums", events=[*events, (2.0, evaluated(4, 0.5))]))
    assert "– → 50.0%" in seen.text and "pass@2 –" in seen.text and "nan%" not in text


def test_secrets_in_the_settings_are_not_shown(tmp_path: Path) -> None:
    settings = "reward: {remote_url: ['http://me:hunter2@host/p?key=hunter2']}\ndata: {chat_template_kwargs: {api_key: hunter2}}"
    text, _ = of_runs(make_run(tmp_path / "sums", settings=settings))
    assert "hunter2" not in text and "http://...@host/p?..." in text


def test_the_command_writes_the_page_and_refuses_what_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "sums")
    (tmp_path / "runs" / "latest").symlink_to("sums")
    assert main(["report", "runs/latest"]) == 0
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert main(["report", "runs/sums", "runs/sums", "--output", "page.html"]) == 0
    assert (tmp_path / "page.html").is_file()
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    for folder, said in {
        "empty": "empty is no run's folder: it has neither events.jsonl nor metrics.jsonl\n",
        "nowhere": "nowhere: there is no such folder\n",
        "runs": "there are runs in it: runs/sums\n",
    }.items():
        assert main(["report", folder]) == 2
        assert capsys.readouterr().err.endswith(said)
    assert main(["report", "runs/sums", "--output", "no/such/page.html"]) == 2


@pytest.mark.parametrize("log", ["", "<html>\n" * 9, "[]\nnull\n", '{"time": 0.0, "kind": "run_started"}\n'])
def test_a_run_of_which_nothing_can_be_read_makes_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log: str
) -> None:
    """Of another program, or of another version; a part that is damaged is said and left out."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "events.jsonl").write_text(log)
    assert main(["report", str(run), "--no-plan"]) == 2
    assert f"{run}: nothing of this run can be read: " in capsys.readouterr().err
    assert not (run / "report.html").exists()
    write_events(run / "events.jsonl", [(0.0, run_started(0.0))])
    assert main(["report", str(run), "--no-plan"]) == 0
    told = capsys.readouterr().err
    assert told.startswith(f"note: {run}: ") and ("lines of events.jsonl could not be read" in told) == (log != "")


def test_a_page_that_cannot_be_written_is_refused_before_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "sums")
    (run / "report.html").mkdir()
    assert main(["report", str(run)]) == 2
    told = capsys.readouterr().err
    assert "report.html cannot be written: it is a folder" in told and "planning" not in told


def test_latest_alone_is_the_latest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "sums")
    (tmp_path / "runs" / "latest").symlink_to("sums")
    assert main(["report", "latest", "--no-plan"]) == 0
    assert (run / "report.html").is_file()
    assert main(["trace", "latest"]) == 0
    assert (run / "trace.json").is_file()


@pytest.mark.long
def test_the_page_has_the_plan_of_each_run_or_says_why_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "short")
    run = make_run(tmp_path / "long")
    with (run / "events.jsonl").open("w", encoding="utf-8") as log:
        simulate(LONG_RUN, file=log)
    output = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "short"), str(run), "--output", str(output)]) == 0
    read = Read(output.read_text())
    _, after = read.text.split("no plan: ", maxsplit=1)
    assert "short/events.jsonl is too short for a plan: 0 finished steps" in after
    assert "recommended: async.max_staleness" in after
    assert len(re.findall(r"1 x 1 : 1", after)) >= 9  # a row for each K from 0 to 8
    assert capsys.readouterr().err.count("--no-plan leaves this out") == 2
    assert main(["report", str(run), "--output", str(output), "--no-plan"]) == 0
    assert "recommended: async.max_staleness" not in output.read_text()


# --- drawings -----------------------------------------------------------------------------------------------------------


def test_a_line_is_thinned_but_keeps_its_extremes() -> None:
    points = [(float(x), 100.0 if x == 777 else -5.0 if x == 7777 else 1.0) for x in range(10_000)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert (777.0, 100.0) in kept and (7777.0, -5.0) in kept and kept == sorted(kept)


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e-9, 1e-9], [1e200, -1e200], [3e15, 3e15 + 1]])
def test_a_chart_of_any_values_stays_within_its_frame(values: list[float]) -> None:
    points = list(enumerate(values, start=1))
    text = chart("t", "u", [Line(label="a", colour=0, points=points)], steps=1)
    Read(text)
    for x, y in re.findall(r"([-\d.]+),([-\d.]+)", " ".join(re.findall(r'points="([^"]*)"', text))):
        assert 0 <= float(x) <= 360 and 0 <= float(y) <= 200


def test_a_chart_without_a_point_says_so() -> None:
    assert "not recorded" in chart("t", "u", [Line(label="a", colour=0, points=[])], steps=5)


def test_ticks_are_round_and_within() -> None:
    assert ticks(0.0, 10.0, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.93, 1.07, 4) == pytest.approx([0.95, 1.0, 1.05])


def test_numbers_are_brief() -> None:
    numbers = (0.0, 0.5, 1234.5, 12345.0, 1.5e9, 1e-7, float("nan"))
    assert [*map(brief, numbers)] == ["0", "0.5", "1,234", "12.3k", "1.5G", "1.0e-07", "–"]


def test_a_text_is_cut_before_it_is_escaped() -> None:
    assert shown("<<<", most=2) == "&lt;&lt;\n… 1 more characters"


def test_a_run_knows_its_steps_without_rows() -> None:
    run = PastRun(folder=Path(), label="a", rows={}, settings={})
    run.evaluations[7] = evaluated(7, 0.5)
    assert run.steps == 7 and run.state == "done, 7 steps"


# --- in a browser -------------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def seen_by_browser(page_file: Path, folder: Path, *, width: int) -> Any:
    """The page as a browser shows it in a frame of a phone's or a desktop's width, as an array of pixels."""
    from matplotlib.image import imread

    frame, picture = folder / "frame.html", folder / f"{width}.png"
    frame.write_text(
        f'<body style="margin:0;background:#f0f"><iframe src="{page_file.name}" style="width:{width}px;height:4000px;border:0">'
    )
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}",
         f"--window-size={max(width, 520)},4000", f"--screenshot={picture}", frame.as_uri()],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return imread(picture)[:, :width, :3]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_draws_both_runs(tmp_path: Path, width: int) -> None:
    """Their colours are seen, and right of the text there is a margin: nothing is wider than the frame."""
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", steps=7)
    make_responses(second, 0, HOSTILE, "x" * 5000)
    (tmp_path / "page.html").write_text(of_runs(first, second)[0])
    pixels = seen_by_browser(tmp_path / "page.html", tmp_path, width=width)
    for colour in (COLOURS[0], COLOURS[1]):
        wanted = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        assert (abs(pixels - wanted).max(axis=2) < 0.01).sum() > 500, colour
    assert (pixels[:, -8:] > 0.99).all(), "the margin is empty"
