"""Where the status of a run goes: into its folder, and in a job also to the job's cluster."""

from __future__ import annotations

import os
from pathlib import Path

from dapo_openrlhf.backend.run.jobs.order import ORDER, Order
from dapo_openrlhf.report.status import Status


def status_of(folder: Path, max_steps: int, *, first_step: int) -> Status:
    """The status of the run in a folder; ``first_step``: number of steps done before."""
    if (text := os.environ.get(ORDER)) is None:
        return Status(folder, max_steps=max_steps, first_step=first_step)
    from dapo_openrlhf.backend.run.jobs.publishing import MetadataPublisher

    job = Order.from_json(text).id
    return Status(folder, max_steps=max_steps, first_step=first_step, job=job, publish=MetadataPublisher(job))
