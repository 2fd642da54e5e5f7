"""How long a checkpoint holds up training, and how long it takes in all: ``python -m scripts.checkpoint_pause``.

One rank's weights and both moments of Adam, in float32, are saved three times: with torch as DeepSpeed does, which training
waits for; as this project does, where training waits for the copies; and the same once more, into the memory of the first
copies. The weights are random; files go below the working folder, whose disk counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from dapo_openrlhf.backend.trainer.state_tree import HostCopies, Tree, write_tree
from dapo_openrlhf.pipeline.manifest import write_manifest

LAYER_PARAMETERS = 1 << 23
"""Parameters of each tensor, as a layer of a model of 0.5 B has about."""


def state_of(parameters: int) -> Tree:
    """Weights and moments of a model of about this size."""
    names = [f"layer.{index}" for index in range(max(1, parameters // LAYER_PARAMETERS))]
    return {kind: {name: torch.rand(LAYER_PARAMETERS) for name in names} for kind in ("model", "exp_avg", "exp_avg_sq")}


def save_at_once(state: Tree, folder: Path) -> float:
    """Write the state with torch and the weights with safetensors, while training waits; returns the seconds."""
    begun = time.monotonic()
    folder.mkdir()
    torch.save(state, folder / "state.pt")
    save_file(state["model"], folder / "model.safetensors")
    return time.monotonic() - begun


def checkpoint(state: Tree, copies: HostCopies, folder: Path) -> tuple[float, float]:
    """Copy the state, then write the copies with hashes of the files; returns the seconds of both."""
    begun = time.monotonic()
    copied, model = copies.copy(state, "state"), copies.copy(state["model"], "model")
    waited = time.monotonic() - begun
    folder.mkdir()
    write_tree(copied, folder / "state")
    save_file(model, folder / "model.safetensors")
    write_manifest(folder)
    return waited, time.monotonic() - begun - waited


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--millions", type=int, default=250, help="parameters in millions; needs 28 bytes of memory each"
    )
    options = parser.parse_args()
    state, copies = state_of(options.millions * 1_000_000), HostCopies()
    with tempfile.TemporaryDirectory(dir=".") as place:
        folder = Path(place)
        print(f"saved at once: training waits {save_at_once(state, folder / 'once'):.2f} s")
        for name in ("first", "second"):
            waited, later = checkpoint(state, copies, folder / name)
            print(f"{name} checkpoint: training waits {waited:.2f} s, and it is complete {later:.2f} s later")


if __name__ == "__main__":
    main()
