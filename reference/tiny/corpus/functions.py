"""Functions: how they are declared, and what a user may request."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

STRING, NUMBER, INTEGER, BOOLEAN = ({"type": name} for name in ("string", "number", "integer", "boolean"))


def listed(schema: dict) -> dict:
    return {"type": "array", "items": schema}


def one_of(words: Sequence[str], default: str | None = None) -> dict:
    return {"type": "string", "enum": list(words), **({"default": default} if default else {})}


def structure(properties: dict, required: Sequence[str]) -> dict:
    return {"type": "object", "properties": properties, "required": list(required)}


def or_null(rng: random.Random, schema: dict) -> dict:
    """The same schema, but nullable, in one of the ways to write that."""
    if "enum" in schema or "type" not in schema:
        return {**schema, "nullable": True}
    return rng.choice((
        {**schema, "nullable": True}, {**schema, "type": [schema["type"], "null"]}, {"anyOf": [schema, {"type": "null"}]},
    ))


@dataclass(frozen=True)
class Request:
    """The user's request, the call's arguments and result, and the answer."""

    text: str
    arguments: dict
    result: dict | str
    final: str
    needed: str  # the part of the result, or of the request, that the answer must repeat
    key: str | None = None  # for the split; by default the text

    @property
    def found(self) -> str:
        return self.result if isinstance(self.result, str) else json.dumps(self.result, ensure_ascii=False)


class Function:
    """A declared function. A subclass defines its parameters (`declare`) and its requests (`ask`)."""

    names: tuple[str, ...] = ()
    does: tuple[str, ...] = ()
    lacking = "do that"  # what cannot be done without it

    def __init__(self, rng: random.Random):
        self.name, self.about = rng.choice(self.names), rng.choice((*self.does, *self.does, ""))
        self.explains, self.is_bare = rng.random() < 0.5, rng.random() < 0.5
        self.properties: dict[str, dict] = {}
        self.required: list[str] = []
        self.declare(rng)
        if self.properties and rng.random() < 0.15:
            self.take_more(rng)

    def declare(self, rng: random.Random) -> None:
        """Draws the parameters one by one."""

    def ask(self, rng: random.Random) -> Request:
        raise NotImplementedError

    def vague(self, rng: random.Random) -> tuple[str, str] | None:
        """A request without a required argument, and the name of what is missing."""
        return None

    def take(self, rng: random.Random, names: Sequence[str], schema: dict, about: str = "", needed: bool = True) -> str:
        """Adds a parameter under one of the names."""
        name = rng.choice([name for name in names if name not in self.properties])
        described = {"description": about} if about and self.explains else {}
        self.properties[name] = {**schema, **described}
        if needed:
            self.required.append(name)
        return name

    def perhaps(self, rng: random.Random, names: Sequence[str], schema: dict, about: str = "", often: float = 0.6) -> str | None:
        """Adds an optional parameter with some probability."""
        return self.take(rng, names, schema, about, needed=False) if rng.random() < often else None

    def take_more(self, rng: random.Random) -> None:
        """An optional parameter that no request mentions, and that a call leaves out."""
        name, schema = rng.choice((
            ("verbose", {**BOOLEAN, "default": False}), ("limit", {**INTEGER, "default": 10}), ("user_id", or_null(rng, STRING)),
            ("format", one_of(("json", "text"), "json")), ("timeout", {**NUMBER, "default": 30}), ("tags", listed(STRING)),
            ("options", structure({"dry_run": BOOLEAN, "retries": INTEGER}, ())), ("key", or_null(rng, {"type": "string"})),
        ))
        if name not in self.properties:
            self.properties[name] = {**schema, **({"title": name.capitalize()} if rng.random() < 0.2 else {})}

    def ordered(self, arguments: dict) -> dict:
        """Arguments in the order of the declaration."""
        return {name: arguments[name] for name in self.properties if name in arguments}

    @property
    def declaration(self) -> dict:
        """The declaration in the format of OpenAI's API."""
        function = {"name": self.name, **({"description": self.about} if self.about else {})}
        if self.properties:
            function["parameters"] = structure(self.properties, self.required)
        elif not self.is_bare:
            function["parameters"] = structure({}, ())
        return function
