"""A byte-level BPE of 2,048 tokens for the corpus, written to vocabulary.json.

No merge contains a digit, so that each digit of a number is a token. The pre-tokenizer is o200k's and the control tokens are
harmony's, as in gpt-oss.
"""

import json
import random
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import reference_path
from harmony import CONTROL
from vocabulary import byte_alphabet

SIZE = 2048
EXAMPLES = 40_000
SEED = 1
PATH = Path(__file__).with_name("vocabulary.json")
O200K = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
))


def pre_tokenizer(split_digits: bool) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Regex(O200K), "removed", invert=True)]
    if split_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build(tokens: list[str], merges: list[str]) -> Tokenizer:
    """The tokenizer as the engine builds it from the GGUF. Digits are separate tokens, because no merge joins them."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    bpe = models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges], ignore_merges=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizer(split_digits=False)
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer


@cache
def vocabulary() -> dict[str, list[str]]:
    return json.loads(PATH.read_text())


@cache
def load() -> Tokenizer:
    return build(**vocabulary())


def token_id(text: str) -> int:
    return vocabulary()["tokens"].index(text)


def encode(text: str) -> list[int]:
    return load().encode(text, add_special_tokens=False).ids


def decode(ids: list[int]) -> str:
    tokens, alphabet = vocabulary()["tokens"], byte_alphabet()
    first_control = len(tokens) - len(CONTROL)
    # The alphabet lists printable bytes first; this is the byte for each character.
    order = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    order += [byte for byte in range(256) if byte not in set(order)]
    byte_of = dict(zip(alphabet, order))
    pieces = [
        tokens[token].encode() if token >= first_control else bytes(byte_of[character] for character in tokens[token])
        for token in ids
    ]
    return b"".join(pieces).decode(errors="replace")


def main() -> None:
    from corpus import training_example

    rng = random.Random(SEED)
    texts = []
    for _ in range(EXAMPLES):
        text = training_example(rng).text
        for control in CONTROL:
            text = text.replace(control, "\n")
        texts.append(text)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(split_digits=True)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(CONTROL), initial_alphabet=byte_alphabet(), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(merge) for merge in trained["merges"]]
    # Ids in a fixed order: bytes, merges as they were learned, control tokens.
    tokens = list(dict.fromkeys(byte_alphabet() + [merge.replace(" ", "") for merge in merges])) + list(CONTROL)
    PATH.write_text(json.dumps({"tokens": tokens, "merges": merges}, ensure_ascii=False, indent=0) + "\n")
    print(f"{len(tokens)} tokens, {len(merges)} merges")


if __name__ == "__main__":
    main()
