"""Scores a checkpoint on heldout.json, greedily."""

import argparse
import json
from pathlib import Path

import torch

import checkpoint
import heldout
from scoring import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--items", type=Path, default=heldout.PATH)
    parser.add_argument("--suite", action="append", help="only this suite; may be repeated")
    parser.add_argument("--limit", type=int, help="the most items of each suite")
    parser.add_argument("--json", type=Path, help="write the scores")
    parser.add_argument("--wrong", type=Path, help="write the wrong answers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    model, _ = checkpoint.load(args.checkpoint)
    items = json.loads(args.items.read_text())
    names = args.suite or list(dict.fromkeys(item["suite"] for item in items))
    chosen = [item for name in names for item in [each for each in items if each["suite"] == name][: args.limit]]
    scores, wrong = evaluate(model.to(args.device), chosen, args.device)
    for suite, score in scores.items():
        print(f"{suite:16}" + "".join(f"  {name} {value:.4g}" for name, value in score.items()))
    if args.json:
        args.json.write_text(json.dumps(scores, indent=1) + "\n")
    if args.wrong:
        args.wrong.write_text(json.dumps(wrong, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
