"""Values and gradients of the composite operations, from torch and from transformers' Llama.

Writes test/fixtures/rules.json. Each case has inputs, options, the output, a cotangent (the gradient that flows into
the output) and the gradient by each input that has one.

Run: pip install torch==2.15.0 transformers==5.23.0 && python test/reference/rules.py
"""

import torch
import transformers
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from fixtures import deterministic, versions, write_json

B, T, H, HK, D = 2, 7, 4, 2, 6
THETA = 10000.0


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    module = LlamaRMSNorm(x.shape[-1], eps)
    # The module's own parameter would be a copy; the caller's tensor must collect the gradient.
    del module.weight
    module.weight = weight
    return module(x)


def rope(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotates x f32[B, H, T, D] by its positions i32[B, T], half-split."""
    config = LlamaConfig(head_dim=x.shape[-1], rope_parameters={"rope_type": "default", "rope_theta": theta})
    cos, sin = LlamaRotaryEmbedding(config)(x, positions)
    return apply_rotary_pos_emb(x, x, cos, sin)[0]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """q f32[B, H, T, D], k and v f32[B, Hk, T, D]: a query sees itself and what precedes it in its own segment."""
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=(causal & same)[:, None], enable_gqa=True)


def case(operation, inputs: dict[str, torch.Tensor], draw: torch.Generator, **options) -> dict:
    leaves = {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    output = operation(*leaves.values(), **options)
    cotangent = torch.randn(output.shape, generator=draw)
    output.backward(cotangent)
    return {
        "inputs": inputs,
        "options": options,
        "output": output,
        "cotangent": cotangent,
        "gradients": {name: x.grad for name, x in leaves.items() if x.grad is not None},
    }


def main() -> None:
    draw = deterministic(16)
    normal = lambda *shape, scale=1.0: scale * torch.randn(shape, generator=draw)

    logits = normal(4, 9, scale=3)
    logits[1] += 500  # exp would overflow without the maximum taken off
    logits[2] = 0.25  # uniform
    logits[3, :5] = -1e9  # masked entries
    rows = normal(3, 5, 8, scale=2)
    rows[1, 0] = 1e-4 * rows[1, 0]  # so small that eps decides
    gate = torch.cat([normal(12, scale=4), torch.tensor([0.0, 100.0, -100.0, 1e-6])])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 40, 511]])
    segments = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 2, 0, 0]])
    q, k, v = normal(B, H, T, D), normal(B, HK, T, D), normal(B, HK, T, D)

    write_json(
        "rules.json",
        {
            "madeBy": "test/reference/rules.py",
            "versions": versions(transformers),
            "softmax": case(functional.softmax, {"x": logits}, draw, dim=-1),
            "log_softmax": case(functional.log_softmax, {"x": logits}, draw, dim=-1),
            "rms_norm": case(rms_norm, {"x": rows, "weight": 1 + normal(8, scale=0.3)}, draw, eps=1e-6),
            "silu": case(functional.silu, {"x": gate}, draw),
            "rope": case(rope, {"x": normal(B, H, T, D), "positions": positions}, draw, theta=THETA),
            "attention": case(attention, {"q": q, "k": k, "v": v, "segments": segments}, draw),
        },
    )


if __name__ == "__main__":
    main()
