"""The model's files, and whether trainer and engines know its architecture."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from dapo_openrlhf.backend.run.inputs import check_context
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of a model's weights in one file, or with ``.index.json`` of the list of several."""


def check(subject: Subject) -> Iterator[Finding]:
    """Fail for a model that is not there, is not whole, or that transformers does not know."""
    config = subject.config
    for note in subject.models():
        yield warned(note)
    folder = Path(config.actor.model_name_or_path)
    if folder.is_dir() and (trouble := missing_weights(folder)):
        yield failed(f"actor.model_name_or_path: {folder}: {trouble}", "copy or download the model again, whole")
    files = subject.files()
    check_context(config, files.config, training=True)
    names = list(files.config.get("architectures") or [])
    architecture = str(names[0] if names else files.config.get("model_type", "unnamed"))
    if files.known is False:
        yield failed(
            f"{architecture}: transformers here has no causal language model of model_type "
            f"{files.config.get('model_type')}",
            "take a model whose config.json names another, or a newer transformers",
        )
        return
    if files.known is None:
        yield warned(f"config.json of {folder} names no model_type", "compare it with a published model's")
    if names and vllm_knows(architecture) is False:
        yield warned(
            f"{architecture} is not in vLLM's own list of models; it runs there only as transformers' own code can",
            "vLLM's page of supported models names those that it has",
        )
    shape = subject.shape()
    size = f", {shape.parameters / 1e6:,.1f} million parameters" if shape else ", not a dense decoder"
    yield passed(f"{config.actor.model_name_or_path}: {architecture}{size}")


def missing_weights(folder: Path) -> str:
    """What is missing of a folder's weights; empty if nothing is."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError) as error:
                return f"{index.name} cannot be read ({error!r})"
            missing = sorted(part for part in parts if not (folder / str(part)).is_file())
            return f"{len(missing)} of {len(parts)} files of weights are missing, {missing[0]} first" if missing else ""
        if (folder / name).is_file():
            return "" if (folder / name).stat().st_size else f"{name} is empty"
    return f"it has no weights ({' or '.join(WEIGHTS)}, in one file or several)"


def vllm_knows(architecture: str) -> bool | None:
    """Whether the source of the installed vLLM lists an architecture; None without vLLM. Importing it takes too long."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return None
    registry = Path(found.origin).parent / "model_executor" / "models" / "registry.py"
    try:
        return f'"{architecture}"' in registry.read_text(encoding="utf-8")
    except OSError:
        return None
