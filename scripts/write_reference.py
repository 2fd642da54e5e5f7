"""Write the reference pages in docs/ that are generated from the code.

    python scripts/write_reference.py [--check]

`docs/configuration.md` lists every setting and every transport of weights, `docs/metrics.md` every metric. With `--check`
nothing is written, and the exit status is 1 when a page is not what the code says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args, get_origin

from dapo_openrlhf.config.settings import settings_of
from dapo_openrlhf.config.transports import TRANSPORTS, Transport
from dapo_openrlhf.config.typed import typed
from dapo_openrlhf.pipeline.metrics import METRICS

ROOT = Path(__file__).resolve().parent.parent

CONFIGURATION = """\
# Configuration

Every setting with its default, generated from the code. In a file they are YAML, on the command line
`--section.key VALUE`. A setting that OpenRLHF has keeps OpenRLHF's name; [openrlhf.md](openrlhf.md) compares the two. `preset`
puts an algorithm's settings below the run's own ([algorithms.md](algorithms.md)).
"""

TRANSPORTS_HEAD = """
## Transports of the weight sync

What `vllm.sync_backend` may be; `auto` takes the first that the placement allows. With each, an engine may
consist of several workers (`vllm.tensor_parallel_size`), and one that is lost is replaced (`vllm.max_restarts`).

| transport | weights travel | placement |
|---|---|---|"""

EMPTY = '""'
"""How a default is shown that is an empty text."""

METRICS_HEAD = """\
# Metrics

Every name that TensorBoard, Weights & Biases, `metrics.jsonl` and the curves know, generated from the code. A row is written per rollout step.
A share is 0 to 1; a number has no unit. Prometheus gets them from Ray under other names: `policy_age/mean` is
`ray_dapo_policy_age_mean`, and what is not in this table, such as `reward/NAME`, is `ray_dapo_other` with the label `name`
([seeing.md](seeing.md#prometheus-and-grafana)).
"""


def configuration() -> str:
    """The page of settings, a table per section."""
    lines = [CONFIGURATION]
    for section, settings in groupby(settings_of(), key=lambda pair: pair[0].rpartition(".")[0]):
        lines += [f"\n## {section or 'Top level'}\n", "| setting | default | choices | meaning |", "|---|---|---|---|"]
        for name, field in settings:
            default = "must be set" if field.is_required() else f"`{typed(field.default) or EMPTY}`"
            meaning = " ".join((field.description or "").replace("|", "\\|").replace("``", "`").split())
            lines.append(f"| `{name}` | {default} | {choices(field.annotation)} | {meaning} |")
    return "\n".join([*lines, TRANSPORTS_HEAD, *map(transport_row, TRANSPORTS, TRANSPORTS.values())]) + "\n"


def transport_row(name: str, transport: Transport) -> str:
    """A row of the table of transports."""
    placements = {
        "needed": "shared (`train.colocate_all`)",
        "refused": "of their own",
        "allowed": "of their own or shared",
    }
    gpus = f"GPUs {placements[transport.shared_gpu]}"
    where = {"cuda": gpus, "cpu": "`device: cpu`", "any": f"{gpus}, or `device: cpu`"}[transport.machine]
    return f"| `{name}` | {transport.way} | {where} |"


def choices(annotation: object) -> str:
    """The values of a closed choice, or nothing."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    return ", ".join(filter(None, (choices(part) for part in get_args(annotation))))


def metrics() -> str:
    """The page of metrics, in the order of their meaning."""
    rows = []
    for name, metric in METRICS.items():
        meaning = metric.meaning.replace("|", "\\|")
        rows.append(f"| `{name}` | {metric.unit} | {meaning} |")
    return "\n".join([METRICS_HEAD, "| name | unit | meaning |", "|---|---|---|", *rows]) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {"configuration.md": configuration, "metrics.md": metrics}


def main(arguments: list[str]) -> int:
    """Write the pages, or say which are not up to date."""
    stale = [name for name, page in PAGES.items() if _read(ROOT / "docs" / name) != page()]
    if "--check" in arguments:
        for name in stale:
            print(f"docs/{name} is not what the code says; run scripts/write_reference.py", file=sys.stderr)
        return int(bool(stale))
    for name in stale:
        (ROOT / "docs" / name).write_text(PAGES[name]())
    return 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
