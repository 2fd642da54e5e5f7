"""The event loop in virtual time, under the name by which the tests know it."""

from dapo_openrlhf.plan.virtual_time import Deadlock, Endless, VirtualTimeLoop, run_virtual

__all__ = ["Deadlock", "Endless", "VirtualTimeLoop", "run_virtual"]
