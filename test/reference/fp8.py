"""A sharded checkpoint with 8-bit floats, as DeepSeek-V3 is published: what torch reads from every byte, and from blocks.

Writes test/fixtures/fp8/: two shards and their index, and expected.safetensors with the matrices as float32.

Run: pip install torch==2.15.0 safetensors==0.8.0 && python test/reference/fp8.py
"""

import json

import torch
from fixtures import FIXTURES, deterministic
from safetensors.torch import save_file

FOLDER = FIXTURES / "fp8"


def scaled(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """A matrix of 8-bit floats, each 128 × 128 block times its scale."""
    wide = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return weight.to(torch.float32) * wide[: weight.shape[0], : weight.shape[1]]


def main() -> None:
    draw = deterministic(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    shards, expected = ({}, {}), {}
    # Short blocks below and beside a whole one; exactly one block of rows, of columns; two blocks of rows; a part of one.
    for number, (rows, columns) in enumerate([(129, 130), (128, 3), (2, 128), (256, 2), (3, 5)]):
        name = f"model.layers.{number}.mlp.up_proj.weight"
        weight = torch.randn(rows, columns, generator=draw).mul(100).to(torch.float8_e4m3fn)
        scales = torch.rand(-(-rows // 128), -(-columns // 128), generator=draw) + 0.01
        # A matrix and its scales may lie in different shards.
        shards[number % 2][name] = weight
        shards[(number + 1) % 2][f"{name}_scale_inv"] = scales
        expected[name] = scaled(weight, scales)
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 256).view(torch.float8_e4m3fn)
    shards[0]["every.weight"], shards[0]["every.weight_scale_inv"] = every, torch.tensor([[1.0, 2.0]])
    expected["every.weight"] = scaled(every, torch.tensor([[1.0, 2.0]]))
    shards[1]["norm.weight"] = torch.tensor([1.0, -2.5], dtype=torch.bfloat16)
    expected["norm.weight"] = torch.tensor([1.0, -2.5])
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file(shard, FOLDER / file, {"format": "pt"})
        places |= {name: file for name in shard}
    index = {"metadata": {"total_size": 0}, "weight_map": dict(sorted(places.items()))}
    (FOLDER / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    save_file(expected, FOLDER / "expected.safetensors")


if __name__ == "__main__":
    main()
