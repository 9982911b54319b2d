"""Greedy tokens of the exported model in stock mlx-lm (YaRN's ramp truncated), to compare an engine with.

Writes a list of {suite, prompt, prompt_tokens, tokens, margin}; margin is the smallest gap between the logits of
the two likeliest tokens of a step: if it is tiny, another engine may choose the other token without a bug.
"""

import argparse
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

import heldout
import tokenizer


def generate(model, prompt: list[int], count: int) -> tuple[list[int], float]:
    """Generates `count` tokens, including stop tokens, without ending at them."""
    cache, step, tokens, margin = model.make_cache(), prompt, [], float("inf")
    for _ in range(count):
        logits = np.array(model(mx.array([step]), cache=cache)[0, -1])
        second, best = np.partition(logits, -2)[-2:]
        margin = min(margin, float(best - second))
        step = [int(logits.argmax())]
        tokens += step
    return tokens, margin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the folder that export.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=Path, default=heldout.PATH)
    parser.add_argument("--each", type=int, default=8, help="prompts per suite")
    parser.add_argument("-n", type=int, default=64, help="tokens per prompt")
    args = parser.parse_args()

    mx.set_default_device(mx.cpu)
    model, _ = load_model(args.model)
    items = json.loads(args.items.read_text())
    found = []
    for suite in dict.fromkeys(item["suite"] for item in items):
        for item in [each for each in items if each["suite"] == suite][: args.each]:
            prompt = tokenizer.encode(item["prompt"])
            tokens, margin = generate(model, prompt, args.n)
            found.append({"suite": suite, "prompt": item["prompt"], "prompt_tokens": prompt, "tokens": tokens, "margin": margin})
    args.out.write_text(json.dumps(found, ensure_ascii=False) + "\n")
    print(f"{len(found)} prompts of {args.n} tokens, smallest margin {min(each['margin'] for each in found):.2e}")


if __name__ == "__main__":
    main()
