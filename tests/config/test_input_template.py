"""Text around each prompt: as OpenRLHF formats it, or with other braces kept; never two places for one prompt."""

from __future__ import annotations

import pytest

from dapo_openrlhf.config.input_template import input_template


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("Q: {}\nA:", "Q: {x} {}\nA:"),
        (r"{} into \boxed{{}}", r"{x} {} into \boxed{}"),
        ("{0}; {0}", "{x} {}; {x} {}"),
        ("Solve {} in {braces}:", "Solve {x} {} in {braces}:"),
        ("{} }", "{x} {} }"),
        ("{x!r} {}", "{x!r} {x} {}"),
    ],
)
def test_the_prompt_stands_where_its_place_is_whatever_braces_it_has(template: str, filled: str) -> None:
    assert input_template(template)("{x} {}") == filled


@pytest.mark.parametrize("template", ["", "Solve.", r"into \boxed{}, {}", "{braces}", "{1}", "{:d}"])
def test_a_template_without_one_place_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="where the prompt goes; give one"):
        input_template(template)
