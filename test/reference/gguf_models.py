"""GGUF fixtures of whole models: small random weights in Hugging Face's naming, and the same as gguf-py writes them.

Names go through gguf-py's own table of tensor names. The layouts are llama.cpp's: llama's query and key rows have rotary pairs
side by side, experts are stacked, and MLA's decompression is split into keys and values. Where transformers reads GGUF (llama,
qwen2), its reading must equal what was written.

Needs torch, transformers, safetensors, numpy and gguf. `test/reference/README.md` gives the versions, the command and the layout.
"""

from pathlib import Path

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "gguf"
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(16)), "▁", "a", "b", "▁a", "ab"]
VOCABULARY = len(TOKENS)


def drawing(seed: int):
    """A function that draws weights of a shape, the next ones at every call."""
    random = numpy.random.default_rng(seed)
    return lambda *shape: (random.standard_normal(shape) / 8).astype(numpy.float32)


def pairs_together(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Hugging Face's rows of a head, first halves of the rotary pairs and then second, as pairs."""
    width = rows.shape[0] // heads
    order = [h * width + half * (width // 2) + i for h in range(heads) for i in range(width // 2) for half in (0, 1)]
    return rows[order]


def pairs_apart(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    order = pairs_together(numpy.arange(rows.shape[0]), heads)
    result = numpy.empty_like(rows)
    result[order] = rows
    return result


def narrow(array: numpy.ndarray) -> torch.Tensor:
    """The same numbers, in half the bytes where those hold them exactly."""
    wide = torch.from_numpy(array)
    halves = (wide.to(dtype) for dtype in (torch.bfloat16, torch.float16))
    return next((half for half in halves if torch.equal(half.float(), wide)), wide)


class Model:
    """Collects a model's tensors under both names and writes both files."""

    def __init__(self, name: str, arch: gguf.MODEL_ARCH, layers: int, width: int, context: int):
        self.name, self.hf = name, {}
        self.writer = gguf.GGUFWriter(FOLDER / f"{name}.gguf", gguf.MODEL_ARCH_NAMES[arch])
        self.names = gguf.get_tensor_name_map(arch, layers)
        self.writer.add_block_count(layers)
        self.writer.add_embedding_length(width)
        self.writer.add_context_length(context)

    def put(self, hf: str, data: numpy.ndarray, kind: Kind = Kind.F32, stored=lambda x: x, back=lambda x: x) -> None:
        """One tensor of both models; `stored` gives the file's layout, `back` undoes it after quantising."""
        mapped = self.names.get_name(hf, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, hf
        self.raw(mapped, quantize(stored(data), kind), kind)
        self.hf[hf] = numpy.ascontiguousarray(back(dequantize(quantize(stored(data), kind), kind))).reshape(data.shape)

    def raw(self, name: str, data: numpy.ndarray, kind: Kind = Kind.F32) -> None:
        self.writer.add_tensor(name, numpy.ascontiguousarray(data), raw_dtype=kind)

    def vocabulary(self) -> None:
        """A SentencePiece vocabulary in small."""
        self.writer.add_tokenizer_model("llama")
        self.writer.add_token_list(TOKENS)
        self.writer.add_token_scores([-float(i) for i in range(VOCABULARY)])
        self.writer.add_token_types([2, 3, 3, *[6] * 16, *[1] * 5])
        self.writer.add_unk_token_id(0)
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)
        self.writer.add_pad_token_id(0)
        self.writer.add_add_bos_token(True)
        self.writer.add_add_eos_token(False)
        self.writer.add_add_space_prefix(False)
        self.writer.add_chat_template("{{ messages[0]['content'] }}")

    def save(self, weights: str) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        save_file({key: narrow(value) for key, value in sorted(self.hf.items())}, FOLDER / f"{weights}.safetensors")


def dense(name: str, arch: gguf.MODEL_ARCH, seed: int, theta: float, tied: bool) -> None:
    normal = drawing(seed)
    C, F, L, H, Hk, D = 32, 64, 2, 4, 2, 8
    model = Model(name, arch, L, C, 128)
    writer = model.writer
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_head_count_kv(Hk)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(theta)
    if arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_rope_dimension_count(D)
        writer.add_vocab_size(VOCABULARY)
        model.vocabulary()
        # Llama 3's scaling, by a factor of 32: its shortest waves are kept, its longest stretched.
        waves = 2 * numpy.pi * theta ** (numpy.arange(0, D, 2) / D)
        blend = (8192 / waves - 1) / 3
        factors = numpy.where(waves < 2048, 1, numpy.where(waves > 8192, 32, 1 / ((1 - blend) / 32 + blend)))
        model.raw("rope_freqs.weight", factors.astype(numpy.float32))
    model.put("model.embed_tokens.weight", normal(VOCABULARY, C), Kind.F16)
    for layer in range(L):
        at = f"model.layers.{layer}."
        for part, heads, rows in (("q", H, H * D), ("k", Hk, Hk * D), ("v", None, Hk * D)):
            kind = {"q": Kind.F16, "k": Kind.Q8_0, "v": Kind.F32}[part]
            layout = {}
            if arch == gguf.MODEL_ARCH.LLAMA and heads:
                layout = {"stored": lambda x, h=heads: pairs_together(x, h), "back": lambda x, h=heads: pairs_apart(x, h)}
            model.put(f"{at}self_attn.{part}_proj.weight", normal(rows, C), kind, **layout)
            if arch == gguf.MODEL_ARCH.QWEN2:
                model.put(f"{at}self_attn.{part}_proj.bias", normal(rows))
        model.put(f"{at}self_attn.o_proj.weight", normal(C, H * D), Kind.F16)
        for part, shape in (("gate", (F, C)), ("up", (F, C)), ("down", (C, F))):
            model.put(f"{at}mlp.{part}_proj.weight", normal(*shape), Kind.Q4_0 if part == "down" else Kind.BF16)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            model.put(f"{at}{norm}.weight", 1 + normal(C))
    model.put("model.norm.weight", 1 + normal(C))
    if not tied:
        model.put("lm_head.weight", normal(VOCABULARY, C), Kind.F16)
    model.save(name)
    if arch == gguf.MODEL_ARCH.QWEN2:
        return
    # Transformers does not know the factors' tensor, and passes over it.
    read = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=f"{name}.gguf", dtype=torch.float32).state_dict()
    for key, value in model.hf.items():
        assert numpy.array_equal(read[key].numpy(), value), key


def deepseek(name: str, split: bool) -> None:
    """Either layout, with the same weights."""
    normal = drawing(5)
    C, F, Fe, L, H, E = 32, 48, 32, 2, 2, 3
    Dn, Dr, Dv, Rq, Rk = 6, 4, 10, 16, 8
    model = Model(name, gguf.MODEL_ARCH.DEEPSEEK2, L, C, 256)
    writer = model.writer
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(Dr)
    writer.add_leading_dense_block_count(1)
    writer.add_vocab_size(VOCABULARY)
    writer.add_q_lora_rank(Rq)
    writer.add_kv_lora_rank(Rk)
    if split:
        writer.add_head_count_kv(1)
        writer.add_key_length(Rk + Dr)
        writer.add_value_length(Rk)
        writer.add_key_length_mla(Dn + Dr)
        writer.add_value_length_mla(Dv)
        writer.add_expert_group_count(1)
        writer.add_expert_group_used_count(1)
    else:
        writer.add_head_count_kv(H)
        writer.add_key_length(Dn + Dr)
        writer.add_value_length(Dv)
    writer.add_expert_feed_forward_length(Fe)
    writer.add_expert_count(E)
    writer.add_expert_used_count(2)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(2.5)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(40.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_rope_scaling_yarn_log_mul(0.1)
    model.put("model.embed_tokens.weight", normal(VOCABULARY, C), Kind.F16)
    for layer in range(L):
        at = f"model.layers.{layer}."
        attention = f"{at}self_attn."
        model.put(f"{attention}q_a_proj.weight", normal(Rq, C))
        model.put(f"{attention}q_a_layernorm.weight", 1 + normal(Rq))
        model.put(f"{attention}q_b_proj.weight", normal(H * (Dn + Dr), Rq), Kind.F16)
        model.put(f"{attention}kv_a_proj_with_mqa.weight", normal(Rk + Dr, C))
        model.put(f"{attention}kv_a_layernorm.weight", 1 + normal(Rk))
        kv_b = normal(H * (Dn + Dv), Rk)
        if split:
            per_head = kv_b.reshape(H, Dn + Dv, Rk)
            model.raw(f"blk.{layer}.attn_k_b.weight", per_head[:, :Dn].transpose(0, 2, 1))
            model.raw(f"blk.{layer}.attn_v_b.weight", per_head[:, Dn:])
            model.hf[f"{attention}kv_b_proj.weight"] = kv_b
        else:
            model.put(f"{attention}kv_b_proj.weight", kv_b)
        model.put(f"{attention}o_proj.weight", normal(C, H * Dv), Kind.BF16)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            model.put(f"{at}{norm}.weight", 1 + normal(C))
        shapes = {"gate": (F, C), "up": (F, C), "down": (C, F)}
        if layer == 0:
            for part, shape in shapes.items():
                model.put(f"{at}mlp.{part}_proj.weight", normal(*shape), Kind.BF16)
            continue
        model.put(f"{at}mlp.gate.weight", normal(E, C))
        bias = normal(E)
        model.raw(f"blk.{layer}.exp_probs_b.bias", bias)
        model.hf[f"{at}mlp.gate.e_score_correction_bias"] = bias
        for part, shape in {"gate": (Fe, C), "up": (Fe, C), "down": (C, Fe)}.items():
            stack = quantize(normal(E, *shape), Kind.Q8_0)
            model.raw(f"blk.{layer}.ffn_{part}_exps.weight", stack, Kind.Q8_0)
            for expert, matrix in enumerate(dequantize(stack, Kind.Q8_0)):
                model.hf[f"{at}mlp.experts.{expert}.{part}_proj.weight"] = matrix.copy()
            model.put(f"{at}mlp.shared_experts.{part}_proj.weight", normal(*shape), Kind.F16)
    model.put("model.norm.weight", 1 + normal(C))
    model.put("lm_head.weight", normal(VOCABULARY, C), Kind.F16)
    model.save("deepseek")


if __name__ == "__main__":
    dense("llama", gguf.MODEL_ARCH.LLAMA, 3, 500000.0, tied=False)
    dense("qwen2", gguf.MODEL_ARCH.QWEN2, 4, 1000000.0, tied=True)
    deepseek("deepseek-split", split=True)
    deepseek("deepseek-whole", split=False)
