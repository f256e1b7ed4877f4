"""Losses, gradients, advantages and metrics of TRL's own GRPOTrainer on fixed inputs.

Writes test/fixtures/grpo.json. Each case builds a real GRPOTrainer (real __init__, real GRPOConfig, CPU) around a tiny
Llama and runs TRL's `_generate_and_score_completions`, then its `_compute_loss`. Stubbed are only
  - `_generate`: returns the fixed prompt and completion ids instead of sampling;
  - `_get_per_token_logps_and_entropies`: returns the fixed policy, old and reference log-probabilities and entropies
    instead of running a model (the policy's are leaf tensors, so autograd gives the gradient by them);
  - the reward functions: return the fixed rewards;
  - `current_gradient_accumulation_steps`, set to the configured value, as the training loop does.
So ratios, clipping, KL, aggregation, masks, advantages and metrics are TRL's code.

Run: pip install torch==2.15.0 transformers==5.23.0 trl==1.16.0 && python test/reference/grpo.py
"""

import inspect
import tempfile
from collections import defaultdict

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax, split_tensor_dict

from fixtures import deterministic, versions, write_json

P, G, T = 3, 4, 8
MAX_COMPLETION_LENGTH = 10  # wider than the batch, so Dr. GRPO's constant differs from its padded width
PAD, EOS, WORD = 0, 1, 2
LENGTHS = [8, 3, 5, 1, 2, 8, 4, 6, 7, 8, 3, 5]
TRUNCATED = [0, 5, 8]  # completions that end without the end-of-sequence token
# A mixed group, a group of equals (zero spread) and a graded group.
REWARDS = [1.0, 0.0, 0.0, 0.1, 0.5, 0.5, 0.5, 0.5, 0.3, 0.9, 0.0, 1.2]

BASE = dict(loss_type="grpo", epsilon=0.2, scale_rewards="group", beta=0.0, num_iterations=2)
LOSS_CASES = {
    "grpo": {},
    "grpo, one update: ratio 1": dict(num_iterations=1),
    "grpo, clip higher": dict(epsilon_high=0.28),
    "grpo, two-sided clip": dict(epsilon_high=0.28, delta=1.35),
    "grpo, batch scale": dict(scale_rewards="batch"),
    "grpo, no scale": dict(scale_rewards="none"),
    "grpo, kl": dict(beta=0.04, use_bias_correction_kl=False),
    "grpo, kl times ratio": dict(beta=0.04, use_bias_correction_kl=True),
    "grpo, two-sided clip, kl times ratio": dict(delta=1.35, beta=0.04, use_bias_correction_kl=True),
    "grpo, truncated masked": dict(mask_truncated_completions=True),
    "grpo, entropy bonus": dict(entropy_coef=0.01),
    "bnpo": dict(loss_type="bnpo"),
    "bnpo, kl": dict(loss_type="bnpo", beta=0.04, use_bias_correction_kl=False),
    "bnpo, truncated masked": dict(loss_type="bnpo", mask_truncated_completions=True),
    "dr_grpo": dict(loss_type="dr_grpo", scale_rewards="none"),
    "dr_grpo, kl": dict(loss_type="dr_grpo", scale_rewards="none", beta=0.04, use_bias_correction_kl=False),
    "dr_grpo, truncated masked": dict(
        loss_type="dr_grpo", scale_rewards="none", mask_truncated_completions=True
    ),
    "dapo": dict(loss_type="dapo", epsilon_high=0.28),
    "dapo, one update: ratio 1": dict(loss_type="dapo", epsilon_high=0.28, num_iterations=1),
    "dapo, truncated masked": dict(loss_type="dapo", epsilon_high=0.28, mask_truncated_completions=True),
    "dapo, kl": dict(loss_type="dapo", epsilon_high=0.28, beta=0.04, use_bias_correction_kl=False),
    "dapo, 3 updates a rollout": dict(loss_type="dapo", epsilon_high=0.28, steps_per_generation=3),
    "dapo, 3 micro-batches an update": dict(
        loss_type="dapo", epsilon_high=0.28, steps_per_generation=3, gradient_accumulation_steps=3
    ),
    "grpo, 3 micro-batches an update": dict(steps_per_generation=3, gradient_accumulation_steps=3),
    "cispo": dict(loss_type="cispo", epsilon_high=1.3),
    "cispo, kl": dict(loss_type="cispo", epsilon_high=1.3, beta=0.04, use_bias_correction_kl=False),
    "gspo": dict(importance_sampling_level="sequence", epsilon=0.03, epsilon_high=0.04),
    "gspo, kl": dict(
        importance_sampling_level="sequence", epsilon=0.03, epsilon_high=0.04, beta=0.04, use_bias_correction_kl=False
    ),
    "gspo, token mean": dict(
        loss_type="dapo", importance_sampling_level="sequence", epsilon=0.03, epsilon_high=0.04
    ),
    "gspo, truncated masked": dict(
        importance_sampling_level="sequence", epsilon=0.03, epsilon_high=0.04, mask_truncated_completions=True
    ),
}

# Several weighted rewards with skips (None). Row 6 is skipped by every reward.
SECOND_REWARD = [1.0, 1.0, None, 0.0, 1.0, None, None, 1.0, 0.0, 0.0, 1.0, 1.0]
FIRST_WITH_SKIPS = [r if i not in (1, 6) else None for i, r in enumerate(REWARDS)]
ADVANTAGE_CASES = {
    "group": dict(rewards=[REWARDS], weights=[1.0], scale_rewards="group"),
    "batch": dict(rewards=[REWARDS], weights=[1.0], scale_rewards="batch"),
    "none": dict(rewards=[REWARDS], weights=[1.0], scale_rewards="none"),
    "weighted with skips, group": dict(
        rewards=[FIRST_WITH_SKIPS, SECOND_REWARD], weights=[1.0, 0.5], scale_rewards="group"
    ),
    "weighted with skips, batch": dict(
        rewards=[FIRST_WITH_SKIPS, SECOND_REWARD], weights=[1.0, 0.5], scale_rewards="batch"
    ),
    "weighted with skips, none": dict(
        rewards=[FIRST_WITH_SKIPS, SECOND_REWARD], weights=[1.0, 0.5], scale_rewards="none"
    ),
}


def tiny_model(folder: str) -> None:
    """A model folder for GRPOTrainer's constructor; nothing runs it."""
    tokens = Tokenizer(models.WordLevel({"<pad>": PAD, "<eos>": EOS, "a": WORD, "<unk>": 3}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD,
        )
    ).save_pretrained(folder)


def draw_inputs() -> dict[str, torch.Tensor]:
    draw = deterministic(13)
    old = -0.05 - 3 * torch.rand(P * G, T, generator=draw)
    policy = old + 0.45 * torch.randn(P * G, T, generator=draw)
    ref = old + 0.5 * torch.randn(P * G, T, generator=draw)
    mask = (torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1)).int()
    # Past a completion's end TRL has log-probabilities of padding; 0 there, as its fused head returns.
    return {
        "policyLogp": policy.clamp(max=-0.01) * mask,
        "oldLogp": old * mask,
        "refLogp": ref.clamp(max=-0.01) * mask,
        "entropy": torch.rand(P * G, T, generator=draw) * mask,
        "mask": mask,
    }


def expect_no_kinks(values: dict[str, torch.Tensor]) -> None:
    """No ratio may lie on a clipping bound, where rounding would choose the gradient."""
    log_ratio = values["policyLogp"] - values["oldLogp"]
    token = log_ratio[values["mask"].bool()].exp()
    sequence = (log_ratio.sum(1) / values["mask"].sum(1)).exp()
    for ratios, bounds in ((token, (0.8, 1.2, 1.28, 1.3, 1.35)), (sequence, (0.97, 1.04))):
        assert min((ratios - bound).abs().min().item() for bound in bounds) > 1e-4


def fixed_reward(values):
    def reward(prompts, **_):
        assert len(prompts) == P * G
        return values

    return reward


def trainer_for(folder: str, config: dict, rewards, weights, values: dict[str, torch.Tensor]) -> GRPOTrainer:
    """A GRPOTrainer whose model answers with `values`; `trainer.rows` says which rows the next loss is about."""
    steps = config.get("steps_per_generation", 1)
    args = GRPOConfig(
        output_dir=f"{folder}/run",
        use_cpu=True,
        bf16=False,
        report_to="none",
        num_generations=G,
        max_completion_length=MAX_COMPLETION_LENGTH,
        per_device_train_batch_size=P * G // steps,
        reward_weights=weights,
        **{"steps_per_generation": 1, "gradient_accumulation_steps": 1} | BASE | config,
    )
    trainer = GRPOTrainer(
        model=folder,
        args=args,
        reward_funcs=[fixed_reward(r) for r in rewards],
        train_dataset=Dataset.from_dict({"prompt": ["a"] * P}),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    completions = [
        [WORD] * length if i in TRUNCATED else [WORD] * (length - 1) + [EOS] for i, length in enumerate(LENGTHS)
    ]
    trainer._generate = lambda prompts: (
        [[WORD]] * len(prompts), completions, None, ["a"] * len(prompts), None, {}, None, []
    )
    signature = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies)

    def model_answers(*positional, **named):
        call = signature.bind(trainer, *positional, **named)
        if call.arguments.get("compute_entropy"):
            return values["policyLogp"][trainer.rows], values["entropy"][trainer.rows], None
        return values["refLogp" if call.arguments["model"] is trainer.ref_model else "oldLogp"], None, None

    trainer._get_per_token_logps_and_entropies = model_answers
    return trainer


def rollout(trainer: GRPOTrainer) -> dict[str, torch.Tensor]:
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    return trainer._generate_and_score_completions([{"prompt": "a"} for _ in range(P * G)])


def loss_case(folder: str, config: dict) -> dict:
    values = draw_inputs()
    for name in ("policyLogp", "entropy"):
        values[name].requires_grad_()
    trainer = trainer_for(folder, config, [REWARDS], [1.0], values)
    batch = rollout(trainer)
    steps = trainer.args.steps_per_generation
    assert ("old_per_token_logps" in batch) == (trainer.num_iterations > 1)
    equal_groups = trainer._metrics["train"]["frac_reward_zero_std"][0]
    micro_batches = []
    for index, part in enumerate(split_tensor_dict(batch, steps)):
        size = P * G // steps
        trainer.rows = slice(index * size, (index + 1) * size)
        trainer._metrics["train"].clear()
        loss = trainer._compute_loss(trainer.model, part)
        loss.backward()
        micro_batches.append(
            {
                "rows": [trainer.rows.start, trainer.rows.stop],
                "loss": loss.item(),
                "metrics": {name: found[0] for name, found in trainer._metrics["train"].items()},
            }
        )
    result = {
        "config": {"max_completion_length": MAX_COMPLETION_LENGTH} | BASE | config,
        "usesOldLogp": trainer.num_iterations > 1,
        "advantage": batch["advantages"].view(P, G),
        "equalGroups": equal_groups,
        "mask": batch["completion_mask"],
        "numItemsInBatch": int(batch["num_items_in_batch"]),
        "microBatches": micro_batches,
        "gradient": values["policyLogp"].grad,
    }
    if values["entropy"].grad is not None:
        result["entropyGradient"] = values["entropy"].grad
    return result


def advantage_case(folder: str, case: dict) -> dict:
    trainer = trainer_for(
        folder, {"scale_rewards": case["scale_rewards"]}, case["rewards"], case["weights"], draw_inputs()
    )
    batch = rollout(trainer)
    metrics = trainer._metrics["train"]
    return case | {
        "advantage": batch["advantages"].view(P, G),
        "metrics": {name: metrics[name][0] for name in ("reward", "reward_std", "frac_reward_zero_std")},
    }


def token_statistics() -> dict:
    """TRL's log-probability and entropy of tokens from logits, at two temperatures."""
    draw = deterministic(14)
    logits = 3 * torch.randn(2, 5, 7, generator=draw)
    logits[0, 0] = torch.tensor([80.0, 0, -80, 0, 0, 0, 0])  # nearly certain: entropy nearly 0, not NaN
    logits[0, 1] = 0.5  # uniform: entropy ln 7
    ids = torch.randint(0, 7, (2, 5), generator=draw)
    return {
        "logits": logits,
        "ids": ids,
        "cases": [
            {
                "temperature": temperature,
                "logp": selective_log_softmax(logits / temperature, ids),
                "entropy": entropy_from_logits(logits / temperature),
            }
            for temperature in (1.0, 0.7)
        ],
    }


def main() -> None:
    inputs = draw_inputs()
    expect_no_kinks(inputs)
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(folder)
        losses = {name: loss_case(folder, config) for name, config in LOSS_CASES.items()}
        advantages = {name: advantage_case(folder, case) for name, case in ADVANTAGE_CASES.items()}
    for name, case in losses.items():
        print(f"{name}: {case['microBatches']}")
    write_json(
        "grpo.json",
        {
            "madeBy": "test/reference/grpo.py",
            "versions": versions(transformers, trl),
            "inputs": inputs | {"rewards": torch.tensor(REWARDS).view(P, G), "truncated": TRUNCATED},
            "losses": losses,
            "advantages": advantages,
            "tokens": token_statistics(),
        },
    )


if __name__ == "__main__":
    main()
