"""Runs a gpt-oss GGUF file in MLX with f32 activations and writes the tensors that a correct engine computes.

The model is mlx-lm's own. Experts stay packed as MXFP4 and use MLX's quantized switch layers; all other
matrices are decoded exactly to f32.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.gpt_oss import Model, ModelArgs, mlx_topk
from mlx_lm.models.switch_layers import SwitchLinear

from cases import GENERATED, ROPE_MODES, Shape
from compare import difference
from gguf_read import decoded, load
from models import MXFP4, Packed
from numpy_model import inverse_frequencies
from safetensors_file import save

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sinks": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}


def mlx_name(name: str) -> str:
    """`blk.0.attn_q.weight` to `model.layers.0.self_attn.q_proj.weight`."""
    stem, kind = name.rsplit(".", 1)
    prefix = ""
    if stem.startswith("blk."):
        _, layer, stem = stem.split(".")
        prefix = f"model.layers.{layer}."
    return prefix + NAMES[stem] + ("" if stem == "attn_sinks" else f".{kind}")


def repack(tensor: Packed) -> tuple[mx.array, mx.array]:
    """GGUF's 17-byte blocks to MLX's u32 words [experts, out, in / 8] and scales [experts, out, in / 32].

    Byte j has elements j and j + 16 in GGUF, and 2j and 2j + 1 in MLX.
    """
    experts, rows, _ = tensor.data.shape
    blocks = tensor.data.reshape(experts, rows, -1, 17)
    codes = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
    pairs = codes[..., 0::2] | codes[..., 1::2] << 4
    words = np.ascontiguousarray(pairs).reshape(experts, rows, -1).view(np.uint32)
    return mx.array(words), mx.array(np.ascontiguousarray(blocks[..., 0]))


def build(shape: Shape, tensors: dict[str, Packed], rope: str) -> Model:
    dense = decoded({name: tensor for name, tensor in tensors.items() if tensor.qtype != MXFP4})
    args = ModelArgs(
        num_hidden_layers=shape.layers,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.experts_per_token,
        vocab_size=len(dense["output.weight"]),
        rms_norm_eps=shape.rms_eps,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        head_dim=shape.head_dim,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        sliding_window=shape.window,
        rope_theta=shape.rope_theta,
        rope_scaling={
            "rope_type": "yarn",
            "factor": shape.yarn_factor,
            "original_max_position_embeddings": shape.original_context,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
        layer_types=["sliding_attention" if sliding else "full_attention" for sliding in shape.sliding],
    )
    model = Model(args)
    nn.quantize(
        model, group_size=32, bits=4, mode="mxfp4", class_predicate=lambda _, module: isinstance(module, SwitchLinear)
    )
    weights = {mlx_name(name): mx.array(tensor) for name, tensor in dense.items()}
    for name, tensor in tensors.items():
        if tensor.qtype == MXFP4:
            stem = mlx_name(name).removesuffix(".weight")
            weights[f"{stem}.weight"], weights[f"{stem}.scales"] = repack(tensor)
    model.load_weights(list(weights.items()), strict=True)
    if rope == "exact":
        # mlx-lm rounds YaRN's ramp. Its rope expects wavelengths, the reciprocals of inverse frequencies.
        wavelengths = mx.array((1 / inverse_frequencies(shape, truncate=False)).astype(np.float32))
        for layer in model.layers:
            layer.self_attn.rope._freqs = wavelengths
    return model


def generate(model: Model, prompt: list[int], count: int) -> tuple[list[int], np.ndarray, list]:
    """Generates greedy tokens with MLX's own caches. Returns prompt and tokens, logits [tokens, vocab], and the caches,
    which include the last token."""
    cache = model.make_cache()
    tokens, logits = list(prompt), []
    step = tokens
    for generated in range(count + 1):
        logits.append(np.array(model(mx.array([step]), cache=cache)[0]))
        if generated < count:
            tokens.append(int(logits[-1][-1].argmax()))
            step = tokens[-1:]
    return tokens, np.concatenate(logits), cache


def trace(model: Model, shape: Shape, tokens: list[int]) -> dict[str, np.ndarray]:
    """One pass over the whole sequence without a cache, layer by layer through mlx-lm's own modules."""
    x = model.model.embed_tokens(mx.array([tokens]))
    out = {"tokens": mx.array(tokens, mx.int32), "embed": x[0]}
    for index, (layer, sliding) in enumerate(zip(model.layers, shape.sliding)):
        at = f"layers.{index}."
        attention, h = layer.self_attn, layer.input_layernorm(x)
        mask = create_attention_mask(h, None, window_size=shape.window if sliding else None)
        kept = min(shape.window, len(tokens)) if sliding else len(tokens)
        projected = attention.k_proj(h), attention.v_proj(h)
        k, v = (y.reshape(1, len(tokens), -1, shape.head_dim).swapaxes(1, 2) for y in projected)
        out[at + "cache_k"], out[at + "cache_v"] = attention.rope(k)[0, :, -kept:], v[0, :, -kept:]
        x = x + attention(h, mask)
        out[at + "resid_attn"] = x[0]
        h = layer.post_attention_layernorm(x)
        router = layer.mlp.router(h)
        out[at + "router_logits"] = router[0]
        # argpartition returns the chosen experts in unspecified order.
        out[at + "experts"] = mx.sort(mlx_topk(router, shape.experts_per_token)[1][0], axis=-1).astype(mx.int32)
        x = x + layer.mlp(h)
        out[at + "resid_mlp"] = x[0]
    x = model.model.norm(x)
    out["final_norm"], out["logits"] = x[0], model.lm_head(x)[0]
    return {name: np.array(tensor) for name, tensor in out.items()}


def ordered(cache, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `kept` positions of a cache, oldest first. A rotating cache is a ring buffer."""
    keys, values = cache.keys_and_values() if hasattr(cache, "keys_and_values") else cache.state[:2]
    if hasattr(cache, "_temporal_order"):
        keys, values = cache._temporal_order(keys), cache._temporal_order(values)
    return np.array(keys[0, :, -kept:]), np.array(values[0, :, -kept:])


def require_close(what: str, whole: np.ndarray, cached: np.ndarray) -> None:
    found = difference(whole, cached)
    if found.max > 2e-4 or found.rms > 2e-5:
        raise AssertionError(f"{what}: results with and without cache differ, rms/std {found.rms:.1e}, max/std {found.max:.1e}")


def dump(gguf: Path, prompt: list[int], count: int, rope: str, out: Path, metadata: dict[str, str]) -> None:
    mx.set_default_device(mx.cpu)
    shape, tensors = load(gguf)
    model = build(shape, tensors, rope)
    tokens, cached_logits, caches = generate(model, prompt, count)
    whole = trace(model, shape, tokens)

    require_close("logits", whole["logits"], cached_logits)
    for layer, cache in enumerate(caches):
        at = f"layers.{layer}.cache_"
        keys, values = ordered(cache, whole[at + "k"].shape[1])
        require_close(at + "k", whole[at + "k"], keys)
        require_close(at + "v", whole[at + "v"], values)

    facts = {"rope": rope, "prompt_len": str(len(prompt)), "window": str(shape.window)}
    versions = {"mlx": version("mlx"), "mlx_lm": version("mlx-lm")}
    save(out, whole, metadata | facts | versions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", required=True, help="token ids of the prompt, separated by commas")
    parser.add_argument("-n", type=int, default=GENERATED, help="greedy tokens to add")
    parser.add_argument("--rope", choices=ROPE_MODES, default="exact")
    args = parser.parse_args()
    dump(args.gguf, [int(token) for token in args.tokens.split(",")], args.n, args.rope, args.out, {})


if __name__ == "__main__":
    main()
