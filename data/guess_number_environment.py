"""A game of several turns in which the model sees only part of the state: guess a number, told higher or lower.

    python data/guess_number_environment.py --output DIR
    dapo-openrlhf train --train.agent_func_path data/guess_number_environment.py --data.prompt_dataset DIR/train.jsonl ...

A label is the number, from 1 to 100. Halving finds every one in seven guesses, which is also the most there are. The last
number in a turn is the guess; a turn without one costs a guess too. Finding it gives +1, otherwise the reward is -1.
"""

import argparse
import json
import re
from pathlib import Path

from dapo_openrlhf.environments.messages import Action, Observation, Step
from dapo_openrlhf.environments.turns import next_turn
from dapo_openrlhf.types import Prompt
from dapo_openrlhf.whole_file import write_whole

LOWEST, HIGHEST, MOST_GUESSES = 1, 100, 7
QUESTION = (
    f"I have chosen a whole number from {LOWEST} to {HIGHEST}. You have {MOST_GUESSES} guesses, one in each turn; after "
    "each I say whether my number is higher or lower. What is your first guess?"
)
HELD_OUT_EVERY = 5
"""Every fifth number is held out."""
_NUMBERS = re.compile(r"\d{1,9}")


class Environment:
    """One game."""

    def __init__(self) -> None:
        self._number, self._prompt, self._guesses = 0, "", 0

    async def reset(self, prompt: Prompt) -> Observation:
        """Choose the number of the label. Raises ``ValueError`` for a label that is none."""
        self._number, self._prompt = int(str(prompt.label)), prompt.text
        if not LOWEST <= self._number <= HIGHEST:
            raise ValueError(f"the label {self._number} is not between {LOWEST} and {HIGHEST}")
        return Observation()

    async def step(self, action: Action) -> Step:
        """Compare a guess."""
        self._guesses += 1
        numbers = _NUMBERS.findall(action.text)
        guess = int(numbers[-1]) if numbers else None
        found = guess == self._number
        if found or self._guesses == MOST_GUESSES:
            return Step(reward=1.0 if found else -1.0, score=float(found), done=True, logs={"guesses": self._guesses})
        return Step(observation=next_turn(self._hint(guess), self._prompt), logs={"guesses": self._guesses})

    def _hint(self, guess: int | None) -> str:
        if guess is None:
            return "That is no number.\n"
        return "higher\n" if self._number > guess else "lower\n"


def main() -> None:
    """Write the prompts of the game."""
    parser = argparse.ArgumentParser(description="Write the game's train and held-out prompts.")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.jsonl and heldout.jsonl")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for name, held_out in (("train", False), ("heldout", True)):
        numbers = [n for n in range(LOWEST, HIGHEST + 1) if (n % HELD_OUT_EVERY == 0) == held_out]
        lines = (json.dumps({"input": QUESTION, "label": str(number)}) for number in numbers)
        write_whole(output / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
        print(f"{output / name}.jsonl: {len(numbers)} games")


if __name__ == "__main__":
    main()
