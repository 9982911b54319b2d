"""Addition, subtraction and multiplication, computed digit by digit from the ones, and problems that are too hard for that.

Digits are single tokens, so every step reads one digit of each operand and the carry written just before. Products of two
numbers with two digits are sums of two such products. With low effort, sums and differences below 100 are answered without steps.
"""

import random

from corpus.outside import careless
from corpus.setting import any_system
from harmony import Example, System, single_turn

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
        "What is {a} x {b}?", "{a}x{b}", "{a} x {b} = ?", "{a} boxes hold {b} apples each. How many apples are there?",
    ),
}
SQUARES = ("What is {a} squared?", "What is the square of {a}?", "Square {a}.")
BEYOND = "I cannot calculate that. I add and subtract numbers up to 999 and multiply numbers up to 99."
BEYOND_PHRASES = (
    "What is {a} / {c}?", "What is {a} divided by {c}?", "Divide {a} by {c}.", "{a} / {c}", "{a}/{c}", "How much is {a} ÷ {c}?",
    "What is the square root of {a}?", "What is {a} to the power of {c}?", "What is {a}^{c}?", "What is {c} percent of {a}?",
    "What is {a}.{c} + {b}.{c}?", "What is {a}.{c} * {c}?", "Is {a} a prime number?", "What is the cube root of {a}?",
    "What is {a} modulo {c}?",
    "What is {l} + {b}?", "What is {l} - {b}?", "What is {l} * {b}?", "What is {a} + {l}?", "{l} + {m}", "{l} * {m}", "{l}-{m}",
    "Calculate {l} + {m}.", "Calculate {h} × {i}.", "What is {h} times {i}?", "{h} * {c}", "{h} x {b}", "What is {h} × {c}?",
    "Multiply {h} by {i}.",
    "What is {a} + {b} + {c}?", "What is {a} + {b} * {c}?", "{a} + {b} - {c}", "What is ({a} + {b}) * {c}?", "What is {c} * {b} + {a}?",
    "What is the average of {a} and {b}?", "What is the sine of {a}?", "What is the logarithm of {a}?", "What is the factorial of {c}?",
    "What is half of {a}?",
    "Solve x + {c} = {a}.", "What is x if x - {c} = {b}?", "What is the sum of {a}, {b} and {c}?",
)


def key(a: int, sign: str, b: int) -> str | None:
    """The key for the split: operands in either order are one problem, and problems with single digits are always in training."""
    if a < 10 and b < 10:
        return None
    low, high = (a, b) if sign == "-" else sorted((a, b))
    return f"{low}{sign}{high}"


def value(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def digits(number: int, count: int) -> list[int]:
    """Adds digit by digit, from the ones."""
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
    """Subtracts the smaller number from the larger."""
    width, borrow, steps = len(str(a)), 0, []
    for place, (x, y) in enumerate(zip(digits(a, width), digits(b, width))):
        borrowed = f" - {borrow}" if place else ""
        rest = x - y - borrow
        borrow = int(rest < 0)
        steps.append(f"{PLACES[place]}: {x + 10 * borrow} - {y}{borrowed} = {rest + 10 * borrow}, borrow {borrow}.")
    return " ".join(steps)


def multiplication(a: int, b: int) -> str:
    """Multiplies by one digit."""
    carry, steps = 0, []
    for place, x in enumerate(digits(a, len(str(a)))):
        carried = f" = {x * b}, {x * b} + {carry}" if place else ""
        total = x * b + carry
        carry = total // 10
        steps.append(f"{PLACES[place]}: {x} × {b}{carried} = {total}, write {total % 10}, carry {carry}.")
    return " ".join(steps)


def long_multiplication(a: int, b: int) -> str:
    """Two products with a digit of `b` each and their sum, in as few tokens as possible."""
    partial, found = [], []
    for place, y in enumerate(digits(b, 2)):
        carry, steps = 0, []
        for at, x in enumerate(digits(a, 2)):
            total = x * y + carry
            steps.append(f"{x}×{y}={x * y}" + (f", {x * y}+{carry}={total}" if at else ""))
            carry = total // 10
        found.append(a * y * 10**place)
        partial.append(f"{a}×{y * 10**place}: {', '.join(steps)}, {found[place]}.")
    width, carry, steps = len(str(max(found))), 0, []
    for place, (x, y) in enumerate(zip(digits(found[0], width), digits(found[1], width))):
        carried = f"+{carry}" if place else ""
        total = x + y + carry
        carry = total // 10
        steps.append(f"{x}+{y}{carried}={total}")
    return f"{' '.join(partial)} {found[0]}+{found[1]}: {', '.join(steps)}, {sum(found)}."


def working(a: int, sign: str, b: int) -> str:
    if sign == "+":
        return addition(a, b)
    if sign == "*":
        return long_multiplication(a, b) if min(a, b) > 9 else multiplication(max(a, b), min(a, b))
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
        if rng.random() < 0.6:
            return rng.randint(10, 99), rng.randint(10, 99)
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
    if rng.random() < 0.08:
        return make_beyond(rng, system)
    sign = rng.choices("+-*", (4, 4, 6) if system.reasons else (5, 5, 1))[0]
    a, b = operands(rng, sign, system.reasons or rng.random() < 0.1)
    if sign == "*" and min(a, b) > 9 and rng.random() < 0.05:
        a = b
        question = rng.choice(SQUARES).format(a=a)
    else:
        question = rng.choice(PHRASES[sign]).format(a=a, b=b)
    worked = system.reasons or sign == "*" or max(a, b) > 99
    analysis = f"{a} {SIGNS[sign]} {b}. {working(a, sign, b)} So {statement(a, sign, b)}" if worked else None
    if system.effort == "high":
        analysis = f"{analysis} Check: {check(a, sign, b)}."
    category = "arithmetic" if worked else "arithmetic_low"
    if sign == "*" and min(a, b) > 9:
        category = "multiplication"
    expected = {"number": value(a, sign, b)}
    return single_turn(category, key(a, sign, b), system, careless(rng, question), analysis, statement(a, sign, b), expected)


def make_beyond(rng: random.Random, system: System | None = None) -> Example:
    """Problems that the model does not compute."""
    system = system or any_system(rng)
    a, b, c = rng.randint(2, 999), rng.randint(2, 999), rng.randint(2, 99)
    large, larger = (rng.randint(1000, 10 ** rng.randint(4, 7)) for _ in range(2))
    h, i = rng.randint(100, 9999), rng.randint(100, 999)
    question = rng.choice(BEYOND_PHRASES).format(a=a, b=b, c=c, l=large, m=larger, h=h, i=i)
    analysis = "This is beyond what I calculate." if system.reasons else None
    return single_turn("outside", f"beyond:{question}", system, careless(rng, question), analysis, BEYOND, {"text": BEYOND})
