"""The soak's arithmetic, on made-up samples and on a process that grows."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from scripts import soak
from scripts.soak import MIB, Sample, slope, table


def test_the_slope_is_that_of_a_line_through_the_samples() -> None:
    assert slope([Sample(0, 10), Sample(10, 40), Sample(20, 70)]) == pytest.approx(3.0)
    assert slope([Sample(0, 0), Sample(1, 2), Sample(2, 1)]) == pytest.approx(0.5)
    assert math.isnan(slope([Sample(3, 10), Sample(3, 40)]))


def test_only_what_comes_after_the_warm_up_counts() -> None:
    samples = [Sample(0, 0), Sample(500, 100 * MIB), Sample(1000, 101 * MIB), Sample(1500, 102 * MIB)]
    rows = table({"raylet 7": samples, "gone 8": [Sample(0, 5)]}, warm_up=500)
    assert rows[2:] == ["| raylet 7 | 3 | 100.0 | 102.0 | +2.00 |"]


def test_processes_are_sampled_with_their_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "SAMPLE_SECONDS", 0.02)
    metrics, done = tmp_path / "metrics.jsonl", tmp_path / "sampled"
    metrics.write_text("{}\n{}\n")
    child = f"import pathlib, time\nwhile not pathlib.Path({str(done)!r}).exists(): time.sleep(0.01)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    real = soak.measure

    def measure(root: soak.psutil.Process) -> dict[str, int]:
        found = real(root)
        if len(found) > 1:
            done.touch()
        return found

    monkeypatch.setattr(soak, "measure", measure)
    memory = soak.soak([sys.executable, "-c", program], metrics)
    assert len(memory) == 2
    assert all(sample.step == 2 for samples in memory.values() for sample in samples)
    # A process that has just been started has less.
    assert all(max(sample.bytes for sample in samples) > MIB for samples in memory.values())


@pytest.mark.long
def test_a_run_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(soak.subprocess.CalledProcessError):
        soak.soak([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "none")


def test_an_interrupted_soak_ends_its_run_and_keeps_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "SAMPLE_SECONDS", 0.02)
    roots: list[soak.psutil.Process] = []

    def measure(root: soak.psutil.Process) -> dict[str, int]:
        if roots:
            raise KeyboardInterrupt
        roots.append(root)
        return {"python": 7}

    monkeypatch.setattr(soak, "measure", measure)
    memory = soak.soak([sys.executable, "-c", "import time; time.sleep(1e6)"], tmp_path / "none")
    assert memory == {"python": [Sample(0, 7)]}
    assert not roots[0].is_running()
