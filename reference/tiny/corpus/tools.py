"""Conversations with declared functions: calls, answers from results, and answers when no function fits.

`make` has the six everyday functions, `make_declared` all the others, from the schemas that developers write.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from corpus import arithmetic, outside, project
from corpus.conversation import Conversation, written_out
from corpus.everyday import EVERYDAY, FINDINGS, TOPICS, Calculator, Clock, Search, Weather
from corpus.functions import Function, Request
from corpus.home import HOME
from corpus.named import NAMED
from corpus.services import SERVICES, Operation
from corpus.setting import with_functions, without_functions
from corpus.words import CITIES, FOODS, NAMES
from harmony import OPEN, Example, Piece, answer, call, result
from split import held_out

Kinds = tuple[type[Function], ...]

# Named functions are listed three times, because each can have many names.
DECLARED: Kinds = (*HOME, *SERVICES, *NAMED, *NAMED, *NAMED)
IMPOSSIBLE = (
    "Book a flight to {c}.", "Order {f} for me.", "Buy me a ticket to {c}.", "Play some music.", "Turn off the lights.",
    "Call {n} for me.", "Open the window.", "Reserve a table in {c}.", "Print my photos.", "Send money to {n}.",
    "Take a picture.", "Drive me to {c}.", "Wash my car.", "Close the door.", "Bring me {f}.", "Charge my phone.",
)
PROBLEMS = ("not found", "no connection", "timeout", "permission denied", "unknown name", "try again later", "service unavailable")
# Other ways to end a conversation than one call and an answer.
LACKING, UNABLE, VAGUE, OTHER, TWICE = 0.08, 0.05, 0.05, 0.1, 0.08
# Results that are not JSON, and results that are errors.
PLAIN, FAILED = 0.12, 0.05
SHORT = ("done", "ok", "Done.", "success", "OK", "true", "yes", "no", "42", "22 degrees", "sunny, 20 degrees", "nothing", "finished")
# Calls whose reasoning is not sent back with the result, and calls of functions that are no longer declared.
FORGOTTEN, HIDDEN = 0.2, 0.03


def refusal(functions: list[Function], lacking: str) -> str:
    if not functions:
        return f"I am sorry, I have no tool to {lacking}."
    names = ", ".join(function.name for function in functions)
    return f"I am sorry, I have no tool to {lacking}. I can use: {names}."


def key(request: Request) -> str:
    return request.key or f"tools:{request.text}"


class Unusable(Exception):
    """The drawn parts cannot form an example."""


def seen(rng: random.Random, function: Function) -> Request:
    """A request that is not a question of the evaluation."""
    while held_out(key(request := function.ask(rng))):
        if request.key:
            raise Unusable  # all requests of this function are in the evaluation
    return request


def twisted(rng: random.Random, request: Request) -> Request:
    """The same with a text or an error as result."""
    fate = rng.random()
    if fate < PLAIN:
        found = rng.choice(FINDINGS).format(t=rng.choice(TOPICS), c=rng.choice(CITIES), n=rng.choice(NAMES))
        found = rng.choice((found, rng.choice(SHORT)))
        return replace(request, result=found, final=f"It says: {found}", needed=found)
    if fate < PLAIN + FAILED:
        problem = rng.choice(PROBLEMS)
        return replace(request, result={"error": problem}, final=f"That did not work: {problem}.", needed=problem)
    return request


def distinct(rng: random.Random, kinds: Kinds, count: int) -> list[Function]:
    """Functions with different names, of which no two could answer the same request."""
    functions: list[Function] = []
    for kind in rng.sample(kinds, min(count, len(kinds))):
        function = kind(rng)
        rivals = (Calculator, Operation)
        clash = isinstance(function, rivals) and any(isinstance(other, rivals) for other in functions)
        if not clash and function.name not in [other.name for other in functions]:
            functions.append(function)
    return functions


def converse(rng: random.Random, category: str, kinds: Kinds, most: int, turns: int) -> Example:
    functions = distinct(rng, kinds, rng.choice(range(1, most + 1)))
    function = rng.choice(functions)
    fate = rng.random()
    declared = functions
    if fate < LACKING:
        declared = [other for other in functions if other is not function]
    elif fate < LACKING + UNABLE and rng.random() < 0.4:
        declared = []
    system = with_functions(without_functions(rng), declared)
    talk = Conversation(rng, system)
    for _ in range(turns - 1):
        if declared and rng.random() < 0.75:
            earlier = rng.choice(declared)
            request = twisted(rng, seen(rng, earlier))
            talk.call(request.text, earlier.name, request.arguments, request.found, request.final)
        else:
            phrases, final = rng.choice(project.TALK + project.TOPICS)
            talk.say(rng.choice(phrases), final)

    request = function.ask(rng)
    about = key(request)
    if fate < LACKING + UNABLE:
        text, lacking = request.text, function.lacking
        if fate >= LACKING:
            text = rng.choice(IMPOSSIBLE).format(c=rng.choice(CITIES), f=rng.choice(FOODS), n=rng.choice(NAMES))
            lacking, about = "do that", f"tools:{text}"
        elif isinstance(function, (Calculator, Operation)):
            raise Unusable  # without the function this is an arithmetic problem
        analysis = f"I have no tool to {lacking}."
        return talk.end(category, text, analysis, refusal(declared, lacking), about, {"refusal": "no tool"})
    fate -= LACKING + UNABLE
    if fate < VAGUE and (vague := function.vague(rng)):
        text, missing = vague
        return talk.end(category, text, f"The {missing} is missing.", f"Please tell me the {missing}.", None)
    fate -= VAGUE
    if 0 <= fate < OTHER:
        calculates = any(isinstance(each, (Calculator, Operation)) for each in declared)
        makers: list[Callable] = [project.make, outside.make] if calculates else [project.make, outside.make, arithmetic.make]
        if any(isinstance(each, kind) for each in declared for kind in (Search, *SERVICES, *NAMED)):
            makers.remove(outside.make)  # the function might be able to answer, translate or write
        return talk.end_as(category, rng.choice(makers))
    twice = fate - OTHER < TWICE and isinstance(function, (Weather, Clock))
    return twice_asked(rng, talk, category, function) if twice else once_asked(rng, talk, category, function, request)


def once_asked(rng: random.Random, talk: Conversation, category: str, function: Function, request: Request) -> Example:
    request = twisted(rng, request)
    expected = {"name": function.name, "arguments": request.arguments, "needed": request.needed}
    return with_calls(rng, talk, category, key(request), request.text, [(function, request)], request.final, expected)


def twice_asked(rng: random.Random, talk: Conversation, category: str, function: Function) -> Example:
    """One question with two calls."""
    first, second = seen(rng, function), seen(rng, function)
    arguments = [list(each.arguments.values()) for each in (first, second)]
    (one, *more), (two, *further) = arguments
    if more or further or one == two:
        raise Unusable
    question = "What is the weather in {a} and in {b}?" if isinstance(function, Weather) else "What time is it in {a} and in {b}?"
    final = f"{first.final} {second.final}"
    calls = [(function, first), (function, second)]
    return with_calls(rng, talk, category, None, question.format(a=one, b=two), calls, final, {})


def with_calls(
    rng: random.Random, talk: Conversation, category: str, about: str | None, question: str,
    calls: list[tuple[Function, Request]], final: str, expected: dict,
) -> Example:
    """Consecutive calls, then the answer."""
    talk.hear(question)
    pieces, system = list(talk.pieces), talk.system
    hidden = rng.random() < HIDDEN and not held_out(about)
    forgotten = hidden or system.reasons and rng.random() < FORGOTTEN and not held_out(about)
    if hidden:
        begun = pieces[0].text.removeprefix(system.render())
        pieces[0] = Piece(replace(system, functions=()).render() + begun, False)
    for index, (function, request) in enumerate(calls):
        analysis = f"I need to call {function.name}." if system.reasons and index == 0 and not forgotten else None
        pieces += [
            Piece(call(analysis, function.name, written_out(request.arguments)), not (forgotten and index == 0)),
            Piece(result(function.name, request.found) + OPEN, False),
        ]
    pieces.append(Piece(answer(None, final), True))
    return Example(category, about, merge_untrained(pieces), expected)


def merge_untrained(pieces: list[Piece]) -> list[Piece]:
    """Joins adjacent pieces that are not trained, except a call and an answer."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and not piece.trained and not merged[-1].trained:
            merged[-1] = Piece(merged[-1].text + piece.text, False)
        else:
            merged.append(piece)
    return merged


def tried(rng: random.Random, make: Callable[[], Example]) -> Example:
    while True:
        try:
            return make()
        except Unusable:
            continue


def turns(rng: random.Random) -> int:
    return rng.choices((1, 2, 3), (6, 3, 1))[0]


def make(rng: random.Random, alone: bool = False) -> Example:
    """With everyday functions; `alone`: without earlier turns."""
    return tried(rng, lambda: converse(rng, "tools", EVERYDAY, 4, 1 if alone else turns(rng)))


def make_declared(rng: random.Random, alone: bool = False) -> Example:
    """With functions of all other kinds."""
    return tried(rng, lambda: converse(rng, "functions", DECLARED, 3, 1 if alone else turns(rng)))
