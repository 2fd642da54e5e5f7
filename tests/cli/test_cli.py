"""The command line: quick to answer, and every refusal says key, value and remedy before anything starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS
from tiny_model import CHARACTERS, make_looks, make_tiny_tokenizer

import dapo_openrlhf
from dapo_openrlhf.__main__ import main
from dapo_openrlhf.backend.run.inputs import check_inputs
from dapo_openrlhf.cli.eval import summary_of, words
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.pipeline.evaluation import Evaluation, ProblemResult, Response
from dapo_openrlhf.program import program
from dapo_openrlhf.types import Prompt

CONFIG = """
device: cpu
actor: {model_name_or_path: model}
ds: {attn_implementation: sdpa, param_dtype: fp32}
rollout: {batch_size: 2, n_samples_per_prompt: 4, max_new_tokens: 8}
train: {batch_size: 8}
data: {prompt_dataset: prompts.jsonl, max_len: 32}
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Path) -> Path:
    """A folder with a configuration, a model's looks and one prompt."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    shutil.copytree(tokenizer, tmp_path / "model")
    make_looks(tmp_path / "model", {"vocab_size": len(CHARACTERS)})
    (tmp_path / "broken.py").write_text("import nowhere\n")
    (tmp_path / "prompts.jsonl").write_text('{"input": "1+1=", "label": "2"}\n')
    return tmp_path


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "dapo_openrlhf", *arguments)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(Path(dapo_openrlhf.__file__).parent.parent)  # whatever the current folder is
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )


def test_help_lists_commands_and_settings(folder: Path) -> None:
    overview, details = command(folder, "--help"), command(folder, "train", "--help")
    commands = ("train", "check", "eval", "compare", "prepare", "verify", "submit", "jobs", "stop", "bench", "trace")
    assert all(name in overview.stdout for name in commands)
    assert "async.max_staleness (1)" in details.stdout
    assert "actor.eps_clip_low_high (0.2 0.28)" in details.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["verify", "--help"],
        ["bench", "--help"],
        ["submit", "--help"],
        ["jobs", "--help"],
    ],
)
def test_help_loads_nothing_heavy(folder: Path, arguments: list[str]) -> None:
    """This is what makes it quick; every one of these takes from a tenth of a second to twenty."""
    script = (
        "import sys\n"
        "from dapo_openrlhf.__main__ import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    loaded = {*python(folder, "-c", script).stdout.splitlines()[-1].split()}
    heavy = {"ray", "torch", "vllm", "deepspeed", "openrlhf", "transformers", "numpy", "pyarrow", "matplotlib", "sympy"}
    if arguments == ["--help"]:
        heavy |= {"pydantic", "yaml"}  # settings, and modules of single commands
    assert "dapo_openrlhf" in loaded
    assert not loaded & (heavy | {"tensorboard", "datasets", "math_verify"})


@pytest.mark.parametrize(
    ("without", "arguments", "status", "words"),
    [
        ("yaml", ["--help"], 2, "These packages are missing: yaml."),
        ("vllm", ["--help"], 0, ""),
        ("vllm", ["train", "--config", "run.yaml"], 2, "These packages are missing: vllm."),
        ("vllm", ["verify", "--help"], 0, ""),
    ],
)
def test_an_installation_by_pip_alone_says_what_is_missing_and_make_setup(
    folder: Path, without: str, arguments: list[str], status: int, words: str
) -> None:
    script = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {without!r} else find(name, *a)\n"
        f"sys.modules[{without!r}] = None\n"
        "from dapo_openrlhf.__main__ import main\n"
        f"sys.exit(main({arguments!r}))\n"
    )
    result = python(folder, "-c", script)
    assert (result.returncode, words in result.stderr) == (status, True), result.stderr
    assert (status == 2) == ("make setup" in result.stderr)
    assert "Traceback" not in result.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rollout.batchsize", "3"], ["rollout.batchsize", "did you mean rollout.batch_size"]),
        (["--train.batch_size", "3"], ["train.batch_size: 3", "use a divisor of 8"]),
        (["--vllm.num_engines", "4096"], ["vllm.num_engines 4096", "this machine", "use fewer"]),
        (["--actor.model_name_or_path", "./nowhere"], ["actor.model_name_or_path", "./nowhere"]),
        (["--data.prompt_dataset", "missing.jsonl"], ["missing.jsonl", "data.prompt_dataset"]),
        (["--reward.remote_url", "missing.py"], ["reward.remote_url", "missing.py"]),
        (["--reward.remote_url", "broken.py"], ["reward.remote_url", "broken.py", "No module named 'nowhere'"]),
        (["--device", "cuda"], ["GPUs", "this machine has 0"]),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(
    folder: Path, arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = command(folder, "train", "--config", "run.yaml", *arguments)
    assert result.returncode == 2
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "runs").exists(), "a refused run leaves nothing"


@pytest.mark.long
def test_a_broken_prompt_is_named_by_file_and_line(folder: Path) -> None:
    with (folder / "prompts.jsonl").open("a") as prompts:
        prompts.write('{"input": "2+2="}\n')
    result = command(folder, "train", "--config", "run.yaml")
    assert result.returncode == 2
    assert "prompts.jsonl" in result.stderr and "2" in result.stderr and "label" in result.stderr


def test_eval_without_a_data_set_says_so(folder: Path) -> None:
    result = command(folder, "eval", "--config", "run.yaml")
    assert (result.returncode, "eval.dataset" in result.stderr) == (2, True)


def test_eval_refuses_files_that_cannot_be_written_before_it_starts(folder: Path) -> None:
    for option, path in (("--json", "nowhere/a.json"), ("--responses", "model")):
        result = command(folder, "eval", "--config", "run.yaml", "--eval.dataset", "prompts.jsonl", option, path)
        assert result.returncode == 2
        assert f"{option}: {path} cannot be written" in result.stderr


@pytest.mark.long
def test_eval_takes_the_first_problems_of_the_file(folder: Path) -> None:
    rows = [{"input": f"{n}+{n}=", "label": str(2 * n)} for n in range(5)]
    make_tiny_tokenizer(folder / "model")
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for limit, taken in ((2, 2), (9, 5), (None, 5)):
        settings = {
            "eval.dataset": str(folder / "held.jsonl"),
            "eval.max_samples": limit,
            "actor.model_name_or_path": str(folder / "model"),
        }
        config = load_config(folder / "run.yaml", settings)
        (problems,) = check_inputs(config, training=False).problems
        assert [problem.label for problem in problems] == [row["label"] for row in rows[:taken]]


def test_eval_tells_every_estimate_with_errors_and_speed(folder: Path) -> None:
    """Two problems of two responses: one right, one cut off without an answer; one right, one that was not judged."""
    right = Response(text="Answer: 2", answer="2", correct=True, length=10)
    cut = Response(text="1+", correct=False, length=30, truncated=True)
    problem = Prompt(id=0, text="1+1=", label="2")
    measured = Evaluation(
        results=tuple(
            ProblemResult(problem=problem, responses=responses)
            for responses in ((right, cut), (right, Response(error="reward_timeout: late", length=50)))
        ),
        samples=2,
        seconds=2.0,
        with_texts=True,
    )
    config = load_config(folder / "run.yaml", {"eval.dataset": "prompts.jsonl", "eval.n_samples_per_prompt": 2})
    summary = summary_of(config, config.eval_sets[0], measured)
    assert (summary["accuracy"], summary["errors"], summary["truncated"], summary["no_answer"]) == (0.75, 1, 1, 1)
    assert (summary["tokens"], summary["tokens_per_second"], summary["max_new_tokens"]) == (100, 50.0, 8)
    estimates = summary["estimates"]
    assert isinstance(estimates, dict) and list(estimates) == ["avg@2", "pass@1", "pass@2", "maj@2"]
    assert estimates["avg@2"] == {
        "value": 0.75,
        "low": pytest.approx(0.187, abs=2e-3),
        "high": pytest.approx(0.944, abs=2e-3),
        "problems": 2,
    }
    assert json.loads(json.dumps(summary)) == summary
    limited = load_config(folder / "run.yaml", {"eval.dataset": "prompts.jsonl", "eval.max_samples": 2})
    assert "model on the first 2 problems of prompts.jsonl" in words(limited, limited.eval_sets[0], measured)
    told = words(config, config.eval_sets[0], measured)
    assert "model on 2 problems of prompts.jsonl" in told
    assert "avg@2    75.0% [18.7%, 94.4%] on 2 problems" in told
    assert "%] on the 1 of 2 problems with enough judged responses" in told.splitlines()[3]  # pass@2
    assert "4 responses: 1 truncated, 1 errors, 25 tokens each on average; 2.0 s, 50 tokens/s" in told


def test_the_version_is_told(folder: Path) -> None:
    result = command(folder, "--version")
    assert (result.returncode, result.stdout) == (0, f"dapo-openrlhf {dapo_openrlhf.__version__}\n")


@pytest.mark.parametrize("name", [".", "..", "latest", "a/b", "-x", "x" * 201])
def test_a_run_needs_the_name_of_a_folder(name: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for verb in ("train", "submit"):
        assert main([verb, "--config", str(folder / "run.yaml"), f"--run.name={name}"]) == 2
        assert f"run.name: {name!r} is not a plain name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("called", "path", "told"),
    [
        (".venv/bin/dapo-openrlhf", "/usr/bin", ".venv/bin/dapo-openrlhf"),
        (".venv/bin/dapo-openrlhf", "{}/.venv/bin", "dapo-openrlhf"),
        ("/x y/bin/dapo-openrlhf", "/usr/bin", "'/x y/bin/dapo-openrlhf'"),
    ],
)
def test_commands_are_named_as_they_were_called(
    called: str, path: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / ".venv/bin/dapo-openrlhf"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path.format(tmp_path))
    monkeypatch.setattr(sys, "argv", [called])
    assert program() == told


def test_a_module_is_named_by_its_environments_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/lib/dapo_openrlhf/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    assert program() == f"{tmp_path / 'python'} -m dapo_openrlhf"
    (tmp_path / "dapo-openrlhf").write_text("")
    assert program() == str(tmp_path / "dapo-openrlhf")


def test_trace_of_no_run_says_so(folder: Path) -> None:
    result = command(folder, "trace", str(folder))
    assert (result.returncode, "events.jsonl" in result.stderr) == (2, True)


OWN = ["--config", "configs/quickstart_cpu.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "9"], "--step 9"),
        (["--steps", "4"], "use at least 5"),
        (["--minutes", "0"], "--minutes: 0.0 is not positive"),
        (["--splits", "1:1"], "--splits is for a configuration of your own"),
        ([*OWN, "--arms", "k0,x1"], "'x1' is no arm"),
        ([*OWN, "--arms", ""], "'' is no arm"),
        ([*OWN, "--arms", "k1", "--splits", ""], "'' is no split"),
        (
            [*OWN, "--picture", "bench.xyz"],
            "bench.xyz is no picture that can be drawn; name a file in .png, .svg or .pdf",
        ),
        ([*OWN, "--arms", "k10"], "k10 never gets as stale as that in the 10 steps of a run"),
        ([*OWN, "--splits", "1:0"], "'1:0' is no split"),
        ([*OWN, "--arms", "k1", "--splits", "1:1,1:3"], "K = 1, 1:3 cannot be run:\n  train.batch_size: 64"),
        ([*OWN, "--max-epochs", "2"], "set train.max_epochs in the configuration"),
        ([*OWN, "--eval", "--eval.dataset", "null"], "set eval.dataset"),
        ([*OWN, "--rollout.batchsize", "2"], "did you mean rollout.batch_size"),
        ([*OWN, "--resume", "nowhere.json"], "--resume: nowhere.json cannot be read"),
    ],
)
def test_bench_refuses_what_it_does_not_know_and_what_leaves_nothing_to_count(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err
