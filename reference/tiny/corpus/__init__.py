"""The corpus: examples drawn from grammars, split by their questions."""

import random
from collections.abc import Callable

from corpus import arithmetic, forced, outside, project, recall, stories, tools
from harmony import Example
from split import held_out

GRAMMARS: dict[str, tuple[Callable[[random.Random], Example], float]] = {
    "arithmetic": (arithmetic.make, 0.38),
    "tools": (tools.make, 0.11),
    "functions": (tools.make_declared, 0.2),
    "recall": (recall.make, 0.2),
    "stories": (stories.make, 0.07),
    "project": (project.make, 0.07),
    "outside": (outside.make, 0.09),
    "forced": (forced.make, 0.02),
}
# Names of examples other than the name of their grammar.
CATEGORIES = (*GRAMMARS, "arithmetic_low", "multiplication")


def training_example(rng: random.Random) -> Example:
    names = list(GRAMMARS)
    make, _ = GRAMMARS[rng.choices(names, [GRAMMARS[name][1] for name in names])[0]]
    while True:
        example = make(rng)
        if not held_out(example.key):
            return example
