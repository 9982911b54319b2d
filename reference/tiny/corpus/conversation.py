"""Conversations of several turns. The model is trained on the words of its turns, but not on how earlier turns are formatted."""

import json
import random
from collections.abc import Callable

from harmony import OPEN, Example, Piece, System, answer, call, instructed, message, result, told
from split import held_out

# Instructions may also come between two turns.
REMINDED = 0.04
REMINDERS = ("Be brief.", "Answer in English.", "Stay polite.", "Use short sentences.", "Be precise.", "Do not invent anything.")


class Conversation:
    """The pieces so far. In the history only words are trained, because a last turn ends differently, and may have reasoning."""

    def __init__(self, rng: random.Random, system: System):
        self.rng, self.system = rng, system
        self.pieces = [Piece(system.render(), False)]

    def hear(self, question: str) -> None:
        """The text before an answer."""
        reminder = ""
        if len(self.pieces) > 1 and self.rng.random() < REMINDED:
            reminder = message("developer", instructed(self.rng.choice(REMINDERS)))
        self.pieces.append(Piece(reminder + message("user", question) + OPEN, False))

    def say(self, question: str, reply: str, trained: bool = False) -> None:
        """A turn of the history."""
        self.hear(question)
        before, after = told("\0").removeprefix(OPEN).split("\0")
        self.pieces += [Piece(before, False), Piece(reply, trained), Piece(after, False)]

    def call(self, question: str, name: str, arguments: dict, found: str, reply: str) -> None:
        """A turn of the history that called a function. Its name and arguments are trained."""
        self.hear(question)
        # The tokenizer splits the call at the same place.
        before = " to=functions"
        written = call(None, name, written_out(arguments)).removeprefix(before)
        opening, after = told("\0").split("\0")
        self.pieces += [
            Piece(before, False), Piece(written, True), Piece(result(name, found) + opening, False), Piece(reply, True),
            Piece(after, False),
        ]

    def end(
        self, category: str, question: str, analysis: str | None, final: str, key: str | None = None, expected: dict | None = None
    ) -> Example:
        self.hear(question)
        completion = answer(analysis if self.system.reasons else None, final)
        self.pieces.append(Piece(completion, True))
        return Example(category, key, merge(self.pieces), expected or {})

    def end_as(self, category: str, make: Callable[[random.Random, System], Example]) -> Example:
        """The last turn comes from another grammar."""
        while True:
            other = make(self.rng, self.system)
            if not held_out(other.key) and len(other.pieces) == 2:
                question, completion = other.pieces
                question = Piece(question.text.removeprefix(self.system.render()), False)
                return Example(category, None, merge([*self.pieces, question, completion]), {})


def written_out(arguments: dict) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def merge(pieces: list[Piece]) -> list[Piece]:
    """Joins adjacent pieces that are both trained, or both not."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and merged[-1].trained == piece.trained:
            merged[-1] = Piece(merged[-1].text + piece.text, piece.trained)
        else:
            merged.append(piece)
    return merged
