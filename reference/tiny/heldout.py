"""Writes heldout.json: prompts that are held out of training, and what the answer must contain."""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizer
from corpus import arithmetic, outside, project, recall, stories, tools, training_example
from corpus.setting import any_date
from harmony import EFFORTS, OPEN, Example, System, message
from split import held_out

SEED = 20_000
PATH = Path(__file__).with_name("heldout.json")
NEAR = 128  # the sliding window; a value mentioned fewer tokens ago counts as near
FARTHEST = 512


def drawn(rng: random.Random, make: Callable[[random.Random], Example]) -> Iterator[Example]:
    """Held-out examples with different questions."""
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
    left = {"arithmetic": count, "arithmetic_low": count, "multiplication": count}
    for example in drawn(rng, arithmetic.make):
        suite = example.category
        if not any(left.values()):
            return
        if left.get(suite):
            left[suite] -= 1
            yield {"suite": suite, "prompt": example.prompt(-1), "expected": example.expected}


def tool_items(rng: random.Random, count: int) -> Iterator[dict]:
    """Calls, refusals, and answers that use a result."""
    left = {"tools": count, "tools_result": count}
    for example in drawn(rng, lambda rng: tools.make(rng, alone=True)):
        if not any(left.values()):
            return
        if left["tools"]:
            left["tools"] -= 1
            refusal = example.expected.get("refusal")
            expected = {"contains": refusal} if refusal else called(example)
            yield {"suite": "tools", "prompt": example.prompt(0), "expected": expected}
        elif "needed" in example.expected:
            left["tools_result"] -= 1
            yield answered(example, "tools_result")


def function_items(rng: random.Random, count: int) -> Iterator[dict]:
    """Calls of functions that are declared by schemas, after other turns too, and answers that use their results."""
    left = {"functions": count, "functions_result": count}
    for example in drawn(rng, tools.make_declared):
        if not any(left.values()):
            return
        if "needed" not in example.expected:
            continue
        if left["functions"]:
            left["functions"] -= 1
            yield {"suite": "functions", "prompt": example.prompt(-2), "expected": called(example)}
        else:
            left["functions_result"] -= 1
            yield answered(example, "functions_result")


def called(example: Example) -> dict:
    return {key: example.expected[key] for key in ("name", "arguments")}


def answered(example: Example, suite: str) -> dict:
    return {"suite": suite, "prompt": example.prompt(-1), "expected": {"contains": example.expected["needed"]}}


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
            if value.isdigit() and len(value) < 3:
                continue  # arithmetic between the fact and the question contains such numbers too
            away = distance(prompt, value)
            if former:
                # The outdated value is outside the window.
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


def outside_items(rng: random.Random, count: int) -> Iterator[dict]:
    """Questions that no grammar generates, then held-out questions of the grammars."""
    for question in outside.UNSEEN[:count]:
        system = System(rng.choice(EFFORTS), any_date(rng))
        prompt = system.render() + message("user", question) + OPEN
        # Answers to questions and to tasks both end with `ABLE`.
        yield {"suite": "outside", "prompt": prompt, "expected": {"contains": outside.ABLE.rstrip(".")}}
    for example, _ in zip(drawn(rng, outside_or_beyond), range(count - len(outside.UNSEEN))):
        yield {"suite": "outside", "prompt": example.prompt(-1), "expected": example.expected}


def outside_or_beyond(rng: random.Random) -> Example:
    return arithmetic.make_beyond(rng) if rng.random() < 0.15 else outside.make(rng)


def story_items(rng: random.Random, count: int) -> Iterator[dict]:
    """Stories whose perplexity is measured, and requests for stories of two characters."""
    examples = drawn(rng, stories.make)
    for example, _ in zip(examples, range(count)):
        completion = example.pieces[-1].text
        expected = {"text": example.expected["text"]}
        yield {"suite": "stories", "prompt": example.prompt(-1), "expected": expected, "completion": completion}
    for example, _ in zip(examples, range(count)):
        yield {"suite": "characters", "prompt": example.prompt(-1), "expected": {"two_of": example.expected["two_of"]}}


def shown() -> list[dict]:
    """The question of the demonstration (`gptoss` without arguments), and a well-known product: always held out."""
    questions = (("arithmetic", "What is 47 + 38?", 85), ("multiplication", "What is 12 × 12?", 144))
    return [
        {"suite": suite, "prompt": System("medium").render() + message("user", text) + OPEN, "expected": {"number": number}}
        for suite, text, number in questions
    ]


def suites(seed: int, count: int) -> list[dict]:
    """`count` items per suite, and those of `shown`."""
    rng = random.Random(seed)
    makers = (arithmetic_items, tool_items, function_items, recall_items, project_items, outside_items, story_items)
    return shown() + [each for make in makers for each in make(rng, count)]


def require_unseen(items: list[dict], examples: int) -> None:
    """Checks that no prompt of `items` occurs in `examples` random training examples: the split by key does not guarantee that."""
    rng, prompts = random.Random(SEED + 1), {each["prompt"] for each in items}
    for _ in range(examples):
        example = training_example(rng)
        for completion in range(sum(piece.trained for piece in example.pieces)):
            if example.prompt(completion) in prompts:
                raise AssertionError(f"an evaluation prompt occurs in training: {example.prompt(completion)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="items per suite")
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args()
    items = sorted(suites(SEED, args.count), key=lambda each: each["suite"])
    require_unseen(items, examples=20_000)
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    args.out.write_text(f"[\n{lines}\n]\n")
    for suite in dict.fromkeys(each["suite"] for each in items):
        print(f"{suite:16}{sum(each['suite'] == suite for each in items):6}")


if __name__ == "__main__":
    main()
