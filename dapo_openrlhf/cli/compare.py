"""The command ``dapo-openrlhf compare``: compares two evaluations, problem by problem."""

from __future__ import annotations

import argparse
import json

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.report.comparison import compare_verdicts
from dapo_openrlhf.report.responses import ResponsesError, read_verdicts


def compare(options: argparse.Namespace) -> int:
    """Print the comparison, and write it as JSON if asked; returns the exit status."""
    try:
        comparison = compare_verdicts(read_verdicts(options.first), read_verdicts(options.second))
    except ResponsesError as error:
        raise ConfigError(str(error)) from error
    if options.json is not None:
        options.json.write_text(json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False) + "\n")
    print(comparison)
    return 0
