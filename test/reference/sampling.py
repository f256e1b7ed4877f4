"""The distributions that transformers samples from: temperature, then top-k, top-p and min-p.

Writes test/fixtures/sampling.json: for each configuration the probabilities after transformers' own processors, in
the order in which `generate` builds them.

Run: pip install torch==2.15.0 transformers==5.23.0 && python test/reference/sampling.py
"""

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from fixtures import deterministic, versions, write_json

VOCAB = 20
CONFIGS = [
    dict(),
    dict(temperature=0.6),
    dict(temperature=1.7),
    dict(top_k=1),
    dict(top_k=3),
    dict(top_k=VOCAB + 5),
    dict(top_p=0.95),
    dict(top_p=0.5),
    dict(top_p=0.01),
    dict(min_p=0.05),
    dict(min_p=0.3),
    dict(min_p=1.0),
    dict(temperature=0.6, top_p=0.95),
    dict(temperature=0.7, top_k=8, top_p=0.9),
    dict(temperature=1.5, top_k=10, top_p=0.8, min_p=0.1),
    dict(temperature=2.0, top_p=0.9, min_p=0.2),
]


def draw_logits() -> torch.Tensor:
    draw = deterministic(15)
    logits = 2 * torch.randn(5, VOCAB, generator=draw)
    logits[1] *= 0.1  # nearly flat
    logits[2, 7] = 30.0  # nearly certain
    logits[3] += 50.0  # a shift changes nothing
    logits[4, 10:] = -60.0  # tokens that are all but ruled out
    return logits


def processors(config: dict) -> transformers.LogitsProcessorList:
    """What `generate(do_sample=True, **config)` applies to the logits."""
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    defaults = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=None)
    return model._get_logits_processor(GenerationConfig(do_sample=True, **defaults | config), device="cpu")


def filtered(logits: torch.Tensor, configs: list[dict]) -> dict:
    cases = []
    for config in configs:
        chain = processors(config)
        scores = chain(torch.zeros(len(logits), 1, dtype=torch.long), logits.clone())
        kept = scores > -torch.inf
        print([type(p).__name__ for p in chain], kept.sum(-1).tolist())
        cases.append({"config": config, "kept": kept, "probabilities": scores.softmax(-1)})
    return {"logits": logits, "cases": cases}


def main() -> None:
    # Three tokens share the top: transformers' top-k keeps every token that ties with the k-th. Which of the three
    # top-p keeps would be up to the sort, so it has no case here.
    ties = torch.linspace(-2, 1, VOCAB).unsqueeze(0)
    ties[0, [2, 5, 11]] = 2.0
    write_json(
        "sampling.json",
        {"madeBy": "test/reference/sampling.py", "versions": versions(transformers)}
        | filtered(draw_logits(), CONFIGS)
        | {"ties": filtered(ties, [dict(top_k=1), dict(top_k=2), dict(top_k=4), dict(min_p=1.0)])},
    )


if __name__ == "__main__":
    main()
