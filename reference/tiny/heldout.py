"""Writes heldout.json: prompts that never occur in training, and what the answer must hold."""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizer
from corpus import arithmetic, project, recall, stories, tools, training_example
from harmony import OPEN, Example, System, message
from split import held_out

SEED = 20_000
PATH = Path(__file__).with_name("heldout.json")
NEAR = 128  # the sliding window: a value told fewer tokens ago is near
FARTHEST = 512


def drawn(rng: random.Random, make: Callable[[random.Random], Example]) -> Iterator[Example]:
    """Held-out examples, no two of which ask the same."""
    seen = set()
    while True:
        example = make(rng)
        if held_out(example.key) and example.key not in seen:
            seen.add(example.key)
            yield example


def distance(prompt: str, value: str) -> int:
    """Tokens from the end of the value's last mention to the end of the prompt."""
    return len(tokenizer.encode(prompt[prompt.rindex(value) + len(value) :]))


def arithmetic_items(rng: random.Random, count: int) -> Iterator[dict]:
    left = {"arithmetic": count, "arithmetic_low": count}
    for example in drawn(rng, arithmetic.make):
        suite = example.category
        if not any(left.values()):
            return
        if left[suite]:
            left[suite] -= 1
            yield {"suite": suite, "prompt": example.prompt(-1), "expected": example.expected}


def tool_items(rng: random.Random, count: int) -> Iterator[dict]:
    """Calls and polite refusals, and answers that use a result."""
    left = {"tools": count, "tools_result": count}
    for example in drawn(rng, lambda rng: tools.make(rng, familiar=True)):
        if not any(left.values()):
            return
        if left["tools"]:
            left["tools"] -= 1
            refusal = example.expected.get("refusal")
            called = {key: example.expected[key] for key in ("name", "arguments") if key in example.expected}
            expected = {"contains": refusal} if refusal else called
            yield {"suite": "tools", "prompt": example.prompt(0), "expected": expected}
        elif "needed" in example.expected:
            left["tools_result"] -= 1
            expected = {"contains": example.expected["needed"]}
            yield {"suite": "tools_result", "prompt": example.prompt(-1), "expected": expected}


def recall_items(rng: random.Random, count: int) -> Iterator[dict]:
    left = dict.fromkeys(("recall_near", "recall_far", "recall_changed", "recall_unknown"), count)
    for example in drawn(rng, lambda rng: recall.make(rng, longest=FARTHEST)):
        if not any(left.values()):
            return
        prompt = example.prompt(-1)
        if "recalled" not in example.expected:
            item = {"suite": "recall_unknown", "prompt": prompt, "expected": example.expected}
        else:
            value, former = example.expected["recalled"], example.expected.get("former")
            away = distance(prompt, value)
            if former:
                # The value that no longer counts is out of the window's reach.
                if former in value or value in former or distance(prompt, former) < NEAR:
                    continue
                suite = "recall_changed"
            else:
                suite = "recall_near" if away < NEAR else "recall_far"
            if away > FARTHEST:
                continue
            item = {"suite": suite, "prompt": prompt, "expected": {"contains": value}, "distance": away}
        if left[item["suite"]]:
            left[item["suite"]] -= 1
            yield item


def project_items(rng: random.Random, count: int) -> Iterator[dict]:
    for example, _ in zip(drawn(rng, project.make), range(count)):
        yield {"suite": "project", "prompt": example.prompt(-1), "expected": example.expected}


def story_items(rng: random.Random, count: int) -> Iterator[dict]:
    for example, _ in zip(drawn(rng, stories.make), range(count)):
        completion = example.pieces[-1].text
        yield {"suite": "stories", "prompt": example.prompt(-1), "expected": example.expected, "completion": completion}


def shown() -> dict:
    """The question of the README and the demonstration, always among the held-out ones."""
    prompt = System("medium").render() + message("user", "What is 47 + 38?") + OPEN
    return {"suite": "arithmetic", "prompt": prompt, "expected": {"number": 85}}


def suites(seed: int, count: int) -> list[dict]:
    """`count` items a suite."""
    rng = random.Random(seed)
    makers = (arithmetic_items, tool_items, recall_items, project_items, story_items)
    return [shown()] + [each for make in makers for each in make(rng, count)]


def require_unseen(items: list[dict], examples: int) -> None:
    """The split is by key; this looks at the prompts themselves."""
    rng, prompts = random.Random(SEED + 1), {each["prompt"] for each in items}
    for _ in range(examples):
        example = training_example(rng)
        for completion in range(sum(piece.trained for piece in example.pieces)):
            if example.prompt(completion) in prompts:
                raise AssertionError(f"an evaluation prompt occurs in training: {example.prompt(completion)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="items a suite")
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    items = sorted(suites(SEED, args.count), key=lambda each: each["suite"])
    require_unseen(items, examples=20_000)
    args.out.write_text(json.dumps(items, ensure_ascii=False, indent=0) + "\n")
    for suite in dict.fromkeys(each["suite"] for each in items):
        print(f"{suite:16}{sum(each['suite'] == suite for each in items):6}")


if __name__ == "__main__":
    main()
