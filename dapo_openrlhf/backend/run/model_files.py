"""Reads from a model's files what a run must know before it starts, in a process of its own.

transformers takes two seconds to import without torch and six with it, and the controller needs it for nothing else.
The process (``python -m``) therefore hides torch from transformers, and restarts with torch for adapters, for experts that
are to be balanced, and for a tokenizer whose own code requires it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from dapo_openrlhf.backend.run.model_layers import AdapterTargets, check_balance, find_adapter_targets
from dapo_openrlhf.backend.run.stop_tokens import StopTokens, stop_tokens
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.training import LoraSection
from dapo_openrlhf.dataset.own_code import refuse_own_code
from dapo_openrlhf.dataset.readers import LAST_WORDS, child_environment

TIMEOUT = 600.0
"""Seconds that reading the files may take, including a download from the Hugging Face hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The result of reading a model's files."""

    config: Mapping[str, Any]
    """The values of config.json."""
    stop: StopTokens
    """The tokens that end a response."""
    known: bool | None = None
    """Whether transformers has a causal language model of its kind; None where config.json does not name one."""
    adapters: AdapterTargets | None = None
    """The layers that get adapters, if any were asked for."""


def read_model_files(
    model: str,
    *,
    chat: bool,
    trust_remote_code: bool = False,
    lora: LoraSection | None = None,
    balanced: bool = False,
) -> ModelFiles:
    """Read a model's files; options as for :func:`stop_tokens`. ``lora``: adapters that are to fit the model.

    ``balanced``: the model must have experts whose load can be balanced. Raises ``ConfigError`` for unusable files, without
    ``trust_remote_code`` for Python among them, for adapters that do not fit, and for experts that cannot be balanced.
    """
    with TemporaryDirectory() as folder:
        reply = Path(folder, "reply.json")
        wanted = lora.model_dump() if lora is not None and lora.rank else None
        question = {"model": model, "chat": chat, "trust_remote_code": trust_remote_code, "lora": wanted}
        question["balanced"] = balanced
        command = [sys.executable, "-m", __name__, json.dumps(question | {"reply": str(reply)})]
        try:
            done = subprocess.run(
                command, env=child_environment(), capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"actor.model_name_or_path: the files of {model} could not be read within {TIMEOUT:g} s; is the Hugging "
                "Face hub within reach? With a local folder no network is needed"
            ) from None
        if not reply.exists():
            words = (done.stdout + done.stderr).decode(errors="replace").strip()[-LAST_WORDS:]
            raise ConfigError(
                f"actor.model_name_or_path: the process that reads the files of {model} ended with status "
                f"{done.returncode}: {words or 'it wrote nothing'}"
            )
        values = json.loads(reply.read_text(encoding="utf-8"))
    if "refused" in values:
        raise ConfigError(values["refused"])
    stop = StopTokens(ids=tuple(values["ids"]), notes=tuple(values["notes"]))
    adapters = values["adapters"] and AdapterTargets(**values["adapters"])
    return ModelFiles(config=values["config"], stop=stop, known=values["known"], adapters=adapters)


def main(question: Mapping[str, Any], *, with_torch: bool) -> None:
    """Write the answer to the file that the question names."""
    lora = question["lora"] and LoraSection(**question["lora"])
    try:
        answer = _read(question["model"], chat=question["chat"], trust_remote_code=question["trust_remote_code"])
        if (lora or question["balanced"]) and not with_torch:
            _restart_with_torch()
        trusted = question["trust_remote_code"]
        if question["balanced"]:
            check_balance(question["model"], trust_remote_code=trusted)
        adapters = lora and find_adapter_targets(question["model"], lora, trust_remote_code=trusted)
        answer["adapters"] = adapters and asdict(adapters)
    except ConfigError as error:
        if isinstance(error.__cause__, ImportError) and not with_torch:
            _restart_with_torch()
        answer = {"refused": str(error)}
    Path(question["reply"]).write_text(json.dumps(answer), encoding="utf-8")


def _restart_with_torch() -> NoReturn:
    os.execv(sys.executable, [*sys.orig_argv, "torch"])


def _read(model: str, *, chat: bool, trust_remote_code: bool) -> dict[str, Any]:
    from transformers import PretrainedConfig

    if not trust_remote_code:
        refuse_own_code(model, setting="actor.model_name_or_path", remedy="actor.trust_remote_code true")
    try:
        config, _ = PretrainedConfig.get_config_dict(model)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # the last two: it is JSON, but no object
        raise ConfigError(f"actor.model_name_or_path: the configuration of {model} cannot be read: {error}") from error
    stop = stop_tokens(model, chat=chat, trust_remote_code=trust_remote_code)
    return {"config": config, "ids": stop.ids, "notes": stop.notes, "known": _known(config)}


def _known(config: Mapping[str, Any]) -> bool | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind is None:
        return None
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in config.get("auto_map", {})


if __name__ == "__main__":
    TORCH = sys.argv[2:] == ["torch"]
    if not TORCH:
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python then treats the module as missing
    main(json.loads(sys.argv[1]), with_torch=TORCH)
