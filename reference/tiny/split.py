"""Which examples are kept for evaluation: decided by a hash of what they ask, never by chance."""

import hashlib

# The question that the README and the demonstration ask, and the product that everybody knows.
SHOWN = {"38+47", "12*12"}


def held_out(key: str | None) -> bool:
    """One key in ten. An example without a key is for training."""
    if key is None:
        return False
    return key in SHOWN or hashlib.blake2s(key.encode(), digest_size=4).digest()[0] % 10 == 0
