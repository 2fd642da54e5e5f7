"""What the engine's edge asks of vLLM exists, in the form that it is called in, in every version that is not refused.

``tests/golden/vllm_signatures.json`` has what each version offers, read from its source; ``tests/vllm_signatures.py`` writes it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from vllm_signatures import OPTIONAL, TABLE, Use, facts, offered, refused, table, uses, version_of

from dapo_openrlhf.backend.run import inputs
from dapo_openrlhf.check.versions import check
from dapo_openrlhf.config import vllm_versions
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.vllm_versions import refusal

VERSIONS = table()
CONFIG = load_config(
    Path(__file__).parents[2] / "configs" / "quickstart_cpu.yaml", {"actor.model_name_or_path": "some/model"}
)


def misfits(offer: dict[str, str | None] | object, used: list[Use]) -> list[str]:
    """Uses that a version's offer does not fit, with the reason."""
    assert isinstance(offer, dict)
    found = []
    for use in used:
        signature = offer.get(use.name)
        if signature is None:
            if use.name not in OPTIONAL:
                found.append(f"{use.place}: no {use.name}")
        elif use.arguments is not None and (reason := refused(signature, use.arguments)):
            found.append(f"{use.place}: {use.name}{use.arguments}: {reason}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_of_the_edge_fits(version: str) -> None:
    assert misfits(VERSIONS[version], uses()) == []


def test_the_oldest_and_the_newest_version_in_use_are_in_the_table() -> None:
    releases = {tuple(map(int, version.split(".")[:2])) for version in VERSIONS}
    newest = (vllm_versions.FIRST_BEYOND[0], vllm_versions.FIRST_BEYOND[1] - 1)
    assert {vllm_versions.OLDEST, newest} <= releases
    assert all(refusal(version) is None for version in VERSIONS)


def test_the_table_has_what_the_edge_uses() -> None:
    """The extraction sees constructors, methods, functions, attributes and modules; none of them went unread."""
    used = {use.name for use in uses()}
    for offer in VERSIONS.values():
        assert set(offer) == used, f"python tests/vllm_signatures.py writes {TABLE.name} anew"
    called = {use.name for use in uses() if use.arguments}
    assert {
        "vllm.v1.engine:EngineCoreRequest",
        "vllm.v1.engine.core_client:InprocClient",
        "vllm.v1.engine.core_client:InprocClient.collective_rpc",
        "vllm.v1.core.sched.scheduler:Scheduler.set_pause_state",
        "vllm.sampling_params:SamplingParams",
        "vllm.model_executor.model_loader.reload:initialize_layerwise_reload",
    } <= called


@pytest.mark.parametrize("version", VERSIONS)
def test_what_one_version_lacks_another_name_has(version: str) -> None:
    offer = VERSIONS[version]
    reload = "vllm.model_executor.model_loader.reload.meta:"
    new = offer["vllm.model_executor.model_loader.mtp_validation:disable_mtp_completeness_check"] is not None
    assert offer[f"{reload}{'SKIP_LOAD_TENSORS' if new else 'SKIP_TENSORS'}"] == "attribute"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", sorted((TABLE.parent).glob("engine-*.json")), ids=lambda file: file.stem)
def test_arguments_of_engines_are_known(version: str, file: Path) -> None:
    keys = [*json.loads(file.read_text()), "kv_cache_memory_bytes", "distributed_executor_backend"]
    arguments = f"({', '.join(f'{key}=0' for key in dict.fromkeys(keys))})"
    assert refused(VERSIONS[version]["vllm.engine.arg_utils:EngineArgs"] or "", arguments) is None


def test_the_installed_version_offers_what_its_row_says() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    root = Path(found.origin).parents[1]
    live, version = facts(root), version_of(root)
    assert misfits(live, uses()) == []
    if version in VERSIONS:
        assert live == VERSIONS[version]


def test_a_call_that_does_not_fit_is_found(tmp_path: Path) -> None:
    package = tmp_path / "vllm" / "v1"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .engine import Core, Renamed as Old\n")
    (package / "engine.py").write_text(
        "class Base:\n    def add(self, request, *, wait: bool): self.queue = 0\n"
        "class Core(Base):\n    kept: int\n    limit: int = 3\n    @property\n    def late(self): ...\n"
        "class Renamed:\n    def __init__(self, a, /, b=1, *rest, c, **more): ...\n"
    )
    assert offered(tmp_path, "vllm.v1:Core.add") == "(request, *, wait)"
    assert offered(tmp_path, "vllm.v1:Core") == "(kept, limit=...)"
    assert offered(tmp_path, "vllm.v1:Core.late") == offered(tmp_path, "vllm.v1:Core.queue") == "attribute"
    assert offered(tmp_path, "vllm.v1:engine") == "module"
    assert (
        offered(tmp_path, "vllm.v1:Gone")
        is offered(tmp_path, "vllm.v2:Core")
        is offered(tmp_path, "vllm.v1:Core.x")
        is None
    )
    signature = offered(tmp_path, "vllm.v1:Old")
    assert signature is not None and refused(signature, "(0, c=0)") is None
    assert "missing a required" in (refused(signature, "(0, 1)") or "")
    assert "wait" in (refused("(request, *, wait)", "(0)") or "")
    offer = {"a": "(x)", "b": "attribute", "c": None}
    assert misfits(offer, [Use("p", "a", "(0)"), Use("p", "b", None)]) == []
    wrong = [Use("p", "a", "(y=0)"), Use("p", "b", "()"), Use("p", "c", None), Use("p", "d", None)]
    assert len(misfits(offer, wrong)) == 4


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


def test_check_fails_for_a_version_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Here:
        config = CONFIG

        def machines(self) -> Here:
            return self

        assumed = False

    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.25.0" if "vllm" in package else "1")
    levels = {finding.level for finding in check(Here()) if finding.words.startswith("vLLM 0.25.0")}  # type: ignore[arg-type]
    assert levels == {"fail"}
