"""What differs between machines is noticed, not assumed."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from dapo_openrlhf.backend import device
from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.openrlhf_bases import FLASH_ATTENTION, flash_attention_installed
from dapo_openrlhf.config.choices import DeviceKind


@pytest.mark.parametrize(("installed", "value"), [(True, None), (False, "0")])
def test_vllm_is_told_where_flashinfer_is_missing(
    monkeypatch: pytest.MonkeyPatch, installed: bool, value: str | None
) -> None:
    spec = ModuleSpec("flashinfer", None) if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert Device(kind="cuda", threads=1).environment().get("VLLM_USE_FLASHINFER_SAMPLER") == value


def test_a_stand_in_is_not_taken_for_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType(FLASH_ATTENTION)
    monkeypatch.setitem(sys.modules, FLASH_ATTENTION, stand_in)
    assert not flash_attention_installed()
    stand_in.__spec__ = ModuleSpec(FLASH_ATTENTION, None)
    assert flash_attention_installed()


@pytest.mark.parametrize(
    ("nodes", "driver", "visible", "count"),
    [
        (["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], 2, None, 2),
        (["nvidia3", "nvidiactl"], 8, None, 1),  # a container with one GPU of eight
        (["nvidia0"], None, None, 1),  # one that hides /proc/driver
        ([], 4, None, 4),  # a host that has not used them yet
        ([], None, None, 0),
        (["nvidia0", "nvidia1"], 2, "1", 1),
        (["nvidia0"], 1, "0,0", 2),
        (["nvidia0"], 1, "", 0),
    ],
)
def test_gpus_are_counted_without_cuda(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    nodes: list[str],
    driver: int | None,
    visible: str | None,
    count: int,
) -> None:
    for name in nodes:
        (tmp_path / name).touch()
    for index in range(driver or 0):
        (tmp_path / "gpus" / f"0000:{index:02}:00.0").mkdir(parents=True)
    monkeypatch.setattr(device, "DEVICE_NODES", tmp_path)
    monkeypatch.setattr(device, "DRIVER_GPUS", tmp_path / "gpus")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Device(kind="cuda", threads=1).count() == count


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_settings_of_the_submitting_side_reach_the_actors(monkeypatch: pytest.MonkeyPatch, kind: DeviceKind) -> None:
    exported = {
        "NCCL_SOCKET_IFNAME": "eth1",
        "NCCL_DEBUG": "INFO",
        "HF_HOME": "/shared/hub",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_ATTENTION_BACKEND": "FLASH_ATTN",
        "CUDA_HOME": "/opt/cuda",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_CACHE_DIR": "/scratch/inductor",
    }
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    environment = Device(kind=kind, threads=1).environment()
    assert exported.items() <= environment.items()


def test_what_belongs_to_one_machine_or_is_secret_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [
        "CUDA_VISIBLE_DEVICES",
        "VLLM_HOST_IP",
        "HF_TOKEN",
        "VLLM_API_KEY",
        "HF_API_TOKENS",
        "NCCL_SECRET",
        "EDITOR",
    ]
    for name in kept:
        monkeypatch.setenv(name, "of this machine")
    assert "of this machine" not in Device(kind="cuda", threads=1).environment().values()


def test_what_the_code_relies_on_is_not_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    environment = Device(kind="cpu", threads=1).environment()
    assert (environment["VLLM_ENABLE_V1_MULTIPROCESSING"], environment["CUDA_VISIBLE_DEVICES"]) == ("0", "")
