"""The rungs of DAPO's Table 1: naive GRPO, and on each rung one technique more.

The last rung is a configuration as it is, with everything on; a rung below it is the same with the techniques of the
rungs above switched off. So a ladder can be built on any configuration, whatever its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config

PAPER_BENCHMARK = "AIME 2024, avg@32, Qwen2.5-32B"
PAPER_OTHERS = (("DeepSeek-R1-Zero-Qwen-32B", 47),)
"""Rows of the paper's Table 1 that are no rungs, with their scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One row of the table."""

    name: str
    """Plain name of a folder."""
    title: str
    """As in the paper."""
    paper: int
    """The paper's score: percent right, on ``PAPER_BENCHMARK``."""
    key: str
    """The setting that switches the rung's technique; empty for the first rung."""
    off: object = None
    """Its value without the technique."""


NAIVE = Rung(name="naive-grpo", title="naive GRPO", paper=30, key="")
OVERLONG_FILTERING = Rung(
    name="overlong-filtering",
    title="+ overlong filtering",
    paper=36,
    key="reward.overlong_filtering_enable",
    off=False,
)
CLIP_HIGHER = Rung(name="clip-higher", title="+ Clip-Higher", paper=38, key="actor.eps_clip_low_high")
SOFT_PUNISHMENT = Rung(
    name="soft-overlong-punishment",
    title="+ soft overlong punishment",
    paper=41,
    key="reward.overlong_buffer_len",
)
TOKEN_LEVEL_LOSS = Rung(
    name="token-level-loss",
    title="+ token-level loss",
    paper=42,
    key="actor.loss_agg_mode",
    off="seq-mean-token-mean",
)
DYNAMIC_SAMPLING = Rung(
    name="dynamic-sampling",
    title="+ dynamic sampling (= DAPO)",
    paper=50,
    key="algo.dynamic_filtering_enable",
    off=False,
)
RUNGS = (NAIVE, OVERLONG_FILTERING, CLIP_HIGHER, SOFT_PUNISHMENT, TOKEN_LEVEL_LOSS, DYNAMIC_SAMPLING)
"""From the lowest to the highest."""


def choose_rungs(names: Sequence[str]) -> tuple[Rung, ...]:
    """The rungs of these names, in the ladder's order; all for no name. Raises :class:`ConfigError`."""
    known = {rung.name: rung for rung in RUNGS}
    for name in names:
        if name not in known:
            raise ConfigError(f"--rungs {name}: there is no such rung; there are {', '.join(known)}")
    return tuple(rung for rung in RUNGS if not names or rung.name in names)


def switched_off(rung: Rung, config: Config) -> dict[str, object]:
    """Dotted overrides that turn ``config``, the last rung, into ``rung``.

    Raises :class:`ConfigError` for a configuration that already lacks a technique: two rungs would be the same.
    """
    settings = config.model_dump(mode="json", by_alias=True)
    overrides: dict[str, object] = {}
    for above in RUNGS[1:]:
        off = _off_value(above, config)
        value = _lookup(settings, above.key)
        if value == off or not value:
            raise ConfigError(
                f"{above.key}: {value} switches off what the rung {above.name} is to switch on; the configuration of a "
                "ladder is its last rung, with every technique on"
            )
        overrides[above.key] = off
    lower = [above.key for above in RUNGS[1 : RUNGS.index(rung) + 1]]
    return {key: off for key, off in overrides.items() if key not in lower}


def _off_value(rung: Rung, config: Config) -> object:
    """Without Clip-Higher both bounds are the lower one (DAPO section 3.1); the others' values are fixed."""
    if rung is CLIP_HIGHER:
        low, _ = config.actor.eps_clip_low_high
        return [low, low]
    return rung.off


def _lookup(settings: Mapping[str, Any], dotted: str) -> object:
    section, key = dotted.split(".")
    value: object = settings[section][key]
    return value
