"""Functions that are understood by their names and parameters alone.

Most are a verb and a noun, and the request has both; one noun in ten is never seen in training. The others have names that mean
nothing, and the request spells the call out.
"""

import json
import random

from corpus.functions import BOOLEAN, INTEGER, NUMBER, STRING, Function, Request, listed, one_of, or_null, structure
from corpus.words import CITIES, CODE_WORDS, COLOURS, FOODS, NAMES, OBJECTS, PETS, article, invented, joined

NOUNS = (
    "account address alarm album alert altitude appointment article backup badge balance band_width birthday booking branch "
    "budget build bus_stop cabin campaign certificate channel claim colour comment commit contract cookie coupon course credit "
    "cup deadline deposit discount document domain donation door email engine exam exchange_rate fee field flag folder fuel_level "
    "gate goal grade group height horoscope house humidity image index invoice issue job journal key lamp language lease lesson "
    "letter level license loan lock locker log lottery_number machine magazine mail meal member menu meter mode money motor "
    "network nickname node opening_hours order owner package page parcel parking_spot password payment permit phone_number "
    "playlist plot pod policy port pressure price printer priority prize profile project pump quota rank rating receipt recipe "
    "record refund region rent report request review reward role route_number salary sample schedule score season seat sensor "
    "shift shipment shop shirt signal size soil_moisture speed stock_price storage subscription survey table_size tank target "
    "task tax team tenant theme thread ticket tide token tour trip unit upload valve vehicle version video visa voltage volume "
    "voucher wage wallet warranty weight window zone"
).split()
LOOK = ("get", "find", "lookup", "fetch", "read", "show", "check")
ACTS = ("cancel", "delete", "start", "stop", "open", "close", "lock", "restart", "approve", "archive", "pause", "print", "renew")
STATES = ("ready", "open", "closed", "late", "new", "full", "empty", "paid", "lost", "active", "broken", "on the way")
FIELDS = (
    "size width height count label mode point items depth owner colour flags limit start end title rate level group note unit "
    "target source speed index steps weight angle factor offset pattern"
).split()


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def styled(rng: random.Random, name: str) -> str:
    return camel(name) if rng.random() < 0.2 else name


def code(rng: random.Random) -> str:
    letters = rng.choice("ABCDEFGHJKLMNPRSTUVWX") + rng.choice("ABCDEFGHKMNPRSTVX")
    return rng.choice((str(rng.randint(1, 99999)), f"{letters}-{rng.randint(10, 999)}"))


class Named(Function):
    """A verb and a noun."""

    verbs: tuple[str, ...] = ()

    def __init__(self, rng: random.Random):
        self.verb, self.noun = rng.choice(self.verbs), rng.choice(NOUNS)
        self.names, self.thing = (styled(rng, f"{self.verb}_{self.noun}"),), self.noun.replace("_", " ")
        super().__init__(rng)

    @property
    def split_key(self) -> str:
        return f"named:{self.noun}"


class Lookup(Named):
    verbs = LOOK

    def declare(self, rng: random.Random) -> None:
        self.about = rng.choice((
            "", f"Get the {self.thing}.", f"Returns the {self.thing} of something.", f"Looks up {article(self.thing)}.",
        ))
        self.by_number = rng.random() < 0.5
        if self.by_number:
            self.schema = rng.choice((INTEGER, STRING, {"type": ["integer", "string"]}))
            self.of = self.take(rng, ("id", f"{self.noun}_id", "number", "code"), self.schema, f"Which {self.thing}.")
        else:
            self.of = self.take(rng, ("name", "owner", "of", "customer", "who", "item"), STRING, "Whose it is.")

    def ask(self, rng: random.Random) -> Request:
        if self.by_number:
            shown = code(rng) if self.schema != INTEGER else str(rng.randint(1, 99999))
            value = shown if self.schema == STRING or not shown.isdigit() else int(shown)
            text = rng.choice((
                "Find the {t} {x}.", "Look up the {t} {x}.", "Show me the {t} {x}.", "What about the {t} {x}?", "Check the {t} {x}.",
                "Is the {t} {x} ready?", "What is the status of the {t} {x}?", "Where is my {t} {x}?", "Get {t} {x}.",
            ))
            whole = f"The {self.thing} {shown}"
        else:
            value = shown = rng.choice((rng.choice(NAMES), rng.choice(NAMES), rng.choice(CITIES), rng.choice(OBJECTS), invented(rng)))
            text = rng.choice((
                "What is the {t} of {x}?", "Find the {t} of {x}.", "Look up the {t} for {x}.", "Tell me the {t} of {x}.",
                "Show me the {t} for {x}.", "Get the {t} of {x}.", "I need the {t} of {x}.", "Which {t} has {x}?",
            ))
            whole = f"The {self.thing} of {shown}"
        results = (("status", rng.choice(STATES)), (self.noun, rng.choice(CODE_WORDS)), ("value", rng.randint(1, 9999)))
        key, found = rng.choice(results)
        final = f"{whole} is {found}."
        return Request(text.format(t=self.thing, x=shown), {self.of: value}, {key: found}, final, str(found), self.split_key)


class Change(Named):
    verbs = ("set", "update", "change", "edit")

    def declare(self, rng: random.Random) -> None:
        self.about = rng.choice(("", f"Set the {self.thing}.", f"Changes the {self.thing}."))
        self.words = rng.sample(CODE_WORDS, rng.randint(2, 4))
        self.schema = rng.choice((NUMBER, INTEGER, STRING, one_of(self.words), BOOLEAN))
        self.of = self.take(rng, ("name", "owner", "id", "who", "target"), STRING, "Whose it is.") if rng.random() < 0.5 else None
        self.value = self.take(rng, ("value", self.noun, "to", f"new_{self.noun}"), self.schema, f"The new {self.thing}.")

    def ask(self, rng: random.Random) -> Request:
        match self.schema["type"]:
            case "boolean":
                value = rng.random() < 0.5
                shown = str(value).lower()
            case "string":
                value = shown = rng.choice(self.words) if "enum" in self.schema else rng.choice((*COLOURS, *FOODS, *NAMES))
            case _:
                value = rng.randint(-20, 9999)
                shown = str(value)
        arguments, whose = {self.value: value}, ""
        if self.of:
            arguments[self.of] = rng.choice((*NAMES, *OBJECTS))
            whose = f" of {arguments[self.of]}"
        text = rng.choice((
            "Set the {t}{w} to {v}.", "Change the {t}{w} to {v}.", "Please make {v} the {t}{w}.", "The {t}{w} should be {v}.",
            "Update the {t}{w} to {v}.",
        )).format(t=self.thing, w=whose, v=shown)
        final = f"The {self.thing}{whose} is now {shown}."
        return Request(text, self.ordered(arguments), {"ok": True}, final, f"is now {shown}", self.split_key)


class Act(Named):
    verbs = ACTS

    def declare(self, rng: random.Random) -> None:
        verb = self.verb.capitalize()
        self.about = rng.choice(("", f"{verb} {article(self.thing)}.", f"{verb}s the {self.thing} with a number."))
        self.schema = rng.choice((INTEGER, STRING))
        self.of = self.take(rng, ("id", f"{self.noun}_id", "number", self.noun), self.schema, f"Which {self.thing}.")
        self.reason = self.perhaps(rng, ("reason", "comment", "note"), or_null(rng, STRING), "Why.", often=0.3)

    def ask(self, rng: random.Random) -> Request:
        shown = code(rng) if self.schema == STRING else str(rng.randint(1, 99999))
        arguments = {self.of: int(shown) if self.schema == INTEGER else shown}
        text = rng.choice((
            "{V} the {t} {x}.", "Please {v} the {t} {x}.", "{V} {t} {x}.", "Can you {v} the {t} {x}?", "I want to {v} the {t} {x}.",
        )).format(V=self.verb.capitalize(), v=self.verb, t=self.thing, x=shown)
        if self.reason and rng.random() < 0.5:
            arguments[self.reason] = reason = f"it is {rng.choice(STATES)}"
            text += f' The reason: "{reason}".'
        final = f"Done: {self.verb} {self.thing} {shown}."
        return Request(text, self.ordered(arguments), {"ok": True}, final, f"{self.verb} {self.thing} {shown}", self.split_key)


def word(rng: random.Random) -> str:
    return rng.choice((rng.choice(CODE_WORDS), rng.choice(FOODS), rng.choice(NAMES), rng.choice(PETS), invented(rng)))


def number(rng: random.Random) -> int | float:
    return rng.choice((rng.randint(0, 9), rng.randint(-99, 999), rng.randint(0, 99999), rng.randint(-99, 999) / 10))


def written(rng: random.Random, value: object, plainly: bool) -> str:
    """A value as a person writes it, or as JSON."""
    if not plainly:
        return json.dumps(value, ensure_ascii=False)
    match value:
        case str():
            return value if " " not in value else f'"{value}"'
        case list():
            return joined([written(rng, each, True) for each in value]) if value else "[]"
        case dict():
            return joined([f"{name} {written(rng, each, True)}" for name, each in value.items()])
        case _:
            return json.dumps(value)


class Spelled(Function):
    """A meaningless name, and parameters of any type."""

    def __init__(self, rng: random.Random):
        parts = [rng.choice((invented(rng).lower(), rng.choice(CODE_WORDS), rng.choice(OBJECTS))) for _ in range(rng.choice((1, 2, 2)))]
        self.names = (styled(rng, "_".join(parts)),)
        super().__init__(rng)

    def declare(self, rng: random.Random) -> None:
        self.about = f"Does what {invented(rng)} does." if rng.random() < 0.4 else ""
        self.kinds = {}
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))):
            kind = rng.choice(("word", "word", "text", "number", "number", "boolean", "choice", "words", "numbers", "object", "either"))
            choices = rng.sample(CODE_WORDS, rng.randint(2, 4))
            inner = rng.sample(FIELDS, 2)
            schema = {
                "word": STRING, "text": STRING, "number": NUMBER, "boolean": BOOLEAN, "choice": one_of(choices), "words": listed(STRING),
                "numbers": listed(NUMBER), "object": structure({inner[0]: STRING, inner[1]: NUMBER}, inner),
                "either": rng.choice(({"type": ["string", "number"]}, {"anyOf": [NUMBER, STRING]})),
            }[kind]
            needed = rng.random() < 0.75
            nullable = needed and rng.random() < 0.15
            names = (rng.choice(FIELDS), rng.choice(FIELDS), invented(rng).lower(), f"{rng.choice(FIELDS)}_{rng.choice(FIELDS)}")
            name = self.take(rng, names, or_null(rng, schema) if nullable else schema, f"The {rng.choice(FIELDS)}.", needed)
            self.kinds[name] = (kind, choices, inner, needed, nullable)

    def draw(self, rng: random.Random, name: str) -> object:
        kind, choices, inner, _, _ = self.kinds[name]
        match kind:
            case "word":
                return word(rng)
            case "text":
                return f"{word(rng)} {word(rng)}"
            case "number":
                return number(rng)
            case "boolean":
                return rng.random() < 0.5
            case "choice":
                return rng.choice(choices)
            case "words":
                return [word(rng) for _ in range(rng.randint(1, 3))]
            case "numbers":
                return [number(rng) for _ in range(rng.randint(1, 4))]
            case "object":
                return {inner[0]: word(rng), inner[1]: number(rng)}
            case _:
                return rng.choice((word(rng), number(rng)))

    def ask(self, rng: random.Random) -> Request:
        arguments, said = {}, []
        plainly, sign = rng.random() < 0.6, rng.choice((" ", " ", " = ", "=", ": "))
        for name, (_, _, _, needed, nullable) in self.kinds.items():
            if not needed and rng.random() < 0.4:
                continue
            arguments[name] = value = None if nullable and rng.random() < 0.5 else self.draw(rng, name)
            if value is not None:
                said.append(f"{name}{sign}{written(rng, value, plainly)}")
        listing = joined(said) if plainly and said else ", ".join(said)
        if said:
            text = rng.choice((
                f"Call {self.name} with {listing}.", f"Use {self.name} with {listing}.", f"Run {self.name}: {listing}.",
                f"Please call {self.name} with {listing}.", f"{self.name}({', '.join(said)})", f"I need {self.name} with {listing}.",
            ))
        else:
            text = rng.choice((f"Call {self.name}.", f"Please run {self.name}.", f"{self.name}()", f"Use {self.name}."))
        field, found = rng.choice(("result", "value", rng.choice(FIELDS))), rng.choice((word(rng), number(rng), rng.choice(STATES)))
        if rng.random() < 0.3:
            return Request(text, arguments, {"ok": True}, "Done.", "Done", f"spelled:{self.name}")
        return Request(text, arguments, {field: found}, f"The {field} is {found}.", str(found), f"spelled:{self.name}")


NAMED: tuple[type[Function], ...] = (Lookup, Change, Act, Spelled)
