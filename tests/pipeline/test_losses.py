"""What a user reads about engines that were lost."""

from __future__ import annotations

from dapo_openrlhf.pipeline.events import (
    EngineAnswers,
    EngineGivenUp,
    EngineLost,
    EngineReplaced,
    EngineSilent,
    GroupCut,
)
from dapo_openrlhf.pipeline.losses import EngineLosses, words_of_engines

DIED = "engine 1 died: The actor died unexpectedly.\n\tclass_name: EngineActor"


def test_each_event_has_one_line() -> None:
    events = [
        EngineSilent(engine=0, message="engine 0 has not answered for 10 s"),
        EngineAnswers(engine=0, seconds=12.4),
        EngineLost(engine=1, message=DIED),
        EngineReplaced(engine=1, times=1),
        EngineGivenUp(engine=1, left=2, message="engine 1 failed after 3 replacements (vllm.max_restarts): " + DIED),
        EngineGivenUp(engine=1, left=0, message="engine 1 failed"),
        GroupCut(group=3),
    ]
    assert [words_of_engines(event) for event in events] == [
        "warning: engine 0 has not answered for 10 s",
        "engine 0 works again after 12 s",
        "warning: engine 1 is lost and its groups are begun again: engine 1 died: The actor died unexpectedly",
        "engine 1 is replaced, with the newest weights",
        "warning: engine 1 failed after 3 replacements (vllm.max_restarts): engine 1 died: The actor died unexpectedly; it is "
        "given up, and the run goes on with 2",
        "warning: engine 1 failed; it is given up, and no engine is left",
        None,
    ]


def test_losses_are_counted_by_engine() -> None:
    losses = EngineLosses()
    assert losses.words() == []
    for event in (
        EngineLost(engine=2, message="engine 2 hangs"),
        EngineReplaced(engine=2, times=1),
        EngineLost(engine=1, message=DIED),
        EngineLost(engine=1, message="engine 1 did not start"),
        EngineLost(engine=1, message="engine 1 did not start"),
        EngineGivenUp(engine=1, left=2, message=""),
    ):
        losses.add(event)
    assert losses.words() == [
        "engine 1 was lost 3 times, replaced never, then given up (engine 1 did not start)",
        "engine 2 was lost once, replaced once (engine 2 hangs)",
    ]
