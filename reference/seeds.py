"""Finds a seed whose golden case has clear decisions: f32 noise changes no greedy token and no set of experts."""

import numpy as np

import vocabulary
from cases import GENERATED, Case
from gguf_read import decoded
from models import weights
from numpy_model import forward

GREEDY_MARGIN = 0.02  # between the two largest logits, in standard deviations of the logits
DISTINCT = 12  # least number of distinct generated tokens, so that the text is not a short loop
ROUTER_GAP = 1e-3  # between the logits of the last chosen expert and the next one


def router_gap(logits: np.ndarray, case: Case) -> float:
    """The smallest gap between chosen and other experts, over all rows of logits [tokens, experts]."""
    if case.twins:
        # Twins are neighbouring experts with equal weights and router rows. An odd number of experts is chosen: k // 2 whole pairs of
        # twins, and one twin of the next pair. So that pair must be clearly apart from the pairs before and after it.
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
        # An engine would correctly stop at a control token, and the rest would not be compared.
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
