r"""Build the base model of the quickstart with a tool: the quickstart's, with a calculator that it seldom calls.

Its warm-up text answers the problems of `data/quickstart_prompts.py` in two ways:

    direct     Answer: 10                                            right for one problem in six or so
    tool       <tool_call>{... "expression": "8+7-5"}}</tool_call>   and after the calculator's answer Answer: 10

Direct answers join late, when calls are learnt well; so the model calls seldom, but rightly.

    python scripts/build_tools_model.py --output DIR [--seed 0]

Half a minute on one core; a second call with the same arguments and sources returns at once.
"""

from arithmetic_model.build import build_once, parse_arguments
from arithmetic_model.recipe import Recipe


def main() -> None:
    arguments = parse_arguments("Build the base model of the quickstart with a tool, and its tokenizer.")
    recipe = Recipe(
        seed=arguments.seed,
        max_text=80,
        steps=320,
        direct_from=160,
        direct_share=0.85,
        totals_share=0.0,
        chain_share=0.0,
        recheck_share=0.0,
        tool_share=0.15,
        lowest_accuracy=0.15,
        highest_accuracy=0.55,
    )
    build_once(recipe, arguments)


if __name__ == "__main__":
    main()
