"""How a command of an experiment ends when it is stopped, or cannot write."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dapo_openrlhf import stopping
from dapo_openrlhf.whole_file import Unwritable


def command(run: Callable[[], int]) -> int:
    """Exit status of ``run``; what ends it from outside is said in one line on standard error."""
    try:
        with stopping.handled():
            return run()
    except Unwritable as error:
        print(error, file=sys.stderr)
        return 1
    except stopping.Stopped as stopped:
        stopped.say()
        return stopped.status
