"""The benchmark's work: responses that vary in length as reasoning does, prompts of a known pass rate.

A prompt ends with the mark of its category. Each category has letters and an end-of-sequence hazard of its
own, so a response's length is geometric around its category's mean: a group's lengths are alike, all lengths
together have a heavy tail. The label says whether all, none or about half of a prompt's responses are right
(see ``reward.py``), independently of the category.

Such text is a Markov chain of characters, so the model needs no training: its embeddings and its head are set
to the chain's transition probabilities, and its layers, full-sized and random, add next to nothing. Every
machine gets the same lengths and the same pass rate, after seconds, and pays for generating and training what
any model of this shape costs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_openrlhf.bench.workload import reward

if TYPE_CHECKING:  # the heavy packages are imported where they are used, after the cache check
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

PAD, EOS, UNKNOWN = "<pad>", reward.END, "<unk>"
DIGITS = "0123456789"
NEVER = -20.0
"""Log-probability of what the model shall not write."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """Prompts whose responses are about equally long."""

    mark: str
    """Last character of the prompt."""
    letters: str
    """What responses consist of; disjoint from all other categories'."""
    mean_length: float
    """Mean response length before the cap, in tokens, the end token included; above 2."""
    share: float
    """Share of the prompts; all shares add up to 1."""

    @property
    def hazard(self) -> float:
        """Probability of the end token after each letter; a response has one letter at least."""
        return 1.0 / (self.mean_length - 1.0)

    def capped_mean_length(self, cap: int) -> float:
        """Mean response length in tokens when responses are cut at ``cap`` tokens."""
        return 1.0 + (1.0 - (1.0 - self.hazard) ** (cap - 1)) / self.hazard


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
    prompt_tokens: int = 12
    """Length of every prompt: digits and a mark."""
    max_new_tokens: int = 256
    """Longest response, in tokens."""
    hidden_size: int = 256
    """At least the number of different characters."""
    intermediate_size: int = 768
    layers: int = 4
    heads: int = 4
    head_size: int = 64
    """vLLM's attention on CPUs knows 32 and 64 among others, but nothing smaller."""
    layer_scale: float = 1e-3
    """Standard deviation of the layers' output projections, beside embeddings of size 1."""

    @property
    def max_len(self) -> int:
        """Longest prompt and response together, in tokens."""
        return self.prompt_tokens + self.max_new_tokens

    @property
    def pass_rate(self) -> float:
        """Expected share of groups dynamic sampling keeps, but for mixed groups that agree by chance."""
        return 1.0 - self.right_share - self.wrong_share

    @property
    def mean_length(self) -> float:
        """Expected response length, in tokens."""
        return sum(c.share * c.capped_mean_length(self.max_new_tokens) for c in self.categories)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work in its folder."""

    folder: Path
    recipe: Recipe
    parameters: int
    """Of the model."""

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


def prepare_workload(folder: Path, recipe: Recipe | None = None) -> Workload:
    """Build the work into ``folder`` unless it is there already.

    Raises ``FileExistsError`` rather than replace a folder that holds something else.
    """
    recipe = recipe or Recipe()
    folder = folder.resolve()
    described = _describe(recipe)
    manifest = _read_manifest(folder)
    if not described.items() <= manifest.items():
        if not manifest and folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} holds something else than a benchmark's work: it stays as it is")
        manifest = _build_and_install(recipe, folder, described)
    return Workload(folder=folder, recipe=recipe, parameters=manifest["parameters"])


# Prompts


def draw_prompts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the prompts with their labels."""
    rng = random.Random(f"{recipe.seed}/prompts")
    marks = [category.mark for category in recipe.categories]
    shares = [category.share for category in recipe.categories]
    label_shares = (recipe.right_share, recipe.wrong_share, recipe.pass_rate)
    for _ in range(recipe.prompts):
        digits = "".join(rng.choices(DIGITS, k=recipe.prompt_tokens - 1))
        (mark,) = rng.choices(marks, shares)
        (label,) = rng.choices(("right", "wrong", "mixed"), label_shares)
        yield digits + mark, label


def write_prompts(recipe: Recipe, path: Path) -> None:
    """Write the prompts as JSON lines."""
    rows = (json.dumps({"input": prompt, "label": label}) for prompt, label in draw_prompts(recipe))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


# Tokenizer and model


def list_tokens(recipe: Recipe) -> list[str]:
    """All tokens, in the order of their ids."""
    characters = "".join(category.mark + category.letters for category in recipe.categories)
    return [PAD, EOS, UNKNOWN, *DIGITS, *characters]


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A tokenizer of characters; it adds nothing of its own to a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(list_tokens(recipe))}
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


def next_logprobs(recipe: Recipe) -> Tensor:
    """Log-probability of each token (column) after each token (row): the chain the model shall write."""
    import torch

    tokens = list_tokens(recipe)
    ids = {token: index for index, token in enumerate(tokens)}
    logprobs = torch.full((len(tokens), len(tokens)), NEVER)
    logprobs[:, ids[EOS]] = 0.0  # whatever is never followed by anything
    for category in recipe.categories:
        own = [ids[letter] for letter in category.letters]
        uniform = torch.tensor(1.0 / len(own))
        logprobs[ids[category.mark], own] = uniform.log()
        logprobs[ids[category.mark], ids[EOS]] = NEVER
        for letter in own:
            logprobs[letter, own] = (uniform * (1.0 - category.hazard)).log()
            logprobs[letter, ids[EOS]] = torch.tensor(category.hazard).log()
    return logprobs


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A model in float32, with untied embeddings, that writes the chain."""
    import torch
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
        max_position_embeddings=recipe.max_len,
        tie_word_embeddings=False,
        bos_token_id=None,
        dtype="float32",
        **special,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **special)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.normal_(std=recipe.layer_scale)
        # Orthonormal directions, one a token: the head reads off the last token and looks up what may follow.
        # The embeddings' root mean square is 1, so the last norm leaves them as they are.
        directions = torch.linalg.qr(torch.randn(recipe.hidden_size, recipe.hidden_size))[0][: len(tokenizer)]
        model.model.embed_tokens.weight.copy_(directions * recipe.hidden_size**0.5)
        model.lm_head.weight.copy_(next_logprobs(recipe).T @ directions / recipe.hidden_size**0.5)
    return model


# Cache


def _describe(recipe: Recipe) -> dict[str, Any]:
    """What finished work is recognised by: its recipe and the SHA-256 of the source that follows it."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return json.loads(json.dumps({"recipe": asdict(recipe), "source_sha256": digest}))


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of finished work, or an empty one."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _build(recipe: Recipe, folder: Path) -> int:
    """Write everything into an empty folder; return the number of parameters."""
    import torch

    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_prompts(recipe, folder / "prompts.jsonl")
    return model.num_parameters()


def _build_and_install(recipe: Recipe, output: Path, described: dict[str, Any]) -> dict[str, Any]:
    """Build beside ``output`` and rename, so that nothing half-made is left; return the manifest."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        folder = Path(scratch) / "work"
        folder.mkdir()
        manifest = described | {"parameters": _build(recipe, folder)}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if output.exists():  # outdated: it vanishes with the scratch folder
            os.rename(output, Path(scratch) / "replaced")
        os.rename(folder, output)
    return manifest
