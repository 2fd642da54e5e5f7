"""The engine's model: hand-worked times, and the same as adding up single decode steps."""

from __future__ import annotations

import asyncio
import random

import pytest

from dapo_openrlhf.pipeline.ports import GroupError, Sampling
from dapo_openrlhf.plan.engine import SimulatedEngine
from dapo_openrlhf.plan.scenario import EngineSpeed, Sample
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Generation, Prompt

SAMPLING = Sampling(n=2, max_new_tokens=1000, temperature=1.0, top_p=1.0)


def prompt(tokens: int = 1) -> Prompt:
    return Prompt(id=0, text="", token_ids=(0,) * tokens)


def engine(speed: EngineSpeed, *lengths: tuple[int, ...]) -> SimulatedEngine:
    """One whose groups have these lengths, in turn."""
    samples = iter([Sample(lengths=group, correct=(True,) * len(group)) for group in lengths])
    return SimulatedEngine(0, speed, lambda prompt: next(samples), version=0)


async def ends(made: SimulatedEngine, *arrivals: float, tokens: int = 1) -> list[float]:
    """When groups that arrive at these times are done."""
    loop = asyncio.get_running_loop()

    async def one(index: int, arrival: float) -> float:
        await asyncio.sleep(arrival)
        await made.generate(f"group {index}", prompt(tokens), SAMPLING)
        return loop.time()

    return list(await asyncio.gather(*(one(index, arrival) for index, arrival in enumerate(arrivals))))


@pytest.mark.parametrize(
    ("speed", "lengths", "expected"),
    [
        (EngineSpeed(step=0.1), [(10,)], [1.0]),
        (EngineSpeed(step=0.1), [(10, 20)], [2.0]),  # a step costs the same, however many take part
        (EngineSpeed(step=0.0, per_sequence=0.1), [(10, 20)], [3.0]),  # ten steps of 0.2 s, ten of 0.1 s
        (EngineSpeed(step=0.1, most_sequences=1), [(10, 20)], [3.0]),  # one after the other
        (EngineSpeed(step=0.1, most_sequences=1), [(10,), (20,)], [1.0, 3.0]),
        (EngineSpeed(step=0.1, per_prompt_token=0.5), [(10, 10)], [1.5]),  # one prefill for both responses
        (EngineSpeed(step=0.0, per_context_token=0.1), [(3,)], [0.1 * (1 + 2 + 3)]),  # the prompt has one token
    ],
)
def test_times_worked_out_by_hand(speed: EngineSpeed, lengths: list[tuple[int, ...]], expected: list[float]) -> None:
    async def main() -> list[float]:
        return await ends(engine(speed, *lengths), *[0.0] * len(lengths))

    assert run_virtual(main()) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_many_steps_at_once_are_as_many_single_steps(seed: int) -> None:
    """Against a loop over single decode steps, with arrivals between steps."""
    dice = random.Random(seed)
    speed = EngineSpeed(
        step=dice.uniform(0.001, 0.1),
        per_sequence=dice.choice([0.0, 0.01]),
        per_context_token=dice.choice([0.0, 0.002]),
        most_sequences=dice.choice([2, 5, 100]),
    )
    groups = [tuple(dice.randint(1, 40) for _ in range(dice.randint(1, 4))) for _ in range(6)]

    async def main() -> list[float]:
        return await ends(engine(speed, *groups), *[0.0] * len(groups), tokens=7)

    assert run_virtual(main()) == pytest.approx(step_by_step(speed, groups, prompt_tokens=7))


def step_by_step(speed: EngineSpeed, groups: list[tuple[int, ...]], *, prompt_tokens: int) -> list[float]:
    """When groups that all arrive at 0 are done."""
    waiting = [[index, length, 0] for index, group in enumerate(groups) for length in group]
    running: list[list[int]] = []
    left = [len(group) for group in groups]
    now, done = 0.0, [0.0] * len(groups)
    while waiting or running:
        while waiting and len(running) < speed.most_sequences:
            running.append(waiting.pop(0))
        context = sum(prompt_tokens + made for _, _, made in running)
        now += speed.step + speed.per_sequence * len(running) + speed.per_context_token * context
        for sequence in running:
            sequence[2] += 1
            if sequence[2] == sequence[1]:
                left[sequence[0]] -= 1
                done[sequence[0]] = now
        running = [sequence for sequence in running if sequence[2] < sequence[1]]
    return done


def test_steps_and_seconds_are_inverse() -> None:
    speed = EngineSpeed(step=0.01, per_sequence=0.001, per_context_token=1e-4)
    for steps in (1.0, 2.0, 37.0, 1000.0):
        seconds = speed.seconds(steps, sequences=8, context=500)
        assert speed.steps(seconds, sequences=8, context=500) == pytest.approx(steps)


def test_new_weights_pause_it_and_mark_later_tokens() -> None:
    async def main() -> tuple[Generation, Generation, float]:
        made = engine(EngineSpeed(step=0.1), (10,), (10,))
        asyncio.get_running_loop().call_at(0.55, lambda: made.load(1, pause=0.5))
        first = await made.generate("a", prompt(), SAMPLING)
        at = asyncio.get_running_loop().time()
        return first, await made.generate("b", prompt(), SAMPLING), at

    first, second, at = run_virtual(main())
    assert at == pytest.approx(1.5)
    assert (first.oldest_version, first.newest_version) == (0, 1)
    assert (first.version_tokens, second.version_tokens) == ((5, 5), (10,))
    assert (second.oldest_version, second.newest_version) == (1, 1)


def test_a_group_is_cut_with_its_tokens_so_far() -> None:
    async def main() -> Generation:
        made = engine(EngineSpeed(step=0.1), (4, 100))
        asyncio.get_running_loop().call_at(0.75, made.cut, "a")
        return await made.generate("a", prompt(), SAMPLING)

    group = run_virtual(main())
    assert (group.lengths, group.cut, group.truncated) == ((4, 7), (False, True), (False, True))


def test_a_group_without_a_token_for_each_response_cannot_be_cut() -> None:
    async def main() -> None:
        made = engine(EngineSpeed(step=0.1, most_sequences=1), (10, 10))
        asyncio.get_running_loop().call_at(0.5, made.cut, "a")
        await made.generate("a", prompt(), SAMPLING)

    with pytest.raises(GroupError, match="before each of its responses had a token"):
        run_virtual(main())


def test_what_is_cancelled_makes_room() -> None:
    async def main() -> float:
        made = engine(EngineSpeed(step=0.1, most_sequences=1), (1000,), (10,))
        first = asyncio.create_task(made.generate("a", prompt(), SAMPLING))
        second = asyncio.create_task(made.generate("b", prompt(), SAMPLING))
        await asyncio.sleep(2.0)
        first.cancel()
        await second
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(3.0)


def test_only_time_with_sequences_is_busy() -> None:
    async def main() -> float:
        made = engine(EngineSpeed(step=0.1), (10,), (10,))
        await ends(made, 0.0, 5.0)
        return made.busy

    assert run_virtual(main()) == pytest.approx(2.0)
