"""Ten training steps of the llama-gqa fixture in PyTorch, with AdamW and with Muon.

Writes test/fixtures/training.json (batches, options, loss, gradient norms and learning rate of each step) and
test/fixtures/training.safetensors (every gradient at steps 1 and 10 with AdamW, every weight
after step 10).

The optimizers are torch's own. One thing is patched: torch.optim.Muon orthogonalizes in bfloat16, and here the same
code runs in float32, the precision Pondera computes in.

Run: pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 && python test/reference/training.py
     (after llama.py, which makes the model)
"""

import torch
import transformers
from safetensors.torch import save_file
from torch.optim import _muon
from transformers import LlamaForCausalLM

from fixtures import FIXTURES, deterministic, versions, write_json

STEPS, B, T = 10, 3, 12
LEARNING_RATE = 1e-2
ADAMW = dict(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
MUON_LEARNING_RATE = 2e-2
MUON = dict(
    weight_decay=0.1, momentum=0.95, nesterov=True, ns_coefficients=(3.4445, -4.775, 2.0315), ns_steps=5, eps=1e-7
)
# Among the gradient norms of these runs: some steps are clipped, some are not.
MAX_NORM = 6.0
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


def batches(vocab: int) -> list[dict[str, torch.Tensor]]:
    draw = deterministic(12)
    rows = []
    for _ in range(STEPS):
        ids = torch.randint(0, vocab, (B, T + 1), generator=draw)
        mask = (torch.rand(B, T, generator=draw) < 0.7).to(torch.int32)
        mask[0, 0] = 1
        rows.append({"inputIds": ids[:, :-1], "targets": ids[:, 1:], "lossMask": mask})
    return rows


def train(kind: str, data: list[dict[str, torch.Tensor]], dtype: torch.dtype = torch.float32):
    """Runs the ten steps; returns the per-step records and the tensors to keep."""
    _muon.torch = TorchInPrecision(dtype)
    model = LlamaForCausalLM.from_pretrained(FIXTURES / "llama-gqa", attn_implementation="eager", dtype=dtype)
    # transformers lets no gradient into the embedding of the padding token, 0. Here it is a token like any other.
    model.get_input_embeddings().padding_idx = None
    steps, kept = [], {}
    active = optimizers(model, kind)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in active]
    for step, batch in enumerate(data, start=1):
        decay = 1 - (step - 1) / STEPS
        for optimizer, rates in zip(active, base_rates):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * decay
        logits = model(batch["inputIds"], use_cache=False).logits
        nll = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch["targets"].long(), reduction="none"
        )
        mask = batch["lossMask"].to(dtype)
        loss = (nll * mask).sum() / mask.sum()
        model.zero_grad()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM, foreach=False)
        for optimizer in active:
            optimizer.step()
        steps.append(
            {
                "loss": loss.item(),
                "gradientNorm": norm.item(),
                "learningRates": [optimizer.param_groups[0]["lr"] for optimizer in active],
                "gradientNorms": {name: g.norm().item() for name, g in gradients.items()},
            }
        )
        if step in (1, STEPS):
            kept |= {f"gradient{step}.{name}": g for name, g in gradients.items()}
    kept |= {f"final.{name}": p.detach().clone() for name, p in model.named_parameters()}
    return steps, kept


def drift(kind: str, data, steps, kept) -> dict[str, float]:
    """How far float32 ended from the same run in float64: the noise that no float32 implementation can avoid."""
    exact_steps, exact = train(kind, data, torch.float64)
    relative = lambda a, b: abs(a - b) / abs(b)
    worst = lambda part: max(
        ((kept[k].double() - exact[k]).norm() / exact[k].norm()).item() for k in kept if k.startswith(part)
    )
    return {
        "loss": max(relative(a["loss"], b["loss"]) for a, b in zip(steps, exact_steps)),
        "gradientNorm": max(relative(a["gradientNorm"], b["gradientNorm"]) for a, b in zip(steps, exact_steps)),
        "gradient1": worst("gradient1."),
        "gradient10": worst("gradient10."),
        "final": worst("final."),
    }


def main() -> None:
    data = batches(vocab=20)
    runs, tensors = {}, {}
    for kind in ("adamw", "muon"):
        steps, kept = train(kind, data)
        off = drift(kind, data, steps, kept)
        print(kind, [round(s["loss"], 4) for s in steps], [round(s["gradientNorm"], 3) for s in steps], off)
        runs[kind] = {"driftFromFloat64": off, "steps": steps}
        # Gradients of one run are enough: the other starts from the same, and its final weights tell the rest.
        tensors |= {f"{kind}.{k}": v for k, v in kept.items() if kind == "adamw" or k.startswith("final.")}
    save_file(tensors, FIXTURES / "training.safetensors")
    write_json(
        "training.json",
        {
            "madeBy": "test/reference/training.py",
            "versions": versions(transformers),
            "model": "llama-gqa",
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
