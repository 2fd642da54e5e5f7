"""`check` on several machines: what each of them lacks is said with its address, and what all have once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dapo_openrlhf.backend.run.node_look import Asked, Look, asked_of, lacking, look, with_token
from dapo_openrlhf.check.disk import check as check_disk
from dapo_openrlhf.check.each_machine import each_machine
from dapo_openrlhf.check.finding import Finding, failed, passed
from dapo_openrlhf.check.limits import check as check_limits
from dapo_openrlhf.check.machines import Machine, Machines
from dapo_openrlhf.check.nodes import check as check_nodes
from dapo_openrlhf.check.ports import check as check_ports
from dapo_openrlhf.check.shared_memory import check as check_shared_memory
from dapo_openrlhf.check.subject import Once, Subject
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "reward.py").write_text("def reward_func(queries, prompts, labels): ...\n")
    settings = {
        "device": "cpu",
        "run": {"dir": str(tmp_path / "runs")},
        "actor": {"model_name_or_path": str(tmp_path / "model")},
        "ds": {"attn_implementation": "sdpa", "param_dtype": "fp32"},
        "data": {"prompt_dataset": "prompts.jsonl"},
        "reward": {"remote_url": str(tmp_path / "reward.py")},
    }
    return build_config(settings, source="test")


def subject(config: Config, *looks: Look | str) -> Subject:
    """Machines 10.0.0.1, 10.0.0.2, ... of a cluster."""
    each = tuple(Machine(cpus=4, address=f"10.0.0.{number}", look=one) for number, one in enumerate(looks, 1))
    return Subject(config, Once(lambda: Machines(where="the Ray cluster", each=each, here=False)))


def here(config: Config) -> Look:
    return look(asked_of(config, Path(config.run.dir)))


def failures(findings: Iterator[Finding]) -> list[str]:
    return [finding.words for finding in findings if finding.level == "fail"]


def test_every_machine_that_has_all_passes(config: Config, tmp_path: Path) -> None:
    (finding,) = check_nodes(subject(config, here(config), here(config)))
    assert finding.level == "pass" and finding.words.startswith("nodes 10.0.0.1, 10.0.0.2: actor.model_name_or_path, ")
    assert f"run.dir {tmp_path}" in finding.words, "the nearest folder that is there"


def test_two_nodes_of_one_machine_are_two(config: Config) -> None:
    two = subject(config, here(config), replace(here(config), unseen=("actor.model_name_or_path",)))
    machines = two.machines()
    alike = replace(machines, each=tuple(replace(machine, address="127.0.0.1") for machine in machines.each))
    levels = [finding.level for finding in check_nodes(Subject(config, Once(lambda: alike)))]
    assert levels == ["fail", "pass"]


def test_what_one_machine_lacks_is_said_with_its_address(config: Config, tmp_path: Path) -> None:
    fine = here(config)
    blind = replace(fine, unseen=("actor.model_name_or_path",))
    other_disk = replace(fine, folder_trouble="is another folder of that name, on a disk of its own")
    older = replace(fine, versions={**fine.versions, "torch": "1.0", "vllm": None})
    found = failures(
        check_nodes(subject(config, fine, blind, other_disk, older, "ModuleNotFoundError: no such module"))
    )
    assert found == [
        f"node 10.0.0.2: actor.model_name_or_path: {tmp_path / 'model' / 'config.json'} is not there; put it on a disk that all machines see, "
        "or copy it there",
        f"node 10.0.0.3: run.dir: {tmp_path} is another folder of that name, on a disk of its own; trainer ranks write "
        "checkpoints there: name a folder on a disk that all machines see",
        f"node 10.0.0.4: torch 1.0 (here {fine.versions['torch']}), vllm is missing (here {fine.versions['vllm']}); install "
        "the same there as here",
        "node 10.0.0.5: ModuleNotFoundError: no such module; install this project there as here, at the same place",
    ]


def test_each_machine_is_judged_by_its_own_memory_disk_limits_and_ports(config: Config) -> None:
    fine = replace(here(config), shared_free=1 << 40, processes=1e6, open_files=(1024.0, 1e6), ports_trouble="")
    poor = replace(
        fine,
        shared_free=None,
        disk_free=1000,
        open_files=(64.0, 64.0),
        ports=3,
        ports_trouble="Cannot assign",
        asked_interfaces={"NCCL_SOCKET_IFNAME": "ib7"},
    )
    two = subject(config, fine, poor)
    two.shape = lambda: None  # type: ignore[method-assign]
    assert failures(check_shared_memory(two)) == ["node 10.0.0.2: /dev/shm cannot be written"]
    assert failures(check_limits(two)) == ["node 10.0.0.2: at most 64 open files"]
    assert failures(check_ports(two)) == [
        "node 10.0.0.2: NCCL_SOCKET_IFNAME: this machine has no network interface ib7",
        "node 10.0.0.2: only 3 ports are free on 127.0.0.1 (Cannot assign)",
    ]
    (disk,) = failures(check_disk(two))
    assert disk.startswith("node 10.0.0.2: ") and "0.0 GB free" in disk


def test_many_machines_take_few_lines(config: Config) -> None:
    one = here(config)
    many = subject(config, *[replace(one, ports=number) for number in range(9)])

    def judge(look: Look) -> Iterator[Finding]:
        yield failed("odd") if look.ports % 2 else passed(f"{look.ports}")

    assert [finding.words for finding in each_machine(many, judge, "elsewhere")] == [
        "nodes 10.0.0.2, 10.0.0.4, 10.0.0.6, 10.0.0.8: odd",
        "nodes 10.0.0.1, 10.0.0.3, 10.0.0.5, 10.0.0.7 and 1 more: 0",
    ]


def test_machines_that_are_only_named_are_looked_at_later(config: Config) -> None:
    named = Subject(config, Once(lambda: Machines(where="h100", each=(Machine(gpus=8),), here=False, assumed=True)))
    for check in (check_nodes, check_shared_memory, check_limits, check_ports):
        assert [finding.level for finding in check(named)] == ["pass"]


def test_a_folder_is_recognised_by_a_file_in_it_that_is_gone_afterwards(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    asked = Asked(paths={}, folder=str(tmp_path))
    with with_token(asked) as recognised:
        assert look(recognised).folder_trouble == ""
        assert look(replace(recognised, folder=str(other))).folder_trouble.startswith("is another folder of that name")
        assert look(replace(recognised, folder=str(tmp_path / "none"))).folder_trouble == "is not there"
    assert os.listdir(tmp_path) == ["other"]
    (problem,) = lacking(
        look(replace(asked, paths={"actor.model_name_or_path": "/no/model"})),
        replace(asked, paths={"actor.model_name_or_path": "/no/model"}),
    )
    assert problem.startswith("actor.model_name_or_path: /no/model is not there")
