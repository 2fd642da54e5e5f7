"""What a resumed rank takes from a checkpoint and what from the configuration (runs inside the trainer's ranks)."""

from __future__ import annotations

import os
from typing import Any

SETTINGS = ("lr", "initial_lr", "betas", "eps", "weight_decay")
"""Of an optimizer's parameter groups: what DeepSpeed restores with the moments though it is configuration."""


def restore(engine: Any, folder: str, tag: str, *, updates_done: int) -> bool:
    """Load full-precision weights and moments into a DeepSpeed engine; False if ``folder`` holds none under ``tag``.

    Learning rate, decays, gradient clipping and schedule stay the configuration's. The schedule is entered after
    ``updates_done`` gradient steps of the new configuration: DeepSpeed's own counter counts those of the old one, whose
    updates may have had another size.
    """
    if not os.path.isdir(os.path.join(folder, tag)):
        return False
    optimizer = engine.optimizer
    configured = [{name: group[name] for name in SETTINGS} for group in optimizer.param_groups]
    max_norm = optimizer.clip_grad
    found, _ = engine.load_checkpoint(folder, tag=tag, load_lr_scheduler_states=False)
    assert found is not None
    for group, settings in zip(optimizer.param_groups, configured, strict=True):
        group.update(settings)
    optimizer.clip_grad = max_norm
    enter_schedule(engine.lr_scheduler, optimizer.param_groups, updates_done)
    return True


def enter_schedule(schedule: Any, groups: list[dict[str, Any]], updates_done: int) -> None:
    """Put a ``torch.optim.lr_scheduler.LambdaLR``, and the learning rate of ``groups``, where it is after so many steps.

    Its ``step`` with a number is deprecated, and stepping there one by one takes as long as there are steps.
    """
    schedule.last_epoch = updates_done
    rates = [peak * share(updates_done) for peak, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
