"""Reads settings that are written in YAML (PyYAML)."""

from __future__ import annotations

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """A safe loader that reads ``1e-6`` as a number, which is text in YAML 1.1."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def value_of(text: str) -> Any:
    """The value of a setting on the command line; text that is not YAML, or would be a mapping, stays text."""
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) else value  # "Question: {}" is text


def mapping_of(value: object) -> object:
    """The mapping that a text stands for, as given on the command line; other values stay as they are."""
    return yaml.load(value, Loader=Loader) if isinstance(value, str) else value
