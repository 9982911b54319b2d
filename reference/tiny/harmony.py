"""Harmony: how a conversation is written down with control tokens."""

import random
from dataclasses import dataclass

CONTROL = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
    "<|start|>", "<|end|>", "<|message|>", "<|call|>",
)
OPEN = "<|start|>assistant"
EFFORTS = ("low", "medium", "high")
IDENTITY = "You are gptoss-tiny, a small language model."
# The identity that gpt-oss itself was trained with; clients that know only that one get answers too.
IDENTITIES = (IDENTITY, IDENTITY, IDENTITY, "You are ChatGPT, a large language model trained by OpenAI.")

INSTRUCTIONS = (
    "You are a helpful assistant.", "Use the tools when they help.", "Answer briefly.", "Be friendly.",
    "Be friendly and answer in one sentence.", "Use a tool for every question that needs one.", "Always answer politely.",
)


@dataclass(frozen=True)
class Piece:
    """Text that begins and ends at a control token, and whether the model learns to write it."""

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
    """What stands before the first user message. Without an effort there is no system message."""

    effort: str | None
    date: str = "2026-03-14"
    identity: str = IDENTITY
    instructions: str = ""

    @property
    def reasons(self) -> bool:
        return self.effort != "low"

    def render(self, tools: str = "") -> str:
        """The system message and, for instructions and tools, the developer message."""
        return self.system(tools) + self.developer(tools)

    def system(self, tools: str) -> str:
        if self.effort is None:
            return ""
        calls = "\nCalls to these tools must go to the commentary channel: 'functions'." if tools else ""
        return message(
            "system",
            f"{self.identity}\nKnowledge cutoff: 2024-06\nCurrent date: {self.date}\n\nReasoning: {self.effort}\n\n"
            f"# Valid channels: analysis, commentary, final. Channel must be included for every message.{calls}",
        )

    def developer(self, tools: str) -> str:
        parts = [f"# Instructions\n\n{self.instructions}"] if self.instructions else []
        if tools:
            parts.append(f"# Tools\n\n## functions\n\n{tools}")
        return message("developer", "\n\n".join(parts)) if parts else ""


def any_date(rng: random.Random) -> str:
    return f"{rng.randint(2024, 2029)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def any_system(rng: random.Random) -> System:
    effort = None if rng.random() < 0.06 else rng.choice(EFFORTS)
    instructions = rng.choice(INSTRUCTIONS) if rng.random() < 0.25 else ""
    return System(effort, any_date(rng), rng.choice(IDENTITIES), instructions)


def message(role: str, content: str) -> str:
    return f"<|start|>{role}<|message|>{content}<|end|>"


def told(final: str) -> str:
    """An assistant's turn in the history: its final message alone."""
    return f"{OPEN}<|channel|>final<|message|>{final}<|end|>"


def thought(analysis: str | None) -> str:
    return f"<|channel|>analysis<|message|>{analysis}<|end|>{OPEN}" if analysis else ""


def answer(analysis: str | None, final: str) -> str:
    """What follows `<|start|>assistant` in a turn that ends."""
    return f"{thought(analysis)}<|channel|>final<|message|>{final}<|return|>"


def call(analysis: str | None, name: str, arguments: str) -> str:
    """What follows `<|start|>assistant` in a turn that calls a tool."""
    return f"{thought(analysis)}<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"


def result(name: str, content: str) -> str:
    return f"<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>{content}<|end|>"


def single_turn(
    category: str, key: str | None, system: System, question: str, analysis: str, final: str, expected: dict
) -> Example:
    """One question and one answer; the analysis is left out where the effort is low."""
    prompt = system.render() + message("user", question) + OPEN
    completion = answer(analysis if system.reasons else None, final)
    return Example(category, key, [Piece(prompt, False), Piece(completion, True)], expected)
