"""The command ``dapo-openrlhf trace``: writes a run's timeline."""

from __future__ import annotations

import argparse
import json

from dapo_openrlhf.cli.outputs import check_output, check_picture
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.event_file import is_log
from dapo_openrlhf.pipeline.event_log import EventLogError
from dapo_openrlhf.report.run_folder import run_called
from dapo_openrlhf.whole_file import write_whole


def trace(options: argparse.Namespace) -> int:
    """Write the trace of a run, and a picture of some steps if asked; returns the exit status."""
    from dapo_openrlhf.report.trace import chrome_trace, draw_timeline, last_steps, read_log

    run = run_called(options.run)
    events = run / "events.jsonl"
    if not is_log(events):
        raise ConfigError(f"{run} is no run's folder: it has no events.jsonl")
    try:
        log = read_log(events)
    except EventLogError as error:
        raise ConfigError(str(error)) from error
    output = options.output or run / "trace.json"
    check_output("--output", output)
    check_picture("--picture", options.picture)
    write_whole(output, json.dumps(chrome_trace(log)))
    print(f"{output}: open it in Perfetto or chrome://tracing")
    if options.picture:
        steps = _steps(options.steps) if options.steps is not None else last_steps(log)
        if steps is None:
            raise ConfigError(f"--picture: no step of {run} is done yet, so there is nothing to draw")
        try:
            draw_timeline(log, options.picture, first_step=steps[0], last_step=steps[1])
        except ValueError as error:
            raise ConfigError(f"--steps {options.steps}: {error}") from error
        print(options.picture)
    return 0


def _steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and (last or first).isdecimal()):
        raise ConfigError(f"--steps: {text!r} is not accepted; give FIRST:LAST, such as 0:2, or a single step")
    return int(first), int(last or first)
