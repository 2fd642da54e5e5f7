"""The entry point ``dapo-openrlhf COMMAND``: parses and validates, then imports the rest."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence

from dapo_openrlhf import stopping
from dapo_openrlhf.cli.packages import BASIC, OF_COMMAND, check_packages
from dapo_openrlhf.cli.voice import silence, telling_waits

STARTED = time.monotonic()

UNPRINTED = (errno.EPIPE, errno.ENOSPC, errno.EIO)
"""Errors of printing: the reader has left, the disk is full, the terminal is gone."""

Command = Callable[[argparse.Namespace, Sequence[str]], int]
"""A function of the options and the rest of the command line that returns the exit status."""


def entry() -> int:
    """Run one command as the whole of this process; returns its exit status."""
    stopping.exit_outside()
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # closed by whoever called this, as `>&-` does
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit status."""
    try:
        with stopping.handled():
            status = _run(arguments)
            sys.stdout.flush()
    except stopping.Stopped as stopped:
        stopped.say()
        return stopped.status
    except OSError as error:
        if error.filename is not None or error.errno not in UNPRINTED:
            raise
        silence(sys.stdout, error)
        return 1
    return status


def _run(arguments: Sequence[str] | None) -> int:
    with stopping.nothing_to_lose():
        check_packages(BASIC)  # the imports below need them
        from dapo_openrlhf.cli.options import make_parser
        from dapo_openrlhf.config.errors import ConfigError
        from dapo_openrlhf.whole_file import Unwritable

        options, rest = make_parser().parse_known_args(arguments)
        check_packages(OF_COMMAND.get(options.command, ()))
    try:
        return COMMANDS[options.command](options, rest)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Unwritable as error:
        print(error, file=sys.stderr)
        return 1


def _train(options: argparse.Namespace, rest: Sequence[str]) -> int:
    with stopping.nothing_to_lose("nothing was trained yet"):
        from dapo_openrlhf.cli.starting import starting_point
        from dapo_openrlhf.cli.train import train
        from dapo_openrlhf.config.loading import parse_overrides

    _point_to_convert(rest)
    if options.check:
        return _check_run(options, rest)
    config, resume = starting_point(options, parse_overrides(rest), say=_warn)
    return train(config, started=STARTED, resume=resume, stream=sys.stdout)


def _check(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from dapo_openrlhf.cli.check import file_of

    rest = file_of(options, list(rest))
    return _check_run(options, rest, gpus=options.gpus, nodes=options.nodes, as_json=options.json)


def _check_run(
    options: argparse.Namespace, rest: Sequence[str], *, gpus: str | None = None, nodes: int = 1, as_json: bool = False
) -> int:
    from dapo_openrlhf.cli.check import check, refused
    from dapo_openrlhf.cli.starting import starting_point
    from dapo_openrlhf.config.errors import ConfigError
    from dapo_openrlhf.config.loading import parse_overrides

    try:
        config, resume = starting_point(options, parse_overrides(rest), say=_warn)
    except ConfigError as error:
        return refused(error, as_json=as_json)
    return check(config, resume=resume, gpus=gpus, nodes=nodes, as_json=as_json)


def _point_to_convert(arguments: Sequence[str]) -> None:
    """Raise ``ConfigError`` where a command of OpenRLHF was pasted behind one of this project."""
    from dapo_openrlhf.convert.openrlhf import is_openrlhf_command

    if is_openrlhf_command(arguments):
        from dapo_openrlhf.config.errors import ConfigError

        raise ConfigError(
            "these are options of OpenRLHF's command line; `dapo-openrlhf convert --output run.yaml -- COMMAND ...` writes "
            "them as a configuration, and `dapo-openrlhf train --config run.yaml` trains it"
        )


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _eval(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from dapo_openrlhf.cli.eval import evaluate
    from dapo_openrlhf.config.loading import load_config, parse_overrides

    config = load_config(options.config, parse_overrides(rest))
    return evaluate(config, json_file=options.json, responses_file=options.responses)


def _rollout(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from dapo_openrlhf.cli.rollout import rollout
    from dapo_openrlhf.config.loading import load_config, parse_overrides

    config = load_config(options.config, parse_overrides(rest))
    return rollout(config, n=options.n, json_file=options.json)


def _submit(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from dapo_openrlhf.cli.starting import starting_point
    from dapo_openrlhf.cli.submit import submit
    from dapo_openrlhf.config.loading import parse_overrides

    _point_to_convert(rest)
    config, _ = starting_point(options, parse_overrides(rest), say=_warn)  # errors appear here, not on the cluster
    return submit(options, config, rest)


def _of_jobs(options: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse(rest)
    from dapo_openrlhf.cli import jobs

    return {"jobs": jobs.jobs, "status": jobs.status, "logs": jobs.logs, "stop": jobs.stop}[options.command](options)


def _job(options: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse(rest)
    from dapo_openrlhf.cli.job import job

    return job()


def _verify(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from dapo_openrlhf.cli.verify import verify
    from dapo_openrlhf.config.loading import parse_overrides

    with telling_waits(sys.stderr):
        return verify(options, parse_overrides(rest))


def _compare(options: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse(rest)
    from dapo_openrlhf.cli.compare import compare

    return compare(options)


def _prepare(options: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse(rest)
    from dapo_openrlhf.cli.prepare import prepare

    with telling_waits(sys.stderr):
        return prepare(options)


def _bench(options: argparse.Namespace, rest: Sequence[str]) -> int:
    if options.config is None:
        _refuse(rest)
    from dapo_openrlhf.cli.bench import bench
    from dapo_openrlhf.config.loading import load_config, parse_overrides

    return bench(options, load_config(options.config, parse_overrides(rest)) if options.config else None)


def _trace(options: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse(rest)
    from dapo_openrlhf.cli.trace import trace

    return trace(options)


def _report(options: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse(rest)
    from dapo_openrlhf.cli.report import report

    return report(options)


def _plan(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from dapo_openrlhf.cli.plan import plan, plan_run
    from dapo_openrlhf.config.loading import load_config, parse_overrides

    if options.config is None:
        return plan_run(options, rest)
    config = load_config(options.config, parse_overrides(rest))
    return plan(config, options)


def _refuse(arguments: Sequence[str]) -> None:
    from dapo_openrlhf.config.errors import ConfigError

    if arguments:
        raise ConfigError(f"there is no such option: {' '.join(arguments)}; --help lists them")


def _convert(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from dapo_openrlhf.cli.convert import convert

    return convert(options, rest)


def _checkpoint(options: argparse.Namespace, rest: Sequence[str]) -> int:
    _refuse(rest)
    from dapo_openrlhf.cli.checkpoint import checkpoint

    return checkpoint(options)


COMMANDS: dict[str, Command] = {
    "train": _train,
    "check": _check,
    "eval": _eval,
    "rollout": _rollout,
    "compare": _compare,
    "prepare": _prepare,
    "verify": _verify,
    "submit": _submit,
    "jobs": _of_jobs,
    "status": _of_jobs,
    "logs": _of_jobs,
    "stop": _of_jobs,
    "job": _job,
    "bench": _bench,
    "trace": _trace,
    "report": _report,
    "plan": _plan,
    "checkpoint": _checkpoint,
    "convert": _convert,
}


if __name__ == "__main__":
    sys.exit(entry())
