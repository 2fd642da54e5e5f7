"""The verifier of the rule reward, which decides whether an answer is right (standard library only).

DAPO eq. 7: +1 if the final answer is equivalent to the gold one, -1 if not. Extraction is strict, so that a response
that merely contains the right number somewhere is wrong and the format is learnt. Two answers are compared as text, then
as exact numbers, then kind by kind (lists, intervals, equations, quantities...); the remaining single expressions are
compared by the caller's algebra. All patterns take time linear in the length of the text, whatever a response contains.
"""

from dapo_openrlhf.rewards.verifier.comparison import Algebra, Equal, answer_key, compare
from dapo_openrlhf.rewards.verifier.extraction import TAIL, extract_answer, final_part
from dapo_openrlhf.rewards.verifier.numbers import exact_value
from dapo_openrlhf.rewards.verifier.text import canonical
from dapo_openrlhf.rewards.verifier.units import split_unit

RIGHT = 1.0
WRONG = -1.0

__all__ = [
    "RIGHT",
    "TAIL",
    "WRONG",
    "Algebra",
    "Equal",
    "answer_key",
    "canonical",
    "compare",
    "exact_value",
    "extract_answer",
    "final_part",
    "split_unit",
]
