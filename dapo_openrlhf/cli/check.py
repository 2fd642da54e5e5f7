"""The command ``dapo-openrlhf check``: whether a run can start, in one table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dapo_openrlhf import stopping
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.resume_point import Anew, ResumePoint


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options that tell where the run is to run, and how to answer."""
    command.add_argument(
        "--gpus", metavar="KINDxN", help="GPUs of a machine that need not be here, such as h100x8; for device cuda"
    )
    command.add_argument("--nodes", type=int, default=1, metavar="N", help="number of machines of --gpus (default 1)")
    command.add_argument("--json", action="store_true", help="print JSON in place of the table")


def check(
    config: Config,
    *,
    resume: ResumePoint | Anew | None = None,
    gpus: str | None = None,
    nodes: int = 1,
    as_json: bool = False,
) -> int:
    """Print the table; returns 0 if no check fails, else 1. ``gpus``: see :func:`add_options`."""
    with stopping.nothing_to_lose("nothing was started"):
        from dapo_openrlhf.backend.run.node_look import asked_of
        from dapo_openrlhf.backend.run.ray_address import asked_address
        from dapo_openrlhf.check import table
        from dapo_openrlhf.check.machines import Machines, named, of_cluster, this_machine
        from dapo_openrlhf.check.registry import Row, run_checks
        from dapo_openrlhf.check.subject import Once, Subject

        if gpus is not None and config.device != "cuda":
            raise ConfigError(f"--gpus {gpus}: the configuration has device {config.device}; leave one of them out")

        def machines() -> Machines:
            if gpus is not None:
                return named(gpus, nodes)
            address = asked_address()
            if not address:
                return this_machine(config.device)
            folder = Path(config.run.dir) if resume is None else resume.run
            return of_cluster(address, asked_of(config, folder), config.device)

        place = Once(machines)
        if gpus is not None:
            place()  # refuses what it does not know
        point = resume if isinstance(resume, ResumePoint) else None
        rows: list[Row] = []
        width = table.width_here()
        for row in run_checks(Subject(config, place, resume=point)):
            rows.append(row)
            if not as_json:
                print("\n".join(table.lines(row, width)), flush=True)
        print(json.dumps(table.as_dict(rows), indent=2) if as_json else f"\n{table.closing(rows)}", flush=True)
        return 1 if any(table.level_of(row) == "fail" for row in rows) else 0


def refused(error: ConfigError, *, as_json: bool) -> int:
    """Print the table of a configuration that cannot be read; returns 1."""
    from dapo_openrlhf.check import table
    from dapo_openrlhf.check.finding import failed
    from dapo_openrlhf.check.registry import Row

    rows = [Row(name="configuration", findings=(failed(str(error)),))]
    print(json.dumps(table.as_dict(rows), indent=2) if as_json else "\n".join(table.lines(rows[0], table.width_here())))
    return 1


def file_of(options: argparse.Namespace, rest: list[str]) -> list[str]:
    """Take the configuration from the arguments if it stands there without ``--config``; returns the other arguments."""
    if (
        options.config is None
        and options.resume is None
        and rest
        and not rest[0].startswith("-")
        and "=" not in rest[0]
    ):
        options.config = Path(rest[0])
        return rest[1:]
    return rest
