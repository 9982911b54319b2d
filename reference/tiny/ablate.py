"""Copies of a GGUF that each lack one part of gpt-oss's attention, to see whether the model uses it.

Evaluate them with `gptoss eval FILE.gguf`.
"""

import argparse
import math
import shutil
from pathlib import Path

import numpy as np
from gguf import GGUFReader

# A sink's logit so low that its weight in every softmax is 0.
NO_SINK = -1e9
Q8_0_BLOCK = 34


def without_sinks(reader: GGUFReader) -> None:
    for tensor in reader.tensors:
        if tensor.name.endswith("attn_sinks.weight"):
            tensor.data[:] = NO_SINK


def without_window(reader: GGUFReader) -> None:
    window = reader.fields["gpt-oss.attention.sliding_window"].parts[-1]
    window[0] = reader.fields["gpt-oss.context_length"].parts[-1][0]


def without_mscale(reader: GGUFReader) -> None:
    """The engine multiplies queries and keys by mscale, so their projections are divided by it."""
    factor = float(reader.fields["gpt-oss.rope.scaling.factor"].parts[-1][0])
    mscale = 0.1 * math.log(factor) + 1
    for tensor in reader.tensors:
        if not any(part in tensor.name for part in ("attn_q.", "attn_k.")):
            continue
        if tensor.name.endswith(".bias"):
            tensor.data[:] /= mscale
        else:
            blocks = tensor.data.reshape(-1, Q8_0_BLOCK)
            scales = blocks[:, :2].copy().view(np.float16)
            blocks[:, :2] = (scales / mscale).astype(np.float16).view(np.uint8)


ABLATIONS = {"sinks": without_sinks, "window": without_window, "mscale": without_mscale}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, help="folder for no-sinks.gguf, no-window.gguf and no-mscale.gguf")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, ablate in ABLATIONS.items():
        copy = args.out / f"no-{name}.gguf"
        shutil.copyfile(args.model, copy)
        reader = GGUFReader(copy, "r+")
        ablate(reader)
        reader.data.flush()
        print(copy)


if __name__ == "__main__":
    main()
