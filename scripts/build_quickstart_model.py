r"""Build the quickstart's base model: a transformer of 0.4 M parameters which can do sums, but seldom bothers to.

Its warm-up text answers the problems of `data/quickstart_prompts.py` in four ways, as text found in the wild would:

    direct     Answer: 10                                     short; right for one problem in six or so
    totals     15 10\nAnswer: 10                              the running totals alone
    chain      8+7=15-5=10\nAnswer: 10                        the working written out: right in four cases of five
    recheck    8+7=15-5=10\n8+7=15-5=10\nAnswer: 10           the working twice; often cut off by the length limit

Every text is correct. Direct answers join late, when working is learnt well; so the model gives them often and gets
them wrong, and samples right answers for about 45 % of the held-out problems. Reinforcement learning finds out by
itself that working pays: accuracy and response length rise, truncation and entropy fall. No held-out problem is
part of the warm-up.

    python scripts/build_quickstart_model.py --output DIR [--seed 0]

About a minute on one core; a second call with the same arguments and sources returns at once. DIR then holds the
model, its tokenizer, a generation config and manifest.json, and loads in transformers and vLLM.
"""

from arithmetic_model.build import build_once, parse_arguments
from arithmetic_model.recipe import Recipe


def main() -> None:
    arguments = parse_arguments("Build the quickstart's base model and its tokenizer.")
    build_once(Recipe(seed=arguments.seed), arguments)


if __name__ == "__main__":
    main()
