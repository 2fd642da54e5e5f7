"""Patches that let stock OpenRLHF 0.11.2 run on a CPU, applied at import: its files are not modified.

``install`` runs at the start of every process (driver, Ray workers, vLLM's engine core) and imports nothing heavy: it
registers with Python's import system, and a module is patched right after it was imported, before its importer sees it.
Each patch, called a remedy here, is one function with the obstacle in its docstring.

Every remedy replaces what CUDA would do by a fast equivalent on a CPU: NCCL by gloo over loopback, flash-attn's
variable-length attention by torch's attention one sequence at a time, the fused Adam by torch's own. That of
``flushing.py`` is applied on GPUs too.
"""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dapo_openrlhf.bench.stock.flushing import FLUSHING
from dapo_openrlhf.bench.stock.remedies import apply

if TYPE_CHECKING:
    from torch import Tensor

PACKED_ATTENTION = "varlen_flash_attention_on_cpu"
"""Name of the attention for packed samples; OpenRLHF requires "flash_attention" in it."""

VLLM_SETTINGS = "DAPO_OPENRLHF_BENCH_VLLM_SETTINGS"
"""Environment variable with vLLM engine arguments (JSON) that override those that OpenRLHF has hard-wired."""

SIMULATED_GPUS = "DAPO_OPENRLHF_BENCH_SIMULATED_GPUS"
"""Environment variable with the number of GPUs that Ray counts on a CPU, one for each engine and trainer rank; it is not
set where there are GPUs."""


def install() -> None:
    """Apply all remedies in this process, now or when the modules they concern are imported."""
    # flash-attn's interface, imported for its padding helpers, imports its compiled part.
    sys.modules.setdefault("flash_attn_2_cuda", types.ModuleType("flash_attn_2_cuda"))
    apply(REMEDIES)


# Remedies, each called with a module that was just imported


class _CpuDevice(str):
    """The value of ``torch.cuda.current_device()`` on a CPU: a device where torch needs one, 0 in ``f"cuda:{...}"``.

    OpenRLHF's replay buffer makes a device from that text, and never uses it.
    """

    def __format__(self, specification: str) -> str:
        return "0"


def _torch_cuda(module: Any) -> None:
    """OpenRLHF calls these wherever a model is, without checking whether there is CUDA."""
    module.current_device = lambda: _CpuDevice("cpu")
    module.set_device = lambda device: None
    module.synchronize = lambda device=None: None
    module.current_stream = lambda device=None: None
    module.empty_cache = lambda: None


def _deepspeed(module: Any) -> None:
    """DeepSpeed compiles a shared-memory collective for half a minute when a CPU process starts."""
    module.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _strategy(module: Any) -> None:
    """The mesh is of "cuda" devices, and DeepSpeed's own Adam would be compiled for a minute."""
    init_device_mesh = module.init_device_mesh
    module.init_device_mesh = lambda kind, *args, **kwargs: init_device_mesh("cpu", *args, **kwargs)
    get_train_ds_config = module.get_train_ds_config

    def with_torch_adam(*args: Any, **kwargs: Any) -> dict[str, Any]:
        config: dict[str, Any] = get_train_ds_config(*args, **kwargs)
        if "optimizer" in config:
            config["optimizer"]["params"]["torch_adam"] = True
        return config

    module.get_train_ds_config = with_torch_adam


def _dtypes(module: Any) -> None:
    """Parameters are bf16 or fp16 only; the comparison is in float32."""
    convert = module.convert_to_torch_dtype
    module.convert_to_torch_dtype = lambda name: module.torch.float32 if name == "fp32" else convert(name)


def _weight_group(module: Any) -> None:
    """Weights travel by NCCL whatever ``--vllm.sync_backend`` says."""
    module.stateless_init_process_group = GlooBroadcast


def _engine_arguments(module: Any) -> None:
    """``vllm_engine.py`` has bfloat16 and the worker extension hard-wired and cannot size the KV cache."""
    settings = json.loads(os.environ.get(VLLM_SETTINGS, "{}"))
    original = module.AsyncEngineArgs.__init__

    def with_settings(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **(kwargs | settings))

    module.AsyncEngineArgs.__init__ = with_settings


def _attention(module: Any) -> None:
    """Packed samples need flash-attn, and transformers looks for whatever has "flash" in its name."""
    module.ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)
    look_for = module.lazy_import_flash_attention
    module.lazy_import_flash_attention = lambda name, **kwargs: (
        None if name == PACKED_ATTENTION else look_for(name, **kwargs)
    )


REMEDIES: dict[str, Callable[[Any], None]] = {
    **FLUSHING,
    "torch.cuda": _torch_cuda,
    "deepspeed": _deepspeed,
    "openrlhf.utils.deepspeed.deepspeed": _strategy,
    "openrlhf.utils.utils": _dtypes,
    "openrlhf.utils.distributed_util": _weight_group,
    "vllm.engine.arg_utils": _engine_arguments,
    "transformers.modeling_utils": _attention,
}


# What takes the place of CUDA libraries


class GlooBroadcast:
    """Takes the place of ``PyNcclCommunicator`` with gloo, between trainer rank 0 and all engines."""

    def __init__(self, address: str, port: int, rank: int, world_size: int, device: object) -> None:
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group

        self._group: Any = stateless_init_torch_distributed_process_group(address, port, rank, world_size, "gloo")

    def broadcast(self, tensor: Tensor, src: int, stream: object = None) -> None:
        """Send ``tensor`` of rank ``src`` to all ranks, or receive into it; returns when it has arrived."""
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor], options).wait()


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    position_ids: Tensor,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of sequences laid end to end, [1, heads, tokens, size] -> [1, tokens, heads, size].

    A sequence begins wherever ``position_ids`` [1, tokens] is 0.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    starts = torch.nonzero(position_ids[0] == 0).flatten().tolist()
    ends = [*starts[1:], query.shape[2]]
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    parts = zip(*(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True)
    attended = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling) for q, k, v in parts]
    return torch.cat(attended, dim=2).transpose(1, 2), None
