"""On real DeepSpeed: what two ranks publish of a model, for every ZeRO stage and with other names in its checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from families import distinct_model
from patience import HANG_SECONDS
from tiny_model import make_tiny_model

pytestmark = pytest.mark.real


@pytest.mark.parametrize(("stage", "family"), [(1, ""), (2, ""), (2, "Mixtral"), (3, ""), (3, "Mixtral"), (3, "GPT-2")])
def test_two_ranks_publish_what_the_checkpoint_holds(stage: int, family: str, tmp_path: Path, port: int) -> None:
    """Mixtral's checkpoint has a tensor for each expert; GPT-2's names look like ones that legacy renamings match."""
    model = tmp_path / "model"
    if family:
        distinct_model(family, seed=0).save_pretrained(model)
    else:
        make_tiny_model(model, tied=False)
    script = Path(__file__).parents[1] / "zero_ranks.py"
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(stage), str(port), str(model)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=HANG_SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-2000:]
