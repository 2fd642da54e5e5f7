"""What differs between machines is noticed, not assumed."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.openrlhf_bases import FLASH_ATTENTION, flash_attention_installed


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
