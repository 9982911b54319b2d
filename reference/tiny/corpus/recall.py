"""Conversations that ask for something told earlier, from one turn to several hundred tokens later.

Some facts are told anew with another value, of which the latest counts; some are asked for and were never told; and some
conversations end on a question of another kind.
"""

import random

from corpus import arithmetic, outside, project, stories
from corpus.conversation import Conversation
from corpus.setting import any_system
from corpus.words import (
    CITIES, CODE_WORDS, COLOURS, COUNTRIES, FOODS, JOBS, MONTHS, NAMES, PETS, SUBJECTS, article, invented,
)
from harmony import Example
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
    "age": (lambda rng: str(rng.randint(5, 99)), ("I am {v} years old.", "My age is {v}.", "I am {v} years of age."),
            ("How old am I?", "What is my age?"), "You are {v} years old."),
    "country": (lambda rng: rng.choice(COUNTRIES), ("I was born in the country {v}.", "My family is from {v}.", "My home country is {v}."),
                ("Which country is my family from?", "What is my home country?"), "Your home country is {v}."),
    "subject": (lambda rng: rng.choice(SUBJECTS), ("My favourite subject is {v}.", "I study {v}.", "At school I like {v} best."),
                ("What is my favourite subject?", "What do I study?"), "Your favourite subject is {v}."),
    "friend": (name, ("My best friend is {v}.", "My best friend is called {v}."),
               ("Who is my best friend?", "What is my best friend's name?"), "Your best friend is {v}."),
}
# Facts that no conversation tells.
NEVER = (
    "What is my shoe size?", "What is my phone number?", "What is my last name?", "What colour are my eyes?", "How tall am I?",
    "What is my wife's name?", "Who is my father?", "Who is my mother?", "What is my address?", "What did I eat yesterday?",
    "Which car do I drive?", "What is my favourite film?", "What is my favourite book?", "Who is my boss?", "Am I married?",
    "How many children do I have?", "What is my favourite song?", "Where did I go to school?", "What do I like to drink?",
    "Which team do I support?", "What is my hobby?", "When do I get up?", "What is my favourite animal?", "Where am I?",
)
# Statements that are never asked for.
REMARKS = (
    "I am tired.", "I am happy today.", "The weather is nice.", "It is late.", "I had a long day.", "I am hungry.", "This is fun.",
    "I like this.", "You are funny.", "I do not understand.", "That is wrong.", "That is right.", "The sky is blue.", "I am bored.",
    "I went for a walk.", "I have a lot of work.", "It rains again.", "My train was late.", "I forgot something.", "Never mind.",
)
REMARK = "I see. How can I help you?"


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
    if fate < 0.72:
        phrases, final = rng.choice(project.TALK)
        return rng.choice(phrases), final
    if fate < 0.8:
        while True:
            text, _, final = outside.question(rng)
            if not held_out(f"outside:{text}"):
                return text, final
    return stories.short(rng)


# Probabilities that a conversation ends with a new fact, with a question of another kind, or with one about a fact that was never told.
TOLD_LAST = 0.1
OTHER_LAST = 0.15
NOTHING_TOLD = 0.1
NEVER_TOLD = 0.12
# Probability that the fact was told before with another value, and the words that announce the change.
CHANGED = 0.25
CHANGES = ("", "", "That has changed. ", "I was wrong. ", "A correction: ", "No, wait. ", "It is different now. ")
UNKNOWN, TOLD = "You have not told me that.", "The user tells me something to remember."
# Grammars of other questions.
OTHERS = (arithmetic.make, arithmetic.make, project.make, stories.make, outside.make)
# Tokens between the two values: mostly more than the sliding window, so that only the newer one is inside.
APART = (150, 380)


def without_facts(rng: random.Random, talk: Conversation) -> Example:
    """A few turns about anything, then a question of another grammar, a remark, or a question about a fact that was not told."""
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        talk.say(*filler(rng))
    fate = rng.random()
    if fate < 0.3:
        return talk.end("recall", rng.choice(REMARKS), "The user tells me something.", REMARK)
    if fate < 0.5:
        kind = rng.choice(list(FACTS))
        question = rng.choice(FACTS[kind][2])
        if rng.random() < 0.3:
            kind, question = "that", rng.choice(NEVER)
        return talk.end("recall", question, f"The user has not told me: {kind}.", UNKNOWN)
    return talk.end_as("recall", rng.choice(OTHERS))


def make(rng: random.Random, longest: int = 520) -> Example:
    """Facts are told one by one, then up to `longest` tokens about other things follow, then one fact is asked for."""
    system = any_system(rng)
    kinds = rng.sample(list(FACTS), rng.choice((1, 2, 2, 3, 4)))
    facts = {kind: FACTS[kind][0](rng) for kind in kinds}
    key = "recall:" + ",".join(f"{kind}={value}" for kind, value in sorted(facts.items()))
    asked = rng.choice(kinds)
    talk = Conversation(rng, system)
    if rng.random() < NOTHING_TOLD:
        return without_facts(rng, talk)

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
            return talk.end("recall", statement, TOLD, reply)
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
        statement = rng.choice(CHANGES) + tell(rng, asked, facts[asked])
        if rng.random() < 0.2:
            statement = statement.removesuffix(".") + " now."
        if rng.random() < TOLD_LAST:
            return talk.end("recall", statement, TOLD, rng.choice(REPLIES))
        talk.say(statement, rng.choice(REPLIES))
        pass_time(rng.choice((0, 0, rng.randint(10, 60))), others)
    else:
        room = rng.choice((0, 0, rng.randint(20, 120), rng.randint(100, longest), rng.randint(100, longest)))
        pass_time(room, others)

    fate = rng.random()
    if fate < OTHER_LAST:
        # The last turn comes from another grammar.
        return talk.end_as("recall", rng.choice(OTHERS))
    if fate < OTHER_LAST + NEVER_TOLD:
        kind = rng.choice([kind for kind in FACTS if kind not in kinds])
        question = rng.choice(FACTS[kind][2])
        if rng.random() < 0.3:
            kind, question = "that", rng.choice(NEVER)
        analysis = f"The user has not told me: {kind}."
        return talk.end("recall", question, analysis, UNKNOWN, f"{key} not {kind}", {"text": UNKNOWN})
    question, final = ask(asked)
    analysis = f"The user told me: {asked} {facts[asked]}."
    return talk.end("recall", question, analysis, final, key, {"recalled": facts[asked], **expected})
