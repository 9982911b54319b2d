"""Whether a completion is right, and whether it is valid harmony."""

import json
import re

import torch
import torch.nn.functional as F

import tokenizer
from decode import greedy
from model import GptOss

MOST_TOKENS = 256
MESSAGE = r"<\|channel\|>analysis<\|message\|>[^<]*<\|end\|><\|start\|>assistant"
FINAL = re.compile(rf"(?:{MESSAGE})*<\|channel\|>final<\|message\|>([^<]*)<\|return\|>")
CALL = re.compile(
    rf"(?:{MESSAGE})* to=functions\.([\w.-]+)<\|channel\|>commentary json<\|message\|>([^<]*)<\|call\|>"
)


def valid(completion: str) -> bool:
    return bool(FINAL.fullmatch(completion) or CALL.fullmatch(completion))


def final(completion: str) -> str | None:
    found = FINAL.fullmatch(completion)
    return found and found[1]


def right(expected: dict, completion: str) -> bool:
    """Whether the completion has the expected call, or a final message with the expected number, text or words (see README.md)."""
    if "name" in expected:
        found = CALL.fullmatch(completion)
        try:
            return bool(found) and found[1] == expected["name"] and json.loads(found[2]) == expected["arguments"]
        except json.JSONDecodeError:
            return False
    text = final(completion)
    if text is None:
        return False
    if "number" in expected:
        numbers = re.findall(r"-?\d+", text)
        return bool(numbers) and int(numbers[-1]) == expected["number"]
    if "text" in expected:
        return text == expected["text"]
    if "two_of" in expected:
        return all(sum(contains(text, word) for word in words) == 2 for words in expected["two_of"])
    return contains(text, expected["contains"])


def contains(text: str, words: str) -> bool:
    """Whether the words occur in the text as whole words."""
    return bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text))


@torch.no_grad()
def perplexity(model: GptOss, items: list[dict], device: str) -> float:
    """The perplexity of the expected completions, including their control tokens: exp of the mean loss per token."""
    total, count = 0.0, 0
    for item in items:
        prompt = tokenizer.encode(item["prompt"])
        tokens = torch.tensor([prompt + tokenizer.encode(item["completion"])], device=device)
        logits = model(tokens[:, :-1], torch.ones_like(tokens[:, :-1]))[0][0]
        scored = slice(len(prompt) - 1, None)
        total += F.cross_entropy(logits[scored], tokens[0, 1:][scored], reduction="sum").item()
        count += tokens.shape[1] - len(prompt)
    return torch.tensor(total / count).exp().item()


def evaluate(model: GptOss, items: list[dict], device: str) -> tuple[dict[str, dict], list[dict]]:
    """Scores by suite, and the wrong answers."""
    scores, wrong = {}, []
    for suite in dict.fromkeys(item["suite"] for item in items):
        mine = [item for item in items if item["suite"] == suite]
        if suite == "stories":
            scores[suite] = {"items": len(mine), "perplexity": perplexity(model, mine, device)}
            continue
        completions = greedy(model, [item["prompt"] for item in mine], MOST_TOKENS, device)
        correct = [right(item["expected"], completion) for item, completion in zip(mine, completions)]
        scores[suite] = {
            "items": len(mine),
            "accuracy": sum(correct) / len(mine),
            "harmony": sum(map(valid, completions)) / len(mine),
        }
        wrong += [
            {"suite": suite, "prompt": item["prompt"], "expected": item["expected"], "completion": completion}
            for item, completion, ok in zip(mine, completions, correct) if not ok
        ]
    return scores, wrong
