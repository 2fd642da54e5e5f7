"""Configurations from files and command lines (pydantic, PyYAML).

Files are YAML; ``--rollout.batch_size 64`` on the command line overrides ``rollout: {batch_size: ...}`` in the file, and
both override what ``preset`` sets. Everything is checked here, before anything starts: unknown keys, wrong types and
impossible combinations are refused in one :class:`ConfigError` that names the key, the value and what would be right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from dapo_openrlhf.algorithm.choices import CORRECTIONS
from dapo_openrlhf.config.errors import ConfigError, SettingsUnreadable
from dapo_openrlhf.config.evaluation import names_of_sets
from dapo_openrlhf.config.foreign import NOT_HERE
from dapo_openrlhf.config.presets import PRESETS
from dapo_openrlhf.config.reward import RewardSection
from dapo_openrlhf.config.rules import impossible
from dapo_openrlhf.config.section import Section
from dapo_openrlhf.config.settings import Config, setting_names
from dapo_openrlhf.config.yaml_text import Loader, value_of

AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, apply dotted overrides, check everything.

    Raises :class:`ConfigError`, and for a file that is missing or broken :class:`SettingsUnreadable`.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # a SafeLoader
    except OSError as error:
        raise SettingsUnreadable(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsUnreadable(f"{path} is not a text file in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise SettingsUnreadable(f"{path} is not valid YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise SettingsUnreadable(f"{path} holds {type(loaded).__name__}, not a mapping of sections to settings")
    settings: dict[str, Any] = {}
    for key, value in [*loaded.items(), *(overrides or {}).items()]:
        _assign(settings, str(key), value)
    return build_config(settings, source=str(path))


def build_config(settings: Mapping[str, Any], *, source: str) -> Config:
    """Check a nested mapping of settings, laid over its preset. ``source`` names it in errors.

    Raises :class:`ConfigError`.
    """
    config = _checked(Config, _over_preset(settings), source)
    if problems := list(impossible(config)):
        raise _refusal(source, problems)
    return config


def build_reward(settings: Mapping[str, Any], *, source: str) -> RewardSection:
    """Check the ``reward.*`` settings alone, as :func:`build_config` checks all. Raises :class:`ConfigError`."""
    return _checked(RewardSection, settings, source)


def _checked(section: type[AnySection], settings: Mapping[str, Any], source: str) -> AnySection:
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        raise _refusal(source, [_explain(problem) for problem in error.errors()]) from None


def _refusal(source: str, problems: Iterable[str]) -> ConfigError:
    return ConfigError("\n".join([f"{source} cannot be run:", *(f"  {problem}" for problem in problems)]))


def _over_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    layered: dict[str, Any] = {}
    name = settings.get("preset", Config.model_fields["preset"].default)
    if name in list(PRESETS):  # an unknown name is refused with everything else
        for dotted, value in PRESETS[name].settings.items():
            _assign(layered, dotted, value)
    for key, value in _named_correction(settings).items():
        _assign(layered, f"algo.advantage.{key}", value)
    _overlay(layered, settings)
    return layered


def _named_correction(settings: Mapping[str, Any]) -> Mapping[str, object]:
    """The settings that ``algo.advantage.is_correction`` stands for; none for a name that is refused with everything else."""
    section: Any = settings
    for key in ("algo", "advantage"):
        section = section.get(key) if isinstance(section, Mapping) else None
    name = section.get("is_correction") if isinstance(section, Mapping) else None
    return next((stands_for for known, stands_for in CORRECTIONS.items() if known == name), {})


def _overlay(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Lay nested settings over others, value by value; an empty section changes nothing."""
    for key, value in above.items():
        inner = below.get(key)
        if isinstance(inner, dict) and isinstance(value, Mapping):
            _overlay(inner, value)
        elif not isinstance(inner, dict) or value is not None:
            below[key] = value


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Read ``--a.b VALUE``, ``--a.b=VALUE``, ``a.b=VALUE`` and bare ``--a.b`` (true) into dotted overrides.

    Several values after one key make a list: ``--actor.eps_clip_low_high 0.2 0.28``.
    """
    sections = {field.alias or name for name, field in Config.model_fields.items()}  # other text with "=" is a value
    overrides: dict[str, Any] = {}
    values: list[str] = []
    key = ""

    def finish() -> None:
        if key:
            overrides[key] = (
                True if not values else value_of(values[0]) if len(values) == 1 else [*map(value_of, values)]
            )

    for argument in arguments:
        match = re.match(r"^(--)?([A-Za-z_][\w.]*)=(.*)$", argument, re.DOTALL)
        if match and (match[1] or not key or match[2].split(".")[0] in sections):
            finish()
            key, values = match[2], [match[3]]
        elif re.match(r"^--[A-Za-z_]", argument):
            finish()
            key, values = argument[2:], []
        elif not key:
            raise ConfigError(f"cannot read the argument {argument!r}; settings are given as --section.key VALUE")
        else:
            values.append(argument)
    finish()
    return overrides


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that :func:`load_config` reads back to an equal one."""
    settings = config.model_dump(mode="json", by_alias=True)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def preset_changes(config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Settings in which the run differs from the configuration's preset: name, the run's value, the preset's."""
    values = config.model_dump(mode="json", by_alias=True)
    for dotted, expected in PRESETS[config.preset].settings.items():
        value: Any = values
        for part in dotted.split("."):
            value = value[part]
        plain = list(expected) if isinstance(expected, tuple) else expected
        if value != plain:
            yield dotted, value, plain


def _assign(settings: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = _parts(dotted)
    for name in sections:
        inner = settings[name] = {} if settings.get(name) is None else settings[name]
        if not isinstance(inner, dict):
            raise ConfigError(f"{dotted}: {name} is a setting, not a section")
        settings = inner
    _overlay(settings, {key: value})


def _parts(dotted: str) -> list[str]:
    """The names of the sections and of the setting; that of an evaluation set may have dots in it."""
    match dotted.split("."):
        case ["eval", "sets", *name, key] if name:
            return ["eval", "sets", ".".join(name), key]
        case parts:
            return parts


def _dotted(key: str, value: object) -> Iterator[str]:
    """The dotted names of everything that a key holds."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _dotted(f"{key}.{name}", inner)
    else:
        yield key


def _explain(problem: Any) -> str:
    """One sentence for one of pydantic's errors: key, value, remedy."""
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause).replace("\n", "\n  ")
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        given = list(_dotted(key, problem["input"]))
        if all(name in NOT_HERE for name in given):
            return "\n  ".join(f"{name}: an option of OpenRLHF that is not here: {NOT_HERE[name]}" for name in given)
        names = [*setting_names(), *names_of_sets(problem["loc"])]
        sections = {name.split(".")[0] for name in names} if "." not in key else set()
        near = difflib.get_close_matches(key, sections, n=1) or difflib.get_close_matches(key, names, n=1, cutoff=0.4)
        return f"{key}: there is no such setting" + (f"; did you mean {near[0]}?" if near else "")
    if problem["type"] == "missing":
        return f"{key}: must be set"
    message = problem["msg"]
    if problem["input"] is None:
        return f"{key}: an empty value (null) is not accepted: {message[0].lower()}{message[1:]}"
    if isinstance(problem["input"], str) and "," in problem["input"] and problem["type"].startswith(("float", "int")):
        return f"{key}: {problem['input']!r} is not accepted; several values are given with blanks between them, not commas"
    hint = f"; for the text write '\"{problem['input']}\"'" if problem["type"] == "string_type" else ""
    return f"{key}: {problem['input']!r} is not accepted: {message[0].lower()}{message[1:]}{hint}"
