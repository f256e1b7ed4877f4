"""transformers on a model folder that Pondera saved: its logits and greedy continuation, its tokenizer's ids and texts.

Reads test/fixtures/saved-model/ (by saved-model.ts); writes test/fixtures/saved-model-expected.json, and the tokenizer as
transformers saves it again, test/fixtures/tokenizer-resaved/.

Run: pip install torch==2.15.0 transformers==5.24.0
     node --import jiti/register test/reference/saved-model.ts && python test/reference/saved_model.py
"""

import json

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from fixtures import FIXTURES, deterministic, versions, write_json

FOLDER = FIXTURES / "saved-model"
RESAVED = FIXTURES / "tokenizer-resaved"

TEXTS = [
    "",
    " ",
    "12 + 3 = 15\n",
    "<bos>(1+2)*3<think>1+2=3, 3*3=9. ok?\n</think>\n<answer>9</answer><eos><pad><pad>",
    "<think><think></think></think>",
    "<thin k><th<think>ink> </think </answer><<answer>",
    " leading and trailing  \t\n\n",
    "it 's a . b , c ? don 't",
    '"\\n" \\ ',
    "é e\u0301 À A\u0301 ÷ ▁ Ġ 𝟙𝟙",
]


def main() -> None:
    deterministic(0)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    fast = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    texts = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == fast(text, add_special_tokens=False).input_ids, text
        # Asked for nothing, it begins every text as the model has learnt texts to begin.
        assert [tokenizer.bos_token_id, *ids] == tokenizer(text).input_ids == fast(text).input_ids, text
        texts.append(
            {
                "text": text,
                "ids": ids,
                "decoded": tokenizer.decode(ids),
                "withoutSpecial": tokenizer.decode(ids, skip_special_tokens=True),
            }
        )
    tokenizer.save_pretrained(RESAVED)
    for path in RESAVED.iterdir():
        if path.name not in ("tokenizer.json", "tokenizer_config.json"):
            path.unlink()

    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert model.dtype == torch.float32
    config = json.loads((FOLDER / "config.json").read_text())
    assert model.config.rope_parameters["rope_theta"] == config["rope_theta"]
    prompt = torch.tensor([tokenizer("1+2=").input_ids])
    with torch.no_grad():
        logits = model(prompt).logits
        greedy = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    write_json(
        "saved-model-expected.json",
        {
            "madeBy": "test/reference/saved_model.py",
            "versions": versions(transformers),
            "roles": {
                "bosId": tokenizer.bos_token_id,
                "eosId": tokenizer.eos_token_id,
                "padId": tokenizer.pad_token_id,
                "vocabSize": len(tokenizer),
                "modelMaxLength": tokenizer.model_max_length,
            },
            "texts": texts,
            "prompt": prompt,
            "logits": logits,
            "greedy": greedy,
        },
    )


if __name__ == "__main__":
    main()
