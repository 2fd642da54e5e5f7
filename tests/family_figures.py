"""One tiny random model of each family: the trainer's log-probs against transformers' own and against an engine's.

``python tests/family_figures.py FOLDER [FAMILY ...]`` prints a JSON line for each; ``python tests/family_figures.py`` alone
writes the table of docs/models.md.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from families import FAMILIES, VOCABULARY, random_model
from garbage import exempt_what_is_left, imports_exempt

NEW_TOKENS = 10
PROMPT_LENGTHS = (31, 19, 11, 3)
TEMPERATURE = 0.8


def make(name: str, folder: Path) -> Path:
    """Write a random model of that family to ``folder``."""
    import transformers

    model = random_model(name)
    model.generation_config = transformers.GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def trainer(folder: Path, *, checkpointing: bool = False, zero_stage: int = 2) -> tuple[Any, Any]:
    """The trainer's models, and its policy as DeepSpeed would wrap it."""
    from types import SimpleNamespace

    import torch

    from dapo_openrlhf.backend.device import Device
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.trainer.models import Models
    from dapo_openrlhf.backend.trainer.strategy import Strategy

    settings = {"ds.zero_stage": zero_stage, "ds.param_dtype": "fp32", "ds.attn_implementation": "sdpa"}
    args = openrlhf_namespace(settings | {"train.batch_size": 2, "actor.gradient_checkpointing_enable": checkpointing})
    models = Models(Strategy(args, device=Device(kind="cpu", threads=1)), device=torch.device("cpu"))
    model = models.language_model(str(folder))

    class Engine(SimpleNamespace):
        def __call__(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    return models, Engine(inner=model, device=torch.device("cpu"))


def sampled(folder: Path) -> list[Any]:
    """What vLLM samples after random prompts."""
    from dapo_openrlhf.backend.engine.loop import EngineLoop
    from dapo_openrlhf.pipeline.ports import Sampling

    loop = EngineLoop(
        {
            "model": str(folder),
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "max_model_len": 64,
            "max_num_seqs": 8,
            "kv_cache_memory_bytes": 32 << 20,
            "enforce_eager": True,
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
        },
        name=folder.name,
        stop_ids=[1],
    )
    loop.start().result(timeout=120)
    sampling = Sampling(n=2, max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE, top_p=1.0)
    futures = [loop.generate(str(i), ids.tolist(), sampling) for i, ids in enumerate(random_prompts())]
    groups = [made[1] for future in futures if (made := future.result(timeout=120)) is not None]
    loop.between_steps(lambda core: core.shutdown()).result(timeout=60)
    exempt_what_is_left()
    return groups


def random_prompts() -> list[Any]:
    """Token ids of unequal length."""
    import numpy as np

    dice = np.random.default_rng(0)
    return [dice.integers(3, VOCABULARY, length).astype(np.int32) for length in PROMPT_LENGTHS]


def random_groups() -> list[Any]:
    """As an engine's, with log-probs that mean nothing."""
    import numpy as np

    from dapo_openrlhf.backend.messages import GroupTokens, one_version

    dice = np.random.default_rng(1)
    return [
        GroupTokens(
            prompt_ids=ids,
            response_ids=dice.integers(3, VOCABULARY, NEW_TOKENS).astype(np.int32),
            rollout_logprobs=np.zeros(NEW_TOKENS, np.float32),
            offsets=np.asarray([0, NEW_TOKENS]),
            versions=one_version(0, NEW_TOKENS),
        )
        for ids in random_prompts()
    ]


def folder_of(name: str, scratch: Path) -> Path:
    """Where a family's model lies, its engine's samples beside it."""
    return scratch / name.replace(" ", "_").replace(",", "")


def compared(name: str, scratch: Path) -> dict[str, Any]:
    """Largest differences of a family that engines have sampled from."""
    from dapo_openrlhf.backend.trainer.agreement import Comparison

    folder = folder_of(name, scratch)
    groups = random_groups()
    if FAMILIES[name].engine:
        groups = pickle.loads(folder.with_suffix(".samples").read_bytes())
        if isinstance(groups, str):
            raise RuntimeError(groups)
    models, engine = trainer(folder)
    found = Comparison(engine, models.packing, temperature=TEMPERATURE).agreement([groups])
    return {
        "architecture": found.architecture,
        "packed": found.packed.largest,
        "rounding": found.rounding.largest,
        "engine": found.engines[0].largest if FAMILIES[name].engine else None,
        "by_rows": engine.inner.forward.func.__name__.endswith("by_rows"),
    }


def prepare_process() -> None:
    """What a process of this project's actors begins with."""
    os.environ.update(
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1",
        TORCHDYNAMO_DISABLE="1",
        CUDA_VISIBLE_DEVICES="",
        DAPO_OPENRLHF_ACTOR="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        HF_HUB_OFFLINE="1",
    )
    from dapo_openrlhf.backend.device import stand_in_for_cuda
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    stand_in_for_cuda()
    import_openrlhf_lightly()
    import torch

    torch.set_num_threads(1)


def run_engines(scratch: Path, names: list[str]) -> None:
    """Make the models and keep what an engine samples from each, or what it raised."""
    prepare_process()
    with imports_exempt():
        for name in names:
            folder = make(name, folder_of(name, scratch))
            if FAMILIES[name].engine:
                try:
                    groups: list[Any] | str = sampled(folder)
                except Exception as error:  # shown in the table
                    traceback.print_exc()
                    groups = f"{type(error).__name__}: {error}"
                folder.with_suffix(".samples").write_bytes(pickle.dumps(groups))


def measure(names: list[str], scratch: Path) -> Iterator[dict[str, Any]]:
    """Figures of each family. Engines have a process of their own: vLLM changes transformers' classes in theirs."""
    scratch.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--engines", str(scratch), *names]
    subprocess.run(command, check=True, stdout=sys.stderr)
    prepare_process()
    for name in names:
        try:
            yield {"family": name, **compared(name, scratch)}
        except Exception as error:  # a family may be refused: the reader judges
            traceback.print_exc()
            yield {"family": name, "error": f"{type(error).__name__}: {error}"}


DOCUMENT = Path(__file__).parent.parent / "docs" / "models.md"
HEAD = "| family | largest difference from transformers | from vLLM | read |\n|---|---|---|---|\n"


def documented() -> str:
    """The documentation's table, without its head."""
    return DOCUMENT.read_text(encoding="utf-8").partition(HEAD)[2].partition("\n\n")[0]


def figures_of_table(table: str) -> dict[str, list[str]]:
    """Cells by family."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {cells[0]: cells[1:] for cells in lines}


def write_table(rows: list[dict[str, Any]]) -> None:
    """Put new figures into the documentation."""
    lines = []
    for row in rows:
        engine = "not on a CPU" if row["engine"] is None else f"{row['engine']:.0e}"
        layout = "in rows" if row["by_rows"] else "packed"
        lines.append(f"| {row['family']} | {row['packed']:.0e} | {engine} | {layout} |")
    text = DOCUMENT.read_text(encoding="utf-8").replace(documented(), "\n".join(lines))
    DOCUMENT.write_text(text, encoding="utf-8")


def main(*arguments: str) -> None:
    """Print figures as JSON lines; of all families without arguments, and write the table."""
    if arguments[:1] == ("--engines",):
        return run_engines(Path(arguments[1]), list(arguments[2:]))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in measure(list(arguments[1:]) or list(FAMILIES), Path(arguments[0] if arguments else scratch)):
            print(json.dumps(row), flush=True)
            rows.append(row)
    return None if arguments else write_table(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
