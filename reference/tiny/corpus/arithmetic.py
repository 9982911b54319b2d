"""Addition, subtraction and small multiplication, worked digit by digit from the ones up.

Digits are single tokens, so every step reads one digit of each operand and the carry written just before.
Without working (low effort) both operands stay below 100 and are never multiplied.
"""

import random

from harmony import Example, System, any_system, single_turn

PLACES = ("Ones", "Tens", "Hundreds")
SIGNS = {"+": "+", "-": "-", "*": "×"}
PHRASES = {
    "+": (
        "What is {a} + {b}?", "What is {a} + {b}?", "What is {a} plus {b}?", "Calculate {a} + {b}.", "{a} + {b} = ?",
        "How much is {a} + {b}?", "Add {a} and {b}.", "What's {a} + {b}?", "{a} + {b}", "{a}+{b}", "Compute {a} + {b}.",
        "What is the sum of {a} and {b}?", "Please add {b} to {a}.", "Can you tell me what {a} + {b} is?",
        "I have {a} apples and get {b} more. How many do I have?", "{a} birds sit in a tree and {b} more come. How many are there?",
    ),
    "-": (
        "What is {a} - {b}?", "What is {a} - {b}?", "What is {a} minus {b}?", "Calculate {a} - {b}.", "{a} - {b} = ?",
        "How much is {a} - {b}?", "Subtract {b} from {a}.", "What's {a} - {b}?", "{a} - {b}", "{a}-{b}", "Compute {a} - {b}.",
        "Please take {b} away from {a}.", "Can you tell me what {a} - {b} is?", "What is left of {a} after taking {b}?",
    ),
    "*": (
        "What is {a} * {b}?", "What is {a} × {b}?", "What is {a} times {b}?", "Calculate {a} * {b}.", "{a} * {b} = ?",
        "How much is {a} × {b}?", "Multiply {a} by {b}.", "What's {a} x {b}?", "{a} * {b}", "{a}*{b}", "Compute {a} × {b}.",
        "What is the product of {a} and {b}?", "Please multiply {a} and {b}.", "Can you tell me what {a} times {b} is?",
    ),
}


def key(a: int, sign: str, b: int) -> str | None:
    """The split's key: operands in either order are one problem, and single digits are the facts everyone learns."""
    if a < 10 and b < 10:
        return None
    low, high = (a, b) if sign == "-" else sorted((a, b))
    return f"{low}{sign}{high}"


def value(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def digits(number: int, count: int) -> list[int]:
    """From the ones up."""
    return [number // 10**place % 10 for place in range(count)]


def addition(a: int, b: int) -> str:
    width, carry, steps = max(len(str(a)), len(str(b))), 0, []
    for place, (x, y) in enumerate(zip(digits(a, width), digits(b, width))):
        total = x + y + carry
        carried = f" + {carry}" if place else ""
        carry = total // 10
        steps.append(f"{PLACES[place]}: {x} + {y}{carried} = {total}, write {total % 10}, carry {carry}.")
    return " ".join(steps)


def subtraction(a: int, b: int) -> str:
    """Of the smaller from the larger."""
    width, borrow, steps = len(str(a)), 0, []
    for place, (x, y) in enumerate(zip(digits(a, width), digits(b, width))):
        borrowed = f" - {borrow}" if place else ""
        rest = x - y - borrow
        borrow = int(rest < 0)
        steps.append(f"{PLACES[place]}: {x + 10 * borrow} - {y}{borrowed} = {rest + 10 * borrow}, borrow {borrow}.")
    return " ".join(steps)


def multiplication(a: int, b: int) -> str:
    """By one digit."""
    carry, steps = 0, []
    for place, x in enumerate(digits(a, len(str(a)))):
        carried = f" = {x * b}, {x * b} + {carry}" if place else ""
        total = x * b + carry
        carry = total // 10
        steps.append(f"{PLACES[place]}: {x} × {b}{carried} = {total}, write {total % 10}, carry {carry}.")
    return " ".join(steps)


def working(a: int, sign: str, b: int) -> str:
    if sign == "+":
        return addition(a, b)
    if sign == "*":
        return multiplication(max(a, b), min(a, b))
    if a < b:
        return f"{a} is less than {b}, so the answer is negative. {b} - {a}. {subtraction(b, a)}"
    return subtraction(a, b)


def check(a: int, sign: str, b: int) -> str:
    found = value(a, sign, b)
    return {"+": f"{found} - {b} = {a}", "-": f"{found} + {b} = {a}", "*": f"{b} × {a} = {found}"}[sign]


def number(rng: random.Random, longest: int) -> int:
    length = rng.choices(range(1, longest + 1), (2, 5, 5)[:longest])[0]
    return rng.randint(10 ** (length - 1) if length > 1 else 0, 10**length - 1)


def operands(rng: random.Random, sign: str, worked: bool) -> tuple[int, int]:
    if sign == "*":
        pair = rng.randint(0, 99), rng.randint(2, 9)
        return pair if rng.random() < 0.7 else pair[::-1]
    longest = 3 if worked else 2
    a, b = number(rng, longest), number(rng, longest)
    if sign == "-" and a < b and (max(a, b) > 99 or not worked or rng.random() < 0.85):
        a, b = b, a
    return a, b


def statement(a: int, sign: str, b: int) -> str:
    return f"{a} {SIGNS[sign]} {b} = {value(a, sign, b)}."


def make(rng: random.Random, system: System | None = None) -> Example:
    system = system or any_system(rng)
    sign = rng.choices("+-*" if system.reasons else "+-", (4, 4, 3) if system.reasons else (1, 1))[0]
    a, b = operands(rng, sign, system.reasons)
    question = rng.choice(PHRASES[sign]).format(a=a, b=b)
    analysis = f"{a} {SIGNS[sign]} {b}. {working(a, sign, b)} So {statement(a, sign, b)}"
    if system.effort == "high":
        analysis += f" Check: {check(a, sign, b)}."
    category = "arithmetic" if system.reasons else "arithmetic_low"
    expected = {"number": value(a, sign, b)}
    return single_turn(category, key(a, sign, b), system, question, analysis, statement(a, sign, b), expected)
