"""Has OpenRLHF's metrics in their file after each step, so that a run can be followed and ended (``install`` as in ``on_cpu``)."""

from __future__ import annotations

from typing import Any

from dapo_openrlhf.bench.stock.remedies import Remedies, apply


def install() -> None:
    """Apply the remedy in this process."""
    apply(FLUSHING)


def _tensorboard(module: Any) -> None:
    """TensorBoard's writer keeps two minutes of metrics in memory, which are lost when the run is ended."""
    log_train = module.TensorboardLogger.log_train

    def with_flush(self: Any, *args: Any, **kwargs: Any) -> None:
        log_train(self, *args, **kwargs)
        self.writer.flush()

    module.TensorboardLogger.log_train = with_flush


FLUSHING: Remedies = {"openrlhf.utils.logging_utils": _tensorboard}
