"""Reading an answer takes time in proportion to the text: a megabyte of any repetition, and no pattern backtracks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

UNITS = [
    " ", "\n", "\t", "answer ", "answer:", "Answer: ", "**", "*", "n**2", "`", "~", "_", "$", "$$", "$5 ", "\\[", "\\text{", "\\boxed{",
    "\\boxed ", "}", "{", "{}", "\\", "\\\\", "\\!", "\\,", "\\color{", "\\textcolor{a}{", "\\dot{3}", "the final answer is ",
    "I hope it is correct. ", "</answer>", "<|im_end|>", "<|", "<think>", "</think>", "[THINK]", "1,", "1, ", "1 ", "12,345", "1,234 ",
    "0.", "9", "...", ",...", "\\ldots ", "((", "()", "[1,2]\\cup", "(1,2),", "x=1,", "=", "x<", "x or ", "x and ", ", and ", "either ",
    "cm ", "5 cm ", "5'", "5 apples ", "years old ", "per hour ", "each ", "°", "%", "^{", "\\frac1", "\\frac{1}", "\\frac{", "\\sqrt",
    "\\sqrt{", "\\sqrt 2", "\\overline{", "\\mathbb ", "\\left(", "\\begin{pmatrix}", "&", "\\pm", "|", "!", "-", "+", "½", "²", "−",
    "a", "Z", "ab ", "is ", "greater than ", "less than or equal to ", "all real numbers ", "no solution ", "pi ", "inf", "U (", "!=",
    "<=", "\x00", "\ud800", "é", "\u0301",
]  # fmt: skip
SCRIPT = """
import json, sys
from dapo_openrlhf.rewards import verifier
from dapo_openrlhf.rewards.verifier import names
from dapo_openrlhf.rewards.verifier import units
from dapo_openrlhf.rewards.verifier import words

def asked(question):
    return False

FUNCTIONS = [
    verifier.extract_answer, lambda text: verifier.extract_answer("Answer: " + text), lambda text: verifier.final_part(text, text),
    lambda text: verifier.extract_answer("\\\\boxed{" + text), verifier.exact_value, verifier.split_unit, names.is_name, words.is_prose,
    lambda text: verifier.compare(text[:2000], "7", asked), lambda text: verifier.compare("7" + text[:200_000], "7", asked),
]
size, units = int(sys.argv[1]), json.loads(sys.argv[2])
for unit in units:
    for function in FUNCTIONS:
        function((unit * (size // len(unit) + 1))[:size])
"""


@pytest.mark.long
@pytest.mark.parametrize("third", [0, 1, 2])
def test_a_megabyte_of_any_repetition_is_read(third: int) -> None:
    """A pattern that is quadratic takes hours for a megabyte; linear ones take seconds for all of them, however busy the
    machine is. The limit stands between, hours away from both. Comparing, which happens in a process with a deadline, gets a
    fifth of it."""
    subprocess.run(
        [sys.executable, "-c", SCRIPT, "1000000", json.dumps(UNITS[third::3])],
        check=True,
        timeout=1800,
        capture_output=True,
    )
