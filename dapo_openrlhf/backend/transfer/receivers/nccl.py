"""The engines' end of the weight sync by NCCL: every worker takes part in a broadcast from trainer rank 0."""

from __future__ import annotations

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from dapo_openrlhf.backend.transfer.receivers import RECEIVERS
from dapo_openrlhf.backend.transfer.receivers.checked import Checked, CheckedWorker


class CheckedNcclEngine(Checked, NCCLWeightTransferEngine):
    """vLLM's receiver of a broadcast, with the checks of :class:`Checked`."""


class NcclWorker(CheckedWorker):
    """A vLLM worker that receives weights by NCCL."""


WeightTransferEngineFactory.register_engine(RECEIVERS["nccl"].backend, CheckedNcclEngine)
