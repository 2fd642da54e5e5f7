"""Publishes a run's status in its job's metadata, where every machine that reaches the dashboard can read it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping

import ray
from ray._private.ray_constants import KV_NAMESPACE_JOB
from ray.dashboard.modules.job.common import JobInfoStorageClient
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

SECONDS = 2.0
"""Least seconds between two publications."""


class MetadataPublisher:
    """Writes values into the metadata of a job, from a thread, so that nobody waits for the cluster.

    Ray has no call for this: the job's record is read, changed and written. Ray itself writes it only when the job
    begins and ends.
    """

    def __init__(self, job: str) -> None:
        """``job``: the submission's id."""
        self._key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=job).encode()
        self._thread: threading.Thread | None = None
        self._published = float("-inf")

    def __call__(self, values: Mapping[str, str], *, last: bool = False) -> None:
        """Publish these values, unless Ray is not joined yet or the last publication is too recent."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy and last and self._thread is not None:
            self._thread.join(SECONDS)
        elif busy or (not last and time.monotonic() - self._published < SECONDS):
            return
        if not ray.is_initialized():
            return
        self._published = time.monotonic()
        self._thread = threading.Thread(target=self._put, args=(dict(values),), daemon=True)
        self._thread.start()
        if last:
            self._thread.join(SECONDS)

    def _put(self, values: Mapping[str, str]) -> None:
        try:
            text = _internal_kv_get(self._key, namespace=KV_NAMESPACE_JOB)
            if text is None:
                return
            record = json.loads(text)
            record["metadata"] = {**(record.get("metadata") or {}), **values}
            _internal_kv_put(self._key, json.dumps(record).encode(), overwrite=True, namespace=KV_NAMESPACE_JOB)
        except (RayError, RuntimeError, ValueError):
            return  # the run goes on; its folder has the same
