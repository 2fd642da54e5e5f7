"""The command line: commands and their options, each command's only once it is named (`--help` must be fast)."""

from __future__ import annotations

import argparse
import importlib
import os
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dapo_openrlhf import __version__

RUNS = {
    "train": "train a model; joins the Ray cluster of RAY_ADDRESS or starts Ray itself",
    "check": "see in seconds whether a training can start, without starting it",
    "eval": "measure a model's accuracy on eval.dataset",
    "rollout": "print a few rollouts with their segments, versions, rewards and log-probs, before anything is trained",
    "submit": "send a training to a Ray cluster through its job API and follow its log",
}
"""The commands that take the settings of a run."""
OF_JOBS = {
    "jobs": "list this project's jobs on a Ray cluster",
    "status": "say how far a job or a run is",
    "logs": "print a job's log",
    "stop": "stop a job, which saves a checkpoint first",
}
"""The commands about jobs that have been submitted."""


class CommandParser(argparse.ArgumentParser):
    """A command's parser, which gets its options when it is first asked to parse: they import what they speak of."""

    def __init__(self, *, fill: Callable[[argparse.ArgumentParser], None] | None = None, **named: Any) -> None:
        """``fill`` adds the options."""
        super().__init__(**named)
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As the base class does, with the options added before."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        return super().parse_known_args(args, namespace)


def make_parser() -> argparse.ArgumentParser:
    """All commands; settings of a run are left over by ``parse_known_args``."""
    parser = argparse.ArgumentParser(prog="dapo-openrlhf", description="Asynchronous DAPO on OpenRLHF.")
    parser.add_argument("--version", action="version", version=f"dapo-openrlhf {__version__}")
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        parser_class=CommandParser,
        metavar="train|check|eval|rollout|compare|prepare|verify|submit|jobs|status|logs|stop|bench|trace|report|plan|checkpoint|"
        "convert",
    )
    for name, what in RUNS.items():
        commands.add_parser(name, help=what, description=what, allow_abbrev=False, fill=partial(_add_run, name=name))
    for name, what in OF_JOBS.items():
        fill = partial(_add_of_jobs, name=name)
        commands.add_parser(name, help=what, description=what, allow_abbrev=False, fill=fill)
    commands.add_parser("job", description="what a submission runs on the cluster", allow_abbrev=False)
    for name, (what, add) in OTHERS.items():
        commands.add_parser(name, help=what, allow_abbrev=False, fill=add)
    return parser


def _in_module(name: str) -> Callable[[argparse.ArgumentParser], None]:
    """Adds the options that a command's own module has."""

    def add(command: argparse.ArgumentParser) -> None:
        importlib.import_module(f"dapo_openrlhf.cli.{name}").add_options(command)

    return add


def _add_of_jobs(command: argparse.ArgumentParser, name: str) -> None:
    from dapo_openrlhf.cli import jobs

    jobs.add_options(command, name)


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="RUN", help="a run's folder, such as runs/latest")


def _add_run(command: argparse.ArgumentParser, name: str) -> None:
    command.usage = f"dapo-openrlhf {name} --config FILE [options] [--section.key VALUE ...]"
    command.epilog = _settings()
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_argument(
        "--config", type=Path, metavar="FILE", required=name in ("eval", "rollout"), help="YAML file, see configs/"
    )
    if name in ("train", "check", "submit"):
        command.add_argument(
            "--resume",
            metavar="RUN",
            help="in place of --config: go on with a run from its newest good checkpoint (ckpt.save_steps), in its folder "
            "and with its settings; beside --config, auto: go on with the run of that name, or start it",
        )
    if name == "eval":
        command.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
        command.add_argument(
            "--responses", type=Path, metavar="FILE.jsonl", help="write every response and its verdict there"
        )
    if name == "train":
        command.add_argument(
            "--anew",
            type=Path,
            metavar="RUN",
            help="beside --config: begin in the folder of a run that ended; what it has left moves to RUN/earlier",
        )
        command.add_argument("--check", action="store_true", help="only see whether it can start, as `check` does")
    if name == "check":
        _in_module("check")(command)
    if name == "rollout":
        command.add_argument("--n", type=int, default=3, metavar="N", help="of the first N prompts; default 3")
        command.add_argument("--json", type=Path, metavar="FILE", help="write every token and log-prob there")
    if name == "submit":
        _in_module("submit")(command)


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("first", type=Path, metavar="A.jsonl", help="what `eval --responses` or a training wrote")
    command.add_argument("second", type=Path, metavar="B.jsonl", help="another model's, on the same problems")
    command.add_argument("--json", type=Path, metavar="FILE", help="write every problem there")


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.usage = "dapo-openrlhf verify FILE.jsonl [options] [--reward.key VALUE ...]"
    command.description = "Verdicts of a reward on responses and gold answers; errors are counted apart from wrong."
    command.epilog = _settings("reward.")
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_argument("file", type=Path, metavar="FILE.jsonl", help="a mapping with response and answer per line")
    for key, default in {"response": "response", "answer": "answer", "prompt": "prompt"}.items():
        command.add_argument(f"--{key}-key", default=default, metavar="KEY", help=f"default {default}")
    command.add_argument("--config", type=Path, metavar="FILE", help="take the reward of this run")
    command.add_argument(
        "--reward",
        action="append",
        metavar="REWARD",
        help="rule (default), a .py file or an http(s) address; repeatable",
    )
    command.add_argument("--weights", type=float, nargs="+", metavar="W", help="one for each --reward")
    command.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; default: cores"
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write every verdict there, in the order of the lines"
    )


def _add_trace(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="RUN", help="a run's folder, such as runs/latest")
    command.add_argument("--output", type=Path, metavar="FILE", help="default: trace.json in the run's folder")
    command.add_argument("--picture", type=Path, metavar="FILE", help="draw some steps too")
    command.add_argument(
        "--steps", metavar="FIRST:LAST", help="which steps, from 0 (default 10:12, or the last of a shorter run)"
    )


def _add_bench(command: argparse.ArgumentParser) -> None:
    command.usage = "dapo-openrlhf bench [--preset NAME | --config FILE [--section.key VALUE ...]] [options]"
    command.description = "Same work, devices, model, sampling, updates and reward for all arms, which run in turn."
    command.add_argument(
        "--preset", choices=("cpu-small", "cpu-smoke", "cpu-turns"), default="cpu-small", help="work that ships"
    )
    command.add_argument("--config", type=Path, metavar="FILE", help="your own work: a run's configuration")
    command.add_argument(
        "--arms",
        metavar="A,B,...",
        help="k0, k1, k2, ..., stock-sync, stock-async, stock-async-partial",
    )
    command.add_argument("--splits", metavar="E:T,...", help="each arm with E engines and T trainer ranks, such as 2:2")
    command.add_argument("--steps", type=int, metavar="N", help="rollout steps of each run, three of them warm-up")
    command.add_argument("--max-epochs", type=int, metavar="N", help="passes over each batch: more lengthen training")
    command.add_argument("--repeats", type=int, metavar="N", help="runs of each arm, interleaved")
    command.add_argument("--minutes", type=float, metavar="N", help="as many runs of each arm as fit, but one at least")
    command.add_argument("--eval", action="store_true", help="also the held-out accuracy after each run")
    command.add_argument(
        "--peak-tflops", type=float, metavar="T", help="of one device in the run's data type: prints the MFU too"
    )
    command.add_argument("--run-timeout", type=float, default=3600.0, metavar="S", help="seconds a run may take (3600)")
    command.add_argument("--json", type=Path, metavar="FILE", help="every figure, after every run (bench.json)")
    command.add_argument("--resume", type=Path, metavar="FILE", help="go on from the runs of such a file")
    command.add_argument("--picture", type=Path, metavar="FILE", default=Path("bench.png"))


def _settings(prefix: str = "") -> str:
    from dapo_openrlhf.config.presets import PRESETS
    from dapo_openrlhf.config.settings import settings_of
    from dapo_openrlhf.config.typed import typed

    lines = []
    if not prefix:
        lines.append("presets, as --preset NAME; the file and the command line change single settings of one:")
        for preset, what in PRESETS.items():
            lines += textwrap.wrap(f"{preset}: {what.summary}", 110, initial_indent="  ", subsequent_indent="      ")
        lines.append("")
    lines.append("settings, as --section.key VALUE or section.key=VALUE, with their defaults:")
    for name, field in settings_of():
        if not name.startswith(prefix):
            continue
        lines.append(f"  {name} ({'must be set' if field.is_required() else typed(field.default)})")
        lines += textwrap.wrap(field.description or "", 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


OTHERS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "compare": ("compare two evaluations problem by problem", _add_compare),
    "prepare": ("turn a data set into a prompt file, with a manifest", _in_module("prepare")),
    "verify": ("judge a file of responses with a training's reward", _add_verify),
    "bench": ("compare this pipeline with itself and with stock OpenRLHF", _add_bench),
    "trace": ("write a run's timeline for Perfetto or chrome://tracing", _add_trace),
    "report": ("one HTML page about one or several runs", _in_module("report")),
    "plan": ("predict a run on GPUs that need not be there", _in_module("plan")),
    "checkpoint": ("list and verify a run's checkpoints", _add_checkpoint),
    "convert": (
        "turn a command of OpenRLHF or a configuration of verl into one of this project",
        _in_module("convert"),
    ),
}
"""All other commands: what each does, and what adds its options."""
