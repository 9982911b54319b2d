"""Writes reference/goldens/harmony/miniature.jsonl: system and developer messages as this folder renders them, and the data in them.

The tests of the crate `harmony` render the same data and compare the texts.
"""

import json
import random
from pathlib import Path

from corpus.everyday import EVERYDAY
from corpus.setting import with_functions, without_functions
from corpus.tools import DECLARED, distinct

SEED, COUNT, MOST_FUNCTIONS = 10_000, 40, 4
PATH = Path(__file__).parent.parent / "goldens" / "harmony" / "miniature.jsonl"


def line(rng: random.Random, index: int) -> dict:
    functions = distinct(rng, (*EVERYDAY, *DECLARED), index % (MOST_FUNCTIONS + 1))
    system = with_functions(without_functions(rng), functions)
    developer = {"instructions": system.instructions} if system.instructions else {}
    if system.functions:
        developer["functions"] = system.functions
    return {
        "name": f"miniature {index}",
        **({"system": {"identity": system.identity, "date": system.date, "effort": system.effort}} if system.effort else {}),
        **({"developer": developer} if developer else {}),
        "messages": [],
        "text": system.render(),
    }


def main() -> None:
    rng = random.Random(SEED)
    lines = [json.dumps(line(rng, index), ensure_ascii=False, separators=(",", ":")) for index in range(COUNT)]
    PATH.write_text("".join(f"{each}\n" for each in lines))
    print(f"{len(lines)} lines, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
