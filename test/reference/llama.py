"""A tiny Llama whose heads are 8 wide, as transformers saves it, with transformers' logits.

Writes test/fixtures/llama-gqa/: config.json, generation_config.json and model.safetensors (float32) as `save_pretrained` writes
them, and expected.json. The decoding kernel refuses heads so narrow; models that decode, too, are architectures.py's.

Run: pip install torch==2.15.0 transformers==5.23.0 && python test/reference/llama.py
"""

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from fixtures import FIXTURES, deterministic, versions, write_json

NAME = "llama-gqa"
VOCABULARY = 20


def build(hidden_size=16, head_dim=8, intermediate_size=24) -> LlamaForCausalLM:
    """The model, weights drawn so that attention and norms matter (unlike the usual 0.02 and ones)."""
    draw = torch.Generator().manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=False,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else noise * 1.5 * parameter.shape[1] ** -0.5)
    return model


def main() -> None:
    draw = deterministic(11)
    model = build()
    ids = torch.randint(1, VOCABULARY, (2, 12), generator=draw)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    model.save_pretrained(FIXTURES / NAME)
    write_json(
        f"{NAME}/expected.json",
        {
            "madeBy": "test/reference/llama.py",
            "versions": versions(transformers),
            "inputIds": ids,
            "logits": logits,
        },
    )


if __name__ == "__main__":
    main()
