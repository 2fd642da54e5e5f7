"""How a process of torch's group leaves when its work is done."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def leave() -> NoReturn:
    """End with status 0, once all members are here.

    At an ordinary end gloo's threads may still be at work when they are destroyed, which aborts the process: on a busy
    machine about one time in a hundred.
    """
    import torch.distributed

    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
