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

import argparse
import hashlib
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

DATA_FOLDER = Path(__file__).resolve().parent.parent / "data"
sys.path.insert(0, str(DATA_FOLDER))

from quickstart_prompts import Problem, stream_problems, take_problems  # noqa: E402

from dapo_openrlhf.whole_file import whole_file  # noqa: E402

if TYPE_CHECKING:  # the heavy packages are imported where they are used, after the cache check
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

PAD, EOS, UNKNOWN, ANSWER = "<pad>", "<eos>", "<unk>", "Answer: "
CHARACTERS = "\n +-=0123456789"
"""Each of them is a token; so is each of a recipe's words."""

IGNORED = -100
"""Label of positions without loss (prompt and padding), as `torch.nn.functional.cross_entropy` has it."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that determines the model. The defaults give 40-50 % sampled accuracy."""

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
        return [PAD, EOS, UNKNOWN, *words, *CHARACTERS]


# The text of the warm-up


def write_chain(problem: Problem) -> str:
    """The working as one chain of equations: `8+7=15-5=10`."""
    steps = zip(problem.terms[1:], problem.totals[1:], strict=True)
    return str(problem.terms[0]) + "".join(f"{term:+d}={total}" for term, total in steps)


def write_working(problem: Problem, style: str, recheck_word: str) -> str:
    """What comes before the answer in one of the four styles; empty, or complete lines."""
    if style == "direct":
        return ""
    if style == "totals":
        return " ".join(map(str, problem.totals[1:])) + "\n"
    chain = write_chain(problem) + "\n"
    return chain + recheck_word + chain if style == "recheck" else chain


def style_shares(recipe: Recipe, step: int) -> dict[str, float]:
    """Weight of each style in the text of a step counted from 1; only their ratios matter."""
    return {
        "direct": recipe.direct_share if step >= recipe.direct_from else 0.0,
        "totals": recipe.totals_share,
        "chain": recipe.chain_share,
        "recheck": recipe.recheck_share,
    }


def write_response(problem: Problem, shares: dict[str, float], rng: random.Random, recheck_word: str = "") -> str:
    """A correct response in a random style, without the end token."""
    (style,) = rng.choices(list(shares), list(shares.values()))
    return f"{write_working(problem, style, recheck_word)}{ANSWER}{problem.label}"


def is_correct(response: str, label: str) -> bool:
    """Whether a complete response (its end token included) ends with the right answer."""
    return response.endswith(EOS) and response.removesuffix(EOS).rpartition(ANSWER)[1:] == (ANSWER, label)


# Tokenizer and model


def build_tokenizer(vocabulary: list[str], max_positions: int) -> "PreTrainedTokenizerFast":
    """A tokenizer of characters and a word or two, which end in a blank; it adds nothing of its own to a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(vocabulary)}
    words = "|".join(f"{re.escape(token.strip())} " for token in vocabulary if token.strip() and token.endswith(" "))
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{words}|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=max_positions,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, tokenizer: "PreTrainedTokenizerFast") -> "Qwen3ForCausalLM":
    """An untrained model in float32, with untied embeddings."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_size,
        max_position_embeddings=recipe.max_positions,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=None,
        dtype="float32",
        **special,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **special)
    return model


# Warm-up


def stream_batches(
    recipe: Recipe, tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Yield endless (input ids, labels), both [batch, positions] int64, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rng = random.Random(recipe.seed)
    problems = stream_problems(held_out=False, seed=recipe.seed, min_terms=recipe.min_terms, max_terms=recipe.max_terms)
    for step in itertools.count(1):
        shares = style_shares(recipe, step)
        batch = list(itertools.islice(problems, recipe.batch_size))
        prompts = tokenizer([problem.prompt for problem in batch])["input_ids"]
        texts = [write_response(problem, shares, rng, recipe.recheck_word) + EOS for problem in batch]
        responses = tokenizer(texts)["input_ids"]
        pairs = list(zip(prompts, responses, strict=True))
        inputs = [torch.tensor(prompt + response) for prompt, response in pairs]
        labels = [torch.tensor([IGNORED] * len(prompt) + response) for prompt, response in pairs]
        yield (
            pad_sequence(inputs, batch_first=True, padding_value=tokenizer.pad_token_id)[:, : recipe.max_text],
            pad_sequence(labels, batch_first=True, padding_value=IGNORED)[:, : recipe.max_text],
        )


def orthogonalise(matrices: "torch.Tensor", iterations: int = 5) -> "torch.Tensor":
    """Bring all singular values of each matrix near 1, by Newton-Schulz iterations; [count, rows, columns] float32.

    Muon's quintic polynomial (https://kellerjordan.github.io/posts/muon). In float32, unlike `torch.optim.Muon`,
    as bfloat16 products take twenty times as long on a CPU without instructions for them.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT, iterations).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


class Muon:
    """Momentum whose steps are orthogonal matrices: it learns this task in less than half of AdamW's steps."""

    def __init__(self, weights: "list[torch.nn.Parameter]", momentum: float = 0.95) -> None:
        """`weights`: matrices [rows, columns]; `momentum` in [0, 1)."""
        import torch

        self.weights = weights
        self.momentum = momentum
        self.averages = [torch.zeros_like(weight) for weight in weights]

    def step(self, learning_rate: float) -> None:
        """Take one step with Nesterov momentum, whose root mean square is 0.2 x `learning_rate` as AdamW's is."""
        import torch

        for average, weight in zip(self.averages, self.weights, strict=True):
            average.lerp_(weight.grad, 1.0 - self.momentum)
        for shape in {weight.shape for weight in self.weights}:
            alike = [index for index, weight in enumerate(self.weights) if weight.shape == shape]
            updates = torch.stack([self.weights[i].grad.lerp(self.averages[i], self.momentum) for i in alike])
            scale = 0.2 * max(shape) ** 0.5
            for index, update in zip(alike, orthogonalise(updates), strict=True):
                self.weights[index].data.sub_(update, alpha=learning_rate * scale)


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step counted from 1."""
    rise = step / recipe.rise_steps
    fall = (recipe.steps - step + 1) / (0.5 * recipe.steps)
    return recipe.learning_rate * min(1.0, rise, fall)


def warm_up(model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerFast", recipe: Recipe) -> None:
    """Supervised learning of the responses, in place; prints a line about every five seconds."""
    import torch
    from torch.nn.functional import cross_entropy

    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    muon = Muon(matrices)
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)
    started = reported = time.monotonic()
    batches = itertools.islice(stream_batches(recipe, tokenizer), recipe.steps)
    for step, (inputs, labels) in enumerate(batches, start=1):
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.param_groups[0]["lr"] = learning_rate_at(step, recipe)
        adamw.step()
        muon.step(learning_rate_at(step, recipe))
        model.zero_grad()
        if time.monotonic() - reported > 5.0 or step == recipe.steps:
            reported = time.monotonic()
            elapsed = reported - started
            print(f"warm-up step {step}/{recipe.steps}  loss {loss:.3f}  {elapsed:.0f} s", flush=True)


# Evaluation


def measure_accuracy(
    model: "Qwen3ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    problems: list[Problem],
    *,
    sampled: bool,
    max_response: int,
) -> tuple[float, float]:
    """(share of problems answered right, mean response length in tokens), sampled at temperature 1 or greedily."""
    prompts = tokenizer([problem.prompt for problem in problems], padding=True, return_tensors="pt")
    tokens = model.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=max_response,
        do_sample=sampled,
    )
    responses = [
        text.removesuffix(PAD * text.count(PAD))
        for text in tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :])
    ]
    right = sum(is_correct(response, problem.label) for response, problem in zip(responses, problems, strict=True))
    length = sum(len(tokenizer.encode(response)) for response in responses) / len(responses)
    return right / len(problems), length


# Cache and command line


def describe_build(recipe: Recipe) -> dict[str, object]:
    """What a finished build is recognised by: its recipe and the SHA-256 of the sources that follow it."""
    sources = (Path(__file__).resolve(), DATA_FOLDER / "quickstart_prompts.py")
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return {"recipe": asdict(recipe), "sources_sha256": digest}


def read_manifest(output: Path) -> dict[str, object]:
    """The manifest of a finished build, or an empty one."""
    path = output / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def build(recipe: Recipe, folder: Path) -> dict[str, object]:
    """Train and save a model into an empty folder; return what was measured."""
    import torch
    import transformers

    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(recipe.vocabulary, recipe.max_positions)
    model = build_model(recipe, tokenizer)
    print(f"model of {model.num_parameters():,} parameters", flush=True)
    warm_up(model.train(), tokenizer, recipe)
    problems = take_problems(
        recipe.heldout,
        held_out=True,
        seed=recipe.seed,
        min_terms=recipe.heldout_min_terms,
        max_terms=recipe.max_terms,
    )
    limit = recipe.max_response
    sampled, length = measure_accuracy(model.eval(), tokenizer, problems, sampled=True, max_response=limit)
    greedy, _ = measure_accuracy(model, tokenizer, problems, sampled=False, max_response=limit)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": model.num_parameters(),
        "sampled_accuracy": sampled,
        "greedy_accuracy": greedy,
        "mean_response_tokens": length,
        "seconds": round(time.monotonic() - started, 1),
    }


def build_and_install(recipe: Recipe, output: Path) -> dict[str, object]:
    """Build beside `output` and rename, so that an interruption leaves no half-made model; return the manifest."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as folder:
        folder.mkdir()
        manifest = describe_build(recipe) | build(recipe, folder)
        if not recipe.lowest_accuracy <= manifest["sampled_accuracy"] <= recipe.highest_accuracy:
            sys.exit(
                f"sampled held-out accuracy {manifest['sampled_accuracy']:.1%} is outside "
                f"{recipe.lowest_accuracy:.0%}-{recipe.highest_accuracy:.0%}: nothing was written; try another --seed"
            )
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def parse_arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model; replaced when outdated")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, warm-up text and evaluation")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


def build_once(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Build unless the folder holds this very build already, and say what is there."""
    output = arguments.output.resolve()
    manifest = read_manifest(output)
    if not describe_build(recipe).items() <= manifest.items():
        if not manifest and output.exists() and any(output.iterdir()):
            sys.exit(f"{output} holds something else than a model built here: it stays as it is")
        import torch

        torch.set_num_threads(arguments.threads)
        manifest = build_and_install(recipe, output)
    print(
        f"{output}: held-out accuracy {manifest['sampled_accuracy']:.1%} sampled, "
        f"{manifest['greedy_accuracy']:.1%} greedy; {manifest['mean_response_tokens']:.1f} tokens a response"
    )


def main() -> None:
    arguments = parse_arguments("Build the quickstart's base model and its tokenizer.")
    build_once(Recipe(seed=arguments.seed), arguments)


if __name__ == "__main__":
    main()
