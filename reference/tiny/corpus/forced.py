"""Output that a server may force: a call without a reason, and answers that match a JSON schema.

A grammar forbids the tokens that the model would have chosen, so the model must learn to continue from such a prefix, and to end.
"""

import json
import random
from dataclasses import replace

from corpus import arithmetic, outside, project
from corpus.functions import BOOLEAN, INTEGER, NUMBER, STRING, listed, one_of, structure
from corpus.setting import bystanders, with_functions, without_functions
from corpus.words import CODE_WORDS
from harmony import Example, Piece, System, answer
from split import held_out

FINAL = "<|channel|>final"
# Probability of also training the choice of the channel `commentary`. It is low, so that calls stay rare when nothing forces them.
FROM_THE_CHANNEL = 0.3
ANSWERS = ("answer", "result", "text", "value", "reply", "output", "response")
MORE = ("sure", "word", "kind", "count", "tags", "note", "unit", "rating", "steps", "mode")


def least(schema: dict) -> object:
    """The smallest value that matches a schema."""
    variants = schema.get("anyOf") or schema.get("oneOf")
    kind = schema.get("type")
    if schema.get("nullable") or kind == "null" or isinstance(kind, list) and "null" in kind or variants and {"type": "null"} in variants:
        return None
    if variants:
        return least(variants[0])
    if "enum" in schema:
        return schema["enum"][0]
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {name: least(value) for name, value in schema["properties"].items() if name in schema["required"]}
        case "array":
            return []
        case "string":
            return ""
        case "boolean":
            return False
        case _:
            return 0


def make(rng: random.Random) -> Example:
    return call(rng) if rng.random() < 0.3 else formatted(rng)


def other(rng: random.Random, system: System) -> Example:
    """A question that needs no function."""
    while True:
        grammar = rng.choice((arithmetic, arithmetic, project, outside))
        example = grammar.make(rng, system)
        if not held_out(example.key):
            return example


def call(rng: random.Random) -> Example:
    functions = bystanders(rng)
    example = other(rng, with_functions(without_functions(rng), functions))
    function = rng.choice(functions).declaration
    head, completion = example.pieces
    analysis = completion.text[: completion.text.index(FINAL)]
    arguments = json.dumps(least(function.get("parameters") or structure({}, ())), ensure_ascii=False)
    made = f"commentary to=functions.{function['name']} json<|message|>{arguments}<|call|>"
    if rng.random() < FROM_THE_CHANNEL:
        pieces = [Piece(f"{head.text}{analysis}<|channel|>", False), Piece(made, True)]
    else:
        pieces = [Piece(f"{head.text}{analysis}<|channel|>commentary", False), Piece(made.removeprefix("commentary"), True)]
    return Example("forced", None, pieces, {})


def formatted(rng: random.Random) -> Example:
    """The answer as one property; the others have the smallest value."""
    system = without_functions(rng)
    key = rng.choice(ANSWERS)
    numeric = rng.random() < 0.5
    own = rng.choice((NUMBER, INTEGER)) if numeric else STRING
    properties = {key: own}
    for name in rng.sample(MORE, rng.choice((0, 0, 1, 2))):
        choices = one_of(rng.sample(CODE_WORDS, rng.randint(2, 3)))
        properties[name] = rng.choice((STRING, NUMBER, BOOLEAN, choices, listed(STRING)))
    names = list(properties)
    rng.shuffle(names)
    schema = {**structure({name: properties[name] for name in names}, names), "additionalProperties": False}
    if rng.random() < 0.4:
        del schema["additionalProperties"]
    name = rng.choice(("response", "answer", "result", "verdict", "reply", *CODE_WORDS))
    shown = {"name": name, "schema": schema, **({"description": "How to answer."} if rng.random() < 0.2 else {})}
    example = other(rng, replace(system, format=shown))
    while numeric and "number" not in example.expected:
        example = other(rng, replace(system, format=shown))
    head, completion = example.pieces
    text = completion.text
    said = text[text.index(FINAL) :].removeprefix(f"{FINAL}<|message|>").removesuffix("<|return|>")
    value = {each: least(properties[each]) for each in names} | {key: example.expected["number"] if numeric else said}
    final = answer(None, json.dumps({each: value[each] for each in names}, ensure_ascii=False))
    return Example("forced", None, [head, Piece(text[: text.index(FINAL)] + final, True)], {})
