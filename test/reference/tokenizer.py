"""A small byte-level BPE tokenizer of the form that Llama 3 and Qwen publish, with transformers' ids and texts.

Writes test/fixtures/byte-level/: tokenizer.json, tokenizer_config.json and expected.json.

Run: pip install transformers==5.23.0 tokenizers==0.23.3 && python test/reference/tokenizer.py
"""

import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fixtures import FIXTURES, write_json

FOLDER = FIXTURES / "byte-level"
CORPUS = [
    "Let us think step by step. The numbers are 3, 5 and 7, and the target is 36.",
    "3 + 5 = 8, 8 * 7 = 56: too much. 5 + 7 = 12, 12 * 3 = 36: yes, that is it.",
    "So the answer is (5 + 7) * 3 = 36.",
]
TEXTS = [
    "Let us think: 5 + 7 = 12, 12 * 3 = 36.",
    "<think>\nthe numbers are 3 and 5\n</think>\n\nthe answer is 8<eos>",
    "naïve façade — 数字 🤔 \u00a0tabs\tand\r\nlines",
    "  don't  strip 's . or , join ?  ",
    "<bos><bos>",
]


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    # As Llama's: transformers puts <bos> before every text unless told not to.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.save_pretrained(FOLDER)
    rows = []
    for text in TEXTS:
        ids = fast(text, add_special_tokens=False).input_ids
        assert fast(text).input_ids == [fast.bos_token_id, *ids]
        decoded = fast.decode(ids)
        rows.append(
            {"text": text, "ids": ids, "decoded": decoded, "withoutSpecial": fast.decode(ids, skip_special_tokens=True)}
        )
    write_json(
        "byte-level/expected.json",
        {
            "madeBy": "test/reference/tokenizer.py",
            "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
            "roles": {"bosId": fast.bos_token_id, "eosId": fast.eos_token_id, "vocabSize": len(fast)},
            "texts": rows,
        },
    )


if __name__ == "__main__":
    main()
