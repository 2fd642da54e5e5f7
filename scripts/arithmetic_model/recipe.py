"""The recipe of a model."""

from dataclasses import dataclass

PAD, EOS, UNKNOWN, ANSWER = "<pad>", "<eos>", "<unk>", "Answer: "
CHARACTERS = "\n +-=0123456789"
"""Each of them is a token; so is each of a recipe's words."""
CALL, CALL_END = '<tool_call>{"name": "calculator", "arguments": {"expression": "', '"}}</tool_call>'
RESULT, RESULT_END = "<tool_response>", "</tool_response>\n"
"""What stands around an expression for the calculator of `data/calculator_environment.py`, and around its answer."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the model. The defaults give 40-50 % sampled accuracy."""

    seed: int = 0
    """Seed of the weights, of the warm-up text and of the sampled evaluation."""
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 2
    heads: int = 4
    head_size: int = 32
    """vLLM's attention on CPUs knows 32 and 64 among others, but nothing smaller."""
    max_positions: int = 256
    """Longest prompt plus response, in tokens."""
    steps: int = 800
    """Optimizer steps of the warm-up."""
    min_terms: int = 4
    max_terms: int = 6
    """Fewest and most terms of the warm-up's problems."""
    heldout_min_terms: int = 4
    """Fewest terms of the held-out problems; they have as many as the warm-up's at most."""
    recheck_word: str = ""
    """A token that opens the second working of `recheck`, such as `Check: `; empty for none."""
    direct_from: int = 550
    """Step from which on direct answers are part of the text: working is learnt well, guessing only a little."""
    batch_size: int = 32
    """Problems per step."""
    max_text: int = 48
    """Prompts with responses are cut here, in tokens; of the four styles only `recheck` should be longer."""
    learning_rate: float = 4e-3
    """Peak; it rises over `rise_steps`, stays, and falls linearly to zero over the second half."""
    rise_steps: int = 20
    direct_share: float = 0.50
    """Shares of the four ways to answer; they add up to 1."""
    totals_share: float = 0.08
    chain_share: float = 0.34
    recheck_share: float = 0.08
    tool_share: float = 0.0
    """Share of a fifth way: a call of the calculator, and the answer after it. Above 0 its words are tokens."""
    heldout: int = 512
    """Held-out problems in the accuracy measured at the end."""
    max_response: int = 40
    """Length limit of a response in that evaluation, in tokens."""
    lowest_accuracy: float = 0.30
    """Sampled held-out accuracy (temperature 1) below which the build fails, and above which:"""
    highest_accuracy: float = 0.60

    @property
    def vocabulary(self) -> list[str]:
        """All tokens, in the order of their ids; `Answer: ` is one token."""
        words = [ANSWER, self.recheck_word] if self.recheck_word else [ANSWER]
        tools = [CALL, CALL_END, RESULT, RESULT_END] if self.tool_share else []
        return [PAD, EOS, UNKNOWN, *words, *CHARACTERS, *tools]
