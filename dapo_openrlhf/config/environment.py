"""Settings of the processes in which environments run (pydantic)."""

from __future__ import annotations

from dapo_openrlhf.config.section import PositiveFloat, PositiveInt, Section


class EnvironmentSection(Section):
    timeout: PositiveFloat = 30.0
    """Seconds that a reset or a step of an environment may take before its process is killed and its group fails."""
    memory: PositiveInt = 2048
    """MiB of memory that an environment process may take."""
    workers: PositiveInt = 2
    """Number of environment processes; each holds many episodes at once."""
