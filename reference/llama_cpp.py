"""Prints greedy tokens, and optionally writes logits, of a GGUF file in llama.cpp, for comparison with other engines.

llama.cpp rounds YaRN's ramp, so compare with the truncated mode. On a CPU it quantizes activations before products with
MXFP4 or Q8_0 weights, so its logits differ by more than the rounding of f32.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from safetensors_file import save

sys.path.pop(0)  # remove this folder, because the script has the package's name
from llama_cpp import GGML_TYPE_F32, Llama


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", required=True, help="token ids of the prompt, separated by commas")
    parser.add_argument("-n", type=int, default=32, help="greedy tokens to add")
    parser.add_argument("--logits", type=Path, help="where to write the prompt's logits [tokens, vocab]")
    args = parser.parse_args()
    prompt = [int(token) for token in args.tokens.split(",")]

    llm = Llama(
        str(args.model), n_ctx=len(prompt) + args.n, logits_all=True, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, verbose=False
    )
    step, generated = prompt, []
    while True:
        llm.eval(step)
        if len(generated) == args.n:
            break
        step = [int(llm.scores[llm.n_tokens - 1].argmax())]
        generated += step
    print(",".join(map(str, generated)))
    if args.logits:
        save(args.logits, {"logits": np.array(llm.scores[: len(prompt)], np.float32)}, {"engine": "llama.cpp"})


if __name__ == "__main__":
    main()
