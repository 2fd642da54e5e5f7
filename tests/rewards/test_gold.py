"""What a label says is the right answer."""

from __future__ import annotations

import pytest

from dapo_openrlhf.rewards.gold import gold_answer


@pytest.mark.parametrize(
    ("label", "answer"),
    [
        (" 7 ", "7"),
        (0, "0"),
        (42, "42"),
        (70.0, "70"),
        (1.5, "1.5"),
        (1e30, "1e+30"),
        (["9"], "9"),
        ([9], "9"),
        ([["9"]], "9"),
        ('["9"]', "9"),
        ("[9]", "9"),
        (' [ "x+1" ] ', "x+1"),
        ("[0, 1)", "[0, 1)"),
        ("[1, 2]", "[1, 2]"),
        ("{1, 2}", "{1, 2}"),
        ("{}", "{}"),
        (r"\{1,2\}", r"\{1,2\}"),
        (r"We count them one by one, so there are $\boxed{2}$ of them.", "2"),
        (r"First \boxed{3}, but then $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{(a, b)}", "(a, b)"),
        ("She sells 9 * 2 = <<9*2=18>>18.\n#### 1,218", "1,218"),
        ("#### 3\n#### -4", "-4"),
        ("Two and two make four, as everybody knows.\nAnswer: 4", "4"),
        ("all real numbers greater than 3", "all real numbers greater than 3"),
        ("x = 2. y = 3", "x = 2. y = 3"),
        (
            r"\begin{pmatrix} 1 & 2 \\" + "\n" + r"3 & 4 \end{pmatrix}",
            "\\begin{pmatrix} 1 & 2 \\\\\n3 & 4 \\end{pmatrix}",
        ),
    ],
)
def test_a_label_is_text_a_number_one_of_a_list_or_the_end_of_a_solution(label: object, answer: str) -> None:
    assert gold_answer(label) == answer


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (None, "None is no answer"),
        (True, "True is no answer"),
        (float("nan"), "nan is no number"),
        (float("-inf"), "-inf is no number"),
        ("", "empty"),
        (" \n ", "empty"),
        ([], "a list of 0 answers"),
        (["1", "2"], "a list of 2 answers"),
        ('["1", "2"]', "a list of 2 answers"),
        ([None], "None is no answer"),
        ({"want": "9"}, "dict is no answer"),
        ('{"want": "9"}', "a mapping as JSON"),
        ("9\ud83d", r"'\\ud83d', half of a character"),
        (r"so it is \boxed{", "its last box is empty or not closed"),
        (r"so it is $\boxed{}$", "its last box is empty or not closed"),
        ("and so\n####", "nothing follows its last ####"),
        ("We count them one by one. In the end there are two of them.", "reads like a whole solution"),
        ("word " * 21, "reads like a whole solution"),
        pytest.param(10**5000, "Exceeds the limit", id="a huge number"),
    ],
)
def test_a_label_that_is_no_answer_says_why(label: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gold_answer(label)
