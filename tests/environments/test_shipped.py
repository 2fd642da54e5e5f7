"""The environments that ship, in the process that a run has."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from environment_hosts import PROMPT, in_host, stepped
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from dapo_openrlhf.environments.host import EnvironmentHost
from dapo_openrlhf.environments.messages import EnvironmentFailed, Observation, Step
from dapo_openrlhf.environments.turns import next_turn

DATA = Path(__file__).parents[2] / "data"
CALCULATOR = (DATA / "calculator_environment.py").read_text()
GUESSING = (DATA / "guess_number_environment.py").read_text()
CHATML = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"


def call(expression: object) -> str:
    return f"<tool_call>{json.dumps({'name': 'calculator', 'arguments': {'expression': expression}})}</tool_call>"


VALUES = [
    (call("8+7-5"), "10"), (call("(3+4)*5"), "35"), (call("2^10"), "1024"), (call("1/4"), "0.25"), (call("1/3"), "0.333333333333"),
    (call(r"\\frac{1}{2}+\\sqrt{4}".replace("\\\\", "\\")), "2.5"), (call("12 × 3"), "36"), (call("-2"), "-2"), (call("7/7"), "1"),
    (call("10^100"), "1.0e+100"), (call("2**3"), "8"), (call("1.5e3+1e-1"), "1500.1"), (call("sqrt(2)"), "1.41421356237"),
    (call("1/0"), "error: 1/0 has no value: "), (call("x+1"), "error: x+1 has no value: "), (call("9^9^9^9"), "error: 9^9^9^9 has no value: "),
    (call("__import__('os').system('true')"), "error: "), (call(""), "error: "), (call(5), "error: the calculator takes one argument"),
    (call("(" * 900), "error: "), (call("1+" * 5000 + "1"), "error: the expression is longer than 1000"), (call("sqrt(-1)"), "error: "),
    ("<tool_call>{</tool_call>", "error: "), ("<tool_call>[1]</tool_call>", "error: the only tool is calculator"),
    ('<tool_call>{"name": "python", "arguments": {}}</tool_call>', "error: the only tool is calculator"),
    ('<tool_call>{"name": "calculator", "arguments": "{\\"expression\\": \\"6*7\\"}"}</tool_call>', "42"),
    ('<tool_call>{"name": "calculator", "arguments": {"expression": "6*7"}}', "42"),
    ("<tool_call>" + "[" * 100_000, "error: "), ("<tool_call>", "error: "),
]  # fmt: skip


def test_the_calculator_answers_whatever_is_written(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        for text, expected in VALUES:
            assert await host.open("a", replace(PROMPT, label="2")) == Observation()
            step = await stepped(host, "a", "Let me see. " + text)
            assert isinstance(step, Step) and not step.done and step.logs == {"tool_calls": 1.0}, (text, step)
            answer = step.observation.removeprefix("<tool_response>").removesuffix("</tool_response>\n")
            assert answer == expected or (expected.startswith("error") and answer.startswith(expected)), (text, answer)
            assert (await stepped(host, "a", "Answer: 2")).done  # type: ignore[union-attr]  # or it fails here

    in_host(tmp_path, CALCULATOR, play)


def test_the_calculators_answer_is_judged_by_the_rule(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> list[tuple[float, float | None, bool]]:
        ends = []
        for text, truncated in [
            ("Answer: 2", False),
            ("Answer: 4/2", False),
            ("Answer: 3", False),
            ("", False),
            (call("1"), True),
        ]:
            await host.open("a", replace(PROMPT, label="2"))
            step = await stepped(host, "a", text, truncated=truncated)
            assert isinstance(step, Step)
            ends.append((step.reward, step.score, step.done))
        return ends

    right, wrong = (1.0, 1.0, True), (-1.0, 0.0, True)
    assert in_host(tmp_path, CALCULATOR, play) == [right, right, wrong, wrong, wrong]


def test_the_calculator_refuses_a_label_that_is_no_answer_before_anything_is_sampled(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        with pytest.raises(EnvironmentFailed, match="None is no answer; give text or a number"):
            await host.open("a", replace(PROMPT, label=None))

    in_host(tmp_path, CALCULATOR, play)


def test_the_calculator_is_described_in_a_conversation(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        for prompt in (CHATML, "<|im_start|>system\nBe kind.<|im_end|>\n" + CHATML):
            text = (await host.open(prompt, replace(PROMPT, text=prompt, label="2"))).text or ""
            assert text.startswith("<|im_start|>system\n") and text.endswith(CHATML)
            assert text.count("<|im_start|>system") == 1 and text.count("<tool_call>") == 1
            step = await stepped(host, prompt, call("1+1") + call("2+2"))
            assert isinstance(step, Step)
            assert step.observation == (
                "\n<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n"
                "<|im_start|>assistant\n"
            )

    in_host(tmp_path, CALCULATOR, play)


TOOL = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Computes the value of an expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
HERMES = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% elif m.tool_calls %}<|im_start|>assistant\n{% for call in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""How the templates of Qwen and Hermes lay out tools, calls and their answers."""


def test_a_chat_template_that_was_given_the_tool_writes_the_same_conversation(tmp_path: Path) -> None:
    """As ``data.chat_template_kwargs`` gives it; the tool is not described twice."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")))
    tokenizer.chat_template = HERMES

    def rendered(turns: list[dict[str, object]]) -> str:
        made = tokenizer.apply_chat_template(turns, tools=[TOOL], tokenize=False, add_generation_prompt=True)
        return str(made)

    function = {"name": "calculator", "arguments": {"expression": "6*7"}}
    asked: list[dict[str, object]] = [{"role": "user", "content": "6*7?"}]
    answered = [
        *asked,
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
    ]
    prompt, whole = rendered(asked), rendered([*answered, {"role": "tool", "content": "42"}])

    async def play(host: EnvironmentHost) -> None:
        assert await host.open("a", replace(PROMPT, text=prompt, label="42")) == Observation()
        action = whole.removeprefix(prompt).partition("<|im_end|>")[0]
        step = await stepped(host, "a", action)
        assert isinstance(step, Step) and prompt + action + "<|im_end|>" + step.observation == whole

    in_host(tmp_path, CALCULATOR, play)


def test_halving_finds_every_number(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        for number in range(1, 101):
            await host.open("a", replace(PROMPT, label=number))
            low, high, turns, done = 1, 100, 0, False
            while not done:
                guess, turns = (low + high) // 2, turns + 1
                step = await stepped(host, "a", f"Not 1000, but {guess}.")
                assert isinstance(step, Step)
                low, high = (guess + 1, high) if step.observation == "higher\n" else (low, guess - 1)
                done = step.done
            assert (guess, step.reward, step.score) == (number, 1.0, 1.0) and turns <= 7

    in_host(tmp_path, GUESSING, play)


def test_guesses_are_few(tmp_path: Path) -> None:
    async def play(host: EnvironmentHost) -> None:
        await host.open("a", replace(PROMPT, text=CHATML, label="37"))
        steps = [await stepped(host, "a", text) for text in ["no idea", "50", "9" * 5000, "1", "2", "3", "4"]]
        assert [step.done for step in steps if isinstance(step, Step)] == [False] * 6 + [True]
        assert isinstance(steps[0], Step) and steps[0].observation == next_turn("That is no number.\n", CHATML)
        assert steps[-1] == Step(reward=-1.0, score=0.0, done=True, logs={"guesses": 7.0})
        with pytest.raises(EnvironmentFailed, match="the label 101 is not between 1 and 100"):
            await host.open("b", replace(PROMPT, label=101))

    in_host(tmp_path, GUESSING, play)


def test_the_games_prompts_share_no_number(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DATA / "guess_number_environment.py", "--output", tmp_path], check=True)
    train, heldout = (
        {json.loads(line)["label"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()}
        for name in ("train", "heldout")
    )
    assert (len(train), len(heldout)) == (80, 20) and not train & heldout


@pytest.mark.parametrize(
    ("prompt", "turn"),
    [
        ("8+7=", "words"),
        ("<|im_start|>user\nHi<|im_end|>", "\n<|im_start|>user\nwords<|im_end|>\n<|im_start|>assistant\n"),
        (
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
            "<|start_header_id|>user<|end_header_id|>\n\nwords<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("<bos><start_of_turn>user\nHi", "\n<start_of_turn>user\nwords<end_of_turn>\n<start_of_turn>model\n"),
    ],
)
def test_words_become_the_next_turn(prompt: str, turn: str) -> None:
    assert next_turn("words", prompt) == turn
