"""Tiny Llama models in Hugging Face layout, with transformers' logits and greedy continuation.

Writes four folders test/fixtures/llama-*: config.json, generation_config.json, model.safetensors as `save_pretrained`
writes them, and expected.json.

Run: pip install torch==2.15.0 transformers==5.23.0 && python test/reference/llama.py
"""

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from fixtures import FIXTURES, deterministic, versions, write_json

# Grouped heads and an untied head; then a tied head, one key/value head per query head, another base and odd sizes. The
# other two have heads 16 wide, the narrowest that the decoding kernel takes: one key/value head for all and heads that
# are wider together than the model; then a tied head.
CONFIGS = {
    "llama-gqa": dict(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
    ),
    "llama-tied": dict(
        vocab_size=23,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=8,
        intermediate_size=40,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
    ),
    "llama-wide": dict(
        vocab_size=20,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=40,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
    ),
    "llama-wide-tied": dict(
        vocab_size=19,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=24,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
    ),
}
# [B, T] of the ids that logits are given for
SHAPES = {"llama-gqa": (2, 12), "llama-tied": (3, 7), "llama-wide": (3, 20), "llama-wide-tied": (2, 9)}
PROMPT_LENGTHS = {"llama-gqa": 5, "llama-tied": 7, "llama-wide": 18, "llama-wide-tied": 3}
NEW_TOKENS = 16


def build(name: str) -> LlamaForCausalLM:
    """The fixture's model, weights drawn so that attention and norms matter (unlike the usual 0.02 and ones)."""
    draw = torch.Generator().manual_seed(sorted(CONFIGS).index(name))
    config = LlamaConfig(
        **CONFIGS[name],
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
    for name in CONFIGS:
        model = build(name)
        vocab = model.config.vocab_size
        ids = torch.randint(1, vocab, SHAPES[name], generator=draw)
        prompt = torch.randint(1, vocab, (1, PROMPT_LENGTHS[name]), generator=draw)
        # No stop token while generating: the continuation has all 16 tokens whatever they are.
        stop, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS
            )
            top = model(out, use_cache=False).logits[0, prompt.shape[1] - 1 : -1].topk(2).values
        continuation = out[0, prompt.shape[1] :]
        assert continuation.shape == (NEW_TOKENS,)
        model.generation_config.eos_token_id = stop
        model.save_pretrained(FIXTURES / name)
        write_json(
            f"{name}/expected.json",
            {
                "madeBy": "test/reference/llama.py",
                "versions": versions(transformers),
                "inputIds": ids,
                "logits": logits,
                "greedy": {
                    "prompt": prompt[0],
                    "continuation": continuation,
                    # How far ahead of the runner-up each chosen token was, at least: what an implementation may be off.
                    "smallestMargin": (top[:, 0] - top[:, 1]).min().item(),
                },
            },
        )
        print(name, "greedy", continuation.tolist(), "margin", (top[:, 0] - top[:, 1]).min().item())


if __name__ == "__main__":
    main()
