"""Writes the prepared file and its manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from dapo_openrlhf import __version__
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.prepare.cleaning import LISTED, Cleaned
from dapo_openrlhf.prepare.rows import Source
from dapo_openrlhf.whole_file import write_whole, writing


def manifest_path(output: Path) -> Path:
    """The path of a file's manifest: ``prompts.manifest.json`` for ``prompts.jsonl``."""
    return output.with_suffix(".manifest.json")


def write(output: Path, cleaned: Cleaned, source: Source, options: Mapping[str, object]) -> dict[str, object]:
    """Replace file and manifest, each atomically; returns the manifest, which is the same for the same input.

    Raises ``ConfigError`` if no problem is left; existing files are then unchanged.
    """
    if not cleaned.problems:
        raise ConfigError(f"{source.name}: none of {cleaned.read} rows is left to write: {cleaned.drops}")
    lines = (json.dumps({"input": p.prompt, "label": p.label}, ensure_ascii=False) + "\n" for p in cleaned.problems)
    content = "".join(lines).encode()
    manifest: dict[str, object] = {
        "made_by": f"dapo_openrlhf {__version__}",
        "source": {"name": source.name, "sha256": source.sha256()},
        "output": {"name": output.name, "sha256": hashlib.sha256(content).hexdigest()},
        "counts": {
            "read": cleaned.read,
            "written": len(cleaned.problems),
            **cleaned.dropped,
        },
        "found": dict(cleaned.found),
        "conflicts": [
            {"prompt": c.prompt, "answers": {answer: str(stand) for answer, stand in c.answers.items()}}
            for c in cleaned.conflicts[:LISTED]
        ],
        "examples": cleaned.examples,
        "options": dict(options),
    }
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, content)
    write_whole(manifest_path(output), json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest
