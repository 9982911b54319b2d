"""Random blocks of every quantized GGUF type, and their values as decoded by the `gguf` package.

    python reference/quant_goldens.py

writes `goldens/quants.safetensors`: for each type `<name>.packed` [bytes] u8 and `<name>.values` [values] f32. The bytes are
random, so that every code occurs; the f16 factors include subnormals, zeros, infinities and NaN.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from safetensors_file import save

BLOCKS = 40  # of each type
# Subnormal and largest half, both zeros, infinities, NaN.
EXTREMES = np.array([0x0001, 0x8001, 0x03FF, 0x7BFF, 0xFBFF, 0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E00], np.uint16)
# Byte offsets of the f16 factors in a block.
FACTORS = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "IQ4_NL": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "MXFP4": (),
    "Q2_K": (80, 82), "Q3_K": (108,), "IQ4_XS": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,),
    "IQ2_S": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
}


def blocks(name: str, rng: np.random.Generator) -> np.ndarray:
    """Random blocks [blocks, bytes per block]."""
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    found = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for at in FACTORS[name]:
        factors = rng.normal(0, 0.02, BLOCKS).astype(np.float16).view(np.uint16)
        factors[: len(EXTREMES)] = rng.permutation(EXTREMES)
        found[:, at : at + 2] = factors.view(np.uint8).reshape(BLOCKS, 2)
    if name == "MXFP4":
        found[:, 0] = rng.integers(0, 255, BLOCKS)
        found[:3, 0] = (0, 1, 254)
    return found


def main() -> None:
    rng = np.random.default_rng(20)
    tensors = {}
    for name in FACTORS:
        packed = blocks(name, rng)
        with np.errstate(invalid="ignore", over="ignore"):
            values = dequantize(packed, GGMLQuantizationType[name])
        tensors[f"{name}.packed"], tensors[f"{name}.values"] = packed.reshape(-1), values.reshape(-1)
    save(Path(__file__).parent / "goldens/quants.safetensors", tensors, {"blocks": str(BLOCKS)})


if __name__ == "__main__":
    main()
