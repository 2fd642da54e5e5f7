"""Where a run's numbers go beyond its folder: Weights & Biases, and gauges for Prometheus with their dashboard."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import build

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.metrics import METRICS
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.report.gauges import GAUGES, OTHER, SERVED_PREFIX, STEPS, Gauges, gauge_name
from dapo_openrlhf.report.recorder import Recorder, Sink, open_sinks
from dapo_openrlhf.report.secrets import without_secrets
from dapo_openrlhf.report.wandb_run import ID_FILE, PINNED, Place, WandbRun, check_wandb

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "scripts" / "deploy" / "grafana" / "dapo.json"
PLACE = Place(uploads=False, project="sums", org="team", group=None, run_name="first")
SMALLEST = {"actor": {"model_name_or_path": "m"}, "data": {"prompt_dataset": "p.jsonl"}}

# --- Weights & Biases ---------------------------------------------------------------------------------------------------


class FakeRun:
    """What ``wandb.init`` gives, as far as it is used."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.axes: dict[str, dict[str, Any]] = {}
        self.finished = False

    def define_metric(self, name: str, **words: Any) -> None:
        self.axes[name] = words

    def log(self, numbers: dict[str, float]) -> None:
        assert not self.finished
        self.logged.append(numbers)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the package, and keeps what it is told."""
    told = SimpleNamespace(inits=[], run=FakeRun(), Settings=lambda **words: words)

    def init(**words: Any) -> FakeRun:
        told.inits.append(words)
        return told.run

    told.init = init
    monkeypatch.setitem(sys.modules, "wandb", told)  # type: ignore[arg-type]  # as far as it is used
    return told


def recorded(*sinks: Sink, steps: int = 3) -> list[str]:
    """What is said of a run that is reported to the sinks."""
    said: list[str] = []

    async def main() -> None:
        import asyncio

        log = EventLog(None, clock=asyncio.get_running_loop().time)
        recorder = Recorder(log, sinks, devices=2, warn=said.append)
        world = build(steps=steps, max_staleness=0, problem_count=2, log=log)
        await world.run()
        recorder.close()

    run_virtual(main())
    return said


def test_every_row_and_evaluation_reaches_weights_and_biases(tmp_path: Path, wandb: SimpleNamespace) -> None:
    assert recorded(WandbRun(tmp_path / "wandb", PLACE, {"train": {"seed": 1}})) == []
    (init,) = wandb.inits
    assert init["mode"] == "offline" and (init["project"], init["entity"], init["name"]) == ("sums", "team", "first")
    assert init["config"] == {"train": {"seed": 1}}
    rows = [numbers for numbers in wandb.run.logged if "seconds/step" in numbers]
    assert [row["step"] for row in rows] == [1, 2, 3]
    evaluations = [numbers for numbers in wandb.run.logged if "eval/accuracy" in numbers]
    assert [numbers["step"] for numbers in evaluations] == [0, 3]
    assert wandb.run.axes["*"] == {"step_metric": "step"}
    assert wandb.run.finished


def test_what_a_reward_logs_reaches_weights_and_biases(tmp_path: Path, wandb: SimpleNamespace) -> None:
    WandbRun(tmp_path, PLACE, {}).step(4, {"reward/numbers": 3.5}, 1.0)
    assert wandb.run.logged == [{"step": 5, "reward/numbers": 3.5}]


def test_a_resumed_run_goes_on_in_the_same_one(tmp_path: Path, wandb: SimpleNamespace) -> None:
    for _ in range(2):
        WandbRun(tmp_path, PLACE, {})
    first, second = wandb.inits
    assert first["id"] == second["id"] and second["resume"] == "allow"
    (tmp_path / ID_FILE).write_bytes(b"\xff\xfe../../etc")
    WandbRun(tmp_path, PLACE, {})
    assert re.fullmatch("[0-9a-f]{16}", wandb.inits[2]["id"]), "what is no identity is made anew"


def test_no_secret_is_among_what_is_sent(tmp_path: Path, wandb: SimpleNamespace) -> None:
    settings = {
        "reward": {"remote_url": ["https://me:hunter2@host:1/path?api_key=abc#x", "rule"]},
        "data": {"chat_template_kwargs": {"api_key": "abc", "enable_thinking": False, "nested": {"Token": "abc"}}},
        "train": {"max_tokens_per_gpu": 5},
        "input_key": "question",
    }
    WandbRun(tmp_path, PLACE, settings)
    (init,) = wandb.inits
    assert not re.search("hunter2|abc", json.dumps(init["config"]))
    assert init["config"]["reward"]["remote_url"] == ["https://...@host:1/path?...", "rule"]
    assert init["config"]["data"]["chat_template_kwargs"]["enable_thinking"] is False
    assert init["config"]["train"] == {"max_tokens_per_gpu": 5} and init["config"]["input_key"] == "question"
    assert init["settings"]["x_disable_meta"], "the command line is among it"


def test_a_key_among_the_settings_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="WANDB_API_KEY") as refused:
        build_config(SMALLEST | {"logger": {"wandb": {"key": "hunter2"}}}, source="my.yaml")
    assert "hunter2" not in str(refused.value) and "logger.wandb.key" in str(refused.value)


def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape(f"{sys.executable} -m pip install {PINNED}")):
        check_wandb(uploads=False)
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()  # as its runs leave one where they are started
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="not installed"):
        check_wandb(uploads=False)


def test_the_extra_is_the_version_that_is_advised() -> None:
    assert PINNED in (ROOT / "setup.cfg").read_text()


WANDB = importlib.util.find_spec("wandb")


@pytest.mark.skipif(
    WANDB is None or WANDB.origin is None,  # a mere folder of that name is what its runs leave
    reason="the package wandb is not part of the set-up",
)
def test_the_package_itself_writes_an_offline_run(tmp_path: Path) -> None:
    import wandb

    said = recorded(WandbRun(tmp_path / "wandb", PLACE, {"url": "http://me:hunter2@host"}))
    wandb.teardown()  # its own process writes the file, and is waited for
    assert said == []
    (file,) = (tmp_path / "wandb").glob("**/offline-run-*/*.wandb")
    written = file.read_bytes()
    assert b"policy_age/mean" in written and b"hunter2" not in written


# --- gauges -------------------------------------------------------------------------------------------------------------


class FakeGauge:
    def __init__(self, tags: tuple[str, ...]) -> None:
        self.tags = tags
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.tags
        assert type(value) is float and math.isfinite(value)
        self.values[tuple(tags.values())] = value


def test_every_number_reaches_a_gauge_and_each_has_its_description() -> None:
    gauges: dict[str, FakeGauge] = {}

    def open_gauge(name: str, description: str, tags: tuple[str, ...]) -> FakeGauge:
        assert description == GAUGES[name]
        return gauges.setdefault(name, FakeGauge(tags))

    sink = Gauges("first", open_gauge)
    assert recorded(sink) == []
    assert gauges[STEPS].values == {("first",): 3.0}
    assert ("first",) in gauges["dapo_policy_age_mean"].values and ("first",) in gauges["dapo_eval_accuracy"].values
    sink.step(3, {"reward": math.nan, "accuracy": 1, "reward/a b\n": 2.0, "policy_age/0": 4.0}, 1.0)
    assert gauges["dapo_accuracy"].values == {("first",): 1.0}
    others = gauges[OTHER].values
    assert others["first", "reward/a b\n"] == 2.0 and others["first", "policy_age/0"] == 4.0


def test_tags_are_ascii_as_ray_asks() -> None:
    gauges: dict[str, FakeGauge] = {}
    sink = Gauges("zwei ü", lambda name, description, tags: gauges.setdefault(name, FakeGauge(tags)))
    sink.step(0, {"accuracy": 1.0, "reward/länge": 2.0}, 1.0)
    assert gauges["dapo_accuracy"].values == {(r"zwei \xfc",): 1.0}
    assert gauges[OTHER].values == {(r"zwei \xfc", r"reward/l\xe4nge"): 2.0}


def test_gauges_have_names_of_their_own_that_prometheus_takes() -> None:
    assert len(GAUGES) == len(METRICS) + 2
    assert not [name for name in GAUGES if not re.fullmatch("[a-z_][a-z0-9_]*", name)]
    assert gauge_name("policy_age/mean") == "dapo_policy_age_mean"


def test_the_dashboard_asks_only_for_what_is_served() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = re.findall(r"\b[a-z]\w+(?=[{,])", " ".join(_expressions(dashboard)))
    served = {SERVED_PREFIX + name for name in GAUGES}
    assert len(asked) > 40 and set(asked) <= served, set(asked) - served
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert not _overlapping([panel["gridPos"] for panel in panels])


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    variables = [variable["query"]["query"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    return variables + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def _overlapping(places: list[dict[str, int]]) -> bool:
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    return len(cells) != len(set(cells))


# --- all ----------------------------------------------------------------------------------------------------------------


class Broken(Sink):
    """Fails as a library does."""

    name = "the run at Weights & Biases"

    def step(self, step: int, row: dict[str, float], elapsed: float) -> None:
        raise TypeError("not my day")


def test_a_sink_that_fails_in_any_way_never_ends_the_run_and_is_told_of_once() -> None:
    heard = FakeGauge(("run",))
    said = recorded(Broken(), Gauges("r", lambda name, description, tags: FakeGauge(tags) if name == OTHER else heard))
    assert said == [
        "warning: the run at Weights & Biases cannot be written, and the run goes on without: TypeError: not my day"
    ]
    assert heard.values


def test_a_sink_that_cannot_be_made_is_left_out() -> None:
    def fail() -> Sink:
        raise RuntimeError("no service")

    said: list[str] = []
    good = Sink()
    assert open_sinks([fail, lambda: good], warn=said.append) == [good]
    assert said == ["warning: a report cannot be written, and the run goes on without: RuntimeError: no service"]


def test_settings_without_secrets_are_the_settings() -> None:
    assert without_secrets({"a": [1, None, True, "x@y", "http://host/path"]}) == {
        "a": [1, None, True, "x@y", "http://host/path"]
    }
