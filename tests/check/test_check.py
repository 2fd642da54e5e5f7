"""`dapo-openrlhf check`: every row passes, warns or fails for the reason that it names, and nothing is started."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import CHARACTERS, make_looks, make_tiny_tokenizer

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.backend.run import reward_servers
from dapo_openrlhf.backend.run.environment_checks import environment_settings
from dapo_openrlhf.backend.run.inputs import check_rewards
from dapo_openrlhf.check import registry
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.limits import check as check_limits
from dapo_openrlhf.check.machines import Machine, Machines, gpu_memory, named
from dapo_openrlhf.check.model import check as check_model
from dapo_openrlhf.check.model import vllm_knows
from dapo_openrlhf.check.placement import check as check_placement
from dapo_openrlhf.check.ports import missing_interfaces
from dapo_openrlhf.check.registry import Row, run_checks
from dapo_openrlhf.check.reward import check as check_reward
from dapo_openrlhf.check.subject import Once, Subject
from dapo_openrlhf.check.table import as_dict, closing, lines, width_here
from dapo_openrlhf.check.versions import check as check_versions
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.reward_origin import Server
from dapo_openrlhf.rewards.settings import RewardSettings

CONFIG = """
device: cpu
actor: {model_name_or_path: model}
ds: {attn_implementation: sdpa, param_dtype: fp32}
rollout: {batch_size: 2, n_samples_per_prompt: 4, max_new_tokens: 8}
train: {batch_size: 8, max_steps: 20}
data: {prompt_dataset: prompts.jsonl, max_len: 32}
"""
MODEL = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": len(CHARACTERS), "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128,
    "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a configuration, a model's files and two prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "118")  # the table fits the terminal
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("run.yaml").write_text(CONFIG)
    shutil.copytree(tokenizer, "model")
    make_looks(Path("model"), MODEL)
    Path("prompts.jsonl").write_text('{"input": "1+1=", "label": "2"}\n{"input": "11+11=", "label": "22"}\n')
    return tmp_path


def subject(machines: Machines, **settings: object) -> Subject:
    return Subject(load_config(Path("run.yaml"), settings), Once(lambda: machines))


@pytest.mark.long
def test_a_run_that_can_start_passes_and_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "run.yaml", "--train.seed", "7"]) == 0
    told = capsys.readouterr().out
    assert [line.split("  ")[0] for line in told.splitlines() if not line.startswith(" ") and line][:-1] == [
        name for name in registry.CHECKS
    ]
    assert "the longest of 6 tokens" in told and "'1+1='" in told
    assert "Qwen2ForCausalLM, 0.1 million parameters" in told
    assert "2 prompts x 4 responses = 8, in 1 updates of 8" in told
    assert told.splitlines()[-1].startswith("14 checks: ") and told.endswith(" 0 fail\n")
    assert not Path("runs").exists()


@pytest.mark.long
@pytest.mark.parametrize("command", [["check", "--json"], ["train", "--check"]])
def test_every_fault_is_found_at_once(folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("model", "model.safetensors").unlink()
    Path("prompts.jsonl").write_text('{"input": "1+1="}\n')
    Path("reward.py").write_text("import nowhere\n")
    dead = "http://127.0.0.1:1/score"
    assert main([*command, "--config", "run.yaml", "--reward.remote_url", "reward.py", dead]) == 1
    told = capsys.readouterr().out
    assert not Path("runs").exists()
    for words in ("it has no weights", "prompts.jsonl", dead):
        assert words in told, told
    if "--json" in command:
        found = json.loads(told)
        assert found["passed"] is False
        assert {name for name, row in found["checks"].items() if row["level"] == "fail"} == {"model", "data", "reward"}


def test_a_configuration_that_cannot_be_read_is_a_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "run.yaml", "--json", "--rollout.batchsize", "3"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["checks"].items()
    assert row[0] == "configuration" and "did you mean rollout.batch_size" in row[1]["findings"][0]["words"]


HERE = Machines(where="this machine", each=(Machine(cpus=2, free_cpus=2),), here=True)


@pytest.mark.long
def test_a_reward_that_raises_for_a_response_fails(folder: Path) -> None:
    Path("reward.py").write_text("def reward_func(queries, prompts, labels):\n    return labels[0].nothing\n")
    (finding,) = check_reward(subject(HERE, **{"reward.remote_url": "reward.py"}))
    assert finding.level == "fail" and "a response to the first prompt cannot be scored" in finding.words


ENVIRONMENT = """
from dapo_openrlhf.environments.messages import Observation, Step
class Environment:
    async def reset(self, prompt):
        return Observation(BEGIN)
    async def step(self, action):
        return Step(done=True)
"""


@pytest.mark.long
def test_an_environment_is_loaded_and_begun_instead_of_a_reward_that_is_never_asked(folder: Path) -> None:
    """Its prompts need no label, and without one no rule could score them."""
    Path("prompts.jsonl").write_text('{"input": "1+1=", "label": null}\n')
    here = {"train.agent_func_path": "turns.py"}
    Path("turns.py").write_text(ENVIRONMENT.replace("BEGIN", ""))
    (finding,) = check_reward(subject(HERE, **here))
    assert (finding.level, finding.words) == ("pass", "turns.py loads, and begins with the first prompt")
    Path("turns.py").write_text(ENVIRONMENT.replace("BEGIN", "text=prompt.label + ' begins'"))
    with pytest.raises(ConfigError, match=r"train.agent_func_path: turns.py: TypeError: .* \(turns.py, line 5\)"):
        list(check_reward(subject(HERE, **here)))
    Path("turns.py").write_text("import nowhere\n")
    with pytest.raises(ConfigError, match=r"train.agent_func_path: turns.py does not load: .*nowhere"):
        list(check_reward(subject(HERE, **here)))


def test_no_episode_is_closed_as_idle_before_its_group_is_late(folder: Path) -> None:
    Path("turns.py").write_text(ENVIRONMENT)
    late = {"train.agent_func_path": "turns.py", "async.generate_timeout": 9000.0}
    settings = environment_settings(subject(HERE, **late).config)
    assert settings is not None and settings.idle == 9000.0


def test_an_architecture_that_nobody_knows_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = MODEL | {"model_type": "martian", "architectures": ["MartianForCausalLM"]}
    Path("model", "config.json").write_text(json.dumps(values))
    monkeypatch.setattr(registry, "CHECKS", {"model": check_model})
    (row,) = run_checks(subject(HERE))
    assert row.findings[-1].level == "fail" and "artian" in row.findings[-1].words


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/score"


def test_a_server_that_is_dead_or_silent_is_named_before_a_training(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by `train`, which calls the same."""
    monkeypatch.setattr(reward_servers, "SERVER_SECONDS", 0.5)
    for address in (silent, "http://127.0.0.1:1/score"):
        with pytest.raises(ConfigError, match=f"the reward server {address} does not answer"):
            check_rewards(RewardSettings(sources=(Server(address),)))


@pytest.mark.parametrize(
    ("engines", "ranks", "gpus", "nodes", "words"),
    [
        (4, 4, "h100x8", 1, ""),
        (4, 4, "h100x4", 2, ""),
        (5, 4, "h100x8", 1, "vllm.num_engines 5"),
        (1, 8, "h100x4", 3, "actor.num_gpus_per_node: 8 GPUs of one machine"),
    ],
)
def test_gpus_that_are_not_here_are_checked_by_their_name(
    folder: Path, engines: int, ranks: int, gpus: str, nodes: int, words: str
) -> None:
    settings = {"device": "cuda", "actor.num_gpus_per_node": ranks, "vllm.num_engines": engines}
    asked = subject(named(gpus, nodes), **settings)
    if words:
        with pytest.raises(ConfigError, match=words):
            list(check_placement(asked))
    else:
        (finding,) = check_placement(asked)
        assert finding.level == "pass" and f"{nodes} machine(s) with {gpus[-1]} H100 of 80 GB" in finding.words


def test_layers_of_a_package_that_is_missing_fail_here_and_warn_for_other_machines(folder: Path) -> None:
    asked = {"device": "cuda", "ds.use_liger_kernel": True}
    for machines, level in ((named("h100x8", 1), "warn"), (HERE, "fail")):
        found = [finding for finding in check_versions(subject(machines, **asked)) if "liger-kernel" in finding.words]
        assert [finding.level for finding in found] == [level]
    assert not [f for f in check_versions(subject(HERE, device="cuda")) if "liger-kernel" in f.words]


@pytest.mark.parametrize("text", ["h100", "h100x0", "voodoox8", "8xh100", "h100x8x2", ""])
def test_gpus_that_nobody_makes_are_refused(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "run.yaml", "--device", "cuda", "--gpus", text]) == 2
    assert f"--gpus {text}" in capsys.readouterr().err and not Path("runs").exists()
    with pytest.raises(ConfigError, match="known are a100"):
        named(text, 1)


def test_gpus_do_not_go_with_a_cpu_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "run.yaml", "--gpus", "h100x8"]) == 2
    assert "device cpu" in capsys.readouterr().err


def test_what_others_hold_is_a_warning(folder: Path) -> None:
    busy = Machine(cpus=8, free_cpus=1, gpus=8, free_gpus=3)
    machines = Machines(where="the Ray cluster at x:1", each=(busy,), here=False)
    cuda = {"device": "cuda", "actor.num_gpus_per_node": 4, "vllm.num_engines": 4, "ds.param_dtype": "bf16"}
    for settings, words in ((cuda, "3 GPUs free now, where 8 are needed"), ({}, "1 CPUs free, and 2 actors need one")):
        findings = list(check_placement(subject(machines, **settings)))
        assert [finding.level for finding in findings] == ["warn", "pass"] and words in findings[0].words


def test_a_failure_is_told_once(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def same(subject: Subject) -> Iterator[Finding]:
        yield passed("before")
        raise ConfigError("the model is not there")

    monkeypatch.setattr(registry, "CHECKS", {"model": same, "data": same})
    rows = list(run_checks(subject(named("h100x8", 1))))
    assert [finding.words for finding in rows[0].findings] == ["before", "the model is not there"]
    assert rows[1].findings[1].words == "not checked, because of what model says"
    assert closing(rows) == "2 checks: 0 pass, 1 warn, 1 fail"


def test_the_table_names_check_level_and_remedy() -> None:
    row = Row(name="disk", findings=(passed("one"), failed("two\nlines", "free some")))
    assert list(lines(row)) == [
        "disk           pass  one",
        "               FAIL  two",
        "                     lines -> free some",
    ]
    assert as_dict([row])["passed"] is False


def test_vllm_lists_what_it_knows() -> None:
    assert vllm_knows("Qwen2ForCausalLM") in (True, None) and vllm_knows("MartianForCausalLM") in (False, None)


def test_interfaces_are_matched_as_nccl_does() -> None:
    there = {"lo", "eth0", "ib1"}
    for wanted in ("", "eth", "=eth0", "nowhere,ib", "^docker0", "=lo:1"):
        assert missing_interfaces(wanted, there) == []
    assert missing_interfaces("=eth", there) == ["eth"] and missing_interfaces("bond0,wlan", there) == ["bond0", "wlan"]


def test_memory_of_gpus_is_read_from_lines_of_mib() -> None:
    assert gpu_memory("81559, 12\n81559, 40000\nN/A, N/A\n") == ([81559 << 20] * 2, [12 << 20, 40000 << 20])
    assert gpu_memory("") == ([], [])


def test_few_open_files_warn_and_hardly_any_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for most, level in ((100, "fail"), (1024, "warn"), (1 << 20, "pass")):
        monkeypatch.setattr("resource.getrlimit", lambda kind, most=most: (most, most))
        assert next(check_limits(subject(HERE))).level == level


def test_every_set_of_problems_is_read_with_its_own_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.jsonl").write_text('{"input": "1+2=", "label": "3"}\n')
    Path("b.jsonl").write_text('{"question": "2+2=", "answer": "4"}\n')
    sets = ["check", "run.yaml", "--json", "--eval.dataset", "a.jsonl", "hard=b.jsonl"]
    own = ["--eval.sets.hard.input_key", "question", "--eval.sets.hard.label_key", "answer"]
    assert main([*sets, *own]) == 0
    told = json.loads(capsys.readouterr().out)["checks"]["data"]["findings"]
    assert [one["words"] for one in told][-2:] == [
        "all 1 rows of a.jsonl: 1 prompts, the longest of 4 tokens; the set a",
        "all 1 rows of b.jsonl: 1 prompts, the longest of 4 tokens; the set hard",
    ]
    assert main(sets) == 1
    (failed,) = [
        one for one in json.loads(capsys.readouterr().out)["checks"]["data"]["findings"] if one["level"] == "fail"
    ]
    assert "b.jsonl (eval.dataset)" in failed["words"]
    assert "(data.label_key, for this set alone eval.sets.hard.label_key)" in failed["words"]


def test_an_empty_set_of_problems_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.jsonl").write_text('{"input": "1+2=", "label": "3"}\n')
    Path("b.jsonl").write_text("\n")
    assert main(["check", "run.yaml", "--eval.dataset", "a.jsonl", "b.jsonl"]) == 1
    assert "b.jsonl (eval.dataset): holds no prompts" in capsys.readouterr().out


def test_a_chat_template_that_begins_no_answer_is_warned_about(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    Path("model", "chat_template.jinja").write_text(template)
    assert main(["check", "run.yaml", "--json", "--data.apply_chat_template"]) == 0
    found = json.loads(capsys.readouterr().out)["checks"]["data"]["findings"]
    (warned,) = [one["words"] for one in found if one["level"] == "warn"]
    assert "2 of 2 prompts end without the beginning of an answer" in warned and "'[assistant]'" in warned
    Path("model", "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}[assistant]{% endif %}")
    assert main(["check", "run.yaml", "--json", "--data.apply_chat_template"]) == 0
    found = json.loads(capsys.readouterr().out)["checks"]["data"]["findings"]
    assert [one for one in found if one["level"] == "warn"] == []


@pytest.mark.parametrize(("columns", "width"), [("20", 50), ("80", 80), ("500", 118)])
def test_the_table_is_as_wide_as_the_terminal_within_reason(
    monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert width_here() == width
    told = [*lines(Row(name="data", findings=(warned("many words " * 40, remedy="none"),)), width_here())]
    assert max(map(len, told)) <= width and len(told) >= 440 // width
