"""The comparison's workload in its folder, which is built once and recognised by its manifest."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dapo_openrlhf.bench.workload.chain import CATEGORIES, Recipe, draw_prompts
from dapo_openrlhf.bench.workload.workload import Workload, write_prompts
from dapo_openrlhf.whole_file import whole_file

WITH_TURNS = Recipe(
    categories=tuple(replace(kind, mean_length=1 + kind.mean_length / 3) for kind in CATEGORIES),
    layers=1,
    intermediate_size=256,
)
"""Shorter responses, since a rollout has two of them, and a smaller model: the environment is to take most of the time."""

OBSERVED = 1
"""Number of tokens with which the environment answers the first action: the prompt's mark."""

LOG = "build.log"
"""Name of the file with what libraries said while the work was built."""

SOURCES = ("chain.py", "chain_model.py", "workload.py")
"""Source files, beside this one, on which the finished workload depends besides its recipe."""


def chain_workload(folder: Path, recipe: Recipe | None = None) -> Workload:
    """Build the workload in ``folder`` unless it is there already.

    Raises ``FileExistsError`` rather than replace a folder that holds something else.
    """
    recipe = recipe or Recipe()
    folder = folder.resolve()
    described = _describe(recipe)
    manifest = _read_manifest(folder)
    if not described.items() <= manifest.items():
        if not manifest and folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} holds something else than a benchmark's work: it stays as it is")
        _build_and_install(recipe, folder, described)
    return Workload(
        folder=folder,
        prompt_count=recipe.prompts,
        prompt_tokens=recipe.prompt_tokens,
        max_new_tokens=recipe.max_new_tokens,
        pass_rate=recipe.pass_rate,
    )


def turns_workload(folder: Path) -> Workload:
    """The work whose rollouts are answered by an environment that takes its time; see ``agent.py``."""
    work = chain_workload(folder, WITH_TURNS)
    file = Path(__file__).with_name("agent.py")
    return replace(work, agent=file, max_new_tokens=work.max_new_tokens - OBSERVED, observed_tokens=OBSERVED)


def _describe(recipe: Recipe) -> dict[str, Any]:
    """The description by which finished work is recognised: its recipe and the SHA-256 of the sources."""
    digest = hashlib.sha256(b"".join(Path(__file__).with_name(name).read_bytes() for name in SOURCES)).hexdigest()
    described: dict[str, Any] = json.loads(json.dumps({"recipe": asdict(recipe), "source_sha256": digest}))
    return described


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of finished work, or an empty one."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def _build(recipe: Recipe, folder: Path) -> int:
    """Write everything into an empty folder; return the number of parameters."""
    import torch

    from dapo_openrlhf.bench.workload.chain_model import build_model, build_tokenizer

    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_prompts(folder / "prompts.jsonl", draw_prompts(recipe))
    return int(model.num_parameters())


@contextmanager
def _words_in(log: Path) -> Iterator[None]:
    """Have what libraries print meanwhile written to a file, at the level of file descriptors."""
    streams = (sys.stdout, sys.stderr)
    with log.open("ab") as file:
        for stream in streams:
            stream.flush()
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            for stream in streams:
                stream.flush()
            for number, own in zip((1, 2), kept, strict=True):
                os.dup2(own, number)
                os.close(own)


def _build_and_install(recipe: Recipe, output: Path, described: dict[str, Any]) -> None:
    """Build beside ``output`` and rename, so that nothing incomplete is left."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as folder:
        folder.mkdir()
        with _words_in(folder / LOG):
            manifest = described | {"parameters": _build(recipe, folder)}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
