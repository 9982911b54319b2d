"""The effect of bugs on the logits: compares the numpy model with variants that have one bug each.

Prints, for each bug and each case, the rms of the logits' change over the logits' standard deviation. Goldens must
detect each bug, so an effect below 1e-3 is a failure, except for bugs that a case cannot show.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from cases import CASES, Case, Shape
from compare import difference
from gguf_read import decoded, load
from numpy_model import Variant, Weights, forward

GOLDENS = Path(__file__).parent / "goldens"
FLOOR = 1e-3
VARIANTS = {
    "no sinks": Variant(sinks=False),
    "no mscale": Variant(mscale=False),
    "interleaved rope": Variant(interleaved=True),
    "no clamp": Variant(clamp=False),
    "window + 1": Variant(window_shift=1),
    "window - 1": Variant(window_shift=-1),
}
BIASES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def swapped_nibbles(weights: Weights) -> Weights:
    """GGUF's MXFP4 bytes decoded in safetensors' order, with low and high nibble as neighbours."""

    def swap(tensor: np.ndarray) -> np.ndarray:
        return tensor.reshape(-1, 2, 16).swapaxes(1, 2).reshape(tensor.shape)

    return {name: swap(w) if name.endswith("_exps.weight") else w for name, w in weights.items()}


def without(weights: Weights, bias: str) -> Weights:
    return {name: np.zeros_like(w) if name.endswith(f".{bias}.bias") else w for name, w in weights.items()}


def effects(case: Case) -> dict[str, float]:
    shape, packed = load(GOLDENS / case.name / "model.gguf")
    weights = decoded(packed)
    tokens = load_file(GOLDENS / case.name / "exact.safetensors")["tokens"].tolist()
    right = forward(shape, weights, tokens, truncate=False)["logits"]

    def effect(weights: Weights = weights, truncate: bool = False, variant: Variant = Variant(), shape: Shape = shape) -> float:
        return difference(right, forward(shape, weights, tokens, truncate, variant)["logits"]).rms

    found = {name: effect(variant=variant) for name, variant in VARIANTS.items()}
    found["truncated rope"] = effect(truncate=True)
    found["nibble order"] = effect(swapped_nibbles(weights))
    return found | {f"no {bias}.bias": effect(without(weights, bias)) for bias in BIASES}


def main() -> None:
    table = {case.name: effects(case) for case in CASES}
    blind = {("odd", "window + 1"), ("odd", "window - 1")}  # the window is longer than the sequence
    failed = False
    print(f"{'broken':22}" + "".join(f"{name:>10}" for name in table))
    for bug in table["even"]:
        print(f"{bug:22}" + "".join(f"{found[bug]:10.1e}" for found in table.values()))
        failed |= any(found[bug] < FLOOR and (name, bug) not in blind for name, found in table.items())
    if failed:
        print(f"a bug changes the logits by less than {FLOOR} of their standard deviation: the goldens would not detect it")
        sys.exit(1)


if __name__ == "__main__":
    main()
