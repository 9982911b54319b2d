"""Harmony: renders conversations with control tokens, as the crate `harmony` does."""

import json
from dataclasses import dataclass

from schema import comment, typescript

CONTROL = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
    "<|start|>", "<|end|>", "<|message|>", "<|call|>",
)
OPEN = "<|start|>assistant"
EFFORTS = ("low", "medium", "high")
# The identity that gpt-oss was trained with, and that gptoss uses.
IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."


@dataclass(frozen=True)
class Piece:
    """A text that begins at a word boundary of the tokenizer, and whether the model is trained on it."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Example:
    """One conversation. `key` decides between training and evaluation; without one it is for training only."""

    category: str
    key: str | None
    pieces: list[Piece]
    expected: dict

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def prompt(self, completion: int) -> str:
        """Everything before a trained piece, counted from the first (0) or back from the last (-1)."""
        at = [index for index, piece in enumerate(self.pieces) if piece.trained][completion]
        return "".join(piece.text for piece in self.pieces[:at])


@dataclass(frozen=True)
class System:
    """The text before the first user message. Without an effort there is no system message."""

    effort: str | None
    date: str = "2026-03-14"
    identity: str = IDENTITY
    instructions: str = ""
    # Functions as in OpenAI's API: name, description, parameters as a JSON schema.
    functions: tuple[dict, ...] = ()
    # The format of the final answer: name, description, schema.
    format: dict | None = None

    @property
    def reasons(self) -> bool:
        return self.effort != "low"

    def render(self) -> str:
        """The system message and, for instructions, functions or a response format, the developer message."""
        return self.system() + self.developer()

    def system(self) -> str:
        if self.effort is None:
            return ""
        calls = "\nCalls to these tools must go to the commentary channel: 'functions'." if self.functions else ""
        return message(
            "system",
            f"{self.identity}\nKnowledge cutoff: 2024-06\nCurrent date: {self.date}\n\nReasoning: {self.effort}\n\n"
            f"# Valid channels: analysis, commentary, final. Channel must be included for every message.{calls}",
        )

    def developer(self) -> str:
        parts = [instructed(self.instructions)] if self.instructions else []
        if self.functions:
            declared = "\n\n".join(declaration(each) for each in self.functions)
            parts.append(
                f"# Tools\n\n## functions\n\nnamespace functions {{\n\n{declared}\n\n}} // namespace functions"
            )
        if self.format:
            schema = json.dumps(self.format["schema"], ensure_ascii=False, separators=(",", ":"))
            described = comment(self.format.get("description") or "")
            parts.append(f"# Response Formats\n\n## {self.format['name']}\n\n{described}{schema}")
        return message("developer", "\n\n".join(parts)) if parts else ""


def instructed(text: str) -> str:
    return f"# Instructions\n\n{text}"


def declaration(function: dict) -> str:
    """`type NAME = (_: PARAMETERS) => any;`, under its description."""
    parameters = function.get("parameters")
    arguments = "" if parameters is None else f"_: {typescript(parameters)}"
    return f"{comment(function.get('description') or '')}type {function['name']} = ({arguments}) => any;"


def message(role: str, content: str) -> str:
    return f"<|start|>{role}<|message|>{content}<|end|>"


def told(final: str) -> str:
    """An assistant's turn in the history: only its final message."""
    return f"{OPEN}<|channel|>final<|message|>{final}<|end|>"


def thought(analysis: str | None) -> str:
    return f"<|channel|>analysis<|message|>{analysis}<|end|>{OPEN}" if analysis else ""


def answer(analysis: str | None, final: str) -> str:
    """The text after `<|start|>assistant` in a turn that ends with an answer."""
    return f"{thought(analysis)}<|channel|>final<|message|>{final}<|return|>"


def call(analysis: str | None, name: str, arguments: str) -> str:
    """The text after `<|start|>assistant` in a turn that calls a function."""
    return f"{thought(analysis)} to=functions.{name}<|channel|>commentary json<|message|>{arguments}<|call|>"


def result(name: str, content: str) -> str:
    return f"<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>{content}<|end|>"


def single_turn(
    category: str, key: str | None, system: System, question: str, analysis: str | None, final: str, expected: dict
) -> Example:
    """One question and one answer; without `analysis` there is no reasoning."""
    prompt = system.render() + message("user", question) + OPEN
    return Example(category, key, [Piece(prompt, False), Piece(answer(analysis, final), True)], expected)
