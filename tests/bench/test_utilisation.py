"""MFU by hand, never above 100 %; a bench of more processes than cores says so first."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from dapo_openrlhf.bench.arm import Measurement
from dapo_openrlhf.bench.comparison import table
from dapo_openrlhf.bench.result import summarise
from dapo_openrlhf.bench.utilisation import Peak
from dapo_openrlhf.cli.bench import Work, _crowd, _peak
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config

CONFIG = load_config(Path(__file__).parents[2] / "configs" / "quickstart_cpu.yaml", {})
RESULT = replace(
    summarise(
        "K = 1",
        [mock.Mock(spec=Measurement, **dict.fromkeys(
            ("trained_tokens_per_second", "seconds", "generate_seconds", "train_seconds", "busier_seconds", "publish_seconds",
             "pass_rate", "foreign_load"), 1.0), step_seconds=(1.0, 1.0), accuracy=None, mean_age=None, max_age=None)],
    ),
    trained_tokens_per_second=5000.0,
    devices=4,
)  # fmt: skip


def test_mfu_by_hand() -> None:
    """6 x 1e9 parameters x 5,000 tokens/s are 30 TFLOP/s; four devices of 100 can do 400."""
    peak = Peak(parameters=10**9, flops=100e12)
    assert peak.mfu(RESULT) == pytest.approx(0.075)
    head, row = table([RESULT], peak).splitlines()
    assert head.split()[-1] == "MFU"
    assert row.split()[-1] == "7.5%"
    assert "MFU" not in table([RESULT])
    assert "6 x 1,000,000,000 parameters x trained tok/s / (all devices x 100 TFLOP/s)" in peak.definition


def test_a_peak_that_is_too_low_is_said_instead_of_more_than_all() -> None:
    assert Peak(parameters=10**9, flops=7e12).cell(RESULT) == "peak?"
    assert Peak(parameters=10**9, flops=7.5e12).cell(RESULT) == "100.0%"


def test_a_peak_is_for_a_configuration(tmp_path: Path) -> None:
    assert _peak(argparse.Namespace(peak_tflops=None), None) is None
    with pytest.raises(ConfigError, match="--peak-tflops is for a configuration of your own"):
        _peak(argparse.Namespace(peak_tflops=1.0), None)


def test_more_processes_than_cores_are_said_in_the_first_lines() -> None:
    cores = len(os.sched_getaffinity(0))
    fits, crowds = (mock.Mock(devices=devices) for devices in (cores, cores + 1))
    fits.name, crowds.name = "K = 0, 1:1", "K = 0, 2:1"
    work = Work(arms={"a": fits, "b": crowds}, settings={}, repeats=1)
    assert _crowd(work, CONFIG).startswith(
        f"warning: K = 0, 2:1: more engines and trainer ranks than the {cores} core(s)"
    )
    assert _crowd(Work(arms={"a": fits}, settings={}, repeats=1), CONFIG) == ""
    assert _crowd(work, CONFIG.model_copy(update={"device": "cuda"})) == ""
