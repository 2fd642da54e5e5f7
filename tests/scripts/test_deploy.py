"""The files in scripts/deploy, as far as a machine without Slurm, Kubernetes and Docker can tell."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from patience import HANG_SECONDS

from dapo_openrlhf.cli.options import make_parser
from dapo_openrlhf.config.loading import parse_overrides
from dapo_openrlhf.config.settings import setting_names

DEPLOY = Path(__file__).resolve().parent.parent.parent / "scripts" / "deploy"
LOCK = DEPLOY.parent / "lock" / "cuda.txt"

RECORD = """#!/bin/sh
echo "$(basename "$0") $*" >> {log}
{then}
"""


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with stand-ins for Slurm's commands and for those of the environment, which note how they are called."""
    log = tmp_path / "log"
    log.touch()
    srun = 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"'
    scripts = {
        "scontrol": '[ "$1" = show ] && printf "a1\\na2\\na3\\n"; exit 0',
        "srun": srun,
        "ray": "trap 'exit 0' TERM; while :; do sleep 0.05; done",
        # as the real one waits for all nodes
        "python": f"cat > /dev/null\nwhile [ $(grep -c 'nodelist.* start ' {log}) -lt 3 ]; do sleep 0.05; done",
        "dapo-openrlhf": f'[ "$1" = check ] && exit ${{CHECK:-0}}\n[ -n "${{HANG:-}}" ] || exit ${{TRAIN:-0}}\n'
        f"trap 'echo told >> {log}; exit 143' TERM; echo trains >> {log}; while :; do sleep 0.05; done",
    }
    for name, then in scripts.items():
        (tmp_path / name).write_text(RECORD.format(log=log, then=then))
        (tmp_path / name).chmod(0o755)
    return tmp_path


def begin(commands: Path, **variables: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "BIN": str(commands),
        "SLURM_JOB_NODELIST": "a[1-3]",
        "SLURM_JOB_ID": "7",
        **variables,
    }
    return subprocess.Popen(
        ["bash", str(DEPLOY / "slurm.sh"), "--config", "my run.yaml"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def calls(commands: Path) -> list[str]:
    return (commands / "log").read_text().splitlines()


def test_a_slurm_job_starts_ray_on_every_node_checks_and_trains(commands: Path) -> None:
    process = begin(commands, TRAIN="3")
    out, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 3, out
    noted = calls(commands)
    ours = [line for line in noted if line.startswith("dapo-openrlhf")]
    assert ours == [
        "dapo-openrlhf check --config my run.yaml",
        "dapo-openrlhf train --config my run.yaml --resume auto",
    ]
    nodes = sorted(re.findall(r"--nodelist=(\w+) (?:\S*/)?ray start (--head|--block)", "\n".join(noted)))
    assert nodes == [("a1", "--head"), ("a2", "--block"), ("a3", "--block")]
    assert not any("requeue" in line for line in noted)


def test_a_slurm_job_that_fails_its_check_does_not_train(commands: Path) -> None:
    process = begin(commands, CHECK="1")
    out, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1, out
    assert not any(line.startswith("dapo-openrlhf train") for line in calls(commands))


def test_a_slurm_job_whose_time_is_up_saves_and_is_queued_again(commands: Path) -> None:
    process = begin(commands, HANG="1")
    while "trains" not in calls(commands):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 143, out
    assert calls(commands)[-1] == "scontrol requeue 7" and "told" in calls(commands)


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)
    text = (DEPLOY / "slurm.sh").read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and os.access(DEPLOY / "slurm.sh", os.X_OK)
    head = text.partition("set -euo")[0].splitlines()
    assert any(line.startswith("#SBATCH --signal=B:TERM@") for line in head), (
        "Slurm reads no line after the first command"
    )


def test_the_rayjob_has_what_kuberay_asks_for() -> None:
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    pinned = re.search(r"^ray(?:\[\w+\])?==(\S+)", LOCK.read_text(), flags=re.MULTILINE)
    assert pinned and cluster["rayVersion"] == pinned[1]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert container["image"] and {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "30"


def test_the_rayjobs_commands_parse() -> None:
    entrypoint = shlex.split(yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())["spec"]["entrypoint"])
    assert entrypoint[:2] == ["sh", "-c"]
    asked = re.findall(r"dapo-openrlhf (.*?)(?= &&|$)", entrypoint[2].replace("\n", " "))
    assert len(asked) == 2
    for arguments in asked:
        _, settings = make_parser().parse_known_args(shlex.split(arguments))
        assert set(parse_overrides(settings)) <= set(setting_names())


def test_the_image_is_built_from_what_is_there() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    steps = [line.split()[0] for line in re.sub(r"\\\n", " ", text).splitlines() if line and not line.startswith("#")]
    assert steps == ["ARG", "FROM", "ARG", "RUN", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT", "CMD"]
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().split()
    assert {".venv", "runs", ".git"} <= set(ignored)
