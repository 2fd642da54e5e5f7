"""Stock OpenRLHF 0.11.2 on the benchmark's work: start it, wait, read its own metrics.

Its command line runs unmodified in a process tree and a local Ray of its own; ``stock_on_cpu.py`` says what a
CPU needs. Numbers come from the TensorBoard file it writes itself.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dapo_openrlhf.backend.device import KV_CACHE_BYTES_ON_CPU, Device
from dapo_openrlhf.bench.stock.on_cpu import PACKED_ATTENTION, VLLM_SETTINGS
from dapo_openrlhf.bench.workload.chain import Workload

StockMode: TypeAlias = Literal["sync", "async", "async-partial"]
"""Its synchronous trainer, its asynchronous one, and that with ``--train.partial_rollout_enable``."""

MODE_FLAGS: Mapping[StockMode, tuple[str, ...]] = {
    "sync": (),
    "async": ("--train.async_enable",),
    "async-partial": ("--train.async_enable", "--train.partial_rollout_enable"),
}
SPARE_STEPS = 2
"""Stock stops when its prompts are used up; this many steps' more are given, since the pass rate varies."""
LAST_LINES = 40


class StockRunError(RuntimeError):
    """Stock OpenRLHF failed or took too long; the message ends with the last lines of its log."""


@dataclass(frozen=True, kw_only=True)
class StockSettings:
    """What is to be equal on both sides, in OpenRLHF's terms, and how long to wait."""

    batch_size: int = 16
    """P: groups of one step."""
    n_samples_per_prompt: int = 8
    """G: responses of one group."""
    train_batch_size: int = 64
    """Responses of one gradient update."""
    max_epochs: int = 1
    """Passes over each step's batch."""
    steps: int = 12
    """Complete steps wanted; there may be a few more."""
    learning_rate: float = 1e-8
    """So small that the model stays as it is."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    eps_clip_low_high: tuple[float, float] = (0.2, 0.28)
    is_correction_mode: Literal["clip", "mask"] = "clip"
    is_correction_threshold: tuple[float, float] = (0.0, 2.0)
    param_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the trainer and of the engine."""
    packing: bool = True
    """Pack samples and size micro-batches by tokens, as OpenRLHF recommends; otherwise ``micro_batch_size``
    padded responses make a micro-batch."""
    max_tokens_per_gpu: int = 4096
    """Tokens of one micro-batch, with ``packing``."""
    micro_batch_size: int = 4
    """Responses of one micro-batch, without ``packing``."""
    async_queue_size: int = 1
    """Batches its asynchronous trainer queues; 1 is its default."""
    max_num_seqs: int = 512
    """Responses the engine generates at once, at most."""
    kv_cache_memory_bytes: int = KV_CACHE_BYTES_ON_CPU
    seed: int = 42
    timeout: float = 1800.0
    """Seconds the whole run may take."""


@dataclass(frozen=True, kw_only=True)
class StockStep:
    """One complete step, by OpenRLHF's own metrics."""

    finished: float
    """Seconds since the start of the process."""
    generation: float
    """Seconds it took to generate the batch that was trained."""
    make_experience: float
    """Seconds for log-probs of the old policy and advantages."""
    ppo_train: float
    """Seconds for all gradient updates."""
    broadcast: float
    """Seconds for the transfer of weights, waiting for the engine included."""
    responses: int
    """Responses trained."""
    response_tokens: float
    """Response tokens trained."""
    generated_groups: float
    """Groups generated to fill the batch, the filtered ones included."""
    reward_mean: float


@dataclass(frozen=True, kw_only=True)
class StockRun:
    """What a run of stock OpenRLHF came to."""

    mode: StockMode
    settings: StockSettings
    steps: tuple[StockStep, ...]
    """Complete steps; a last one with too few responses is left out."""
    total_seconds: float
    """Seconds the whole process took."""

    @property
    def step_seconds(self) -> list[float]:
        """Seconds from the end of each step to the end of the next: one fewer than steps."""
        return [later.finished - step.finished for step, later in pairwise(self.steps)]

    @property
    def first_step_seconds(self) -> float:
        """Seconds from the start of the process to the end of the first step."""
        return self.steps[0].finished

    @property
    def pass_rate(self) -> float:
        """Share of generated groups that were trained."""
        return len(self.steps) * self.settings.batch_size / sum(step.generated_groups for step in self.steps)

    def trained_tokens_per_second(self, *, skip: int = 1) -> float:
        """Response tokens trained per second of wall-clock time after the first ``skip`` (>= 1) steps."""
        measured = self.steps[skip:]
        seconds = measured[-1].finished - self.steps[skip - 1].finished
        return sum(step.response_tokens for step in measured) / seconds

    def median(self, name: str) -> float:
        """Median of a field of :class:`StockStep` over all steps but the first."""
        return statistics.median(getattr(step, name) for step in self.steps[1:])

    def as_dict(self) -> dict[str, Any]:
        """The fields by name; :func:`read_stock_run` turns them back into the run."""
        return asdict(self)


def read_stock_run(path: Path) -> StockRun:
    """The run in a file that :func:`run_stock` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    pairs = {name: tuple(value) for name, value in fields["settings"].items() if isinstance(value, list)}
    return StockRun(
        mode=fields["mode"],
        settings=StockSettings(**fields["settings"] | pairs),
        steps=tuple(StockStep(**step) for step in fields["steps"]),
        total_seconds=fields["total_seconds"],
    )


def run_stock(mode: StockMode, workload: Workload, settings: StockSettings, output: Path) -> StockRun:
    """Run stock OpenRLHF and write what came out to ``output`` (JSON), its log beside it (``.log``).

    Blocks. Raises :class:`StockRunError` when it fails, takes longer than ``settings.timeout`` or gets no two
    steps done; no process of it is left in any case.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_suffix(".log")
    with tempfile.TemporaryDirectory(prefix="stock-") as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "dapo_openrlhf.bench.stock.driver"]
        command += stock_arguments(mode, workload, settings, folder)
        started = time.time()  # TensorBoard's clock
        _run_tree(command, stock_environment(settings, folder), log, settings.timeout)
        total = time.time() - started
        steps = tuple(_complete_steps(_read_scalars(folder / "tensorboard"), settings, started))
    if len(steps) < 2:
        raise StockRunError(f"stock OpenRLHF ({mode}) did {len(steps)} complete steps\n{_last_lines(log)}")
    run = StockRun(mode=mode, settings=settings, steps=steps, total_seconds=total)
    output.write_text(json.dumps(run.as_dict(), indent=2) + "\n", encoding="utf-8")
    return run


def stock_arguments(mode: StockMode, workload: Workload, settings: StockSettings, folder: Path) -> list[str]:
    """OpenRLHF's command line. ``folder`` takes what it writes."""
    recipe = workload.recipe
    prompts = math.ceil((settings.steps + SPARE_STEPS) * settings.batch_size / recipe.pass_rate)
    if prompts > recipe.prompts:
        raise ValueError(f"{settings.steps} steps need {prompts} prompts, the workload has {recipe.prompts}")
    values: dict[str, object] = {
        "actor.model_name_or_path": workload.model,
        "actor.num_nodes": 1,
        "actor.num_gpus_per_node": 1,
        "actor.adam.lr": settings.learning_rate,
        "actor.adam.betas": settings.adam_betas,
        "actor.lr_scheduler": "constant_with_warmup",
        "actor.eps_clip_low_high": settings.eps_clip_low_high,
        "actor.loss_agg_mode": "token-mean",
        "algo.advantage.estimator": "group_norm",
        "algo.advantage.is_correction_level": "token",
        "algo.advantage.is_correction_mode": settings.is_correction_mode,
        "algo.advantage.is_correction_threshold": settings.is_correction_threshold,
        "algo.kl.init_coef": 0,
        "algo.dynamic_filtering_range": (0, 1),
        "ckpt.output_dir": folder / "model",
        "ckpt.path": folder / "checkpoints",
        "data.prompt_dataset": workload.prompts,
        "data.input_key": "input",
        "data.label_key": "label",
        "data.max_len": recipe.max_len,
        "data.max_samples": prompts,
        "ds.param_dtype": settings.param_dtype,
        "ds.zero_stage": 2,
        "logger.tensorboard_dir": folder / "tensorboard",
        "reward.remote_url": workload.reward,
        "rollout.batch_size": settings.batch_size,
        "rollout.n_samples_per_prompt": settings.n_samples_per_prompt,
        "rollout.max_new_tokens": recipe.max_new_tokens,
        "rollout.temperature": 1.0,
        "rollout.top_p": 1.0,
        "train.async_queue_size": settings.async_queue_size,
        "train.batch_size": settings.train_batch_size,
        "train.max_epochs": settings.max_epochs,
        "train.num_episodes": 1,
        "train.seed": settings.seed,
        "vllm.num_engines": 1,
        "vllm.tensor_parallel_size": 1,
    }
    flags = ["--algo.dynamic_filtering_enable", "--vllm.enable_prefix_caching", "--vllm.enforce_eager"]
    if settings.packing:
        flags += ["--ds.packing_samples", "--train.dynamic_batch_enable"]
        values |= {
            "ds.attn_implementation": PACKED_ATTENTION,
            "rollout.max_tokens_per_gpu": settings.max_tokens_per_gpu,
            "train.max_tokens_per_gpu": settings.max_tokens_per_gpu,
        }
    else:
        values |= {
            "ds.attn_implementation": "sdpa",
            "rollout.micro_batch_size": settings.micro_batch_size,
            "train.micro_batch_size": settings.micro_batch_size,
        }
    return [*MODE_FLAGS[mode], *flags, *_written(values)]


def stock_environment(settings: StockSettings, folder: Path) -> dict[str, str]:
    """Environment of its processes: what our own actors have, and what Ray and Hugging Face need."""
    engine = {
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[settings.param_dtype],
        "worker_extension_cls": "dapo_openrlhf.bench.stock.engine.CpuWorkerWrap",
        "kv_cache_memory_bytes": settings.kv_cache_memory_bytes,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": 8192,
        "disable_log_stats": True,
    }
    environment = os.environ | dict(Device(kind="cpu", threads=1).environment())
    environment.pop("CUDA_VISIBLE_DEVICES")  # Ray simulates GPUs, and refuses to when this is empty
    environment.pop("RAY_ADDRESS", None)  # a Ray of its own, wherever this runs
    packages = str(Path(__file__).resolve().parents[3])
    return environment | {
        VLLM_SETTINGS: json.dumps(engine),
        "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nodes have the loopback address, on Linux too
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }


def _written(values: Mapping[str, object]) -> Iterator[str]:
    """Settings as command-line arguments."""
    for name, value in values.items():
        yield f"--{name}"
        yield from map(str, value if isinstance(value, tuple) else (value,))


# The process tree


def _run_tree(command: Sequence[str], environment: Mapping[str, str], log: Path, timeout: float) -> None:
    """Run a command with all its output in ``log``; when it is late or interrupted, end its whole tree."""
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise StockRunError(f"stock OpenRLHF took over {timeout:g} s\n{_last_lines(log)}") from None
        finally:
            end_tree(process)
    if code:
        raise StockRunError(f"stock OpenRLHF ended with exit status {code}\n{_last_lines(log)}")


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, with all its descendants."""
    import psutil

    if process.poll() is not None:
        return
    root = psutil.Process(process.pid)
    tree = [*root.children(recursive=True), root]
    for member in tree:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(tree, timeout=10)


def _last_lines(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, maxlen=LAST_LINES))


# Its metrics


def _read_scalars(folder: Path) -> dict[str, dict[int, tuple[float, float]]]:
    """TensorBoard scalars under ``train/``: name -> step -> (wall-clock time in seconds, value)."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    scalars: dict[str, dict[int, tuple[float, float]]] = {}
    for run in sorted(folder.glob("*")):
        events = EventAccumulator(str(run), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()[SCALARS]:
            known = scalars.setdefault(tag.removeprefix("train/"), {})
            known.update({event.step: (event.wall_time, event.value) for event in events.Scalars(tag)})
    return scalars


def _complete_steps(
    scalars: Mapping[str, Mapping[int, tuple[float, float]]], settings: StockSettings, started: float
) -> Iterator[StockStep]:
    """Steps that trained a whole batch, in order. ``started`` is the wall-clock time of the start."""
    wanted = settings.batch_size * settings.n_samples_per_prompt
    for step, (finished, responses) in sorted(scalars.get("rollout/num_samples", {}).items()):
        if responses < wanted:
            continue
        values = {name: series[step][1] for name, series in scalars.items() if step in series}
        yield StockStep(
            finished=finished - started,
            generation=values["timing/generation"],
            make_experience=values["timing/make_experience"],
            ppo_train=values["timing/ppo_train"],
            broadcast=values["timing/broadcast"],
            responses=int(responses),
            response_tokens=responses * values["rollout/response_length_mean"],
            # OpenRLHF's "pass rate" is trained responses over generated groups, in percent.
            generated_groups=100.0 * responses / values["dynamic_filtering_pass_rate"],
            reward_mean=values["rollout/reward_mean"],
        )
