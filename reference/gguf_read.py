"""Reads a gpt-oss GGUF back with the `gguf` package: the shape, and the tensors packed or decoded."""

from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from cases import Shape, alternating
from models import Packed


def decimal(value: float) -> float:
    """The shortest decimal that rounds to this f32, so that 1e-5 is read as 1e-5."""
    return float(str(np.float32(value)))


def load(path: Path) -> tuple[Shape, dict[str, Packed]]:
    reader = GGUFReader(path)

    def value(key: str):
        field = reader.get_field(f"gpt-oss.{key}")
        if field is None:
            raise KeyError(f"{path}: the metadata has no gpt-oss.{key}")
        return field.contents()

    pattern = reader.get_field("gpt-oss.attention.sliding_window_pattern")
    shape = Shape(
        hidden=value("embedding_length"),
        intermediate=value("expert_feed_forward_length"),
        query_heads=value("attention.head_count"),
        kv_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        experts=value("expert_count"),
        experts_per_token=value("expert_used_count"),
        window=value("attention.sliding_window"),
        sliding=tuple(pattern.contents()) if pattern else alternating(value("block_count")),
        rms_eps=decimal(value("attention.layer_norm_rms_epsilon")),
        rope_theta=decimal(value("rope.freq_base")),
        yarn_factor=decimal(value("rope.scaling.factor")),
        original_context=value("rope.scaling.original_context_length"),
    )
    return shape, {tensor.name: Packed(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def decoded(tensors: dict[str, Packed]) -> dict[str, np.ndarray]:
    """Every tensor as f32, in the file's row-major order."""
    return {name: dequantize(tensor.data, tensor.qtype) for name, tensor in tensors.items()}


def samples(tensors: dict[str, Packed]) -> dict[str, np.ndarray]:
    """For each tensor 64 evenly spaced elements, and the sum and the sum of magnitudes of all its elements."""
    found = {}
    for name, tensor in decoded(tensors).items():
        flat = tensor.reshape(-1)
        found[name] = flat[[i * (flat.size - 1) // 63 for i in range(64)]].astype(np.float32)
        exact = flat.astype(np.float64)
        found[f"{name}.sums"] = np.array([exact.sum(), np.abs(exact).sum()])
    return found
