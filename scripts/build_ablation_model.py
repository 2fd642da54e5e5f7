r"""Build the base model of the small ablation ladder: the quickstart's, with other habits.

It can do sums of two to seven terms, but mostly guesses; and where it does write its working down, it mostly writes it
twice, which a short length limit does not leave room for:

    direct     Answer: 10                                            short; right for two terms, seldom for more
    totals     15 10\nAnswer: 10
    chain      8+7=15-5=10\nAnswer: 10                               rare, short enough and nearly always right
    recheck    8+7=15-5=10\nCheck: 8+7=15-5=10\nAnswer: 10           right, but cut off where the limit is short

    python scripts/build_ablation_model.py --output DIR [--seed 0] [--threads 2]

Less than two minutes on two cores; a second call with the same arguments and sources returns at once.
"""

from arithmetic_model.build import build_once, parse_arguments
from arithmetic_model.recipe import Recipe


def main() -> None:
    arguments = parse_arguments("Build the base model of the small ablation ladder and its tokenizer.")
    recipe = Recipe(
        seed=arguments.seed,
        min_terms=2,
        max_terms=7,
        max_text=80,
        recheck_word="Check: ",
        direct_share=0.74,
        totals_share=0.04,
        chain_share=0.04,
        recheck_share=0.18,
        max_response=80,
        lowest_accuracy=0.20,
        highest_accuracy=0.50,
    )
    build_once(recipe, arguments)


if __name__ == "__main__":
    main()
