"""Compares a tensor of two safetensors files: `compare.py A B [--tensor logits]`. A is the reference."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


@dataclass
class Difference:
    """Errors of a tensor in units of the reference's standard deviation."""

    rms: float
    max: float


def difference(reference: np.ndarray, other: np.ndarray) -> Difference:
    assert reference.shape == other.shape, f"{reference.shape} and {other.shape}"
    reference = reference.astype(np.float64)
    error = other - reference
    std = reference.std()
    return Difference(float(np.sqrt(np.mean(error**2)) / std), float(np.abs(error).max() / std))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--tensor", default="logits")
    args = parser.parse_args()
    a, b = (load_file(path)[args.tensor] for path in (args.a, args.b))
    if a.shape != b.shape:
        sys.exit(f"{args.tensor} has the shape {list(a.shape)} in {args.a} and {list(b.shape)} in {args.b}")
    found = difference(a, b)
    agreement = np.mean(a.argmax(axis=-1) == b.argmax(axis=-1))
    print(f"{args.tensor} {list(a.shape)}: max/std {found.max:.2e}  rms/std {found.rms:.2e}  argmax agrees {agreement:.2%}")


if __name__ == "__main__":
    main()
