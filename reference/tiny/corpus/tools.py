"""Function calls: tools declared by the developer, arguments copied from the request, results used in the answer."""

import json
import random
from dataclasses import dataclass

from corpus import arithmetic
from corpus.words import CITIES, NAMES, FOODS, invented
from harmony import OPEN, Example, Piece, any_system, answer, call, message, result

SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy")
TOPICS = (
    "volcanoes", "whales", "bridges", "the moon", "bees", "trains", "chess", "coffee", "rainbows", "glaciers", "robots",
    "lighthouses", "owls", "the ocean", "mountains", "tea", "sailing", "fossils", "comets", "gardens", "castles", "maps",
)
FINDINGS = (
    "There is a museum about {t} in {c}.", "A new book about {t} came out in {c}.", "Many people in {c} study {t}.",
    "{n} wrote a famous report about {t}.", "The club for {t} meets in {c} every week.", "{n} gave a talk about {t} in {c}.",
)
IMPOSSIBLE = (
    "Book a flight to {c}.", "Order {f} for me.", "Buy me a ticket to {c}.", "Play some music.", "Turn off the lights.",
    "Call {n} for me.", "Translate this letter into French.", "Open the window.", "Reserve a table in {c}.", "Print my photos.",
    "Send money to {n}.", "Take a picture.", "Drive me to {c}.", "Wash my car.",
)


@dataclass(frozen=True)
class Kind:
    """One thing a tool can do, under the names developers give it."""

    does: str
    names: tuple[str, ...]
    arguments: tuple[tuple[str, ...], ...]  # alternative names of each argument
    types: tuple[str, ...]
    lacking: str  # what cannot be done without it


WEATHER = Kind("Get the weather in a city.", ("get_weather", "weather", "current_weather", "get_forecast"),
               (("city", "location", "place"),), ("string",), "look up the weather")
CLOCK = Kind("Get the time in a city.", ("get_time", "clock", "current_time", "local_time"),
             (("city", "location", "place"),), ("string",), "look up the time")
CALCULATOR = Kind("Calculate an expression.", ("calculator", "calculate", "compute", "evaluate"),
                  (("expression", "input"),), ("string",), "use a calculator")
SEARCH = Kind("Search for a topic.", ("search", "web_search", "lookup", "find_pages"),
              (("query", "topic"),), ("string",), "search")
TIMER = Kind("Start a timer.", ("set_timer", "start_timer", "timer"),
             (("minutes", "duration"),), ("number",), "set a timer")
MESSAGE = Kind("Send a message to a person.", ("send_message", "send_text", "write_message"),
               (("to", "recipient"), ("text", "message")), ("string", "string"), "send a message")
KINDS = (WEATHER, CLOCK, CALCULATOR, SEARCH, TIMER, MESSAGE)


@dataclass(frozen=True)
class Tool:
    """A declared function."""

    kind: Kind
    name: str
    arguments: tuple[str, ...]

    def declare(self) -> str:
        fields = "".join(f"{name}: {kind},\n" for name, kind in zip(self.arguments, self.kind.types))
        return f"// {self.kind.does}\ntype {self.name} = (_: {{\n{fields}}}) => any;\n"


def namespace(tools: list[Tool]) -> str:
    declared = "\n".join(tool.declare() for tool in tools)
    return f"namespace functions {{\n\n{declared}\n}} // namespace functions" if tools else ""


def declare(rng: random.Random, kind: Kind) -> Tool:
    return Tool(kind, rng.choice(kind.names), tuple(rng.choice(names) for names in kind.arguments))


@dataclass(frozen=True)
class Request:
    """What the user wants, what the tool gets and gives, and the answer made of it."""

    text: str
    values: tuple
    result: dict
    final: str
    needed: str  # the result's part that the answer must repeat


def city(rng: random.Random, familiar: bool) -> str:
    return rng.choice(CITIES) if familiar or rng.random() < 0.85 else invented(rng)


def ask_weather(rng: random.Random, familiar: bool) -> Request:
    where, degrees, sky = city(rng, familiar), rng.randint(-9, 39), rng.choice(SKIES)
    text = rng.choice((
        "What is the weather in {c}?", "How is the weather in {c}?", "Weather in {c}?", "What is the weather like in {c} today?",
        "Do I need an umbrella in {c}?", "Tell me the weather in {c}.", "Is it warm in {c}?", "How cold is it in {c} now?",
    )).format(c=where)
    final = f"It is {degrees} degrees and {sky} in {where}."
    return Request(text, (where,), {"temperature": degrees, "sky": sky}, final, f"{degrees} degrees and {sky}")


def ask_time(rng: random.Random, familiar: bool) -> Request:
    where, time = city(rng, familiar), f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    text = rng.choice((
        "What time is it in {c}?", "What is the time in {c}?", "Tell me the time in {c}.", "How late is it in {c}?",
        "Can you check the clock in {c}?", "What time is it now in {c}?", "Time in {c}?",
    )).format(c=where)
    return Request(text, (where,), {"time": time}, f"It is {time} in {where}.", time)


def ask_calculator(rng: random.Random, familiar: bool) -> Request:
    sign = rng.choice("+-*")
    a, b = rng.randint(1000, 9999), rng.randint(11, 9999)
    expression, found = f"{a} {sign} {b}", arithmetic.value(a, sign, b)
    text = rng.choice((
        "What is {e}?", "Calculate {e}.", "Use the calculator for {e}.", "How much is {e}?", "Compute {e} for me.",
        "Please work out {e}.",
    )).format(e=expression)
    return Request(text, (expression,), {"result": found}, f"{expression} = {found}.", str(found))


def ask_search(rng: random.Random, familiar: bool) -> Request:
    topic = rng.choice(TOPICS)
    text = rng.choice((
        "Search for {t}.", "Find something about {t}.", "Look up {t} for me.", "What can you find about {t}?",
        "Search the web for {t}.", "I want to know more about {t}. Please search.",
    )).format(t=topic)
    if rng.random() < 0.5:
        text = rng.choice(("Hello. ", "Please help me. ", "I am curious. ", "I have a question. ", "For my class: ")) + text
    found = rng.choice(FINDINGS).format(t=topic, c=rng.choice(CITIES), n=rng.choice(NAMES))
    return Request(text, (topic,), {"text": found}, f"I found this: {found}", found)


def ask_timer(rng: random.Random, familiar: bool) -> Request:
    minutes = rng.randint(1, 180)
    text = rng.choice((
        "Set a timer for {m} minutes.", "Start a timer of {m} minutes.", "Wake me in {m} minutes.", "Remind me in {m} minutes.",
        "I need a timer for {m} minutes.", "Please set a {m} minute timer.",
    )).format(m=minutes)
    return Request(text, (minutes,), {"ok": True}, f"The timer is set for {minutes} minutes.", str(minutes))


def ask_message(rng: random.Random, familiar: bool) -> Request:
    who = rng.choice(NAMES) if familiar or rng.random() < 0.85 else invented(rng)
    said = rng.choice((
        "I am late", "dinner is ready", "see you in {c}", "happy birthday", "bring some {f}", "the train leaves at {h}",
        "thank you for the {f}", "I am in {c}", "call me at {h}", "the meeting is at {h}",
    )).format(c=rng.choice(CITIES), f=rng.choice(FOODS), h=rng.randint(1, 12))
    text = rng.choice((
        'Send "{s}" to {n}.', 'Write a message to {n}: "{s}".', 'Tell {n} "{s}".', 'Please text {n}: "{s}".',
    )).format(s=said, n=who)
    return Request(text, (who, said), {"ok": True}, f"I sent your message to {who}.", who)


ASK = {WEATHER: ask_weather, CLOCK: ask_time, CALCULATOR: ask_calculator, SEARCH: ask_search, TIMER: ask_timer,
       MESSAGE: ask_message}


def refusal(tools: list[Tool], lacking: str) -> str:
    if not tools:
        return f"I am sorry, I have no tool to {lacking}."
    names = ", ".join(tool.name for tool in tools)
    return f"I am sorry, I have no tool to {lacking}. I can use: {names}."


def make(rng: random.Random, familiar: bool = False) -> Example:
    """`familiar` keeps to names from the lists."""
    system = any_system(rng)
    kinds = rng.sample(KINDS, rng.choice((1, 1, 2, 2, 3, 4)))
    kind = rng.choice(kinds)
    tools = [declare(rng, each) for each in kinds]
    request = ASK[kind](rng, familiar)
    text, lacking = request.text, kind.lacking
    fate = rng.random()
    if fate < 0.1:
        tools = [tool for tool in tools if tool.kind != kind]
    elif fate < 0.17:
        text = rng.choice(IMPOSSIBLE).format(c=rng.choice(CITIES), f=rng.choice(FOODS), n=rng.choice(NAMES))
        lacking = "do that"
    head = system.render(namespace(tools)) + message("user", text) + OPEN
    key = f"tools:{text}"
    if fate < 0.17:
        if kind == CALCULATOR and lacking != "do that":
            return make(rng, familiar)  # without a calculator this is a matter of arithmetic
        analysis = f"I have no tool to {lacking}."
        completion = answer(analysis if system.reasons else None, refusal(tools, lacking))
        return Example("tools", key, [Piece(head, False), Piece(completion, True)], {"refusal": "no tool"})

    tool = next(tool for tool in tools if tool.kind == kind)
    arguments = dict(zip(tool.arguments, request.values))
    analysis = f"I need to call {tool.name}." if system.reasons else None
    pieces = [
        Piece(head, False),
        Piece(call(analysis, tool.name, json.dumps(arguments)), True),
        Piece(result(tool.name, json.dumps(request.result)) + OPEN, False),
        Piece(answer(None, request.final), True),
    ]
    return Example("tools", key, pieces, {"name": tool.name, "arguments": arguments, "needed": request.needed})
