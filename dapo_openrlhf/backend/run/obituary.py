"""Says in one line why an actor is no more, as far as Ray knows."""

from __future__ import annotations

from ray.exceptions import ActorUnavailableError, RayActorError

KILLED = "it was killed (SIGKILL) or crashed; its log is in Ray's session folder"


def cause_of_death(error: RayActorError) -> str:
    """The cause in words; :data:`KILLED` where only the end of the process was noticed."""
    words = str(error)
    if isinstance(error, ActorUnavailableError):
        return "its process, or its machine, cannot be reached"
    if "low on memory" in words:
        return "Ray has killed it because the machine's memory was full"
    if "node has died" in words:
        return "its machine is gone"
    return KILLED if "End of file" in words else " ".join(words.split())
