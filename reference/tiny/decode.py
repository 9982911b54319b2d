"""Greedy decoding of many prompts at once."""

import torch

import tokenizer
from model import GptOss

STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")


@torch.no_grad()
def greedy(model: GptOss, prompts: list[str], count: int, device: str, batch: int = 256) -> list[str]:
    """The continuation of each prompt, up to and including a stop token, or `count` tokens. Prompts of similar length run together."""
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    stops = {tokenizer.token_id(stop) for stop in STOPS}
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    written = [""] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        longest = max(len(encoded[index]) for index in chosen)
        # Padding on the left is a separate document, so no token attends to it; only relative positions matter.
        step = torch.tensor([[0] * (longest - len(encoded[i])) + encoded[i] for i in chosen], device=device)
        documents = torch.tensor([[0] * (longest - len(encoded[i])) + [1] * len(encoded[i]) for i in chosen], device=device)
        past, outputs, running = None, [[] for _ in chosen], set(range(len(chosen)))
        for _ in range(count):
            logits, past, _ = model(step, documents, past)
            step = logits[:, -1:].argmax(-1)
            for row, token in enumerate(step[:, 0].tolist()):
                if row in running:
                    outputs[row].append(token)
                    if token in stops:
                        running.discard(row)
            if not running:
                break
            documents = torch.cat([documents, torch.ones_like(step)], 1)
        for index, output in zip(chosen, outputs):
            written[index] = tokenizer.decode(output)
    return written
