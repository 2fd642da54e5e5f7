"""Reads settings that are written in YAML (PyYAML)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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


def flat(text: str) -> dict[str, object]:
    """The values of nested YAML mappings by their dotted names. Raises ``ValueError`` for what is no such mapping."""
    try:
        settings = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError("not a mapping of sections to settings")
    return dict(_flat(settings, ""))


def _flat(settings: Mapping[object, object], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
