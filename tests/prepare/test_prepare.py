"""From public data sets to prompt files: every row is written or counted, and what is odd is named."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest
from tiny_model import add_first_token, make_tiny_tokenizer

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.prepare.cleaning import Rules, clean
from dapo_openrlhf.prepare.formats import read_problems
from dapo_openrlhf.prepare.rows import Message, Problem, Source
from dapo_openrlhf.prepare.sources import reasoning_gym_source
from dapo_openrlhf.prepare.templates import DAPO, wrapper
from dapo_openrlhf.rewards.verifier import extract_answer

DATA = Path(__file__).parents[2] / "data"


def jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chat_row(text: str, answer: object) -> dict[str, object]:
    """A row as DAPO-Math-17k has it."""
    return {"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": answer, "style": "rule"}}


def written(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifest(path: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(path.with_suffix(".manifest.json").read_text())
    return found


def prepare(*arguments: object) -> None:
    assert main(["prepare", *map(str, arguments)]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["prepare", *map(str, arguments)]) == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("row", "prompt", "label"),
    [
        (chat_row("½ of 4?", "2"), "½ of 4?", "2"),
        ({"question": "How many?", "answer": "3 * 400 = 1,200\n#### 1,200"}, "How many?", "1200"),
        ({"question": "How many?", "answer": "#### no, wait\n#### -3"}, "How many?", "-3"),
        ({"question": "How many?", "answer": "70"}, "How many?", "70"),
        ({"problem": "Find $x$.", "answer": 70}, "Find $x$.", "70"),
        ({"Problem": "Find $x$.", "Answer": 70.0}, "Find $x$.", "70"),
        ({"input": "1+1=", "label": " 2 "}, "1+1=", "2"),
    ],
)
def test_public_sets_are_known_by_their_columns(
    tmp_path: Path, row: dict[str, object], prompt: str, label: str
) -> None:
    output = tmp_path / "out.jsonl"
    prepare(jsonl(tmp_path / "in.jsonl", [row]), "--output", output, "--template", "none")
    assert written(output) == [{"input": prompt, "label": label}]


def test_a_dotted_path_reaches_into_nested_columns_and_the_real_column_wins(tmp_path: Path) -> None:
    row = {"task": {"text": "nested"}, "a.b": "5", "a": {"b": "wrong"}}
    output = tmp_path / "out.jsonl"
    keys = ("--input-key", "task.text", "--label-key", "a.b", "--template", "none")
    prepare(jsonl(tmp_path / "in.jsonl", [row]), "--output", output, *keys)
    assert written(output) == [{"input": "nested", "label": "5"}]


def test_a_chat_with_a_system_turn_stays_a_chat_and_the_users_last_turn_is_wrapped(tmp_path: Path) -> None:
    row = chat_row("", "1")
    row["prompt"] = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1?"}]
    output = tmp_path / "out.jsonl"
    prepare(jsonl(tmp_path / "in.jsonl", [row]), "--output", output, "--template", "Q: {}")
    expected = [{"role": "system", "content": "Think."}, {"role": "user", "content": "Q: 1?"}]
    assert written(output) == [{"input": expected, "label": "1"}]


def test_worked_examples_are_earlier_turns_wrapped_alike_behind_what_the_system_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = chat_row("", "1")
    row["prompt"] = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1?"}]
    shots = jsonl(tmp_path / "shots.jsonl", [{"input": f"{n}+0?", "response": f"{n}.\nAnswer: {n}"} for n in (3, 4)])
    output = tmp_path / "out.jsonl"
    prepare(jsonl(tmp_path / "in.jsonl", [row]), "--output", output, "--template", "Q: {}", "--few-shot", shots)
    (made,) = written(output)
    assert [(turn["role"], turn["content"]) for turn in made["input"]] == [  # type: ignore[attr-defined]
        ("system", "Think."),
        ("user", "Q: 3+0?"),
        ("assistant", "3.\nAnswer: 3"),
        ("user", "Q: 4+0?"),
        ("assistant", "4.\nAnswer: 4"),
        ("user", "Q: 1?"),
    ]
    digest = hashlib.sha256(shots.read_bytes()).hexdigest()
    assert manifest(output)["options"]["few_shot"] == {"name": "shots.jsonl", "sha256": digest}
    for broken, words in (({"input": "3?"}, "shots.jsonl, line 1: needs the texts"), (None, "holds no examples")):
        jsonl(shots, [] if broken is None else [broken])
        told = refused(capsys, tmp_path / "in.jsonl", "--output", output, "--few-shot", shots)
        assert "--few-shot" in told and words in told


def test_the_worked_examples_end_as_the_verifier_reads_it() -> None:
    for shot in written(DATA / "gsm8k_few_shot.jsonl"):
        answer = extract_answer(str(shot["response"]))
        assert answer is not None and answer in str(shot["response"]).splitlines()[-2]


def test_columns_that_are_unknown_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"text": "1?", "solution": {"value": "1"}}])
    words = refused(capsys, source, "--output", tmp_path / "out.jsonl")
    assert all(word in words for word in ("in.jsonl, line 1", "'solution.value', 'text'", "--input-key", "--label-key"))
    assert not (tmp_path / "out.jsonl").exists()


# ---------------------------------------------------------------- broken rows


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "cut sh', "line 3: not valid JSON"),
        ("[1]", "in.jsonl, line 3: holds list"),
        (
            '{"question": "", "answer": "#### 1"}',
            "in.jsonl, line 3: column 'question' (--input-key) is missing or empty",
        ),
        ('{"question": "1?"}', "in.jsonl, line 3: column 'answer' (--label-key) is missing or empty"),
        ('{"question": "1?", "answer": "one"}', "in.jsonl, line 3: the answer 'one' does not end in '####'"),
        ('{"question": 5, "answer": "#### 1"}', "in.jsonl, line 3: the prompt is int"),
        ('{"question": [{"role": "user"}], "answer": "#### 1"}', "in.jsonl, line 3: {'role': 'user'} is no turn"),
        ('{"question": "1?", "answer": [1, 2]}', "in.jsonl, line 3: the answer: a list of 2 answers"),
        ('{"question": "1?", "answer": true}', "in.jsonl, line 3: the answer: True is no answer"),
        ('{"question": "1?", "answer": NaN}', "in.jsonl, line 3: the answer: nan is no number"),
        ('{"question": " ", "answer": "#### 1"}', "in.jsonl, line 3: column 'question'"),
        ('{"question": "\\ud800?", "answer": "#### 1"}', "in.jsonl, line 3: holds '\\ud800', half of a character"),
        ('{"question": "1?", "answer": ' + "9" * 5000 + "}", "line 3: not valid JSON"),
        ("[" * 100_000, "line 3: not valid JSON"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line_and_may_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(f'{{"question": "2?", "answer": "#### 2"}}\n\n{line}\n{{"question": "3?", "answer": "#### 3"}}\n')
    told = refused(capsys, source, "--output", output)
    assert words in told and "--broken drop" in told
    assert not output.exists()
    prepare(source, "--output", output, "--broken", "drop")
    assert [row["label"] for row in written(output)] == ["2", "3"]
    counts = manifest(output)["counts"]
    assert (counts["read"], counts["written"], counts["broken"]) == (3, 2, 1)
    (example,) = manifest(output)["examples"]["broken"]  # type: ignore[misc]
    assert words in example


def test_a_line_that_is_no_utf_8_is_named_and_a_byte_order_mark_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"input": "1?", "label": 1}\r\n{"input": "\xff?", "label": 2}\r\n')
    assert "line 2: not valid JSON: 'utf-8' codec" in refused(capsys, source, "--output", output)
    prepare(source, "--output", output, "--broken", "drop", "--template", "none")
    assert written(output) == [{"input": "1?", "label": "1"}]


# ---------------------------------------------------------------- cleaning

MIXED = [
    ("a?", "1"),
    ("b?", "x"),
    ("a?", "01"),  # the same answer, written otherwise
    ("c?", "3"),
    ("d?", "-4"),
    ("c?", "4"),  # a conflict
    ("a?", "1"),
    ("long?" * 10, "5"),
]


def problems(rows: Iterable[tuple[str, str]]) -> list[Problem]:
    return [
        Problem(where=f"row {number}", messages=(Message(role="user", content=text),), label=label)
        for number, (text, label) in enumerate(rows, start=1)
    ]


@pytest.mark.parametrize(
    ("rules", "rows", "dropped"),
    [
        (Rules(), "1 2 5 8", {"conflicts": 2, "duplicates": 2}),
        (Rules(conflicts="keep"), "1 2 4 5 6 8", {"duplicates": 2}),
        (Rules(keep_duplicates=True), "1 2 3 5 7 8", {"conflicts": 2}),
        (Rules(require_integer=True), "1 5 8", {"conflicts": 2, "duplicates": 2, "non_integer": 1}),
        (Rules(max_tokens=10), "1 2 5", {"conflicts": 2, "duplicates": 2, "too_long": 1}),
        (Rules(max_tokens=50), "1 2 5 8", {"conflicts": 2, "duplicates": 2}),
    ],
)
def test_every_row_is_kept_in_its_order_or_counted_once(rules: Rules, rows: str, dropped: dict[str, int]) -> None:
    cleaned = clean(problems(MIXED), rules, tokens=lambda problem: len(str(problem.prompt)))
    assert [problem.where.removeprefix("row ") for problem in cleaned.problems] == rows.split()
    assert {reason: count for reason, count in cleaned.dropped.items() if count} == dropped
    assert cleaned.read == len(MIXED)
    assert cleaned.found == {
        "unique_prompts": 5,
        "conflicting_prompts": 1,
        "non_integer_labels": 1,
        "negative_labels": 1,
        "answers_cut_off": 0,
        "unreadable_labels": 0,
    }


def test_a_conflict_is_reported_with_its_answers_and_rows_and_may_be_an_error() -> None:
    (conflict,) = clean(problems(MIXED), Rules()).conflicts
    assert str(conflict) == "'c?' has the answers '3' in row 4; '4' in row 6"
    with pytest.raises(ConfigError, match=r"1 prompts have conflicting answers[\s\S]*'3' in row 4; '4' in row 6"):
        clean(problems(MIXED), Rules(conflicts="error"))


def test_of_many_rows_a_report_names_the_first() -> None:
    cleaned = clean(problems([("a?", "1")] * 5 + [("a?", "2")]), Rules())
    assert [str(conflict) for conflict in cleaned.conflicts] == [
        "'a?' has the answers '1' in row 1, row 2, row 3 and 2 more; '2' in row 6"
    ]
    assert cleaned.dropped["conflicts"] == 6


def test_tokens_are_counted_in_what_the_model_will_read(tmp_path: Path) -> None:
    """A tokenizer of one token per character; the template adds three."""
    model, output = make_tiny_tokenizer(tmp_path / "model"), tmp_path / "out.jsonl"
    source = jsonl(tmp_path / "in.jsonl", [{"input": "1234", "label": "1"}, {"input": "12345", "label": "2"}])
    prepare(source, "--output", output, "--template", "Q: {}", "--tokenizer", model, "--max-tokens", 7)
    assert [row["input"] for row in written(output)] == ["Q: 1234"]
    assert manifest(output)["counts"]["too_long"] == 1
    assert manifest(output)["examples"]["too_long"] == ["in.jsonl, line 2: 8 tokens"]


def test_a_chat_template_is_rendered_and_its_absence_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = make_tiny_tokenizer(tmp_path / "model"), tmp_path / "out.jsonl"
    source = jsonl(tmp_path / "in.jsonl", [{"input": "1?", "label": "1"}])
    arguments = (source, "--output", output, "--template", "none", "--chat-template", model)
    assert "no chat template" in refused(capsys, *arguments)
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    (model / "chat_template.jinja").write_text(template)
    prepare(*arguments)
    assert written(output) == [{"input": "[user]1?>", "label": "1"}]


def test_a_templates_first_token_stays_whatever_the_tokenizer_adds_by_itself(tmp_path: Path) -> None:
    """Training adds none to a prompt's text."""
    model, output = make_tiny_tokenizer(tmp_path / "model"), tmp_path / "out.jsonl"
    source = jsonl(tmp_path / "in.jsonl", [{"input": "1?", "label": "1"}])
    (model / "chat_template.jinja").write_text("<eos>{{ messages[0].content }}")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<eos>"}))
    add_first_token(model, "<eos>", 1)
    prepare(source, "--output", output, "--template", "none", "--chat-template", model, "--max-tokens", 3)
    assert written(output) == [{"input": "<eos>1?", "label": "1"}]


# ---------------------------------------------------------------- templates


def test_the_dapo_wrapper_asks_for_a_line_that_the_verifier_reads_and_is_put_once() -> None:
    wrap = wrapper("dapo")
    prompt = wrap("What is {1} + {}?")
    assert prompt == wrap(prompt) == DAPO.replace("{}", "What is {1} + {}?")
    assert extract_answer("1 + 2 = 3\nAnswer: 3") == "3"
    elsewhere = "Solve it. The last line must be of the form Answer: $Answer (without quotes).\n\n1?"
    assert wrap(elsewhere) == elsewhere
    assert wrap('Write "Answer:" and 3.') != 'Write "Answer:" and 3.'


def test_a_template_of_ones_own_is_put_once_and_needs_a_place_for_the_problem() -> None:
    assert wrapper("Q: {}\nA:")("Q: 1?\nA:") == "Q: 1?\nA:" == wrapper("Q: {}\nA:")("1?")
    assert wrapper("{}")("1?") == wrapper("none")("1?") == "1?"
    with pytest.raises(ConfigError, match=r"--template: 'Question' .* no \{\}"):
        wrapper("Question")


# ---------------------------------------------------------------- output


def test_the_manifest_has_hashes_counts_and_options_and_comes_out_the_same_again(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [chat_row("1?", "1"), chat_row("1?", "1"), chat_row("2?", "two")])
    output = tmp_path / "new folder" / "out.jsonl"
    prepare(source, "--output", output)
    first = (output.read_bytes(), output.with_suffix(".manifest.json").read_bytes())
    prepare(source, "--output", output)
    assert (output.read_bytes(), output.with_suffix(".manifest.json").read_bytes()) == first
    made = manifest(output)
    assert made["source"] == {"name": "in.jsonl", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert made["output"] == {"name": "out.jsonl", "sha256": hashlib.sha256(first[0]).hexdigest()}
    assert made["counts"] == {
        "read": 3, "written": 2, "broken": 0, "conflicts": 0, "duplicates": 1, "non_integer": 0, "too_long": 0
    }  # fmt: skip
    assert made["found"]["non_integer_labels"] == 1
    assert made["examples"]["non_integer"] == ["in.jsonl, line 3: 'two'"]
    assert (made["options"]["template"], made["options"]["conflicts"]) == ("dapo", "drop")
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.jsonl", "out.manifest.json"]


def test_a_run_that_fails_leaves_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious")
    source = jsonl(tmp_path / "in.jsonl", [{"input": "1?", "label": "one"}])
    assert "none of 1 rows is left" in refused(capsys, source, "--output", output, "--require-integer")
    assert "is the source" in refused(capsys, source, "--output", source)

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:5])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        prepare(source, "--output", output)
    assert output.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.jsonl", "--output", "o.jsonl"], ["there is no file missing.jsonl", "reasoning-gym:TASK"]),
        (["missing.jsonl", "--output", "o.csv"], ["--output: o.csv", ".jsonl"]),
        (["missing.jsonl", "--output", "o.jsonl", "--max-tokens", "9"], ["--max-tokens: 9", "--tokenizer"]),
        (["missing.jsonl", "--output", "o.jsonl", "--tokenizer", "./none"], ["--tokenizer", "./none"]),
        (["missing.jsonl", "--output", "o.jsonl", "--dedupe"], ["--dedupe", "no such option"]),
        (["reasoning-gym:nothing", "--output", "o.jsonl"], ["reasoning-gym:nothing"]),
        (["reasoning-gym:gcd", "--output", "o.jsonl", "--size", "0"], ["--size: 0"]),
        (["reasoning-gym:gcd", "--output", "o.jsonl", "--task-setting", "depth=3"], ["reasoning-gym:gcd", "depth"]),
        (
            ["reasoning-gym:gcd", "--output", "o.jsonl", "--task-setting", "depth"],
            ["--task-setting: 'depth'", "NAME=VALUE"],
        ),
    ],
)
def test_refusals_name_option_value_and_remedy(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    told = refused(capsys, *arguments)
    assert all(word in told for word in words), told


def test_without_the_package_for_the_hub_the_error_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    told = refused(capsys, "hf:owner/name:test", "--output", tmp_path / "out.jsonl")
    assert "hf:owner/name:test" in told and "datasets" in told


def test_a_set_of_the_hub_is_read_by_name_configuration_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> list[dict[str, object]]:
        asked.append((name, subset, split))
        return [chat_row("1?", "1")]

    hub = ModuleType("datasets")
    hub.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    output = tmp_path / "out.jsonl"
    prepare("hf:owner/name@main:test", "--output", output)
    prepare("hf:owner/name", "--output", output)
    assert asked == [("owner/name", "main", "test"), ("owner/name", None, "train")]
    assert manifest(output)["source"]["name"] == "hf:owner/name"
    assert [row["label"] for row in written(output)] == ["1"]


def test_a_set_of_the_hub_that_cannot_be_built_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    for error in (RuntimeError("Dataset scripts are no longer supported"), datasets.exceptions.DatasetsError("broken")):
        monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=error))
        told = refused(capsys, "hf:owner/name", "--output", tmp_path / "out.jsonl")
        assert "hf:owner/name: cannot be loaded" in told


# ---------------------------------------------------------------- what ships


def test_the_sample_is_clean(tmp_path: Path) -> None:
    output = tmp_path / "sample.jsonl"
    prepare(DATA / "sample_math.jsonl", "--output", output, "--require-integer", "--conflicts", "error")
    counts = manifest(output)["counts"]
    assert counts["read"] == counts["written"] == 20


def gym(task: str, *, seed: int, label: str = "auto", size: int = 20) -> Source:
    return reasoning_gym_source(task, size=size, seed=seed, settings={}, label=label)


def test_seeds_of_a_procedural_task_share_no_items_and_repeat() -> None:
    def questions(seed: int) -> list[object]:
        rows = [row for _, row in gym("chain_sum", seed=seed).rows()]
        assert all(isinstance(row, dict) and re.fullmatch(r"-?\d+", row["label"]) for row in rows)
        return [row["input"] for row in rows if isinstance(row, dict)]

    assert questions(1) == questions(1)
    assert not set(questions(1)) & set(questions(2))
    assert gym("chain_sum", seed=1).sha256() == gym("chain_sum", seed=1).sha256() != gym("chain_sum", seed=2).sha256()


def reward_function() -> Callable[..., dict[str, list[float]]]:
    spec = importlib.util.spec_from_file_location("reasoning_gym_reward", DATA / "reasoning_gym_reward.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reward: Callable[..., dict[str, list[float]]] = module.reward_func
    return reward


def test_a_task_with_many_right_answers_is_scored_by_itself_and_only_fully() -> None:
    """Countdown gives 0.05 to an expression that misses its target; that is wrong."""
    (problem, *_) = read_problems(
        gym("countdown", seed=0), data_format="auto", input_key=None, label_key=None, answers=False
    )
    assert isinstance(problem, Problem)
    entry = json.loads(problem.label)["entry"]
    gold = entry["metadata"]["expression"]
    prompt = problem.messages[0].content

    def scored(response: str) -> list[float]:
        answer = reward_function()([prompt + response], [prompt], [problem.label])
        return [*answer["rewards"], *answer["scores"]]

    assert scored(f"So\nAnswer: {gold}") == scored(f"Answer: ({gold})") == [1.0, 1.0]
    assert scored("Answer: 1 + 1") == scored("no idea") == [-1.0, 0.0]


# ---------------------------------------------------------------- what training would refuse


@pytest.mark.parametrize(
    ("answer", "label"),
    [(r"There are $\boxed{2}$ of them.", "2"), (["9"], "9"), ('["9"]', "9"), ("so\n#### 1,200", "1,200")],
)
def test_a_label_is_read_as_training_reads_it(tmp_path: Path, answer: object, label: str) -> None:
    output = tmp_path / "out.jsonl"
    source = jsonl(tmp_path / "in.jsonl", [{"input": "1?", "label": answer}])
    prepare(source, "--output", output, "--template", "none", "--format", "generic")
    assert written(output) == [{"input": "1?", "label": label}]


def test_a_label_of_ones_own_reward_is_any_text(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    source = jsonl(
        tmp_path / "in.jsonl", [{"input": "1?", "label": {"want": [1]}}, {"input": "2?", "label": "a. B. " * 9}]
    )
    prepare(source, "--output", output, "--template", "none", "--label-kind", "any")
    assert [row["label"] for row in written(output)] == ['{"want": [1]}', "a. B. " * 9]


def test_a_chats_closing_answer_is_cut_off_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, chat = tmp_path / "out.jsonl", [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]
    prepare(jsonl(tmp_path / "in.jsonl", [{"input": chat, "label": "2"}]), "--output", output, "--template", "none")
    assert written(output) == [{"input": "1?", "label": "2"}]
    assert manifest(output)["found"]["answers_cut_off"] == 1
    assert "1 chats ended in the assistant's answer, which was cut off" in capsys.readouterr().out


def test_answers_that_the_verifier_cannot_read_are_counted_and_shown_and_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    rows = [{"input": f"{n}?", "label": label} for n, label in enumerate(["7", r"\frac{\sqrt{2}}{3}", "^^x"])]
    prepare(jsonl(tmp_path / "in.jsonl", rows), "--output", output, "--template", "none")
    assert len(written(output)) == 3
    found = manifest(output)
    assert found["found"]["unreadable_labels"] == 1
    assert found["examples"]["unreadable"] == [
        "in.jsonl, line 3: '^^x': the gold answer cannot be read: ^^x: unexpected ^"
    ]
    told = capsys.readouterr().out
    assert "1 answers cannot be read by the rule reward" in told and "unreadable: in.jsonl, line 3: '^^x'" in told
