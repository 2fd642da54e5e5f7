"""From a recipe to a model's folder, and the command line of the scripts that build one."""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model_folder import read_manifest

from arithmetic_model.problems import SOURCE, take_problems
from arithmetic_model.recipe import Recipe
from dapo_openrlhf.whole_file import whole_file


def describe_build(recipe: Recipe) -> dict[str, object]:
    """What a finished build is recognised by: its recipe and the SHA-256 of the sources that follow it."""
    sources = (*sorted(Path(__file__).parent.glob("*.py")), SOURCE)
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return {"recipe": asdict(recipe), "sources_sha256": digest}


def build(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train and save a model into an empty folder; return what was measured."""
    import torch
    import transformers

    from arithmetic_model.accuracy import measure_accuracy
    from arithmetic_model.network import build_model, build_tokenizer
    from arithmetic_model.warm_up import warm_up

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


def build_and_install(recipe: Recipe, output: Path) -> dict[str, Any]:
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
