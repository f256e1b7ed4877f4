"""The protocol between a TypeScript benchmark and its Python half, and the model that both build.

Not run by itself. A script is started with its options as one JSON argument and speaks JSON lines: first
`{"ready": true, "versions": {...}, ...}`, then one answer to each request on stdin, until `{"cmd": "quit"}` or the end
of input. When it cannot start it says `{"ready": false, "missing": MODULE}` or `{"ready": false, "error": TEXT}`; a request
that fails is answered with `{"error": TEXT}`. So a driver can let two implementations take turns: A B A B.
"""

import contextlib
import json
import os
import sys
import time


class Peer:
    """This process's end of the protocol."""

    def __init__(self, defaults: dict):
        # Standard output belongs to the protocol; what libraries print goes to standard error.
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        given = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
        unknown = sorted(set(given) - set(defaults))
        if unknown:
            self.refuse(error=f"unknown options {', '.join(unknown)}; known are {', '.join(defaults)}")
        self.options = defaults | given
        # OpenMP reads this once, when torch is imported.
        os.environ["OMP_NUM_THREADS"] = str(self.options["threads"])
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        os.environ["HF_HUB_OFFLINE"] = "1"

    @contextlib.contextmanager
    def starting(self):
        """Turns a missing package or a failure while starting into a refusal that the driver can explain."""
        try:
            yield
        except ModuleNotFoundError as error:
            self.refuse(missing=error.name)
        except Exception as error:
            self.refuse(error=f"{type(error).__name__}: {error}")

    def refuse(self, **why):
        self._say({"ready": False} | why)
        sys.exit(1)

    def ready(self, *modules, **facts):
        versions = {"python": sys.version.split()[0]} | {m.__name__: m.__version__ for m in modules}
        self._say({"ready": True, "versions": versions} | facts)

    def next(self) -> dict | None:
        """The next request; None at the end."""
        line = sys.stdin.readline()
        request = json.loads(line) if line.strip() else {"cmd": "quit"}
        return None if request["cmd"] == "quit" else request

    def serve(self, commands: dict):
        """Answers requests until the end; `commands` maps a name to a function of the request."""
        while (request := self.next()) is not None:
            try:
                self.answer(commands[request["cmd"]](request))
            except Exception as error:
                self.answer({"error": f"{type(error).__name__}: {error}"})

    def answer(self, value: dict):
        self._say(value)

    def _say(self, value: dict):
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()


MODEL_DEFAULTS = dict(model=None, layers=6, width=256, heads=8, kvHeads=8, ffn=688, vocab=64, seed=0, threads=2)


def load_llama(options: dict, attention: str, positions: int):
    """The model in the folder `options.model`, or one of the given sizes with random weights; float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    if options["model"] is not None:
        return LlamaForCausalLM.from_pretrained(
            options["model"], attn_implementation=attention, dtype=torch.float32, local_files_only=True
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=options["vocab"],
            hidden_size=options["width"],
            num_hidden_layers=options["layers"],
            num_attention_heads=options["heads"],
            num_key_value_heads=options["kvHeads"],
            intermediate_size=options["ffn"],
            max_position_embeddings=positions,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            attn_implementation=attention,
        )
    )


def clock() -> float:
    """Seconds of a monotonic clock."""
    return time.perf_counter()
