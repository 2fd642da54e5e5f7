"""The command ``dapo-openrlhf convert``: a command of OpenRLHF, or a configuration of verl, as a configuration of this project."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.yaml_text import Loader
from dapo_openrlhf.convert.conversion import Conversion, NotConvertible
from dapo_openrlhf.convert.openrlhf import MODULE, TRAINING, convert_openrlhf, is_openrlhf_command
from dapo_openrlhf.convert.shell import commands
from dapo_openrlhf.convert.verl import convert_verl, flattened, overrides_of
from dapo_openrlhf.whole_file import write_whole

VERL = re.compile(r".*\b(?:main_(?:ppo|dapo)|fully_async_main)(?:\.py)?$")


def add_options(command: argparse.ArgumentParser) -> None:
    """Add all options."""
    command.description = (
        "Write a configuration that means what an OpenRLHF command (0.8 to 0.11) or a verl configuration of GRPO or DAPO "
        "means. What has no counterpart, and what behaves otherwise, is said on stderr. Nothing of a script is run."
    )
    command.usage = "dapo-openrlhf convert [--output FILE.yaml] (SCRIPT.sh | VERL.yaml | - | -- COMMAND ...)"
    command.add_argument("--output", type=Path, metavar="FILE.yaml", help="default: stdout")
    command.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="INPUT",
        help="a script, a YAML file, - for stdin, or the command itself",
    )


def convert(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Write the configuration; 1 if it does not pass this project's checks yet. Raises ``ConfigError`` for other input."""
    words = [*rest, *options.words]
    try:
        conversion = _converted(words[1:] if words[:1] == ["--"] else words)
    except NotConvertible as error:
        raise ConfigError(f"convert: {error}") from error
    text = yaml.safe_dump(_nested(conversion.settings), sort_keys=False, allow_unicode=True)
    for title, remarks in (
        ("no counterpart, left out", conversion.without_counterpart),
        ("behaves otherwise", conversion.otherwise),
    ):
        if remarks:
            print("\n".join([f"{title}:", *(f"  {remark}" for remark in remarks)]), file=sys.stderr)
    if options.output is None:
        sys.stdout.write(text)
    else:
        write_whole(options.output, text)
    return _checked(conversion.settings)


def _converted(words: Sequence[str]) -> Conversion:
    if not words:
        raise NotConvertible("give a script, a YAML file, - for stdin, or the command behind --")
    if len(words) == 1 and not words[0].startswith("--"):
        return _of_text(*_read(words[0]))
    return _of_commands([list(words)])


def _read(name: str) -> tuple[str, str]:
    if name == "-":
        return sys.stdin.read(), name
    try:
        return Path(name).read_text(encoding="utf-8"), name
    except (OSError, UnicodeDecodeError) as error:
        if len(name.split()) > 1:  # a whole command in quotes
            return name, "the command"
        raise NotConvertible(f"cannot read {name}: {error}") from error


def _of_text(text: str, name: str) -> Conversion:
    if name.endswith((".yaml", ".yml")):
        return _of_yaml(text, name)
    return _of_commands(list(commands(text)))


def _of_yaml(text: str, name: str) -> Conversion:
    try:
        loaded = yaml.load(text, Loader=Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise NotConvertible(f"{name} is not valid YAML: {error}") from error
    if not isinstance(loaded, Mapping):
        raise NotConvertible(f"{name} holds {type(loaded).__name__}, not verl's sections")
    given = dict(flattened(loaded))
    if not any(key.startswith(("actor_rollout_ref.", "algorithm.")) for key in given):
        raise NotConvertible(f"{name} has none of verl's sections, such as actor_rollout_ref and algorithm")
    return convert_verl(_interpolated(given))


def _interpolated(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values with ``${other.key}`` put in; what cannot be resolved counts as not given."""
    resolved = dict(given)
    for _ in range(len(given)):
        pending = {
            key: match[1] for key, value in resolved.items() if (match := re.fullmatch(r"\$\{([\w.]+)\}", str(value)))
        }
        if not pending:
            break
        resolved |= {key: resolved.get(other) for key, other in pending.items()}
    return {key: value for key, value in resolved.items() if "${" not in str(value)}


def _of_commands(found: Sequence[Sequence[str]]) -> Conversion:
    """The conversion of the first command that trains by reinforcement, with a remark if others do too."""
    trained = [conversion for words in found if (conversion := _of_module(words)) is not None]
    if not trained:
        trained = [conversion for words in found if (conversion := _of_options(words)) is not None]
    if trained:
        first, *others = (converted() for converted in trained)
        different = [other for other in others if other.settings != first.settings]
        if different:
            first.differs("script", f"{len(different) + 1} different commands train in there; the first is written")
        return _complete(first)
    for module in _other_modules(found):
        raise NotConvertible(f"{module} of OpenRLHF is not reinforcement learning as here; train_ppo_ray is")
    raise NotConvertible(f"no command of OpenRLHF ({TRAINING}) or verl (main_ppo, main_dapo) is in there")


def _of_module(words: Sequence[str]) -> Callable[[], Conversion] | None:
    """The conversion of a command that names the module, if it is one of the two that train so."""
    for position, word in enumerate(words):
        module = MODULE.match(word)
        if module and f"openrlhf.cli.{module[1]}" == TRAINING:
            return partial(convert_openrlhf, words[position + 1 :])
        if VERL.match(word):
            return partial(convert_verl, overrides_of(words[position + 1 :]), module=word)
    return None


def _of_options(words: Sequence[str]) -> Callable[[], Conversion] | None:
    """The conversion of a command that is known by its options."""
    if any(MODULE.match(word) for word in words):
        return None
    if is_openrlhf_command(words) or any(dotted in words for dotted in _dashed_dotted()):
        return partial(convert_openrlhf, words)
    if any(key.startswith("actor_rollout_ref.") for key in overrides_of(words)):
        return partial(convert_verl, overrides_of(words))
    return None


def _other_modules(found: Sequence[Sequence[str]]) -> Iterator[str]:
    return (module[1] for words in found for word in words if (module := MODULE.match(word)))


def _dashed_dotted() -> list[str]:
    return [f"--{dotted}" for dotted in ("actor.model_name_or_path", "data.prompt_dataset")]


def _complete(conversion: Conversion) -> Conversion:
    """Leave out values in which a variable of a shell is left, with a remark; texts stay."""
    for name, value in list(conversion.settings.items()):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and "$" in text:
                conversion.differs(name, f"{text} holds a variable that is not set in there; write its value")
    return conversion


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in settings.items():
        *sections, key = dotted.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = list(value) if isinstance(value, tuple) else value
    return nested


def _checked(settings: Mapping[str, Any]) -> int:
    try:
        build_config(_nested(settings), source="the configuration")
    except ConfigError as error:
        print(f"{error}\nit is written all the same; put that right before training", file=sys.stderr)
        return 1
    return 0
