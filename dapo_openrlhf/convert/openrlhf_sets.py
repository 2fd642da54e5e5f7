"""OpenRLHF's sets of prompts and problems as settings (standard library)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dapo_openrlhf.convert.conversion import Conversion, number, with_names

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def several(value: Any) -> list[str]:
    """The parts of a value that OpenRLHF takes with commas between them."""
    return [str(part).strip() for part in (value if isinstance(value, list) else str(value).split(","))]


def convert_sets(given: Mapping[str, Any], written: Mapping[str, str], conversion: Conversion) -> set[str]:
    """Sets of prompts with their shares, that of the problems, and their splits."""
    settings = conversion.settings
    for name, split in (("data.prompt_dataset", "data.prompt_split"), ("eval.dataset", "eval.split")):
        if given.get(name) in (None, True):
            continue
        paths = several(given[name])
        wanted = None if given.get(split) is True else given.get(split)
        files = any(map(_is_file, paths))  # which have no splits, so that the others' stand in their names
        in_name = None if wanted is not None and not files else str(wanted or "train")
        sets = [_set(one, in_name, written[name], conversion) for one in paths]
        if wanted is not None and not files:
            settings[split] = str(wanted)
        elif wanted not in (None, "train") and not any(one.startswith("hf:") for one in sets):
            conversion.lacks(written[split], "a file has the split train only; leave it out")
        settings[name] = _plain(sets if name == "data.prompt_dataset" else with_names(sets))
    shares = given.get("data.prompt_probs")
    if shares is not None and isinstance(settings.get("data.prompt_dataset"), list):
        flag = written["data.prompt_probs"]
        settings["data.prompt_probs"] = [float(number(share, name=flag)) for share in several(shares)]
    return {"data.prompt_dataset", "data.prompt_probs", "data.prompt_split", "eval.dataset", "eval.split"}


def _plain(sets: list[str]) -> list[str] | str:
    return sets if len(sets) > 1 else sets[0]


def _is_file(name: str) -> bool:
    return name.removesuffix(".gz").endswith((".jsonl", ".json", ".csv", ".parquet"))


def _set(name: str, split: str | None, flag: str, conversion: Conversion) -> str:
    """A set's name here: a file or folder as it is, OWNER/NAME that is none on this machine as a set of the hub."""
    if _is_file(name):
        return name
    if HUB_NAME.fullmatch(name) and not Path(name).exists():
        on_hub = f"hf:{name}:{split}" if split else f"hf:{name}"
        conversion.differs(flag, f"{name} is taken as a set of the hub, {on_hub}; name a file if it is one")
        return on_hub
    conversion.differs(
        flag, f"{name} must be a file here, or a folder saved by datasets; `dapo-openrlhf prepare` writes files"
    )
    return name
