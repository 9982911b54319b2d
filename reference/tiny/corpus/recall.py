"""Conversations in which something told earlier is asked for, from one turn to several hundred tokens later.

Some facts are told anew with another value, of which the latest counts; some are asked for and were never told; and some
conversations end on a question of another kind.
"""

import random

from corpus import arithmetic, project, stories
from corpus.words import CITIES, CODE_WORDS, COLOURS, FOODS, JOBS, MONTHS, NAMES, PETS, article, invented
from harmony import OPEN, Example, Piece, System, any_system, answer, message, told
from split import held_out

CHARACTERS_A_TOKEN = 4  # roughly; exact distances are measured on tokens
REPLIES = ("Noted.", "I will remember that.", "Thank you for telling me.", "Good to know.", "All right.", "I see.")


def name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.93 else invented(rng)


def code(rng: random.Random) -> str:
    return str(rng.randint(10, 9999))


# kind: how to draw a value, how it is told, how it is asked for, how it is answered
FACTS = {
    "name": (name, ("My name is {v}.", "I am {v}.", "You can call me {v}.", "Hello, I am called {v}."),
             ("What is my name?", "Who am I?", "Do you remember my name?", "What am I called?"), "Your name is {v}."),
    "colour": (lambda rng: rng.choice(COLOURS), ("My favourite colour is {v}.", "I like the colour {v} best.", "I love {v} things."),
               ("What is my favourite colour?", "Which colour do I like best?"), "Your favourite colour is {v}."),
    "number": (code, ("My lucky number is {v}.", "My favourite number is {v}."),
               ("What is my lucky number?", "Which number did I call lucky?", "What is my favourite number?"), "Your number is {v}."),
    "city": (lambda rng: rng.choice(CITIES), ("I live in {v}.", "My home is in {v}.", "I come from {v}."),
             ("Where do I live?", "Which city is my home?", "Where do I come from?"), "Your home is in {v}."),
    "pet": (name, ("My {p} is called {v}.", "I have a {p} named {v}."),
            ("What is my pet called?", "What is the name of my pet?"), "Your pet is called {v}."),
    "food": (lambda rng: rng.choice(FOODS), ("I like to eat {v}.", "My favourite food is {v}."),
             ("What do I like to eat?", "What is my favourite food?"), "Your favourite food is {v}."),
    "word": (lambda rng: rng.choice(CODE_WORDS), ("The password is {v}.", "Remember this word: {v}.", "The secret word is {v}."),
             ("What is the password?", "What is the secret word?", "Which word should you remember?"), "The word is {v}."),
    "month": (lambda rng: rng.choice(MONTHS), ("My birthday is in {v}.", "I was born in {v}."),
              ("When is my birthday?", "In which month was I born?"), "Your birthday is in {v}."),
    "sister": (name, ("My sister is called {v}.", "{v} is my sister."),
               ("What is my sister's name?", "Who is my sister?"), "Your sister is called {v}."),
    "brother": (name, ("My brother is called {v}.", "{v} is my brother."),
                ("What is my brother's name?", "Who is my brother?"), "Your brother is called {v}."),
    "locker": (code, ("My locker code is {v}.", "The code of my locker is {v}."),
               ("What is my locker code?", "Which code opens my locker?"), "Your locker code is {v}."),
    "job": (lambda rng: rng.choice(JOBS), ("I work as {j}.", "My job is {v}."),
            ("What is my job?", "What do I work as?"), "Your job is {v}."),
}


def tell(rng: random.Random, kind: str, value: str) -> str:
    return rng.choice(FACTS[kind][1]).format(v=value, p=rng.choice(PETS), j=article(value))


def filler(rng: random.Random) -> tuple[str, str]:
    """A turn about something else."""
    fate = rng.random()
    if fate < 0.35:
        sign = rng.choice("+-")
        while True:
            a, b = arithmetic.operands(rng, sign, worked=False)
            if not held_out(arithmetic.key(a, sign, b)):
                return rng.choice(arithmetic.PHRASES[sign]).format(a=a, b=b), arithmetic.statement(a, sign, b)
    if fate < 0.6:
        phrases, final = rng.choice(project.TOPICS)
        return rng.choice(phrases), final
    if fate < 0.75:
        phrases, final = rng.choice(project.TALK)
        return rng.choice(phrases), final
    return stories.short(rng)


# How often a conversation ends with a fact told, with a question of another kind, or with one about a fact never told.
TOLD_LAST = 0.1
OTHER_LAST = 0.12
NEVER_TOLD = 0.12
# How often the fact asked for was told with another value before, and how that is announced.
CHANGED = 0.25
CHANGES = ("", "", "That has changed. ", "I was wrong. ", "A correction: ", "No, wait. ", "It is different now. ")
UNKNOWN = "You have not told me that."
# Tokens between the two values: mostly so many that the sliding window has lost the first one.
APART = (150, 380)


class Conversation:
    """The pieces so far. In the history only the words are learned: a last turn ends otherwise, and may think first."""

    def __init__(self, system: System):
        self.system = system
        self.pieces = [Piece(system.render(), False)]

    def say(self, question: str, reply: str, trained: bool = False) -> None:
        before, after = told("\0").split("\0")
        self.pieces += [Piece(message("user", question) + before, False), Piece(reply, trained), Piece(after, False)]

    def end(self, question: str, analysis: str, final: str, key: str | None = None, expected: dict | None = None) -> Example:
        completion = answer(analysis if self.system.reasons else None, final)
        self.pieces += [Piece(message("user", question) + OPEN, False), Piece(completion, True)]
        return Example("recall", key, merge(self.pieces), expected or {})

    def end_otherwise(self, rng: random.Random) -> Example:
        """The last turn belongs to another grammar."""
        make = rng.choice((arithmetic.make, arithmetic.make, project.make, stories.make))
        while True:
            other = make(rng, self.system)
            if not held_out(other.key):
                question, completion = other.pieces
                question = Piece(question.text.removeprefix(self.system.render()), False)
                return Example("recall", None, merge([*self.pieces, question, completion]), {})


def make(rng: random.Random, longest: int = 520) -> Example:
    """Facts are told one by one, then other things are talked about for up to `longest` tokens, then one is asked for."""
    system = any_system(rng)
    kinds = rng.sample(list(FACTS), rng.choice((1, 2, 2, 3, 4)))
    facts = {kind: FACTS[kind][0](rng) for kind in kinds}
    key = "recall:" + ",".join(f"{kind}={value}" for kind, value in sorted(facts.items()))
    asked = rng.choice(kinds)
    talk = Conversation(system)

    def ask(kind: str) -> tuple[str, str]:
        return rng.choice(FACTS[kind][2]), FACTS[kind][3].format(v=facts[kind])

    def pass_time(tokens: int, askable: list[str]) -> None:
        room = tokens * CHARACTERS_A_TOKEN
        while room > 0:
            if askable and rng.random() < 0.15:
                turn = ask(rng.choice(askable))
                talk.say(*turn, trained=True)
            else:
                turn = filler(rng)
                talk.say(*turn)
            room -= len(turn[0]) + len(turn[1]) + 40

    for told_first in ([kinds] if rng.random() < 0.3 else [[kind] for kind in kinds]):
        statement = " ".join(tell(rng, kind, facts[kind]) for kind in told_first)
        reply = rng.choice(REPLIES)
        if "name" in told_first and rng.random() < 0.4:
            reply = f"Nice to meet you, {facts['name']}."
        if rng.random() < TOLD_LAST:
            return talk.end(statement, "The user tells me something to remember.", reply)
        talk.say(statement, reply)

    others = [kind for kind in kinds if kind != asked]
    expected = {}
    if rng.random() < CHANGED:
        former = facts[asked]
        pass_time(rng.randint(*APART) if rng.random() < 0.75 else rng.randint(0, 100), others)
        while facts[asked] == former:
            facts[asked] = FACTS[asked][0](rng)
        key += f" then {facts[asked]}"
        expected["former"] = former
        talk.say(rng.choice(CHANGES) + tell(rng, asked, facts[asked]), rng.choice(REPLIES))
        pass_time(rng.choice((0, 0, rng.randint(10, 60))), others)
    else:
        room = rng.choice((0, 0, rng.randint(20, 120), rng.randint(100, longest), rng.randint(100, longest)))
        pass_time(room, others)

    fate = rng.random()
    if fate < OTHER_LAST:
        return talk.end_otherwise(rng)
    if fate < OTHER_LAST + NEVER_TOLD:
        kind = rng.choice([kind for kind in FACTS if kind not in kinds])
        question, analysis = rng.choice(FACTS[kind][2]), f"The user has not told me: {kind}."
        return talk.end(question, analysis, UNKNOWN, f"{key} not {kind}", {"text": UNKNOWN})
    question, final = ask(asked)
    analysis = f"The user told me: {asked} {facts[asked]}."
    return talk.end(question, analysis, final, key, {"recalled": facts[asked], **expected})


def merge(pieces: list[Piece]) -> list[Piece]:
    """Neighbours that are both learned, or both not, become one piece."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and merged[-1].trained == piece.trained:
            merged[-1] = Piece(merged[-1].text + piece.text, piece.trained)
        else:
            merged.append(piece)
    return merged
