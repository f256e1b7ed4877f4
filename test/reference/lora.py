"""Low-rank adapters on a tiny Llama, by PEFT's formula and in PEFT's layout, with torch's logits, loss and gradients.

Every linear layer of test/fixtures/arch-llama-wide computes `linear(x) + lora_B(lora_A(x)) * (alpha / r)`, as peft's
`lora.Linear.forward` does without dropout. Writes test/fixtures/lora-wide/: adapter_config.json and
adapter_model.safetensors, which `loadModel` reads, gradients.safetensors, and expected.json.

Run: pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 && python test/reference/lora.py
     (after architectures.py, which makes the model)
"""

import json

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from fixtures import FIXTURES, deterministic, versions, write_json

RANK, ALPHA = 3, 5
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PREFIX = "base_model.model."


class Adapted(torch.nn.Module):
    def __init__(self, base: torch.nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        draw = lambda *shape: torch.nn.Parameter(0.3 * torch.randn(*shape, generator=generator))
        self.lora_A = draw(RANK, base.in_features)
        self.lora_B = draw(base.out_features, RANK)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (x @ self.lora_A.T @ self.lora_B.T) * (ALPHA / RANK)


generator = deterministic(11)
model = LlamaForCausalLM.from_pretrained(FIXTURES / "arch-llama-wide", dtype=torch.float32, attn_implementation="eager")
model.requires_grad_(False)
adapted: dict[str, Adapted] = {}
for name, module in list(model.named_modules()):
    if name.split(".")[-1] in TARGETS:
        adapted[name] = Adapted(module, generator)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, adapted[name])

ids = torch.randint(0, model.config.vocab_size, (2, 7), generator=generator)
logits = model(input_ids=ids).logits
# The mean over all tokens but the first of each row.
loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
loss.backward()

tensors, gradients = {}, {}
for name, module in adapted.items():
    for part in ("lora_A", "lora_B"):
        parameter = getattr(module, part)
        tensors[f"{PREFIX}{name}.{part}.weight"] = parameter.detach().contiguous()
        gradients[f"{name}.{part}.weight"] = parameter.grad.contiguous()
folder = FIXTURES / "lora-wide"
folder.mkdir(exist_ok=True)
save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
save_file(gradients, folder / "gradients.safetensors")
config = {
    "base_model_name_or_path": "../arch-llama-wide",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": RANK,
    "rank_pattern": {},
    "target_modules": TARGETS,
    "task_type": "CAUSAL_LM",
}
(folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
write_json(
    "lora-wide/expected.json",
    {
        "madeBy": "test/reference/lora.py",
        "versions": versions(transformers, safetensors),
        "ids": ids,
        "logits": logits,
        "loss": loss.item(),
    },
)
