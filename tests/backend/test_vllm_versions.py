"""Every call of vLLM's internals can be made of each version that this project says it drives.

The versions' signatures were read from their packages; the one that is installed is read anew. 0.26.0 and 0.29.0 have
also run the tests of the engine's loop and of its asynchronous scheduling.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import vllm_signatures

import dapo_openrlhf
from dapo_openrlhf.backend.run import inputs
from dapo_openrlhf.check.versions import check
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.vllm_versions import refusal

PACKAGE = Path(dapo_openrlhf.__file__).parent
EDGE = ("backend/engine", "backend/transfer")
GOLDEN = Path(__file__).parent.parent / "golden"
KNOWN = vllm_signatures.known()
ENTRY = {name.removesuffix(".__init__").rpartition(".")[2]: name for name in vllm_signatures.FUNCTIONS}
"""Names in the table by what a call of them is written as."""

READ = {
    "EngineCoreOutputs": {"outputs"},
    "EngineCoreOutput": {"request_id", "new_token_ids", "new_logprobs", "prefill_stats", "finish_reason"},
    "LogprobsLists": {"logprobs"},
    "PrefillStats": {"num_cached_tokens"},
    "FinishReason": {"LENGTH"},
    "PauseState": {"PAUSED_ALL", "UNPAUSED"},
    "LayerReloadingInfo": {"load_numel", "loaded_weights", "kernel_tensors"},
}
"""Fields that are read."""

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart_cpu.yaml"
CONFIG = load_config(QUICKSTART, {"actor.model_name_or_path": "some/model"})


def signature(name: str, parameters: list[str]) -> inspect.Signature:
    """As ``inspect`` has it; records are made by name and in order alike."""
    kinds = []
    for parameter in parameters:
        bare, optional = parameter.rstrip("=:"), parameter.endswith("=")
        match len(bare) - len(bare.lstrip("*")):
            case 1:
                kind = inspect.Parameter.VAR_POSITIONAL
            case 2:
                kind = inspect.Parameter.VAR_KEYWORD
            case _ if parameter.rstrip("=").endswith(":"):
                kind = inspect.Parameter.KEYWORD_ONLY
            case _:
                kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = None if optional else inspect.Parameter.empty
        kinds.append(inspect.Parameter(bare.lstrip("*"), kind, default=default))
    return inspect.Signature(kinds)


def calls() -> Iterator[tuple[str, ast.Call]]:
    """The calls at the edge of what the table has."""
    files = [
        path for part in EDGE for path in ([PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py"))
    ]
    for path in sorted(files):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in ENTRY:
                    yield ENTRY[called], node


CALLS = [*calls()]


def test_the_edge_is_found() -> None:
    found = {name for name, _ in CALLS}
    records = {"EngineCoreOutput", "EngineCoreOutputs", "FinishReason", "PauseState", "PrefillStats", "LogprobsLists"}
    assert found == set(vllm_signatures.FUNCTIONS) - records - {"LayerReloadingInfo", "EngineCore.__init__"}


@pytest.mark.parametrize("version", KNOWN)
def test_each_call_can_be_made(version: str) -> None:
    for name, call in CALLS:
        if any(isinstance(argument, ast.Starred) for argument in call.args) or any(
            word.arg is None for word in call.keywords
        ):
            continue  # EngineArgs(**told), see below
        entry = "EngineCore.__init__" if name == "InprocClient.__init__" else name  # passes all on
        taken = signature(entry, KNOWN[version][entry])
        taken.bind(*call.args, **{word.arg: None for word in call.keywords if word.arg})


@pytest.mark.parametrize("version", KNOWN)
def test_each_field_that_is_read_is_there(version: str) -> None:
    for name, fields in READ.items():
        assert fields <= {field.rstrip("=") for field in KNOWN[version][name]}, name


@pytest.mark.parametrize("told", sorted(GOLDEN.glob("engine-*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize("version", KNOWN)
def test_each_argument_of_an_engine_is_known(version: str, told: Path) -> None:
    arguments = json.loads(told.read_text())
    assert set(arguments) <= {field.rstrip("=") for field in KNOWN[version]["EngineArgs"]}


def test_what_is_installed_is_as_it_was_read() -> None:
    version, folder = vllm_signatures.installed()
    assert vllm_signatures.signatures(folder) == KNOWN[version], (
        "run python tests/vllm_signatures.py and look at the change"
    )


@pytest.mark.parametrize("version", ["0.26.0", "0.26.1rc1", "0.29.0+cu130", "0.29.3", "dev"])
def test_known_versions_are_used(version: str) -> None:
    assert refusal(version) is None


@pytest.mark.parametrize("version", ["0.8.5", "0.25.9", "0.30.0", "1.0.0", "0.30.0.dev1"])
def test_others_are_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = refusal(version)
    assert (
        words is not None
        and words.startswith(f"vLLM {version}: ")
        and "0.26 to 0.29" in words
        and "make setup" in words
    )
    monkeypatch.setattr("importlib.metadata.version", lambda package: version)
    with pytest.raises(ConfigError, match=f"vLLM {version}"):
        inputs.check_inputs(CONFIG, training=True)


@pytest.mark.parametrize(
    ("version", "settings", "refused"),
    [
        ("0.25.0", {}, "vLLM 0.25.0: its engine core"),
        ("0.27.1", {"rollout.top_p": 0.9}, "rollout.top_p 0.9, top_k 0, min_p 0: vLLM 0.27.1 does not return"),
        ("0.27.1", {}, None),
        ("0.28.0", {"rollout.top_p": 0.9}, None),
    ],
)
def test_check_refuses_what_a_training_refuses(
    version: str, settings: dict[str, float], refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here:
        config = load_config(QUICKSTART, {"actor.model_name_or_path": "some/model", **settings})

        def machines(self) -> Here:
            return self

        assumed = False

    monkeypatch.setattr("importlib.metadata.version", lambda package: version if "vllm" in package else "1")
    failures = [finding.words for finding in check(Here()) if finding.level == "fail"]  # type: ignore[arg-type]
    assert [words[: len(refused or "")] for words in failures] == ([] if refused is None else [refused])
    if refused is not None:
        with pytest.raises(ConfigError, match=re.escape(refused)):
            inputs.check_inputs(Here.config, training=True)
