"""A reward's name is read in one place, into what it stands for."""

from __future__ import annotations

from typing import get_args

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_reward
from dapo_openrlhf.config.reward_origin import PythonFile, RewardOrigin, Rule, Server, origin_of, refusals


@pytest.mark.parametrize(
    ("name", "origin", "short"),
    [
        ("rule", Rule(), "rule"),
        ("rewards/mine.py", PythonFile("rewards/mine.py"), "mine.py"),
        ("rule.py", PythonFile("rule.py"), "rule.py"),
        ("http://host:5000/get_reward", Server("http://host:5000/get_reward"), "http://host:5000/get_reward"),
        ("https://host", Server("https://host"), "https://host"),
    ],
)
def test_a_name_is_what_it_stands_for(name: str, origin: RewardOrigin, short: str) -> None:
    assert origin_of(name) == origin
    assert (origin.name, origin.short_name) == (name, short)
    assert list(refusals(name)) == []


@pytest.mark.parametrize(
    "name", ["", "Rule", "rules", "mine", "mine.pyc", "ftp://host", "http://", "https:///path", "host:5000"]
)
def test_what_is_no_reward_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no reward; give rule, a Python file"):
        origin_of(name)
    assert len(list(refusals(name))) == 1


@pytest.mark.parametrize(
    "name",
    [
        "http://me:hunter2@host:5000/get_reward", "https://hunter2@host", "http://a@b:hunter2@host/x", "http://me:hunter2/x@host/y",
        "ftp://me:hunter2@host", "me:hunter2@host", "http://me:hunter2@[::1]:80/", "http://me:hunter2@host/x,http://b/x",
    ],
)  # fmt: skip
def test_an_address_with_a_password_is_refused_without_saying_it(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_reward({"remote_url": ["rule", name]}, source="x")
    assert "hunter2" not in str(caught.value)
    assert "reward.remote_url: " in str(caught.value)


@pytest.mark.parametrize(
    "name", ["http://[::1]:80/x", "http://host/users/@me", "http://host:80?q=a@b", "http://host:80"]
)
def test_other_addresses_with_such_signs_are_taken(name: str) -> None:
    assert build_reward({"remote_url": name}, source="x").origins == (Server(name),)


@pytest.mark.parametrize("name", ["http://a/x,http://b/x", "a.py,b.py"])
def test_several_in_one_name_are_refused(name: str) -> None:
    (words,) = refusals(name)
    assert "asks addresses with a comma between them in turn" in words


def test_the_settings_stand_for_their_names_in_order() -> None:
    section = build_reward({"remote_url": ["mine.py", "rule", "http://host/"]}, source="x")
    assert section.origins == (PythonFile("mine.py"), Rule(), Server("http://host/"))


def test_each_kind_says_what_a_run_must_know() -> None:
    """The rule looks at a response's end and needs an answer; code may not load; only a server may be away."""
    facts = {
        kind: (kind.needs_answer, kind.reads_queries, kind.loads_code, kind.may_be_away)
        for kind in get_args(RewardOrigin)
    }
    assert facts == {
        Rule: (True, False, False, False),
        PythonFile: (False, True, True, False),
        Server: (False, True, False, True),
    }
