"""System and developer messages: dates, reasoning efforts, instructions, and functions that the conversation does not need."""

import random

from corpus.everyday import Clock, Message, Timer, Weather
from corpus.functions import Function
from corpus.home import HOME
from corpus.named import Act, Change
from corpus.services import Dice, Flights, Order, Table
from harmony import EFFORTS, IDENTITY, System

IDENTITIES = (
    *(IDENTITY,) * 12, "You are gptoss-tiny, a small language model.", "You are a helpful assistant.", "You are a small model.",
)
INSTRUCTIONS = (
    "You are a helpful assistant.", "Use the tools when they help.", "Answer briefly.", "Be friendly.", "Be brief.", "Be concise.",
    "Be friendly and answer in one sentence.", "Use a tool for every question that needs one.", "Always answer politely.",
    "You are a friendly assistant who helps with everyday questions.", "Answer in English.", "Keep your answers short.",
    "Do not make anything up.", "If you do not know something, say so.", "You help customers of a small shop.", "Think first.",
    "You are an assistant with access to tools. Use them to answer.", "Call functions only when they are needed.", "Rhyme.",
    "Answer as well as you can.\n\nNever be rude.", "You are a pirate.", "Talk like a teacher.", "Use simple words.",
    "Respond with the result only.", "You are part of a test.", "Help the user.\nBe exact with numbers.",
)
# Functions that do not answer questions about numbers, facts told earlier, stories or this project.
BYSTANDERS: tuple[type[Function], ...] = (Weather, Clock, Timer, Message, *HOME, Flights, Order, Table, Dice, Act, Change)
WITH_BYSTANDERS = 0.12


def any_date(rng: random.Random) -> str:
    return f"{rng.randint(2024, 2029)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def without_functions(rng: random.Random) -> System:
    effort = None if rng.random() < 0.06 else rng.choice(EFFORTS)
    instructions = rng.choice(INSTRUCTIONS) if rng.random() < 0.25 else ""
    return System(effort, any_date(rng), rng.choice(IDENTITIES), instructions)


def any_system(rng: random.Random) -> System:
    system = without_functions(rng)
    return with_functions(system, bystanders(rng)) if rng.random() < WITH_BYSTANDERS else system


def bystanders(rng: random.Random) -> list[Function]:
    return [kind(rng) for kind in rng.sample(BYSTANDERS, rng.choice((1, 1, 2, 3)))]


def with_functions(system: System, functions: list[Function]) -> System:
    """Of functions with the same name, the first one is declared."""
    declared = {function.name: function.declaration for function in reversed(functions)}
    in_order = {function.name: declared[function.name] for function in functions}
    return System(system.effort, system.date, system.identity, system.instructions, tuple(in_order.values()))
