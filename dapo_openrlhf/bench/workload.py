"""The benchmark's work: a model whose responses vary in length as reasoning does, and prompts of a known pass rate.

A prompt begins with the mark of its category. Each category has letters of its own and an end-of-sequence hazard of
its own, so a response's length is geometric around its category's mean: a group's lengths are alike, all lengths
together have a heavy tail, and the hazard follows from the token before, which a short supervised training teaches.

The label says whether all, none or about half of a prompt's responses are right (see ``reward.py``), independently
of the category.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_openrlhf.bench import reward

if TYPE_CHECKING:  # the heavy packages are imported where they are used, after the cache check
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

PAD, EOS, UNKNOWN = "<pad>", reward.END, "<unk>"
DIGITS = "0123456789"
END_OF_PROMPT = "="
IGNORED = -100
"""Label of positions without loss, as ``torch.nn.functional.cross_entropy`` has it."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """Prompts whose responses are about equally long."""

    mark: str
    """First character of the prompt."""
    letters: str
    """What responses consist of; disjoint from all other categories'."""
    mean_length: float
    """Mean response length before the cap, in tokens, the end token included; above 2."""
    share: float
    """Share of the prompts; all shares add up to 1."""


CATEGORIES = (
    Category(mark="A", letters="abcdef", mean_length=8, share=0.30),
    Category(mark="B", letters="ghijkl", mean_length=16, share=0.30),
    Category(mark="C", letters="mnopqr", mean_length=48, share=0.25),
    Category(mark="D", letters="stuvwx", mean_length=150, share=0.15),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that determines the work."""

    seed: int = 0
    categories: tuple[Category, ...] = CATEGORIES
    right_share: float = 0.3
    """Share of prompts all of whose responses are right."""
    wrong_share: float = 0.3
    """Share of prompts none of whose responses is right; the rest is mixed."""
    prompts: int = 8192
    prompt_digits: int = 10
    """Digits in a prompt; with its mark and the equals sign it is two tokens longer."""
    max_new_tokens: int = 256
    """Longest response, in tokens."""
    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 4
    heads: int = 4
    head_size: int = 64
    """vLLM's attention on CPUs knows 32 and 64 among others, but nothing smaller."""
    steps: int = 100
    """Optimizer steps of the supervised training."""
    batch_size: int = 16
    """Texts of one step."""
    max_text: int = 96
    """Texts are cut here, in tokens; the hazard does not depend on the position."""
    learning_rate: float = 2e-3
    """Peak; it falls linearly to zero over the second half."""
    measured_responses: int = 128
    """Responses sampled at the end to measure lengths."""

    @property
    def prompt_tokens(self) -> int:
        """Length of every prompt, in tokens."""
        return self.prompt_digits + 2

    @property
    def max_len(self) -> int:
        """Longest prompt and response together, in tokens."""
        return self.prompt_tokens + self.max_new_tokens

    @property
    def pass_rate(self) -> float:
        """Expected share of groups dynamic sampling keeps, but for mixed groups that agree by chance."""
        return 1.0 - self.right_share - self.wrong_share


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work in its folder."""

    folder: Path
    recipe: Recipe
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What the build measured: parameters, mean lengths by category, share of capped responses."""

    @property
    def model(self) -> Path:
        """Folder of the model and its tokenizer."""
        return self.folder / "model"

    @property
    def prompts(self) -> Path:
        """JSON lines with ``input`` and ``label``."""
        return self.folder / "prompts.jsonl"

    @property
    def reward(self) -> Path:
        """Python file with ``reward_func``."""
        return Path(reward.__file__)


def prepare_workload(folder: Path, recipe: Recipe | None = None, *, threads: int = 1) -> Workload:
    """Build the work into ``folder`` unless it is there already. Raises ``FileExistsError`` rather than replace
    a folder that holds something else.
    """
    recipe = recipe or Recipe()
    folder = folder.resolve()
    described = _describe(recipe)
    manifest = _read_manifest(folder)
    if not described.items() <= manifest.items():
        if not manifest and folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} holds something else than a benchmark's work: it stays as it is")
        manifest = described | {"measured": _build_and_install(recipe, folder, described, threads)}
    return Workload(folder=folder, recipe=recipe, measured=manifest["measured"])


# Text


def draw_response(category: Category, rng: random.Random) -> str:
    """A response as the model shall write it, without the end token: at least one letter."""
    hazard = 1.0 / (category.mean_length - 1.0)
    letters = [rng.choice(category.letters)]
    while rng.random() > hazard:
        letters.append(rng.choice(category.letters))
    return "".join(letters)


def draw_prompt(recipe: Recipe, rng: random.Random) -> tuple[str, Category]:
    """A prompt and its category."""
    shares = [category.share for category in recipe.categories]
    (category,) = rng.choices(recipe.categories, shares)
    digits = "".join(rng.choices(DIGITS, k=recipe.prompt_digits))
    return f"{category.mark}{digits}{END_OF_PROMPT}", category


def write_prompts(recipe: Recipe, path: Path) -> None:
    """Write the prompts with their labels."""
    rng = random.Random(f"{recipe.seed}/prompts")
    shares = [recipe.right_share, recipe.wrong_share, recipe.pass_rate]
    with path.open("w", encoding="utf-8") as lines:
        for _ in range(recipe.prompts):
            prompt, _ = draw_prompt(recipe, rng)
            (label,) = rng.choices(("right", "wrong", "mixed"), shares)
            lines.write(json.dumps({"input": prompt, "label": label}) + "\n")


# Tokenizer and model


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A tokenizer of characters; it adds nothing of its own to a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = DIGITS + END_OF_PROMPT + "".join(category.mark + category.letters for category in recipe.categories)
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=recipe.max_len,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untrained model in float32, with untied embeddings."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_size,
        max_position_embeddings=2 * recipe.max_len,
        tie_word_embeddings=False,
        bos_token_id=None,
        dtype="float32",
        **special,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **special)
    return model


# Supervised training


def stream_batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless (input ids, labels), both [batch, positions] int64, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rng = random.Random(f"{recipe.seed}/text")
    while True:
        inputs, labels = [], []
        for _ in range(recipe.batch_size):
            prompt, category = draw_prompt(recipe, rng)
            ids = tokenizer(prompt + draw_response(category, rng) + EOS)["input_ids"][: recipe.max_text]
            inputs.append(torch.tensor(ids))
            labels.append(torch.tensor([IGNORED] * recipe.prompt_tokens + ids[recipe.prompt_tokens :]))
        yield (
            pad_sequence(inputs, batch_first=True, padding_value=tokenizer.pad_token_id),
            pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        )


def teach(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    """Supervised training on responses, in place."""
    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for step, (inputs, labels) in enumerate(itertools.islice(stream_batches(recipe, tokenizer), recipe.steps)):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, 2.0 * (1.0 - step / recipe.steps))
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits
        cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def measure_lengths(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> dict[str, list[int]]:
    """Sampled response lengths in tokens, by mark of the category, shortest first; equally many of each."""
    rng = random.Random(f"{recipe.seed}/lengths")
    marks = [category.mark for category in recipe.categories]
    asked = [marks[index % len(marks)] for index in range(recipe.measured_responses)]
    texts = [mark + "".join(rng.choices(DIGITS, k=recipe.prompt_digits)) + END_OF_PROMPT for mark in asked]
    tokens = model.generate(**tokenizer(texts, return_tensors="pt"), max_new_tokens=recipe.max_new_tokens)
    lengths: dict[str, list[int]] = {mark: [] for mark in marks}
    for mark, row in zip(asked, tokens[:, recipe.prompt_tokens :], strict=True):
        lengths[mark].append(int((row != tokenizer.pad_token_id).sum()))
    return {mark: sorted(values) for mark, values in lengths.items()}


# Cache


def _describe(recipe: Recipe) -> dict[str, Any]:
    """What finished work is recognised by: its recipe and the SHA-256 of the sources that follow it."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(reward.__file__).read_bytes()).hexdigest()
    return json.loads(json.dumps({"recipe": asdict(recipe), "sources_sha256": digest}))


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of finished work, or an empty one."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _build(recipe: Recipe, folder: Path, threads: int) -> dict[str, Any]:
    """Train and write everything into an empty folder; return what was measured."""
    import torch

    started = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    teach(model.train(), tokenizer, recipe)
    lengths = measure_lengths(model.eval(), tokenizer, recipe)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_prompts(recipe, folder / "prompts.jsonl")
    return {
        "parameters": model.num_parameters(),
        "mean_lengths": {mark: round(_mean(values), 1) for mark, values in lengths.items()},
        "mean_length": round(sum(c.share * _mean(lengths[c.mark]) for c in recipe.categories), 1),
        "capped_share": round(
            sum(c.share * _mean([n >= recipe.max_new_tokens for n in lengths[c.mark]]) for c in recipe.categories), 3
        ),
        "seconds": round(time.monotonic() - started, 1),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _build_and_install(recipe: Recipe, output: Path, described: dict[str, Any], threads: int) -> dict[str, Any]:
    """Build beside ``output`` and rename, so that an interruption leaves nothing half-made."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        folder = Path(scratch) / "work"
        folder.mkdir()
        measured = _build(recipe, folder, threads)
        manifest = json.dumps(described | {"measured": measured}, indent=2)
        (folder / "manifest.json").write_text(manifest + "\n", encoding="utf-8")
        if output.exists():  # outdated: it vanishes with the scratch folder
            os.rename(output, Path(scratch) / "replaced")
        os.rename(folder, output)
    return measured
