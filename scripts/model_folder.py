"""A model's folder: recognised by its manifest, and replaced as a whole."""

import json
import os
from pathlib import Path
from typing import Any


def read_manifest(output: Path) -> dict[str, Any]:
    """The manifest of a finished build, or an empty one."""
    path = output / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def install(folder: Path, output: Path, scratch: Path) -> None:
    """Move a finished build into its place; an older one goes to the scratch folder, to vanish with it."""
    if output.exists():
        os.rename(output, scratch / "replaced")
    os.rename(folder, output)
