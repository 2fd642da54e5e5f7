"""The model's files, and whether trainer and engines know its architecture."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from dapo_openrlhf.backend.run.inputs import check_context
from dapo_openrlhf.backend.run.model_weights import WEIGHTS_REMEDY, weights_trouble
from dapo_openrlhf.backend.run.unfit_models import check_trainable
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Fail for a model that is not there, is not whole, or that transformers does not know."""
    config = subject.config
    for note in subject.models():
        yield warned(note)
    folder = Path(config.actor.model_name_or_path)
    if trouble := weights_trouble(config.actor.model_name_or_path):
        yield failed(f"actor.model_name_or_path: {trouble}", WEIGHTS_REMEDY)
    files = subject.files()
    check_trainable(config, files.config)
    check_context(config, files.config)
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
