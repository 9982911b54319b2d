"""Finds a seed whose golden case is decided clearly: no greedy token and no expert set hangs on f32 noise."""

import numpy as np

import vocabulary
from cases import GENERATED, Case
from gguf_read import decoded
from models import weights
from numpy_model import forward

GREEDY_MARGIN = 0.02  # first to second logit, in standard deviations of the logits
DISTINCT = 12  # generated tokens, so that the text is not one short loop
ROUTER_GAP = 1e-3  # between the last expert taken and the first one left


def router_gap(logits: np.ndarray, case: Case) -> float:
    """The smallest gap that decides an expert set, in any row of logits [tokens, experts]."""
    if case.twins:
        # An odd k takes whole pairs and one of the next: the order of the pairs matters up to that one.
        pairs = np.sort(logits[:, ::2], axis=1)[:, ::-1]
        last = case.shape.experts_per_token // 2
        return (pairs[:, last - 1 : last + 1] - pairs[:, last : last + 2]).min()
    best = np.sort(logits, axis=1)[:, ::-1]
    k = case.shape.experts_per_token
    return (best[:, k - 1] - best[:, k]).min()


def decided(case: Case, prompt: list[int], tensors: dict[str, np.ndarray], truncate: bool) -> bool:
    tokens = list(prompt)
    for _ in range(GENERATED):
        trace = forward(case.shape, tensors, tokens, truncate)
        last = trace["logits"][-1]
        second, first = np.sort(last)[-2:]
        token = int(np.argmax(last))
        # A control token would let an engine stop early, as it should, and leave the rest uncompared.
        if first - second <= GREEDY_MARGIN * last.std() or token >= vocabulary.FIRST_CONTROL:
            return False
        tokens.append(token)
    if len(set(tokens[case.prompt :])) < DISTINCT:
        return False
    trace = forward(case.shape, tensors, tokens, truncate)
    gaps = (router_gap(trace[f"layers.{layer}.router_logits"], case) for layer in range(case.shape.layers))
    return min(gaps) > ROUTER_GAP


def find_seed(case: Case) -> int:
    seed = case.base_seed
    while True:
        prompt, packed = weights(case, seed)
        tensors = decoded(packed)
        if all(decided(case, prompt.tolist(), tensors, truncate) for truncate in (False, True)):
            return seed
        seed += 1
