"""A prompt that no engine can take is the prompt's fault, and says why."""

from __future__ import annotations

import pickle

import pytest

from dapo_openrlhf.backend.engine.prompt_checks import check_prompt
from dapo_openrlhf.backend.messages import BadPrompt


def reason(ids: list[int], *, new_tokens: int = 4) -> str | None:
    try:
        check_prompt(ids, new_tokens=new_tokens, vocabulary=19, longest=10)
    except BadPrompt as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([0, 18], None),
        ([5] * 6, None),
        ([5] * 7, "prompt_too_long"),
        ([], "prompt_empty"),
        ([19], "prompt_token_unknown"),
        ([1, -1, 3], "prompt_token_unknown"),
        ([2**40], "prompt_token_unknown"),
    ],
)
def test_what_is_refused_and_why(ids: list[int], wanted: str | None) -> None:
    assert reason(ids) == wanted


def test_the_error_names_the_ids_and_survives_the_way_to_another_process() -> None:
    with pytest.raises(BadPrompt) as raised:
        check_prompt([3, 19, -2], new_tokens=4, vocabulary=19, longest=10)
    again = pickle.loads(pickle.dumps(raised.value))
    assert (again.reason, str(again)) == ("prompt_token_unknown", str(raised.value))
    assert "token ids [-2, 19] of the prompt have no row in the model's embedding, which has rows 0 to 18" in str(again)
