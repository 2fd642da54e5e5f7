"""The rule reward's reading and comparing, as far as text and exact numbers go."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import ends

from dapo_openrlhf.rewards import verifier
from dapo_openrlhf.rewards.verifier import TAIL, Algebra, canonical, exact_value, extract_answer, final_part, split_unit


class Asked(Exception):
    """Algebra is asked."""


def asked(question: Algebra) -> bool:
    raise Asked(question)


def compare(answer: str, label: str, **options: bool) -> bool:
    return verifier.compare(answer, label, asked, **options)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 7", "7"),
        ("so\nanswer: 7\n", "7"),
        ("The answer: 7", "7"),
        ("ANSWER : 7", "7"),
        ("Answer\uff1a7", "7"),
        ("**Answer:** 7", "7"),
        ("**Answer**: 7", "7"),
        ("_Answer:_ 7", "7"),
        ("### Answer:\n7", "7"),
        ("Answer:\n$$\n7\n$$\n", "$$\n7\n$$"),
        ("Answer: \\[ 7 \\]", "\\[ 7 \\]"),
        (r"\text{Answer: 7}", "7"),
        (r"\boxed{7}", "7"),
        (r"\boxed {7}, \fbox{8}", "8"),
        (r"\boxed 7", "7"),
        ("Answer: 7</answer>", "7"),
        ("Answer: 7<|im_end|>", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{Answer: 7}", "7"),
        (r"Answer: $\boxed{7}$.", "7"),
        ("Final Answer: The final answer is $7$. I hope it is correct.", "$7$"),
    ],
)
def test_an_answer_is_found(response: str, answer: str) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 5\nWait.\nAnswer: 7", "7"),
        (r"\boxed{5} or rather \boxed{7}", "7"),
        ("Answer: 5\nno, " + r"\boxed{7}", "7"),
        (r"\boxed{5}" + "\nAnswer: 7", "7"),
        ("Answer: 5. Or Answer: 7", "7"),
        ("Answer: 7\nThank you!", "7"),
        ("<think>Answer: 5</think>\nAnswer: 7", "7"),
        ("Answer: 7\nAnswer:", None),
        (r"\boxed{5} \boxed{7", None),
        ("<think>Answer: 7</think> done", None),
        ("<think>Answer: 7", None),
    ],
)
def test_the_last_attempt_counts(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "response",
    ["", "7", "the answer is 7", "answer 7", "I think 7, or 8", r"\boxed", r"\boxed{7", r"\boxed{}", "Answer:"],
)
def test_a_number_without_the_form_is_no_answer(response: str) -> None:
    assert extract_answer(response) is None


def test_an_answer_must_stand_near_the_end() -> None:
    assert extract_answer("Answer: 7\n" + "x" * (TAIL - 10)) == "7"
    assert extract_answer("Answer: 7\n" + "x" * TAIL) is None


RIGHT = [
    ("7.", "7"), ("**7**", "7"), ("$7$", "7"), (r"\(7\)", "7"), ("034", "34"), ("+7", "7"), ("-0", "0"), ("7.0", "7"),
    ("\u22125", "-5"), ("(7)", "7"), ("7" * 300, "7" * 300), ("0" * 300 + "7", "7"),
    ("1,234", "1234"), ("1{,}234", "1234"), (r"1,\!234", "1234"), (r"1\,234", "1234"), ("1,234,567.5", "1234567.5"),
    ("12 cm", "12"), (r"12\text{ cm}", "12"), ("12", "12 cm"), ("12 cm", r"12 \mathrm{cm}"), ("12 centimeters", "12cm"),
    ("5 m/s", "5"), ("25 square cm", r"25\text{ cm}^2"), ("25 cm²", "25 cm^2"), (r"3\pi\text{ cm}", r"3\pi"),
    ("$5", "5"), (r"\$5", "5"), ("5 dollars", "$5"), ("50%", "50"), (r"50\%", "0.5"), ("1/2", "50%"),
    ("90°", "90"), (r"90^\circ", "90 degrees"), (r"90^{\circ}", "90"),
    (r"\frac{1}{2}", "0.5"), ("1/2", r"\dfrac12"), (r"\tfrac{1}{2}", "0.50"), ("½", ".5"), ("2/4", "1/2"),
    (r"-\frac{3}{4}", "-0.75"), (r"\frac{-3}{4}", "-3/4"), (r"\frac{3}{-4}", "-3/4"),
    ("3 1/2", "3.5"), (r"3\frac{1}{2}", "7/2"), ("3½", "7/2"),
    ("1.5e3", "1500"), (r"1.5 \times 10^{3}", "1500"), (r"2\cdot 10^{-2}", "0.02"), ("2^{10}", "1024"), ("5²", "25"),
    ("x=7", "7"), ("7", "x = 7"), ("f(x) = 2x+1", "2x+1"),
    ("(A)", "A"), ("A.", "A"), ("**A**", "A"), (r"\text{A}", "A"), ("A)", "A"),
    (r"\text{Monday}", "monday"), ("Yes.", "yes"), (r"(1,\ 2)", "(1,2)"), (r"\left(1,2\right]", "(1,2]"),
]  # fmt: skip
WRONG = [
    ("8", "7"), ("70", "7"), ("7 8", "78"), ("3 4", "34"), ("3 1/2", "31/2"), ("3½", "31/2"), ("5²", "52"), ("10₂", "102"),
    ("7\x008", "78"), ("1\u200b2", "12"), ("111_2", "111"), ("7" * 300, "7"),
    ("12 m", "12 cm"), ("12 cm^2", "12 cm"), ("50%", "0.05"), ("7 million", "7"), ("7 because 3+4=7", "7"), ("not 7", "7"),
    ("0.333333", "1/3"), ("3.14", "3.141"), ("1/3", "3"), ("-7", "7"), ("1e400", "7"), ("x = 7, y = 8", "x = 7, y = 9 too"),
    ("a", "A"), ("B", "A"), ("Monday or Tuesday", "Monday"), ("7}", "7"), ("{", "7"), ("$$", "7"), ("", ""),
    ("1+" * 150 + "1", "151"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "label"), RIGHT)
def test_right_by_text_or_value(answer: str, label: str) -> None:
    assert compare(answer, label) is True


@pytest.mark.parametrize(("answer", "label"), WRONG)
def test_wrong_by_text_or_value(answer: str, label: str) -> None:
    assert compare(answer, label) is False


@pytest.mark.parametrize(
    ("answer", "label", "question"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}", Algebra(answer=r"\sqrt{8}", label=r"2\sqrt{2}")),
        ("30+4", "34", Algebra(answer="30+4", label="34")),
        (r"1,\sqrt{4}", r"\{2,1\}", Algebra(answer=r"\sqrt{4}", label="2")),
        ("y-x=1", "y=x+1", Algebra(answer="y-x=1", label="y=x+1")),
        (r"2\pi m", "1 km", Algebra(answer=r"2\pi m", label="1")),
        (r"\frac{\pi}{2}", "90°", Algebra(answer=r"\frac{\pi}{2}", label="90")),
    ],
)
def test_what_is_left_to_algebra(answer: str, label: str, question: Algebra) -> None:
    with pytest.raises(Asked) as raised:
        compare(answer, label)
    assert raised.value.args == (question,)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", Fraction(7)),
        ("-1,234.5", Fraction(-2469, 2)),
        (r"-3\frac{1}{4}", Fraction(-13, 4)),  # -(3 + 1/4)
        ("-2^{2}", Fraction(-4)),  # the sign is not raised
        ("2^{-3}", Fraction(1, 8)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"-1.2\overline{34}", Fraction(-1222, 990)),  # 1.2 + 0.034343... = 1.2 + 34/990 = 1222/990
        ("1.5e-2", Fraction(3, 200)),
        (r"3\frac{5}{2}", None),  # no mixed number: 3 * 5/2 or 3 + 5/2
        ("1/0", None),
        ("0^{-1}", None),
        ("9^{9999}", None),
        ("1e99999", None),
        ("(1,234)", None),  # a pair
        ("12,34", None),
        ("9" * 4001, None),
        ("x", None),
    ],
)
def test_exact_values(text: str, value: Fraction | None) -> None:
    assert exact_value(text) == value


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("12 cm", ("12", "length", 0.01)),
        ("12cm", ("12", "length", 0.01)),
        ("5 m", ("5", "length", 1)),
        ("5m", ("5m", None, 1)),
        ("60 miles per hour", ("60", "length/time", 0.44704)),
        ("60 mph", ("60", "length/time", 0.44704)),
        ("9 cubic inches", ("9", "length^3", 0.0254**3)),
        ("9 inches^{3}", ("9", "length^3", 0.0254**3)),
        ("cm", ("cm", None, 1)),
        ("€5", ("5", "euro", 1)),
        ("$45 per hour", ("45", "dollar/time", 1 / 3600)),
        ("14 years old", ("14", "months", 12)),
        (r"2\pi h", (r"2\pi h", None, 1)),
        ("7 apples", ("7", "apples", 1)),
        (r"\frac{3}{4}cups", (r"\frac{3}{4}", "cups", 1)),
        ("7 dozens", ("7 dozens", None, 1)),
        ("7 thus", ("7 thus", None, 1)),
        ("6'2\"", ("74", "length", 0.0254)),
        ("1 hour,30 minutes", ("90", "time", 60)),
        ("12°30'", ("25/2", "angle", 1)),
    ],
)
def test_units(text: str, parts: tuple[str, str | None, float]) -> None:
    number, unit = split_unit(text)
    assert (number, unit and unit.dimension, float(unit.size) if unit else 1) == parts


THOUGHT = "so " * 1000


@pytest.mark.parametrize(
    ("response", "prompt"),
    [
        (f"<think>{THOUGHT}Answer: 7", ""),
        (f"<think>{THOUGHT}" + r"\boxed{7}", "3+4="),
        ("Answer: 7", "3+4=<think>\n"),
        (f"{THOUGHT}Answer: 7", "<|im_start|>assistant\n<think>\n"),
        ("Answer: 7", "<|assistant|><think>\nOkay,"),
        ("<think>a</think> <think>Answer: 7", ""),
        ("Answer: 7", "[THINK]"),
    ],
)
def test_an_unfinished_thought_holds_no_answer(response: str, prompt: str) -> None:
    assert extract_answer(response, prompt) is None
    assert final_part(response, prompt) == ""


@pytest.mark.parametrize(
    ("response", "prompt"),
    [
        (f"<think>{THOUGHT}Answer: 8</think>Answer: 7", ""),
        ("Answer: 8</think>Answer: 7", "<think>\n"),
        ("Answer: 7", "Put your thoughts into <think> and </think>. 3+4="),
        ("Answer: 7", "Begin with <think>.<|im_end|>\n<|im_start|>assistant\n"),
        ("Answer: 7", "<think></think>"),
        ("I think so. Answer: 7", ""),
    ],
)
def test_what_follows_a_thought_counts(response: str, prompt: str) -> None:
    assert extract_answer(response, prompt) == "7"
    assert extract_answer(final_part(response, prompt)) == "7"


def test_a_number_may_be_wanted() -> None:
    assert compare("391", "391", number_form=True) and compare("x=1,5", "x=1.5", number_form=True) is False
    for answer in ("17*23", "782/2", "2^4", "x=17*23", r"\sqrt{16}", "400-9"):
        assert compare(answer, "16" if answer in ("2^4", r"\sqrt{16}") else "391", number_form=True) is False
    for answer, label in [
        ("3/4", "0.75"),
        ("x=391", "391"),
        ("391 cm", "391"),
        (r"\frac{3}{4}", r"\frac{6}{8}"),
        ("2^4", "2^{4}"),
    ]:
        assert compare(answer, label, number_form=True) is True


@pytest.mark.parametrize("answer", ["42", r"\frac{3}{4}", "1,234 cm", "x = 5", r"\text{Tuesday}"])
def test_ordinary_answers_need_no_algebra(answer: str) -> None:
    """Text and exact numbers decide, a hundred times as fast; `make bench-parts` has the rates."""
    found = extract_answer("thus " * 200 + "\nAnswer: " + answer)
    assert found is not None and compare(found, answer) is True


PIECES = st.sampled_from(
    [
        "Answer:", "answer", "\\boxed{", "}", "{", "\\", "$", "\\frac", "\\text{", "^", "_", "7", "-", ",", ".", "/", "=", "(",
        ")", "[", "%", " ", "\n", "cm", "\\sqrt", "!", "e", "9" * 50, "<think>", "</think>", "½", "\ud800", "\x00", "*", "or",
    ]
)  # fmt: skip
HOSTILE_TEXT = st.one_of(st.text(max_size=300), st.lists(PIECES, max_size=120).map("".join))


@settings(deadline=None)
@given(HOSTILE_TEXT, HOSTILE_TEXT)
def test_whatever_a_response_says_there_is_a_verdict(response: str, label: str) -> None:
    answer = extract_answer("Answer: " + response)
    assert answer is None or isinstance(verifier.compare(answer, label, lambda question: False), bool)


@given(HOSTILE_TEXT)
def test_every_answer_with_content_equals_itself(text: str) -> None:
    assert compare(text, text) is (canonical(text) != "")


@pytest.mark.parametrize(
    "unit",
    [
        "answer ",
        "answer:",
        "\\text{",
        "\\boxed{",
        "$$",
        "\\[",
        "1,",
        "1 ",
        "((",
        "cm ",
        "^{",
        "\\frac1",
        "9",
        "=",
        "the final answer is ",
    ],
)
def test_no_repetition_takes_long(unit: str) -> None:
    """Regular expressions that backtrack without bound would never end on one of these."""
    response = ("Answer: " + unit * TAIL)[:TAIL]
    with ends():
        answer = extract_answer(response)
        if answer is not None:
            compare(answer, "7")
