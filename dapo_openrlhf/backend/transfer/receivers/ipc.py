"""The engines' end of the weight sync on shared GPUs: each reads the memory of the trainer rank on its GPU."""

from __future__ import annotations

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

from dapo_openrlhf.backend.transfer.receivers import RECEIVERS
from dapo_openrlhf.backend.transfer.receivers.checked import Checked, CheckedWorker


class CheckedIpcEngine(Checked, IPCWeightTransferEngine):
    """vLLM's reader of another process's GPU memory, with the checks of :class:`Checked`."""


class IpcWorker(CheckedWorker):
    """A vLLM worker that reads weights from another process's GPU memory."""


WeightTransferEngineFactory.register_engine(RECEIVERS["ipc"].backend, CheckedIpcEngine)
