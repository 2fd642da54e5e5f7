"""An engine whose core really fails in a step in which a marked prompt is."""

from __future__ import annotations

from typing import Any

from dapo_openrlhf.backend.engine.actor import EngineActor

MARK = "%"
"""A prompt that begins with this character fails the core of :class:`MarkedEngine`."""


class MarkedEngine(EngineActor):
    """The real one, with a core that raises."""

    async def __init__(self, **settings: Any) -> None:
        await super().__init__(**settings)
        mark = self._tokenizer(MARK, add_special_tokens=False)["input_ids"][0]
        core = self._loop._core
        step = core.get_output

        def get_output() -> Any:
            requests = core.engine_core.scheduler.requests.values()
            if any(request.prompt_token_ids[0] == mark for request in requests):
                raise RuntimeError("the core failed on purpose")
            return step()

        core.get_output = get_output
