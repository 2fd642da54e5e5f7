"""``python average_rank.py RANK RANKS PORT MODEL FOLDER``: the average of a policy's weights under DeepSpeed.

Raises unless it is that of the weights after each update, OpenRLHF's own where that runs, saved whole, and resumed exactly.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from balance_rank import RATE, cut, settings, strategy_of
from leaving import leave

CASES = ((2, 0), (3, 4))
"""ZeRO's stage, and the rank of the adapters; 0 for none."""
BETA = 0.75
UPDATES = 3


def main(rank: str, ranks: str, port: str, model: str, folder: str) -> None:
    """Try ZeRO-2 and ZeRO-3, the whole model and adapters."""
    os.environ.update(
        RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu"
    )
    from dapo_openrlhf.backend.device import stand_in_for_cuda
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    stand_in_for_cuda()
    import_openrlhf_lightly()
    import torch

    torch.set_num_threads(1)
    for stage, adapters in CASES:
        check(model, stage, adapters, Path(folder) / f"{stage}-{adapters}")


def check(model: str, stage: int, adapters: int, folder: Path) -> None:
    """Train, save, and resume."""
    import torch
    from safetensors.torch import load_file

    loaded = load(model, stage, adapters)
    inner = loaded.weights._models[0].inner
    theirs = OpenRlhfs(inner) if stage == 2 else None
    expected = trained(inner)
    for step in range(UPDATES):
        train(loaded, step)
        expected = {name: BETA * expected[name] + (1 - BETA) * part for name, part in trained(inner).items()}
        if theirs is not None:
            theirs.update()
    assert max((trained(inner)[name] - part).abs().max().item() for name, part in expected.items()) > RATE / 2
    now = {name: tensor.clone() for name, tensor in loaded.weights._whole.tensors()}
    loaded.saving.snapshot(str(folder / "checkpoint"))
    loaded.saving.write_snapshot()
    torch.distributed.barrier()
    loaded.saving.save(str(folder / "model"))
    torch.distributed.barrier()
    for path in (folder / "checkpoint", folder / "model"):
        saved, averaged = read(path), read(path / "ema")
        assert [name for name, tensor in now.items() if not torch.equal(saved[name], tensor)] == []
        if adapters:
            found = load_file(path / "ema" / "adapter" / "adapter_model.safetensors")
            for name, tensor in found.items():
                own = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
                torch.testing.assert_close(tensor, expected[own], rtol=1e-5, atol=1e-7)
            assert len(found) == len(expected)
            changed = {name for name in saved if not torch.equal(saved[name], averaged[name])}
            assert changed == {name for name in saved if "self_attn" in name and "proj" in name}, changed
            continue
        published = whole(inner, expected)
        for name, tensor in averaged.items():
            torch.testing.assert_close(tensor, published[name], rtol=1e-5, atol=1e-7)
        for name, tensor in () if theirs is None else theirs.parts.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)

    resumed = load(model, stage, adapters, checkpoint=str(folder / "checkpoint"))
    for one in (loaded, resumed):
        train(one, UPDATES)
    same = [r.rank._average.state() for r in (loaded, resumed)]
    assert same[0].keys() == same[1].keys()
    assert bool(same[0]) == (stage == 3 or torch.distributed.get_rank() == 0)
    assert [name for name, part in same[0].items() if not torch.equal(part, same[1][name])] == []


class OpenRlhfs:
    """OpenRLHF's own average of a module on this rank."""

    def __init__(self, module: Any) -> None:
        import torch

        from dapo_openrlhf.backend.trainer.strategy import Strategy

        self._module = module
        self._copies = torch.nn.ParameterList(part.detach().clone() for part in module.parameters())
        self._strategy: Any = Strategy.__new__(Strategy)
        self._strategy.time_steps = {"ema": 0}
        self._strategy.accumulated_gradient, self._strategy.use_dynamic_batch, self._strategy.stage = 1, True, 2

    def update(self) -> None:
        """As after each optimizer step."""
        self._strategy.moving_average(self._module, self._copies, BETA, "cpu")

    @property
    def parts(self) -> dict[str, Any]:
        """By the module's names."""
        names = [name for name, _ in self._module.named_parameters()]
        return dict(zip(names, (part.detach() for part in self._copies.parameters()), strict=True))


def load(model: str, stage: int, adapters: int, *, checkpoint: str | None = None) -> Any:
    """A rank that keeps an average."""
    from dapo_openrlhf.backend.trainer.loading import load_rank
    from dapo_openrlhf.backend.trainer.spans import Spans
    from dapo_openrlhf.backend.trainer.step_settings import Beginning

    strategy = strategy_of(model, stage, adapters)
    strategy.args.train.enable_ema, strategy.args.train.ema_beta = True, BETA
    strategy.setup_distributed()
    done = UPDATES if checkpoint else 0
    beginning = Beginning(total_updates=9, updates_done=done, first_step=done, checkpoint=checkpoint, reference=None)
    return load_rank(strategy, settings(), beginning, spans=Spans("DeepSpeed"))


def train(loaded: Any, step: int) -> None:
    """One update."""
    import torch

    plans, tokens = cut(step)
    report = loaded.rank.train(plans[torch.distributed.get_rank()], tokens)
    assert [outcome.not_finite for outcome in report.outcomes] == [{}]


def trained(inner: Any) -> dict[str, Any]:
    """Whole copies of the trained parameters, by their names."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    named = {name: part for name, part in inner.named_parameters() if part.requires_grad}
    partitioned = [part for part in named.values() if hasattr(part, "ds_id")]
    with GatheredParameters(partitioned, enabled=bool(partitioned)):
        return {name: part.detach().clone() for name, part in named.items()}


def whole(inner: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """Tensors by the module's names as a checkpoint names and shapes them."""
    from dapo_openrlhf.backend.trainer.checkpoint_names import units

    found: dict[str, Any] = {}
    for unit in units(inner):
        found.update(unit.convert({name: parts[name] for name in unit.sources}, inner))
    return found


def read(folder: Path) -> dict[str, Any]:
    """A saved model's tensors."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
