"""The command ``dapo-openrlhf compare``: compares two evaluations, problem by problem."""

from __future__ import annotations

import argparse

from dapo_openrlhf.cli.outputs import check_output, write_json
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.report.comparison import compare_verdicts
from dapo_openrlhf.report.responses import ResponsesError, read_verdicts


def compare(options: argparse.Namespace) -> int:
    """Print the comparison, and write it as JSON if asked; returns the exit status."""
    check_output("--json", options.json)
    try:
        comparison = compare_verdicts(read_verdicts(options.first), read_verdicts(options.second))
    except ResponsesError as error:
        raise ConfigError(str(error)) from error
    if options.json is not None:
        write_json(options.json, comparison.as_dict())
    print(comparison)
    return 0
