"""Ten training steps of a tiny Llama in PyTorch, with AdamW and with Muon.

Writes test/fixtures/training/: config.json and model.safetensors, the model that both begin with; expected.json (batches,
options, loss, gradient norm and learning rate of each step); expected.safetensors (every gradient of each step, every
weight after step 10).

The optimizers are torch's own. One thing is patched: torch.optim.Muon orthogonalizes in bfloat16, and here the same
code runs in float32, the precision Pondera computes in.

Run: pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 && python test/reference/training.py
"""

import torch
import transformers
from safetensors.torch import save_file
from torch.optim import _muon
from transformers import LlamaForCausalLM

from fixtures import FIXTURES, deterministic, versions, write_json
from llama import VOCABULARY, build

NAME = "training"
# Narrower than llama-gqa: twenty steps' gradients of all weights are to fit among the fixtures.
SIZES = dict(hidden_size=8, head_dim=4, intermediate_size=12)
STEPS, B, T = 10, 3, 12
LEARNING_RATE = 1e-2
ADAMW = dict(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
MUON_LEARNING_RATE = 2e-2
MUON = dict(
    weight_decay=0.1, momentum=0.95, nesterov=True, ns_coefficients=(3.4445, -4.775, 2.0315), ns_steps=5, eps=1e-7
)
# Among the gradient norms of these runs: some steps are clipped, some are not.
MAX_NORM = 4.0
# What Muon moves: the matrices of the layers. Embedding, head and norms stay with AdamW.
HIDDEN_MATRIX = "_proj.weight"


class TorchInPrecision:
    """The torch module, except that `bfloat16` means the given dtype: what Muon's Newton-Schulz then computes in."""

    def __init__(self, dtype: torch.dtype):
        self.bfloat16 = dtype

    def __getattr__(self, name: str):
        return getattr(torch, name)


def optimizers(model: LlamaForCausalLM, kind: str) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    muon = [p for name, p in named if kind != "adamw" and name.endswith(HIDDEN_MATRIX)]
    rest = [p for name, p in named if kind == "adamw" or not name.endswith(HIDDEN_MATRIX)]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2]},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=LEARNING_RATE, foreach=False, fused=False, **ADAMW)
    if kind == "adamw":
        return [adamw]
    return [torch.optim.Muon(muon, lr=MUON_LEARNING_RATE, adjust_lr_fn="original", **MUON), adamw]


def batches() -> list[dict[str, torch.Tensor]]:
    """Rows of two sequences, the second from a random place on; no token is to predict another sequence's."""
    draw = deterministic(12)  # with some other seeds float32 drifts from float64 by more than the test allows
    rows = []
    for _ in range(STEPS):
        ids = torch.randint(0, VOCABULARY, (B, T + 1), generator=draw)
        starts = torch.randint(1, T, (B, 1), generator=draw)
        column = torch.arange(T).expand(B, T)
        second = column >= starts
        mask = (torch.rand(B, T, generator=draw) < 0.7) & (column != starts - 1)
        rows.append(
            {
                "inputIds": ids[:, :-1],
                "targets": ids[:, 1:],
                "positions": torch.where(second, column - starts, column),
                "segments": 1 + second.to(torch.int32),
                "lossMask": mask.to(torch.int32),
            }
        )
    return rows


def attention_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, T, T], added to the scores: nothing where a token may look, the least number elsewhere."""
    same = segments[:, :, None] == segments[:, None, :]
    return torch.zeros(same.shape, dtype=dtype).masked_fill(~same.tril(), torch.finfo(dtype).min)[:, None]


def train(kind: str, data: list[dict[str, torch.Tensor]], dtype: torch.dtype = torch.float32):
    """Runs the ten steps; returns the per-step records and the tensors to keep, gradients with the step as first axis."""
    _muon.torch = TorchInPrecision(dtype)
    model = LlamaForCausalLM.from_pretrained(FIXTURES / NAME, attn_implementation="eager", dtype=dtype)
    # transformers lets no gradient into the embedding of the padding token, 0. Here it is a token like any other.
    model.get_input_embeddings().padding_idx = None
    steps, gradients = [], {name: [] for name, _ in model.named_parameters()}
    active = optimizers(model, kind)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in active]
    for step, batch in enumerate(data, start=1):
        decay = 1 - (step - 1) / STEPS
        for optimizer, rates in zip(active, base_rates):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * decay
        logits = model(
            batch["inputIds"],
            position_ids=batch["positions"],
            attention_mask=attention_mask(batch["segments"], dtype),
            use_cache=False,
        ).logits
        nll = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch["targets"].long(), reduction="none"
        )
        mask = batch["lossMask"].to(dtype)
        loss = (nll * mask).sum() / mask.sum()
        model.zero_grad()
        loss.backward()
        for name, p in model.named_parameters():
            gradients[name].append(p.grad.clone())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM, foreach=False)
        for optimizer in active:
            optimizer.step()
        steps.append(
            {
                "loss": loss.item(),
                "gradientNorm": norm.item(),
                "learningRates": [optimizer.param_groups[0]["lr"] for optimizer in active],
            }
        )
    kept = {f"gradient.{name}": torch.stack(each) for name, each in gradients.items()}
    kept |= {f"final.{name}": p.detach().clone() for name, p in model.named_parameters()}
    return steps, kept


def drift(kind: str, data, steps, kept) -> dict[str, float]:
    """How far float32 came from the same run in float64: the noise that no float32 implementation can avoid.

    Of tensors as the test measures it: the worst element, relative to the tensor's largest.
    """
    exact_steps, exact = train(kind, data, torch.float64)
    relative = lambda key: max(abs(a[key] / b[key] - 1) for a, b in zip(steps, exact_steps))
    worst = lambda a, b: ((a.double() - b).abs().max() / b.abs().max()).item()
    return {
        "loss": relative("loss"),
        "gradientNorm": relative("gradientNorm"),
        "gradients": [
            max(worst(kept[k][i], exact[k][i]) for k in kept if k.startswith("gradient.")) for i in range(STEPS)
        ],
        "final": max(worst(kept[k], exact[k]) for k in kept if k.startswith("final.")),
    }


def main() -> None:
    data = batches()
    build(**SIZES).save_pretrained(FIXTURES / NAME)
    (FIXTURES / NAME / "generation_config.json").unlink()  # nothing is generated
    runs, tensors = {}, {}
    for kind in ("adamw", "muon"):
        steps, kept = train(kind, data)
        off = drift(kind, data, steps, kept)
        print(kind, [round(s["loss"], 4) for s in steps], [round(s["gradientNorm"], 3) for s in steps], off)
        runs[kind] = {"driftFromFloat64": off, "steps": steps}
        tensors |= {f"{kind}.{name}": tensor for name, tensor in kept.items()}
    save_file(tensors, FIXTURES / NAME / "expected.safetensors")
    write_json(
        f"{NAME}/expected.json",
        {
            "madeBy": "test/reference/training.py",
            "versions": versions(transformers),
            "options": {
                "maxNorm": MAX_NORM,
                "learningRate": LEARNING_RATE,
                "adamw": ADAMW,
                "muon": MUON | {"learningRate": MUON_LEARNING_RATE},
            },
            "batches": data,
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
