"""Whole GRPO steps of TRL's GRPOTrainer on the CPU: rollout, rewards, one update. The other half of grpo-vs-trl.

TRL as its documentation sets it up, with what costs time for nothing turned off: float32 instead of autocast to bfloat16,
no gradient checkpointing, no KL model (beta 0), no logging. It generates with transformers' `generate` over a static cache,
a little faster here than its default; micro-batches of 32 and 64 take the same time. With `asItComes` nothing of that is turned off,
as for somebody who only says `use_cpu`. The reward is a trivial function of the text.

Run: pip install -r bench/requirements.txt
     echo '{"cmd": "steps", "n": 2}' | python bench/grpo_trl.py '{"model": "FOLDER", "promptsFile": "prompts.json"}'
FOLDER is a model folder with its tokenizer; prompts.json an array of at least `prompts` texts. Answers `{"seconds": [per
step], "generationSeconds": [...], "completionTokens": [...]}`. `ignoreEos` makes every completion `newTokens` long.
"""

import json
import tempfile

from peer import Peer, clock

peer = Peer(
    dict(
        model=None,
        promptsFile=None,
        prompts=64,
        samples=8,
        newTokens=96,
        microBatch=64,
        learningRate=1e-4,
        ignoreEos=False,
        loss="dapo",
        attention="sdpa",
        cache="static",
        asItComes=False,
        warmup=1,
        seed=0,
        threads=2,
    )
)
options = peer.options

with peer.starting():
    if options["model"] is None or options["promptsFile"] is None:
        raise ValueError("model and promptsFile are required")
    if options["warmup"] < 1:
        raise ValueError(f"warmup must be at least 1; got {options['warmup']}")
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(options["threads"])
    with open(options["promptsFile"], encoding="utf-8") as file:
        texts = json.load(file)[: options["prompts"]]
    rollout_size = options["prompts"] * options["samples"]
    if len(texts) < options["prompts"]:
        raise ValueError(f"promptsFile has {len(texts)} prompts; {options['prompts']} are needed")
    if rollout_size % options["microBatch"] != 0:
        raise ValueError(f"microBatch must divide prompts * samples = {rollout_size}; got {options['microBatch']}")

    def reward(completions, **_):
        return [len(set(text)) / 10 for text in completions]

    model = LlamaForCausalLM.from_pretrained(
        options["model"], attn_implementation=options["attention"], dtype=torch.float32, local_files_only=True
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options["model"], local_files_only=True)


class Turns(TrainerCallback):
    """Times every step and, between the steps asked for, waits for the driver."""

    def __init__(self):
        self.left = options["warmup"]
        self.warm = False
        self.begin = self.generation = 0.0
        self.tokens = 0
        self.answer = {"seconds": [], "generationSeconds": [], "completionTokens": []}

    def watch(self, trainer):
        """Counts the time and tokens of the trainer's rollouts."""
        generate = trainer._generate

        def timed(prompts):
            begin = clock()
            result = generate(prompts)
            self.generation += clock() - begin
            self.tokens += sum(len(ids) for ids in result[1])
            return result

        trainer._generate = timed

    def on_step_begin(self, args, state, control, **_):
        self.generation, self.tokens = 0.0, 0
        self.begin = clock()

    def on_step_end(self, args, state, control, **_):
        self.answer["seconds"].append(clock() - self.begin)
        self.answer["generationSeconds"].append(self.generation)
        self.answer["completionTokens"].append(self.tokens)
        self.left -= 1
        if self.left > 0:
            return
        if self.warm:
            peer.answer(self.answer)
        else:
            self.warm = True
            peer.ready(
                torch,
                transformers,
                trl,
                threads=torch.get_num_threads(),
                parameters=sum(p.numel() for p in model.parameters()),
                rolloutSize=rollout_size,
                warmupSeconds=sum(self.answer["seconds"]),
            )
        self.answer = {name: [] for name in self.answer}
        request = peer.next()
        while request is not None and not (request["cmd"] == "steps" and request["n"] >= 1):
            peer.answer({"error": "the only request is steps with n of at least 1"})
            request = peer.next()
        if request is None:
            control.should_training_stop = True
        else:
            self.left = request["n"]


with peer.starting(), tempfile.TemporaryDirectory() as folder:
    generation = {"min_new_tokens": options["newTokens"]} if options["ignoreEos"] else None
    tuned = dict(
        bf16=False,
        activation_checkpointing=False,
        optim="adamw_torch_fused",
        cache_implementation={"dynamic": None, "static": "static"}[options["cache"]],
    )
    turns = Turns()
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        callbacks=[turns],
        args=GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            **({} if options["asItComes"] else tuned),
            per_device_train_batch_size=options["microBatch"],
            gradient_accumulation_steps=rollout_size // options["microBatch"],
            num_generations=options["samples"],
            max_completion_length=options["newTokens"],
            temperature=1.0,
            loss_type=options["loss"],
            beta=0.0,
            num_iterations=1,
            learning_rate=options["learningRate"],
            lr_scheduler_type="constant",
            generation_kwargs=generation,
            max_steps=10**9,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=options["seed"],
        ),
    )
    turns.watch(trainer)
    trainer.train()
