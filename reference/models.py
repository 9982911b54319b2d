"""Random gpt-oss weights from a seed, packed and written as GGUF.

The scales are chosen so that activations stay small (the margins of greedy tokens exceed the rounding of f32) while every
part of the model affects the result: `sensitivity.py` measures how the logits change if one part is left out.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType
from gguf.quants import quantize

import vocabulary
from cases import Case, Shape

F32 = GGMLQuantizationType.F32
MXFP4 = GGMLQuantizationType.MXFP4


@dataclass
class Packed:
    """A tensor as stored in the file: rows of bytes, or of f32."""

    data: np.ndarray
    qtype: GGMLQuantizationType


def mxfp4(rng: np.random.Generator, experts: int, rows: int, columns: int, scale: int) -> Packed:
    """Random 4-bit codes with scale bytes around `scale`, in GGUF's order: byte j has elements j and j + 16."""
    codes = rng.integers(0, 16, (experts, rows, columns // 32, 32), dtype=np.uint8)
    scales = rng.integers(scale - 1, scale + 2, (experts, rows, columns // 32, 1), dtype=np.uint8)
    nibbles = codes[..., :16] | codes[..., 16:] << 4
    return Packed(np.concatenate([scales, nibbles], axis=-1).reshape(experts, rows, -1), MXFP4)


def dense(rng: np.random.Generator, rows: int, columns: int, std: float, qtype: str) -> Packed:
    kind = GGMLQuantizationType[qtype]
    return Packed(quantize(rng.normal(0, std, (rows, columns)).astype(np.float32), kind), kind)


def vector(rng: np.random.Generator, shape: int | tuple[int, ...], std: float, mean: float = 0) -> Packed:
    return Packed(rng.normal(mean, std, shape).astype(np.float32), F32)


def expert_bias(rng: np.random.Generator, experts: int, rows: int) -> Packed:
    """Small biases with a few large ones, with which gate and up exceed the clamp at 7."""
    bias = rng.normal(0, 0.4, (experts, rows))
    bias += 7 * rng.choice([-1, 0, 1], p=[0.02, 0.96, 0.02], size=bias.shape)
    return Packed(bias.astype(np.float32), F32)


def weights(case: Case, seed: int) -> tuple[np.ndarray, dict[str, Packed]]:
    """The token ids [prompt] of the prompt, and every tensor of the file by name."""
    rng = np.random.default_rng(seed)
    shape = case.shape
    hidden, experts, intermediate = shape.hidden, shape.experts, shape.intermediate
    queries, keys = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    unit = hidden**-0.5

    prompt = rng.integers(0, vocabulary.SIZE, case.prompt)
    tensors = {"token_embd.weight": dense(rng, vocabulary.SIZE, hidden, 1.0, case.dense)}
    for layer in range(shape.layers):
        tensors |= {
            f"blk.{layer}.{name}": tensor
            for name, tensor in {
                "attn_norm.weight": vector(rng, hidden, 0.1, mean=1),
                "attn_q.weight": dense(rng, queries, hidden, 1.7 * unit, case.dense),
                "attn_q.bias": vector(rng, queries, 0.4),
                "attn_k.weight": dense(rng, keys, hidden, 1.7 * unit, case.dense),
                "attn_k.bias": vector(rng, keys, 0.4),
                "attn_v.weight": dense(rng, keys, hidden, unit, case.dense),
                "attn_v.bias": vector(rng, keys, 0.4),
                "attn_output.weight": dense(rng, hidden, queries, queries**-0.5, case.dense),
                "attn_output.bias": vector(rng, hidden, 0.2),
                "attn_sinks.weight": vector(rng, shape.query_heads, 0.8, mean=1.5),
                "post_attention_norm.weight": vector(rng, hidden, 0.1, mean=1),
                "ffn_gate_inp.weight": vector(rng, (experts, hidden), 1.5 * unit),
                "ffn_gate_inp.bias": vector(rng, experts, 0.3),
                "ffn_gate_exps.weight": mxfp4(rng, experts, intermediate, hidden, 122),
                "ffn_gate_exps.bias": expert_bias(rng, experts, intermediate),
                "ffn_up_exps.weight": mxfp4(rng, experts, intermediate, hidden, 122),
                "ffn_up_exps.bias": expert_bias(rng, experts, intermediate),
                "ffn_down_exps.weight": mxfp4(rng, experts, hidden, intermediate, 121),
                "ffn_down_exps.bias": vector(rng, (experts, hidden), 0.2),
            }.items()
        }
    tensors["output_norm.weight"] = vector(rng, hidden, 0.1, mean=1)
    tensors["output.weight"] = dense(rng, vocabulary.SIZE, hidden, unit, case.dense)

    if case.twins:
        for name, tensor in tensors.items():
            if "_exps." in name or "ffn_gate_inp." in name:
                tensor.data[1::2] = tensor.data[::2]
    return prompt, tensors


def write_architecture(writer: GGUFWriter, shape: Shape, context_length: int, explicit_layers: bool = False) -> None:
    """Writes the metadata under `gpt-oss.`; with `explicit_layers` also which layers are sliding."""
    writer.add_block_count(shape.layers)
    writer.add_context_length(context_length)
    writer.add_embedding_length(shape.hidden)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.experts_per_token)
    writer.add_expert_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.query_heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_sliding_window(shape.window)
    if explicit_layers:
        writer.add_sliding_window_pattern(shape.sliding)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(shape.yarn_factor)
    writer.add_rope_scaling_orig_ctx_len(shape.original_context)


def write(path: Path, case: Case, tensors: dict[str, Packed]) -> None:
    shape = case.shape
    writer = GGUFWriter(path, "gpt-oss")
    writer.add_name(f"gpt-oss golden case {case.name}")
    write_architecture(writer, shape, 131072, case.explicit_layers)

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(vocabulary.TOKENS)
    writer.add_token_merges(vocabulary.MERGES)
    normal, control = vocabulary.FIRST_CONTROL, len(vocabulary.CONTROL)
    writer.add_token_types([TokenType.NORMAL] * normal + [TokenType.CONTROL] * control)
    writer.add_bos_token_id(vocabulary.token_id("<|startoftext|>"))
    writer.add_eos_token_id(vocabulary.token_id("<|return|>"))
    writer.add_pad_token_id(vocabulary.token_id("<|endoftext|>"))
    writer.add_chat_template(vocabulary.CHAT_TEMPLATE)

    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
