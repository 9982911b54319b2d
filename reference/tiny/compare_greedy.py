"""Checks whether gptoss generates the same tokens as MLX (mlx_greedy.py), with YaRN's ramp truncated as in MLX."""

import argparse
import json
import subprocess
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("greedy", type=Path, help="what mlx_greedy.py wrote")
    parser.add_argument("model", help="the GGUF")
    parser.add_argument("--gptoss", default="gptoss", help="the program")
    args = parser.parse_args()

    items = json.loads(args.greedy.read_text())
    different = 0
    for item in items:
        options = ["-n", str(len(item["tokens"])), "--rope", "truncated", "--ignore-stops", "--device", "cpu", "--json"]
        command = [args.gptoss, "generate", args.model, item["prompt"], *options]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        tokens = json.loads(output)["tokens"]
        if tokens != item["tokens"]:
            different += 1
            at = next(i for i, (ours, theirs) in enumerate(zip(tokens, item["tokens"])) if ours != theirs)
            print(f"{item['suite']}: different from token {at} on; MLX's smallest margin {item['margin']:.1e}")
    print(f"{len(items) - different} of {len(items)} prompts give the same {len(items[0]['tokens'])} tokens")


if __name__ == "__main__":
    main()
