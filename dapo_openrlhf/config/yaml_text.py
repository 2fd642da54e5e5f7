"""YAML as people write settings in it (PyYAML)."""

from __future__ import annotations

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-6`` as text; everybody who types it means a number."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def value_of(text: str) -> Any:
    """A setting as it stands on a command line; what is no YAML, or would be a mapping, is text."""
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) else value  # "Question: {}" is text; no setting is a mapping


def mapping_of(value: object) -> object:
    """A mapping where one is written as text, as on the command line."""
    return yaml.load(value, Loader=Loader) if isinstance(value, str) else value
