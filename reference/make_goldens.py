"""Creates all golden files again: models, MLX dumps, cross-check, sensitivity."""

from pathlib import Path

import cross_check
import sensitivity
from cases import CASES, GENERATED, ROPE_MODES, Case
from gguf_read import load, samples
from mlx_dump import dump
from models import weights, write
from safetensors_file import save
from seeds import find_seed

GOLDENS = Path(__file__).parent / "goldens"


def make(case: Case) -> None:
    folder = GOLDENS / case.name
    folder.mkdir(parents=True, exist_ok=True)
    seed = find_seed(case)
    prompt, tensors = weights(case, seed)
    gguf = folder / "model.gguf"
    write(gguf, case, tensors)
    about = {"case": case.name, "seed": str(seed)}
    save(folder / "weights.safetensors", samples(load(gguf)[1]), about)
    for rope in ROPE_MODES:
        dump(gguf, prompt.tolist(), GENERATED, rope, folder / f"{rope}.safetensors", about)


def print_sizes() -> None:
    files = ("model.gguf", "weights.safetensors", *(f"{rope}.safetensors" for rope in ROPE_MODES))
    print(f"{'case':6}" + "".join(f"{file:>24}" for file in files) + "  KB")
    total = 0
    for case in CASES:
        sizes = [(GOLDENS / case.name / file).stat().st_size for file in files]
        total += sum(sizes)
        print(f"{case.name:6}" + "".join(f"{size / 1000:24.0f}" for size in sizes))
    print(f"total {total / 1e6:.2f} MB\n")


def main() -> None:
    for case in CASES:
        make(case)
    print_sizes()
    cross_check.main()
    print()
    sensitivity.main()


if __name__ == "__main__":
    main()
