"""``dapo-openrlhf train``: one run and the folder it leaves."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from dapo_openrlhf.config.cautions import cautions
from dapo_openrlhf.config.settings import Config, ConfigError, dump_config, preset_changes
from dapo_openrlhf.pipeline.bad_updates import words
from dapo_openrlhf.pipeline.checkpoint import Checkpoints
from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import (
    Evaluated,
    Event,
    GroupDispatched,
    GroupFailed,
    PromptDropped,
    RunStarted,
    UpdateSkipped,
)
from dapo_openrlhf.pipeline.metrics import Row, StepMetrics
from dapo_openrlhf.pipeline.resume import Change, check_resume, newest_checkpoint
from dapo_openrlhf.report.progress import ProgressLine
from dapo_openrlhf.report.responses import write_responses
from dapo_openrlhf.report.run_folder import RunFolder
from dapo_openrlhf.report.summary import Summary, closing_words
from dapo_openrlhf.report.watch import Watch
from dapo_openrlhf.whole_file import write_whole

FAILURES_SHOWN = 5
DROPPED_SHOWN = 20


class RunRecorder:
    """Turns a run's events into rows, progress lines and TensorBoard points as they come."""

    def __init__(self, config: Config, folder: RunFolder, log: EventLog, stream: TextIO, *, first_step: int) -> None:
        """``first_step``: rollout steps that are done already; their rows are read from the folder."""
        from dapo_openrlhf.report.tensorboard import TensorBoardSink

        self._log = log
        self._stream = stream
        self._metrics: StepMetrics | None = None
        self._progress = ProgressLine(config.train.max_steps, stream)
        self._tensorboard = TensorBoardSink(folder.tensorboard, first_step=first_step)
        self._devices = config.devices
        self._failures = self._dropped = 0
        self._watch = Watch(
            batch_size=config.rollout.batch_size,
            max_new_tokens=config.rollout.max_new_tokens,
            say=lambda text: print(text, file=stream, flush=True),
        )
        self._training_since = 0.0
        self.rows = _earlier_rows(folder, first_step)
        self.evaluations: list[tuple[int, float]] = [
            (step, row["eval/accuracy"]) for step, row in enumerate(self.rows) if "eval/accuracy" in row
        ]
        self._earlier = len(self.rows)
        self._file = folder.metrics.open("a", encoding="utf-8")
        log.listen(self._listen)

    def _listen(self, event: Event) -> None:
        if self._metrics is None and isinstance(event, GroupDispatched):
            self._training_since = self._log.now()
            self._metrics = StepMetrics(started=self._training_since, devices=self._devices)
        if self._metrics is not None:
            self._metrics.add(event)
        self._watch.add(event)
        match event:
            case Evaluated():
                self.evaluations.append((event.step, event.accuracy))
                estimates = {f"eval/{name}": value for name, value in event.estimates.items()}
                self._tensorboard.write(event.step, {"eval/accuracy": event.accuracy, **estimates})
                errors = f"; {event.errors} of {event.responses} responses were errors" if event.errors else ""
                print(
                    f"held-out accuracy {event.accuracy:.1%} on {event.problems} problems after {event.step} steps{errors}",
                    file=self._stream,
                    flush=True,
                )
            case UpdateSkipped():
                print(
                    f"warning: update {event.update} of step {event.step} was stopped before the optimizer saw it: not "
                    f"finite were {words(event.not_finite)}; {event.in_a_row} in a row; "
                    f"{event.problem or f'its batch is in {event.path}'}",
                    file=self._stream,
                    flush=True,
                )
            case PromptDropped() if self._dropped < DROPPED_SHOWN:
                self._dropped += 1
                print(f"prompt dropped ({event.reason}): {event.message}", file=self._stream, flush=True)
            case GroupFailed() if self._failures < FAILURES_SHOWN:
                self._failures += 1
                print(f"group {event.group} failed ({event.reason}): {event.message}", file=self._stream, flush=True)

    def step(self, step: int) -> None:
        """A rollout step is done."""
        assert self._metrics is not None
        now = self._log.now()
        row = self._metrics.row(now=now)
        self.rows.append(row)
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        self._progress.update(step, row, now - self._training_since)
        self._tensorboard.write(step + 1, {name: value for name, value in row.items() if name != "eval/accuracy"})

    def tokens(self, kind: str) -> int:
        """Response tokens over this process's steps: ``generated`` or ``trained``."""
        rows = self.rows[self._earlier :]
        return round(sum(row[f"tokens_per_second/{kind}"] * row["seconds/step"] for row in rows))

    def close(self) -> None:
        """Write out what is left."""
        self._tensorboard.close()
        self._file.close()


def train(config: Config, *, started: float, resume: Path | None = None, stream: TextIO = sys.stdout) -> int:
    """Run a training; returns the exit status. ``started``: :func:`time.monotonic` at the start of the process.

    ``resume``: folder of an earlier run to go on with from its newest checkpoint.
    """
    from dapo_openrlhf.backend.run import launch
    from dapo_openrlhf.backend.run.inputs import check_inputs

    checkpoint: Path | None = None
    changes: list[Change] = []
    if resume is not None:
        checkpoint = newest_checkpoint(resume)
        changes = check_resume(config, run=resume, checkpoint=checkpoint)

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    inputs = check_inputs(config, training=True, checkpoint=checkpoint, say=say)
    folder = RunFolder.create(Path(config.run.dir), config.run.name) if resume is None else RunFolder.reopen(resume)
    inputs = replace(inputs, bad_batches=folder.bad_batches)
    write_whole(folder.config, dump_config(config))
    if checkpoint is not None:
        print(f"resuming after {inputs.first_step} rollout steps from {checkpoint}", file=stream, flush=True)
        if changes:
            print(f"changed: {', '.join(map(str, changes))}", file=stream, flush=True)
    print(
        f"run folder {folder.path}; starting Ray, {config.vllm.num_engines} engine(s) and "
        f"{config.trainer_ranks} trainer rank(s) on {config.device}",
        file=stream,
        flush=True,
    )
    others = [f"{name} {value} (preset {expected})" for name, value, expected in preset_changes(config)]
    if others:
        print(f"preset {config.preset}, but {', '.join(others)}", file=stream, flush=True)
    for note in (*inputs.stop.notes, *cautions(config, prompts=len(inputs.prompts))):
        print(note, file=stream, flush=True)
    with folder.events.open("a") as events:
        log = EventLog(events, clock=time.monotonic)
        log.emit(
            RunStarted(
                unix_time=time.time() - log.now(),
                engines=config.vllm.num_engines,
                trainer_ranks=config.trainer_ranks,
                devices=config.devices,
                max_staleness=config.async_.max_staleness,
                batch_size=config.rollout.batch_size,
                first_step=inputs.first_step,
            )
        )
        recorder = RunRecorder(config, folder, log, stream, first_step=inputs.first_step)
        head_start = time.monotonic() - started
        try:
            outcome = launch.train(
                config,
                inputs,
                log=log,
                checkpoints=Checkpoints(folder.checkpoints, max_num=config.ckpt.max_num, settings=dump_config(config)),
                trained_model=str(folder.checkpoint.resolve()),
                say=say,
                on_step=recorder.step,
                on_evaluation=lambda step, measured: write_responses(folder.responses(step), measured),
            )
        except ConfigError:
            raise
        except (ExceptionGroup, RuntimeError) as error:
            print(f"{first_words(error)}\nwhat had happened until then is in {folder.events}", file=sys.stderr)
            return 1
        finally:
            recorder.close()
            _draw(config, recorder, folder)
    summary = _summary(config, outcome, recorder, head_start)
    folder.write_summary(summary.as_dict())
    print(closing_words(summary, folder), file=stream, flush=True)
    return 0


def _earlier_rows(folder: RunFolder, first_step: int) -> list[Row]:
    """Rows of the steps before ``first_step``; those of steps that are done anew are removed from the file."""
    if not folder.metrics.is_file():
        return []
    lines = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    kept = [line for line in lines if line["step"] < first_step]
    write_whole(folder.metrics, "".join(json.dumps(line) + "\n" for line in kept))
    return [{name: value for name, value in line.items() if name != "step"} for line in kept]


def _summary(config: Config, outcome: Outcome, recorder: RunRecorder, head_start: float) -> Summary:
    first = outcome.first_step_at
    return Summary(
        accuracy_before=outcome.accuracy_before,
        accuracy_after=outcome.accuracy_after,
        max_staleness=config.async_.max_staleness,
        max_policy_age=outcome.max_policy_age,
        steps=outcome.steps,
        first_step_seconds=None if first is None else first + head_start,
        train_seconds=outcome.train_seconds,
        generated_tokens=recorder.tokens("generated"),
        trained_tokens=recorder.tokens("trained"),
        counters=outcome.counters,
    )


def _draw(config: Config, recorder: RunRecorder, folder: RunFolder) -> None:
    from dapo_openrlhf.report.picture import draw_run

    draw_run(recorder.rows, recorder.evaluations, folder.picture, config.run.name)


def first_words(error: BaseException) -> str:
    """The first error that is no group, as its user should read it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
