"""What the trainer's end of the object store packs. The senders between GPUs are in ``test_real_transfer.py``."""

from __future__ import annotations

import torch
import xxhash

from dapo_openrlhf.backend.messages import WeightLayout
from dapo_openrlhf.backend.transfer.senders.object_store import ALIGNMENT, ObjectStoreSender


def test_a_flat_buffer_holds_every_tensor_where_its_manifest_says() -> None:
    named = {
        "a": torch.arange(6.0).view(2, 3).t(),
        "b": torch.arange(40).bfloat16(),
        "c": torch.tensor([7], dtype=torch.int8),
    }
    layout = WeightLayout(
        names=tuple(named),
        dtypes=("float32", "bfloat16", "int8"),
        shapes=tuple(tuple(tensor.shape) for tensor in named.values()),
        sizes=tuple(tensor.nbytes for tensor in named.values()),
    )
    sender = ObjectStoreSender(layout)
    for factor in (1, 2):  # the same buffer again, with what it holds now
        manifest, buffer = sender.pack((name, tensor * factor) for name, tensor in named.items())
        assert manifest.offsets == (0, ALIGNMENT, 3 * ALIGNMENT, 4 * ALIGNMENT)
        assert (manifest.bytes, manifest.names) == (len(buffer), ("a", "b", "c"))
        assert manifest.checksum == xxhash.xxh3_64_intdigest(buffer)
        for (_, tensor), start in zip(named.items(), manifest.offsets, strict=False):
            held = torch.from_numpy(buffer)[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            assert torch.equal(held, tensor * factor)


def test_parameters_are_exhausted_because_gathering_them_takes_every_rank() -> None:
    ended = []

    def parameters():  # type: ignore[no-untyped-def]
        yield "a", torch.zeros(1)
        ended.append(True)

    ObjectStoreSender(WeightLayout(names=("a",), dtypes=("float32",), shapes=((1,),), sizes=(4,))).pack(parameters())
    assert ended
