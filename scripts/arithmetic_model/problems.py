"""The sums of `data/quickstart_prompts.py`, which lies outside every package."""

import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "data" / "quickstart_prompts.py"
sys.path.insert(0, str(SOURCE.parent))

from quickstart_prompts import Problem, stream_problems, take_problems  # noqa: E402  the path comes first

__all__ = ["SOURCE", "Problem", "stream_problems", "take_problems"]
