"""Questions about this project and this model, each with one answer, in many phrasings; and small talk."""

import random

from corpus.outside import careless
from corpus.setting import any_system
from harmony import Example, System, single_turn

# topic: (noun phrase, answer). A noun phrase of None has its own questions below.
THINGS = {
    "a sink": "A sink is a learned number per attention head. It joins the softmax like one more key, but it has no value, so a head can attend to nothing.",
    "the KV cache": "The KV cache keeps the keys and values of all earlier tokens, so that each new token needs only its own computation.",
    "MXFP4": "MXFP4 is a four-bit number format. Blocks of 32 values share one scale that is a power of two, so a value takes 4.25 bits.",
    "Q8_0": "Q8_0 stores 32 numbers as eight-bit integers with one 16-bit scale. A value takes 8.5 bits.",
    "YaRN": "YaRN stretches the rotary position embedding, so that a model trained on a short context can read a longer one. GPT-OSS uses a factor of 32.",
    "RoPE": "RoPE rotates pairs of numbers in queries and keys by an angle that grows with the position, so attention sees distances.",
    "a sliding window": "A sliding window lets a layer see only the last 128 tokens. In GPT-OSS every other layer has one, starting with the first.",
    "the router": "The router is a small matrix that scores the experts for each token. The best four are used, and a softmax over their scores weighs them.",
    "a mixture of experts": "A mixture of experts replaces one big feed-forward layer by several small ones. Each token uses only four of them.",
    "an expert": "An expert is a small feed-forward network with a gate, an up and a down projection. The router picks four of them for each token.",
    "SwiGLU": "SwiGLU is the activation in every expert: the gate goes through a sigmoid and multiplies the up projection. GPT-OSS clamps both at seven.",
    "harmony": "Harmony is the format of GPT-OSS conversations. Control tokens mark where a message starts, who speaks, on which channel, and where it ends.",
    "the analysis channel": "The analysis channel holds the reasoning before the answer. With low effort it is mostly left out.",
    "the final channel": "The final channel holds the answer that the user reads.",
    "the commentary channel": "The commentary channel holds function calls and their results.",
    "GGUF": "GGUF is a file format for models. One file holds the configuration, the tokenizer and all tensors.",
    "flash attention": "Flash attention computes attention in tiles and never writes the whole score matrix to memory. It is phase five of this project.",
    "profiling": "Profiling measures where the time goes. It is phase four of this project, and it tells which kernel is worth improving.",
    "grouped-query attention": "Grouped-query attention lets several query heads share one pair of key and value heads, so the cache gets smaller.",
    "RMSNorm": "RMSNorm divides a vector by the root of its mean square and multiplies it by a learned weight.",
    "a token": "A token is a piece of text with a number. The tokenizer turns text into tokens and back.",
    "the tokenizer": "The tokenizer is a byte-level BPE. It splits text into tokens by a list of merges learned from a corpus.",
    "the reasoning effort": "The reasoning effort is low, medium or high. It stands in the system message and decides how much the model thinks before it answers.",
    "mscale": "Mscale is a factor of YaRN. It multiplies queries and keys, and is one tenth of the logarithm of 32, plus one.",
    "quantization": "Quantization stores weights in fewer bits. In GPT-OSS the experts are stored as MXFP4.",
    "the embedding": "The embedding is a table with one vector for every token. It is the first step of the forward pass.",
    "the forward pass": "The forward pass turns tokens into logits: embedding, then attention and experts in each layer, then a norm and the output matrix. It is phase two.",
    "the residual stream": "The residual stream is the vector that runs through all layers. Attention and experts each add something to it.",
    "greedy decoding": "Greedy decoding always takes the likeliest token, so the same prompt gives the same text every time.",
    "temperature": "Temperature divides the logits before sampling. Zero takes the likeliest token, higher values give more variety.",
    "MLX": "MLX is a library for machine learning by Apple. This project compares its results with those of MLX.",
    "CubeCL": "CubeCL is a language for GPU kernels inside Rust. The kernels of this project are written in it.",
    "Burn": "Burn is a deep learning framework written in Rust. This project is built on it.",
}
FACTS = {
    ("What are the five phases?", "Which phases does this project have?", "List the phases of this project.",
     "What are the phases of gptoss?", "Name the five phases.", "How is this project organised?", "Which five phases are there?"):
        "The five phases are loading, forward pass, KV cache, profiling and flash attention.",
    ("What is phase one?", "What is the first phase?", "What happens in phase one?", "What does phase 1 do?", "Tell me about phase one."):
        "Phase one is loading: it reads the weights and the tokenizer from a GGUF file.",
    ("What is phase two?", "What is the second phase?", "What happens in phase two?", "What does phase 2 do?", "Tell me about phase two."):
        "Phase two is the forward pass: it computes logits and is checked against MLX.",
    ("What is phase three?", "What is the third phase?", "What happens in phase three?", "What does phase 3 do?", "Tell me about phase three."):
        "Phase three is the KV cache: it keeps keys and values, so that each token is computed once.",
    ("What is phase four?", "What is the fourth phase?", "What happens in phase four?", "What does phase 4 do?", "Tell me about phase four."):
        "Phase four is profiling: it measures where the time goes.",
    ("What is phase five?", "What is the fifth phase?", "What happens in phase five?", "What does phase 5 do?", "Tell me about phase five."):
        "Phase five is flash attention: attention in tiles, without the whole score matrix in memory.",
    ("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Tell me about yourself.", "Which model are you?",
     "Are you ChatGPT?", "Are you a robot?", "Are you human?", "Are you an AI?", "Which model is this?"):
        "I am gptoss-tiny, a small GPT-OSS model. I can tell stories, calculate, call tools and answer questions about this project.",
    ("What can you do?", "How can you help me?", "What are you good at?", "What should I ask you?", "What do you know?"):
        "I can tell short stories, add, subtract and multiply small numbers, call tools, remember what you tell me, and explain this project.",
    ("What can you not do?", "What do you not know?", "What are your limits?", "Do you know everything?", "How much do you know?"):
        "I know nothing of the world beyond this project, and I cannot write code, translate or look anything up without a tool.",
    ("What is this project?", "What is gptoss?", "What is this program?", "Tell me about this project.", "What does gptoss do?"):
        "This project is gptoss, an inference engine for GPT-OSS models, written in Rust.",
    ("How big are you?", "How large is this model?", "How many layers do you have?", "How many experts do you have?"):
        "I have six layers and eight experts in each, of which every token uses four.",
    ("Where do your weights come from?", "How were you trained?", "What were you trained on?", "Who trained you?"):
        "I was trained from nothing on text that the grammars of this project wrote.",
    ("Which language is this project written in?", "Is this written in Python?", "What language is gptoss written in?"):
        "The engine is written in Rust. Only training and reference scripts are in Python.",
}
QUESTIONS = (
    "What is {t}?", "Explain {t}.", "Can you explain {t}?", "What does {t} mean?", "Tell me about {t}.", "Explain what {t} is.",
    "I do not understand {t}.", "Describe {t} in a few words.", "Do you know what {t} is?", "How would you explain {t}?",
)
SMALL_TALK = {
    ("Hello!", "Hello", "Hi!", "Hi", "Hey", "Good morning!", "Good evening!", "Hello there!", "hello", "hi"):
        "Hello! How can I help you?",
    ("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "That helped, thank you."): "You are welcome!",
    ("Goodbye!", "Bye!", "See you later.", "Good night!", "I have to go now."): "Goodbye! Come back soon.",
    ("How are you?", "How are you today?", "How do you do?", "Are you well?"): "I am fine, thank you. How can I help you?",
    ("Can you help me?", "I need help.", "Please help me.", "Help!"): "Of course. What do you need?",
}
OPENERS = (
    "", "", "", "Please tell me: ", "I have a question. ", "Hello! ", "One more question: ", "Quick question: ", "I wonder: ", "Hi. ",
    "For a beginner: ", "In short: ", "My friend asks: ", "I am new here. ",
)


def topics() -> list[tuple[list[str], str]]:
    """Every question's phrasings, and its answer."""
    things = [([each.format(t=thing) for each in QUESTIONS], answer) for thing, answer in THINGS.items()]
    return things + [(list(phrases), answer) for phrases, answer in FACTS.items()]


TOPICS = topics()
TALK = [(list(phrases), answer) for phrases, answer in SMALL_TALK.items()]


def make(rng: random.Random, system: System | None = None) -> Example:
    system = system or any_system(rng)
    fate = rng.random()
    if fate < 0.08:
        question = rng.choice(("What is the date?", "What day is it today?", "What is today's date?", "Which date is it?"))
        if system.effort is None:
            return make(rng, system)
        return said(rng, None, system, question, f"The date is {system.date}.", f"Today is {system.date}.", {})
    if fate < 0.16:
        phrases, final = rng.choice(TALK)
        return said(rng, None, system, rng.choice(phrases), "The user is being friendly.", final, {})
    phrases, final = rng.choice(TOPICS)
    question = rng.choice(phrases)
    analysis = f"The user asks: {question}"
    asked = rng.choice(OPENERS) + question
    # The plain question is what people usually type, so only phrasings with an opening phrase are held out.
    key = None if asked == question else f"project:{asked}"
    return said(rng, key, system, asked, analysis, final, {"text": final})


def said(
    rng: random.Random, key: str | None, system: System, asked: str, analysis: str, final: str, expected: dict
) -> Example:
    return single_turn("project", key, system, careless(rng, asked), analysis if system.reasons else None, final, expected)
