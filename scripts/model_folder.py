"""A model's folder: recognised by its manifest."""

import json
from pathlib import Path
from typing import Any


def read_manifest(output: Path) -> dict[str, Any]:
    """The manifest of a finished build, or an empty one."""
    path = output / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
