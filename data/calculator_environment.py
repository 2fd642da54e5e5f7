r"""A calculator that the model may call before it answers; the answer is judged as the rule judges it.

    dapo-openrlhf train --train.agent_func_path data/calculator_environment.py ...

A call is one line of JSON between marks, as models trained on Hermes's format write it; the model ends its turn after it:

    <tool_call>{"name": "calculator", "arguments": {"expression": "(3+4)*5"}}</tool_call>

and reads `<tool_response>35</tool_response>` as the next turn. A turn without a call is the answer, `Answer: ...`, which
gets +1 or -1 (arXiv 2503.14476, eq. 7). In a prompt with a chat template the tool is described to the model first, unless
the template has been given it (`tools` in data.chat_template_kwargs).
"""

import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

import mpmath

from dapo_openrlhf.environments.messages import Action, Observation, Step
from dapo_openrlhf.environments.turns import next_turn
from dapo_openrlhf.rewards.evaluate import Evaluation, TooLarge, TooLong, Undefined
from dapo_openrlhf.rewards.expression import parse
from dapo_openrlhf.rewards.gold import gold_answer
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.sources import RuleReward
from dapo_openrlhf.rewards.tokens import Unfinished, Unreadable
from dapo_openrlhf.types import Prompt

TOOL = "calculator"
MOST_CALLS = 8
"""Calls of one turn that are answered."""
LONGEST_EXPRESSION = 1000
LONGEST_VALUE = 60
"""Characters; a longer whole number is rounded."""
DIGITS = 12
DESCRIPTION = """

You may use a calculator. To do so, write only

<tool_call>{"name": "calculator", "arguments": {"expression": "(3+4)*5"}}</tool_call>

and you will be told its value in <tool_response>. Use it as often as you like; then give the answer on a last line that
begins with "Answer: "."""

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
judge = RuleReward(answer_form="any")
_TOLD = re.compile(rf'"name"\s*:\s*"{TOOL}"')
_CALLS = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)


class Environment:
    """One problem."""

    def __init__(self) -> None:
        self._prompt = Prompt(id=0, text="")
        self._calls = 0

    async def reset(self, prompt: Prompt) -> Observation:
        """Tell the model about the tool, if the prompt has turns. Raises ``ValueError`` for a label that is no answer."""
        gold_answer(prompt.label)
        self._prompt = prompt
        return Observation(text=described(prompt.text))

    async def step(self, action: Action) -> Step:
        """Answer the calls, or judge the answer."""
        found = _CALLS.findall(action.text)
        if found and not action.truncated:
            self._calls += len(found)
            answers = responses([answer_to(call) for call in found[:MOST_CALLS]], self._prompt.text)
            return Step(observation=answers, logs={"tool_calls": self._calls})
        question = Question(responses=[action.text], queries=[""], prompt=self._prompt.text, label=self._prompt.label)
        (score,) = judge(question)
        return Step(reward=score.reward, score=float(score.correct), done=True, logs={"tool_calls": self._calls})


def responses(values: list[str], prompt: str) -> str:
    """The answers to calls: in a conversation as the chat templates of Qwen and Hermes write a turn of tools."""
    if next_turn("", prompt):
        return next_turn("\n".join(f"<tool_response>\n{value}\n</tool_response>" for value in values), prompt)
    return "".join(f"<tool_response>{value}</tool_response>\n" for value in values)


def described(text: str) -> str | None:
    """A prompt with the tool's description in ChatML's system turn.

    None for one that stays as it is: it has no turns, or its chat template has described the tool.
    """
    if _TOLD.search(text):
        return None
    start, user, end = "<|im_start|>system\n", "<|im_start|>user\n", "<|im_end|>"
    if start in text:
        head, rest = text.split(end, 1)
        return f"{head}{DESCRIPTION}{end}{rest}"
    if user in text:
        head, rest = text.split(user, 1)
        return f"{head}{start}{DESCRIPTION.lstrip()}{end}\n{user}{rest}"
    return None


def answer_to(call: str) -> str:
    """What a call is answered: a value, or what is wrong with it."""
    try:
        return value_of(expression_in(json.loads(call)))
    except (ValueError, RecursionError) as error:
        return f"error: {str(error).splitlines()[0][:100]}"


def expression_in(call: object) -> str:
    """The expression of a call. Raises ``ValueError``."""
    if not isinstance(call, Mapping) or call.get("name") != TOOL:
        raise ValueError(f"the only tool is {TOOL}")
    arguments = call.get("arguments")
    if isinstance(arguments, str):  # some models write JSON within JSON
        arguments = json.loads(arguments)
    expression = arguments.get("expression") if isinstance(arguments, Mapping) else None
    if not isinstance(expression, str):
        raise ValueError("the calculator takes one argument, expression, which is a string")
    if len(expression) > LONGEST_EXPRESSION:
        raise ValueError(f"the expression is longer than {LONGEST_EXPRESSION} characters")
    return expression


def value_of(expression: str) -> str:
    """The value of an expression without letters, exactly where that is short. Raises ``ValueError``."""
    try:
        with mpmath.workdps(3 * DIGITS):
            value = Evaluation({}, real=True).of(parse(_read(expression)))
            return next(written for written in _forms(value) if len(written) <= LONGEST_VALUE)
    except (Unreadable, Unfinished, Undefined, TooLarge, TooLong, KeyError, MemoryError) as error:
        raise ValueError(f"{expression[:60]} has no value: {error}") from error


def _read(expression: str) -> str:
    """An expression in the signs that the rule's parser reads: `2e3` is not 2 times Euler's number there."""
    return re.sub(r"(\d\.?)[eE]([+-]?\d+)", r"\1*10^{\2}", expression.translate(_SIGNS).replace("**", "^"))


def _forms(value: object) -> Iterator[str]:
    """Ways to write a value, the best first."""
    if isinstance(value, Fraction):
        if value.denominator == 1:
            yield str(value.numerator)
        decimal = mpmath.mpf(value.numerator) / value.denominator
    else:
        decimal = mpmath.mpmathify(value)
    yield mpmath.nstr(decimal, DIGITS)
