"""A file of every dtype as the reference implementation of safetensors writes it, and torch's widening of halves.

Writes test/fixtures/tensors/all.safetensors, two shards of the same tensors with their index, and expected.json: bytes of
each tensor in hexadecimal, and a digest of every 16-bit pattern that is not NaN, widened to float32.

Run: pip install torch==2.15.0 safetensors==0.8.0 && python test/reference/tensors.py
"""

import hashlib
import json

import safetensors
import torch
from safetensors.torch import save

from fixtures import FIXTURES, deterministic, versions, write_json

FOLDER = FIXTURES / "tensors"
NAMES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def widened(dtype: torch.dtype) -> str:
    """SHA-256 of the float32 bytes of each of the 65,536 patterns in turn, NaNs (whose payload may change) left out."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    values = patterns.to(torch.float32)
    return hashlib.sha256(raw(values[~torch.isnan(values)])).hexdigest()


def main() -> None:
    draw = deterministic(0)
    halves = [0.0, -0.0, 1.0, -2.5, 65504.0, 6e-8, 6.1e-5, float("inf"), float("-inf")]
    tensors = {
        "weight": torch.randn(3, 5, generator=draw),
        "a.bias": torch.randn(5, generator=draw),
        "half": torch.tensor(halves, dtype=torch.float16),
        "brain": torch.tensor(halves, dtype=torch.bfloat16).reshape(3, 3),
        "ids": torch.tensor([2**62, -1, 0]),
        "positions": torch.arange(7, dtype=torch.int32),
        "signed": torch.tensor([-128, 127, 0], dtype=torch.int8),
        "bytes": torch.tensor([[255], [0]], dtype=torch.uint8),
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        'näme "quoted"': torch.tensor([1.0]),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    (FOLDER / "all.safetensors").write_bytes(save(tensors, metadata))

    names = sorted(tensors)
    weight_map = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        shard = {name: tensors[name] for name in names if weight_map[name] == file}
        (FOLDER / file).write_bytes(save(shard, metadata))
    index = {"metadata": {"total_size": sum(len(raw(t)) for t in tensors.values())}, "weight_map": weight_map}
    (FOLDER / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    write_json(
        "tensors/expected.json",
        {
            "madeBy": "test/reference/tensors.py",
            "versions": versions(safetensors),
            "metadata": metadata,
            "tensors": {
                name: {"dtype": NAMES[t.dtype], "shape": list(t.shape), "hex": raw(t).hex()}
                for name, t in tensors.items()
            },
            "widened": {"f16": widened(torch.float16), "bf16": widened(torch.bfloat16)},
        },
    )


if __name__ == "__main__":
    main()
