"""The command ``dapo-openrlhf train``: does one run and leaves its folder."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dapo_openrlhf import stopping
from dapo_openrlhf.cli.model_card import ModelCards
from dapo_openrlhf.cli.publishing import status_of
from dapo_openrlhf.cli.voice import Voice
from dapo_openrlhf.config.cautions import cautions
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import dump_config, preset_changes
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.heartbeat import Heartbeat, silence_of, waiting_for, waits_in_words
from dapo_openrlhf.pipeline.checkpoint import Checkpoints
from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.event_file import LogFile, is_log
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import RunStarted
from dapo_openrlhf.pipeline.resume import Change
from dapo_openrlhf.pipeline.resume_point import Anew, ResumePoint, still_newest
from dapo_openrlhf.program import program
from dapo_openrlhf.report.curves import Curves
from dapo_openrlhf.report.gauges import Gauges
from dapo_openrlhf.report.history import Earlier, Measured, earlier_life
from dapo_openrlhf.report.live import LiveView, Output
from dapo_openrlhf.report.metrics_file import MetricsFile, earlier_rows, read_rows
from dapo_openrlhf.report.notices import Notices
from dapo_openrlhf.report.phases import Phases
from dapo_openrlhf.report.progress import ProgressLine
from dapo_openrlhf.report.recorder import Recorder, Sink, open_sinks
from dapo_openrlhf.report.responses import Responses
from dapo_openrlhf.report.run_folder import RunFolder
from dapo_openrlhf.report.run_lock import run_lock
from dapo_openrlhf.report.samples import Samples
from dapo_openrlhf.report.summary import Summary, closing_words
from dapo_openrlhf.report.tensorboard import TensorBoardSink
from dapo_openrlhf.report.wandb_run import Place, WandbRun, check_wandb
from dapo_openrlhf.report.watch import Watch
from dapo_openrlhf.whole_file import Unwritable, remove_unfinished, write_whole, writing

if TYPE_CHECKING:
    from dapo_openrlhf.backend.run.inputs import Inputs

Say = Callable[[str], None]


def train(config: Config, *, started: float, resume: ResumePoint | Anew | None = None, stream: TextIO) -> int:
    """Run a training; returns the exit status. ``started``: :func:`time.monotonic` at the start of the process."""
    output = Output.on(stream)
    voice = Voice(output.stream)
    heart = Heartbeat(voice, seconds=silence_of(stream))
    say = heart.say
    with contextlib.ExitStack() as held, stopping.telling(lambda: "nothing was trained yet"), heart.beating():
        if resume is not None:
            held.enter_context(run_lock(resume.run))
        if isinstance(resume, ResumePoint):
            resume = still_newest(resume, config, say)
        status = _train(config, started=started, resume=resume, output=output, say=say, held=held)
    return status or (1 if voice.lost else 0)


def _train(
    config: Config,
    *,
    started: float,
    resume: ResumePoint | Anew | None,
    output: Output,
    say: Say,
    held: contextlib.ExitStack,
) -> int:
    with stopping.nothing_to_lose("nothing was trained yet"), waiting_for("Ray to be imported"):
        from dapo_openrlhf.backend.run import launch  # noqa: F401  # imported while a signal may end it at once
        from dapo_openrlhf.backend.run.inputs import check_inputs

    if config.report.wandb_uploads is not None:
        check_wandb(uploads=config.report.wandb_uploads)
    checkpoint: Path | None = None
    changes: Sequence[Change] = ()
    if isinstance(resume, ResumePoint):
        checkpoint, changes = resume.checkpoint, resume.changes
    with waiting_for("the model's files, the prompts and the reward to be read"):
        inputs = check_inputs(config, training=True, checkpoint=checkpoint, say=say)
    with writing(Path(config.run.dir) / config.run.name if resume is None else resume.run / "config.yaml"):
        match resume:
            case None:
                folder = RunFolder.create(Path(config.run.dir), config.run.name)
                held.enter_context(run_lock(folder.path))
            case Anew():
                folder = RunFolder.begin_anew(resume.run)
                say(f"{folder.path} begins anew; what it had left is in {folder.set_aside}")
            case ResumePoint():
                folder = RunFolder.reopen(resume.run)
    inputs = replace(inputs, bad_batches=folder.bad_batches)
    write_whole(folder.config, dump_config(config))
    if checkpoint is not None:
        say(f"resuming after {inputs.first_step} rollout steps from {checkpoint}")
    for line in _opening_words(config, inputs, folder, changes):
        say(line)
    held.callback(remove_unfinished, folder.path)
    try:
        outcome, summary = _run(config, inputs, folder, started, output, say)
    except ConfigError:
        if resume is None:
            folder.discard()
        raise
    except (ExceptionGroup, RuntimeError, Unwritable) as error:
        print("\n".join(obituary(error, folder)), file=sys.stderr)
        return 1
    if outcome.stopped_by is not None:
        raise stopping.Stopped(outcome.stopped_by, _how_to_go_on(outcome, inputs, folder))
    folder.write_summary(summary.as_dict())
    say(closing_words(summary, folder))
    return 0


def _how_to_go_on(outcome: Outcome, inputs: Inputs, folder: RunFolder) -> str:
    """What is kept of a run that was stopped, and the command that resumes it."""
    done = f"{inputs.first_step + outcome.steps} rollout steps are done"
    if outcome.model_saved:
        return f"all {done}, and the model is in {folder.checkpoint}"
    return f"{done}, and {_newest_checkpoint(folder)}"


def _newest_checkpoint(folder: RunFolder) -> str:
    """The newest checkpoint and the command that resumes the run from it."""
    kept = Checkpoints(folder.checkpoints, max_num=1).finished()
    if not kept:
        return "no checkpoint was made"
    go_on = f"{program()} train --resume {shlex.quote(str(folder.path))}"
    return f"the newest checkpoint is {kept[-1]}; to go on: {go_on}"


def obituary(error: BaseException, folder: RunFolder) -> Iterator[str]:
    """What ended a run, what is kept of it, and how to go on; an error of the file system in a rank is translated."""
    words = first_words(error)
    trouble = None if isinstance(first_error(error), Unwritable) else folder.trouble(words)
    yield words if trouble is None else f"{trouble}; this ended the run: {words.splitlines()[0]}"
    if is_log(folder.events):
        yield f"what had happened until then is in {folder.events}; {_newest_checkpoint(folder)}"


def _opening_words(config: Config, inputs: Inputs, folder: RunFolder, changes: Sequence[Change]) -> Iterator[str]:
    if changes:
        yield f"changed: {', '.join(map(str, changes))}"
    yield (
        f"run folder {folder.path}; starting Ray, {config.vllm.num_engines} engine(s) and "
        f"{config.trainer_ranks} trainer rank(s) on {config.device}"
    )
    others = [f"{name} {value} (preset {expected})" for name, value, expected in preset_changes(config)]
    if others:
        yield f"preset {config.preset}, but {', '.join(others)}"
    yield from inputs.stop.notes
    yield from cautions(config, prompts=len(inputs.prompts))


def _run(
    config: Config, inputs: Inputs, folder: RunFolder, started: float, output: Output, say: Say
) -> tuple[Outcome, Summary]:
    """Train and record everything; the sinks are closed in any case."""
    from dapo_openrlhf.backend.run import launch

    earlier = _earlier(folder, inputs.first_step, say)
    history = Measured(earlier.evaluations, first_step=inputs.first_step)
    with LogFile(folder.events) as events:
        log = EventLog(events, clock=time.monotonic)
        log.emit(_run_started(config, inputs, unix_time=time.time() - log.now()))
        sinks = _sinks(config, folder, output, say, earlier=earlier, history=history)
        recorder = Recorder(log, sinks, devices=config.devices, warn=say)
        head_start = time.monotonic() - started
        try:
            outcome = launch.train(
                config,
                inputs,
                log=log,
                checkpoints=Checkpoints(
                    folder.checkpoints,
                    max_num=config.ckpt.max_num,
                    settings=dump_config(config),
                    best_metric=config.ckpt.best_metric_key,
                    first_step=inputs.first_step,
                ),
                trained_model=str(folder.checkpoint.resolve()),
                say=say,
            )
        finally:
            recorder.close()
    return outcome, replace(
        _summary(config, outcome, recorder, head_start, earlier),
        accuracy_before=None if history.start is None else history.start.accuracy,
        held_out=history.held_out(ended=outcome.accuracy_after is not None),
    )


def _earlier(folder: RunFolder, first_step: int, say: Say) -> Earlier:
    """What the run had done before; the rows of steps that are done again are removed from its file."""
    earlier = earlier_life(folder.events, first_step)
    try:
        earlier_rows(folder.metrics, first_step)
        return replace(earlier, rows=read_rows(folder.metrics))
    except OSError as error:
        say(f"warning: the rows of earlier steps cannot be read, and the curves begin without: {error}")
        return earlier


def _sinks(
    config: Config, folder: RunFolder, output: Output, say: Say, *, earlier: Earlier, history: Measured
) -> list[Sink]:
    """The sinks that the run is reported to; another one takes a file in ``report/`` and a line here."""
    watch = Watch(batch_size=config.rollout.batch_size, max_new_tokens=config.rollout.max_new_tokens, say=say)
    before = dict(history.evaluations)
    makers: list[Callable[[], Sink]] = [
        lambda: status_of(
            folder.path, config.train.max_steps, first_step=earlier.steps
        ),  # by which a job knows its run
        lambda: history,
        lambda: MetricsFile(folder.metrics),
        lambda: Phases(waiting_for),
        lambda: Notices(say, watch=watch),
        lambda: ProgressLine(config.train.max_steps, output.stream, width=output.width),
        lambda: TensorBoardSink(folder.tensorboard, first_step=earlier.steps),
        lambda: Curves(
            folder.picture,
            title=config.run.name,
            earlier=earlier.rows,
            measured={step: one.accuracy for step, one in before.items()},
        ),
        lambda: Responses(folder.responses),
        lambda: Samples(folder.samples, first_step=earlier.steps),
        lambda: ModelCards(config, history),
    ]
    return open_sinks([*makers, *_elsewhere(config, folder), *_views(config, output, done=earlier.steps)], warn=say)


def _views(config: Config, output: Output, *, done: int) -> Iterator[Callable[[], Sink]]:
    """The maker of the live view, on a terminal. It is made last, and closed when every other report is whole."""
    console = output.console
    if console is not None:
        yield lambda: LiveView(
            console,
            done=done,
            max_steps=config.train.max_steps,
            waits=lambda: waits_in_words(time.monotonic()),
            clock=time.monotonic,
        )


def _elsewhere(config: Config, folder: RunFolder) -> Iterator[Callable[[], Sink]]:
    """Makers of the sinks that report beyond the run's folder, as ``report.*`` asks for them."""
    from dapo_openrlhf.backend.run.ray_gauges import ray_gauge

    if config.report.prometheus:
        yield lambda: Gauges(folder.path.name, ray_gauge)
    uploads, names = config.report.wandb_uploads, config.logger.wandb
    if uploads is not None:
        place = Place(
            uploads=uploads,
            project=names.project,
            org=names.org,
            group=names.group,
            run_name=names.run_name or folder.path.name,
        )
        yield lambda: WandbRun(folder.wandb, place, config.model_dump(mode="json", by_alias=True))


def _run_started(config: Config, inputs: Inputs, *, unix_time: float) -> RunStarted:
    return RunStarted(
        unix_time=unix_time,
        engines=config.vllm.num_engines,
        trainer_ranks=config.trainer_ranks,
        devices=config.devices,
        max_staleness=config.async_.max_staleness,
        batch_size=config.rollout.batch_size,
        first_step=inputs.first_step,
    )


def _summary(config: Config, outcome: Outcome, recorder: Recorder, head_start: float, earlier: Earlier) -> Summary:
    first = outcome.first_step_at
    held_back = recorder.verdict(max_staleness=config.async_.max_staleness)
    return Summary(
        accuracy_before=outcome.accuracy_before,
        accuracy_after=outcome.accuracy_after,
        max_staleness=config.async_.max_staleness,
        max_policy_age=max(earlier.max_policy_age, outcome.max_policy_age),
        steps=earlier.steps + outcome.steps,
        lives=earlier.lives + 1,
        first_step_seconds=None if first is None else first + head_start,
        train_seconds=earlier.seconds + outcome.train_seconds,
        generated_tokens=earlier.tokens("generated") + recorder.tokens("generated"),
        trained_tokens=earlier.tokens("trained") + recorder.tokens("trained"),
        counters=outcome.counters,
        restarts=outcome.restarts,
        steps_undone=outcome.steps_undone,
        ended=outcome.ended,
        engines_idle=None if held_back is None else held_back.engines_idle,
        trainer_idle=None if held_back is None else held_back.trainer_idle,
        verdict="" if held_back is None else held_back.sentence,
        engines_lost=recorder.losses.words(),
    )


def first_error(error: BaseException) -> BaseException:
    """The first error that is not an exception group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def first_words(error: BaseException) -> str:
    """The first error that is not an exception group, in words for the user."""
    first = first_error(error)
    return str(first) if isinstance(first, Unwritable) else f"{type(first).__name__}: {first}"
