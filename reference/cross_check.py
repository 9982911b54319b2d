"""Compares the goldens with the numpy model, written from the specification, and with transformers if torch is installed.

Errors are in units of the golden tensor's standard deviation. Exits with 1 if an error is too large, or if tokens or experts differ.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import numpy_model
from cases import CASES, GENERATED, ROPE_MODES, Case
from compare import Difference, difference
from gguf_read import decoded, load
from seeds import ROUTER_GAP, router_gap

GOLDENS = Path(__file__).parent / "goldens"
RMS_LIMIT, MAX_LIMIT = 2e-5, 2e-4


def same_decisions(case: Case, golden: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> bool:
    """Whether greedy tokens and sets of experts agree. Twins count as one expert, because the order of equal experts is unspecified."""
    tokens = golden["tokens"][-GENERATED:]
    same = np.array_equal(ours["logits"][-GENERATED - 1 : -1].argmax(axis=-1), tokens)
    for layer in range(case.shape.layers):
        at = f"layers.{layer}."
        assert router_gap(golden[at + "router_logits"], case) > ROUTER_GAP / 2
        theirs, mine = golden[at + "experts"], ours[at + "experts"]
        if case.twins:
            theirs, mine = theirs // 2, mine // 2
        same &= np.array_equal(theirs, mine)
    return same


def check(case: Case) -> Iterator[tuple[str, str, str, Difference, bool]]:
    """Rows of (RoPE mode, other implementation, tensor, error, whether decisions agree)."""
    shape, packed = load(GOLDENS / case.name / "model.gguf")
    assert shape == case.shape, f"{case.name}: the file says {shape}"
    weights = decoded(packed)
    for rope in ROPE_MODES:
        golden = load_file(GOLDENS / case.name / f"{rope}.safetensors")
        tokens, truncate = golden["tokens"].tolist(), rope == "truncated"
        ours = numpy_model.forward(shape, weights, tokens, truncate)
        assert ours.keys() == golden.keys()
        errors = {name: difference(golden[name], ours[name]) for name in golden if golden[name].dtype == np.float32}
        worst = max(errors, key=lambda name: max(errors[name].rms / RMS_LIMIT, errors[name].max / MAX_LIMIT))
        agree = same_decisions(case, golden, ours)
        yield rope, "numpy", "logits", errors["logits"], agree
        yield rope, "numpy", worst, errors[worst], agree
        if importlib.util.find_spec("torch"):
            import transformers_model

            theirs = transformers_model.logits(shape, weights, tokens, truncate)
            agree = np.array_equal(theirs[-GENERATED - 1 : -1].argmax(axis=-1), golden["tokens"][-GENERATED:])
            yield rope, "transformers", "logits", difference(golden["logits"], theirs), agree


def main() -> None:
    failed = False
    print(f"{'case':6} {'rope':10} {'against':13} {'tensor':24} {'rms/std':>8} {'max/std':>8}")
    for case in CASES:
        for rope, against, tensor, error, agree in check(case):
            good = error.rms <= RMS_LIMIT and error.max <= MAX_LIMIT and agree
            failed |= not good
            verdict = "" if good else "  FAILED" if agree else "  FAILED: tokens or experts differ"
            print(f"{case.name:6} {rope:10} {against:13} {tensor:24} {error.rms:8.1e} {error.max:8.1e}{verdict}")
    if not importlib.util.find_spec("torch"):
        print("not run: transformers (torch is not installed)")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
