"""A small byte-level BPE vocabulary with gpt-oss's control tokens, for the GGUF metadata."""

MERGES = (
    "Ġ t", "h e", "Ġt he", "i n", "e r", "Ġ a", "r e", "o n", "a t", "e n",
    "Ġa n", "Ġan d", "in g", "Ġ o", "Ġo f", "Ġ w", "Ġ s", "o u", "i s",
    "l l", "e s", "o r", "Ġt o", "Ġ in", "Ġw or", "l d", "Ġwor ld", "H e", "He ll",
    "Hell o", "1 2", "12 3", "Ċ Ċ", "Ã ©",
)
CONTROL = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
    "<|start|>", "<|end|>", "<|message|>", "<|call|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's 256 printable characters for bytes; bytes that are printable come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


NORMAL = byte_alphabet() + [merge.replace(" ", "") for merge in MERGES]
TOKENS = NORMAL + list(CONTROL)
SIZE = len(TOKENS)
FIRST_CONTROL = len(NORMAL)


def token_id(text: str) -> int:
    return TOKENS.index(text)
