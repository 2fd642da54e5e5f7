"""Stock OpenRLHF as an arm that does the work of a user's configuration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.bench.arm import Arm, ArmError, ArmSettings, Measurement
from dapo_openrlhf.bench.stock.arm import LOG, STOCK_NAMES, TENSORBOARD, failure, measure, run_driver
from dapo_openrlhf.bench.stock.command import CpuEngine, StockMode, environment_on_cpu, environment_on_gpus
from dapo_openrlhf.bench.stock.said import arguments, unsayable
from dapo_openrlhf.bench.stock.steps import StockStep, complete_steps, read_scalars
from dapo_openrlhf.bench.stock.terms import JUDGE
from dapo_openrlhf.bench.stock.work import StockWork, write_work
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config

BATCHES = 8
"""Prompts are written for so many times the batches that are wanted, so that a run seldom begins anew with them, which
cuts a batch short."""


def check_sayable(config: Config, keys: Mapping[str, StockMode]) -> None:
    """Raise ``ConfigError`` with every setting that OpenRLHF lacks for one of the arms, by their names in ``--arms``."""
    arms: dict[str, list[str]] = {}
    for key, mode in keys.items():
        for problem in unsayable(config, mode):
            arms.setdefault(problem, []).append(key)
    if arms:
        lines = (
            f"  {problem}" + (f" ({', '.join(names)})" if len(names) < len(keys) else "")
            for problem, names in arms.items()
        )
        raise ConfigError(
            "\n".join([f"--arms: {', '.join(keys)}: this configuration cannot be said in OpenRLHF's options:", *lines])
            + "\nset these for all arms, in the file or behind it (--section.key VALUE), or leave stock's arms out"
        )


def stock_arm_of(config: Config, mode: StockMode, *, steps: int, timeout: float) -> Arm:
    """The arm of stock OpenRLHF's trainer for a configuration that :func:`check_sayable` lets pass.

    Each run ends after ``steps`` complete steps, and fails after ``timeout`` seconds.
    """
    settings = ArmSettings(
        batch_size=config.rollout.batch_size,
        n_samples_per_prompt=config.rollout.n_samples_per_prompt,
        steps=steps,
        timeout=timeout,
    )

    def run(folder: Path) -> Measurement:
        return measure(_Run(config=config, settings=settings, folder=folder).do(mode), settings)

    return Arm(
        name=STOCK_NAMES[mode],
        run=run,
        steps_done=lambda folder: len(_steps(folder, settings, 0.0)),
        devices=config.devices,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    config: Config
    settings: ArmSettings
    folder: Path

    def do(self, mode: StockMode) -> list[StockStep]:
        """Run until enough steps are done. Raises ``ArmError``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = self.settings.steps
        try:
            work = write_work(self.config, self.folder, at_least=BATCHES * wanted * self.settings.batch_size)
        except ConfigError as error:
            raise ArmError(str(error)) from error
        started = time.time()  # TensorBoard's clock
        run_driver(
            arguments(self.config, mode, work, self.folder),
            self._environment(work),
            self.folder / LOG,
            self.settings.timeout,
            enough=lambda: len(_steps(self.folder, self.settings, started)) >= wanted,
        )
        steps = _steps(self.folder, self.settings, started)
        if len(steps) < wanted:
            raise failure(f"({mode}) did {len(steps)} complete steps of {wanted}", self.folder / LOG)
        return steps[:wanted]

    def _environment(self, work: StockWork) -> dict[str, str]:
        """The environment of its processes, with the terms of the reward."""
        judge = {JUDGE: work.terms.to_json()}
        config = self.config
        if config.device == "cuda":
            return environment_on_gpus(self.folder) | judge
        vllm = config.vllm
        sizes = {
            "kv_cache_memory_bytes": vllm.kv_cache_memory_bytes,
            "max_num_seqs": vllm.max_num_seqs,
            "max_num_batched_tokens": vllm.max_num_batched_tokens,
        }
        given = {name: value for name, value in sizes.items() if value is not None}
        engine = CpuEngine(param_dtype=config.ds.param_dtype, **given)
        threads = Device.of("cpu", processes=config.devices).threads
        return environment_on_cpu(engine, self.folder, devices=config.devices, threads=threads) | judge


def _steps(folder: Path, settings: ArmSettings, started: float) -> list[StockStep]:
    """The complete steps so far."""
    return list(complete_steps(read_scalars(folder / TENSORBOARD), settings, started))
