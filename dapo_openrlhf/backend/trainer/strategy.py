"""OpenRLHF's DeepSpeed strategy for CPU machines and CUDA machines (runs inside the trainer's ranks)."""

from __future__ import annotations

import os
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import transformers
from openrlhf.utils.deepspeed import DeepspeedStrategy
from torch.distributed.device_mesh import init_device_mesh

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.meeting import MEETING
from dapo_openrlhf.backend.trainer.accumulation import obey_accumulation_type

PARAM_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Strategy(DeepspeedStrategy):  # type: ignore[misc]  # untyped
    """``DeepspeedStrategy`` without its assumption of CUDA and NCCL, and with micro-batches counted by the caller."""

    def __init__(self, args: SimpleNamespace, *, device: Device) -> None:
        super().__init__(
            seed=args.train.seed,
            full_determinism=args.train.full_determinism_enable,
            max_norm=args.actor.max_norm,
            micro_train_batch_size=1,
            train_batch_size=args.train.batch_size,
            zero_stage=args.ds.zero_stage,
            args=args,
        )
        self._device = device
        self.use_dynamic_batch = True  # the policy actor counts micro-batches, DeepSpeed does not

    @property
    def torch_device(self) -> torch.device:
        """The device of this rank's models."""
        cuda = self._device.kind == "cuda"
        return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")

    @property
    def threads(self) -> int:
        """Number of CPU threads of this rank: its share of the machine's cores where the host runs the optimizer."""
        if not self.adam_offload:
            return self._device.threads
        ranks: int = self.args.actor.num_gpus_per_node
        return max(self._device.threads, len(os.sched_getaffinity(0)) // ranks)

    def setup_distributed(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        """Join the ranks as OpenRLHF does, but with the device's own backend and mesh."""
        if self.full_determinism:
            transformers.enable_full_determinism(self.seed)
        else:
            transformers.set_seed(self.seed)
        if self._device.kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        else:
            # Otherwise DeepSpeed compiles a shared-memory collective for half a minute at the first start.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=self._device.distributed_backend, timeout=timeout, init_method=MEETING)
        self.world_size = torch.distributed.get_world_size()
        self.ds_device_mesh = init_device_mesh(
            self._device.kind, (self.world_size, 1, 1), mesh_dim_names=("dp", "sp", "tp")
        )
        self.setup_ring_attn(self.ds_device_mesh)
        self.accumulated_gradient = 1

    def get_ds_train_config(self, optim_dict: dict[str, Any] | None = None, *, max_norm: float | None = None) -> Any:
        """OpenRLHF's configuration, with torch's own Adam: DeepSpeed's are compiled at the first start.

        That needs a compiler, and on CUDA a toolkit of the same version. torch's is fused as well, also on a host that
        holds the optimizer's states.
        """
        config = self._on_device(super().get_ds_train_config(optim_dict, max_norm=max_norm))
        if self._device.kind == "cpu":
            del config["zero_optimization"]["offload_optimizer"]["pin_memory"]  # there is no device to copy to
        if optim_dict is not None:
            fused = {"fused": True} if self._device.kind == "cuda" or self.adam_offload else {}
            config["optimizer"]["params"] |= {"torch_adam": True, **fused}
        return config

    def _ds_init_train_model(self, model: Any, cfg: dict[str, Any]) -> Any:
        prepared = super()._ds_init_train_model(model, cfg)
        obey_accumulation_type(prepared[1])
        return prepared

    def get_ds_eval_config(self, offload: bool = False) -> Any:
        """OpenRLHF's configuration for a model that is not trained."""
        return self._on_device(super().get_ds_eval_config(offload=offload))

    def _on_device(self, config: Any) -> Any:
        """Gather ZeRO-3 parameters one by one on a CPU.

        DeepSpeed (0.19.6) waits for only the last one when it gathers several at once. NCCL completes them in order;
        gloo does not, and parameters would be read before they have arrived.
        """
        if self._device.kind == "cpu":
            config["zero_optimization"]["stage3_allgather_sequential"] = True
        return config
