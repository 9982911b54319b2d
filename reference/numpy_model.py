"""gpt-oss in float64 numpy, written from the specification only: the whole sequence, no cache.

`Variant` introduces one bug at a time, so that `sensitivity.py` can check whether the goldens detect it.
"""

import math
from dataclasses import dataclass

import numpy as np

from cases import Shape

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Variant:
    sinks: bool = True
    mscale: bool = True
    interleaved: bool = False  # rotate (2i, 2i+1) instead of (i, i + D/2)
    clamp: bool = True
    window_shift: int = 0


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def inverse_frequencies(shape: Shape, truncate: bool) -> np.ndarray:
    """YaRN's inverse frequencies [head_dim / 2]. `truncate` rounds the ramp's ends outward, as mlx-lm does."""

    def correction(rotations: float) -> float:
        turns = shape.original_context / (2 * math.pi * rotations)
        return shape.head_dim * math.log(turns) / (2 * math.log(shape.rope_theta))

    low, high = correction(32), correction(1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, shape.head_dim - 1)
    i = np.arange(shape.head_dim // 2)
    base = shape.rope_theta ** (-2 * i / shape.head_dim)
    ramp = np.clip((i - low) / (high - low), 0, 1)
    return base * (1 - ramp) + base / shape.yarn_factor * ramp


def mscale(shape: Shape) -> float:
    return 0.1 * math.log(shape.yarn_factor) + 1


def rope(x: np.ndarray, shape: Shape, truncate: bool, variant: Variant) -> np.ndarray:
    """Rotates x [tokens, heads, head_dim] by its position and scales it by mscale."""
    angle = np.arange(len(x))[:, None, None] * inverse_frequencies(shape, truncate)
    scale = mscale(shape) if variant.mscale else 1
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    out = np.empty_like(x)
    half = shape.head_dim // 2
    first, second = (np.s_[..., 0::2], np.s_[..., 1::2]) if variant.interleaved else (np.s_[..., :half], np.s_[..., half:])
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[second] * cos + x[first] * sin
    return out


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, sinks: np.ndarray, shape: Shape, sliding: bool, variant: Variant
) -> np.ndarray:
    """q [tokens, query heads, D], k and v [tokens, kv heads, D] to [tokens, query heads * D]."""
    tokens = len(q)
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    visible = distance >= 0
    if sliding:
        visible &= distance < shape.window + variant.window_shift
    out = np.empty_like(q)
    for head in range(shape.query_heads):
        kv_head = head // (shape.query_heads // shape.kv_heads)
        scores = q[:, head] @ k[:, kv_head].T / math.sqrt(shape.head_dim)
        scores = np.where(visible, scores, -np.inf)
        sink = sinks[head] if variant.sinks else -np.inf
        peak = np.maximum(scores.max(axis=1, keepdims=True), sink)
        weights = np.exp(scores - peak)
        weights /= weights.sum(axis=1, keepdims=True) + np.exp(sink - peak)
        out[:, head] = weights @ v[:, kv_head]
    return out.reshape(tokens, -1)


def swiglu(gate: np.ndarray, up: np.ndarray, clamp: bool) -> np.ndarray:
    if clamp:
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return (up + 1) * gate / (1 + np.exp(-1.702 * gate))


def moe(h: np.ndarray, w: Weights, at: str, shape: Shape, variant: Variant) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The output of the mixture of experts [tokens, hidden], the router's logits, and the ids of the chosen experts in ascending order."""
    logits = h @ w[at + "ffn_gate_inp.weight"].T + w[at + "ffn_gate_inp.bias"]
    chosen = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, : shape.experts_per_token], axis=1)
    best = np.take_along_axis(logits, chosen, axis=1)
    share = np.exp(best - best.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)

    out = np.zeros_like(h)
    for expert in range(shape.experts):
        tokens, slots = np.nonzero(chosen == expert)

        def project(kind: str, x: np.ndarray) -> np.ndarray:
            name = f"{at}ffn_{kind}_exps"
            return x @ w[f"{name}.weight"][expert].T + w[f"{name}.bias"][expert]

        act = swiglu(project("gate", h[tokens]), project("up", h[tokens]), variant.clamp)
        out[tokens] += share[tokens, slots, None] * project("down", act)
    return out, logits, chosen


def forward(
    shape: Shape, weights: Weights, tokens: list[int], truncate: bool, variant: Variant = Variant()
) -> dict[str, np.ndarray]:
    """All tensors of a golden file, under the same names, in float64; ids of tokens and experts are integers."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["token_embd.weight"][tokens]
    trace = {"tokens": np.array(tokens, np.int32), "embed": x}
    for layer, sliding in enumerate(shape.sliding):
        at, out = f"blk.{layer}.", f"layers.{layer}."
        h = rms_norm(x, w[at + "attn_norm.weight"], shape.rms_eps)
        q, k, v = (linear(h, f"{at}attn_{kind}").reshape(len(x), -1, shape.head_dim) for kind in "qkv")
        q, k = rope(q, shape, truncate, variant), rope(k, shape, truncate, variant)
        x = x + linear(attend(q, k, v, w[at + "attn_sinks.weight"], shape, sliding, variant), at + "attn_output")
        trace[out + "resid_attn"] = x
        kept = min(shape.window, len(x)) if sliding else len(x)
        trace[out + "cache_k"] = k[-kept:].swapaxes(0, 1)
        trace[out + "cache_v"] = v[-kept:].swapaxes(0, 1)

        h = rms_norm(x, w[at + "post_attention_norm.weight"], shape.rms_eps)
        y, trace[out + "router_logits"], trace[out + "experts"] = moe(h, w, at, shape, variant)
        x = x + y
        trace[out + "resid_mlp"] = x
    trace["final_norm"] = rms_norm(x, w["output_norm.weight"], shape.rms_eps)
    trace["logits"] = trace["final_norm"] @ w["output.weight"].T
    return trace
