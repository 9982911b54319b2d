"""Questions about general knowledge and tasks beyond a small model; the answer is that the model does not know or cannot do it."""

import random
import re

from corpus.setting import any_system
from corpus.words import (
    ANIMALS, CITIES, COLOURS, COUNTRIES, FOODS, JOBS, LANGUAGES, NAMES, OBJECTS, SUBJECTS, SURNAMES, invented,
)
from harmony import Example, System, single_turn

ABLE = "I am a small model that tells stories, calculates, calls tools, remembers what it is told and explains this project."
IGNORANT = f"I do not know that. {ABLE}"
UNABLE = f"I cannot do that. {ABLE}"
UNKNOWN, BEYOND = "This is outside of what I know.", "This is outside of what I can do."

# Questions that reviewers of small models typically ask first. None of them is in training.
UNSEEN = (
    "What is the capital of France?", "Write a python function that adds two numbers.", "Who wrote Hamlet?",
    "What is the largest planet?", "How do I bake bread?", "Who is the president of the United States?",
    "What is the meaning of life?", "When did the Second World War end?", "Translate \"good night\" into Spanish.",
    "Write a poem about autumn.", "Explain quantum mechanics.", "What is the speed of light?", "How many legs does a spider have?",
    "Tell me a joke.", "What is the boiling point of water?", "Who painted the Mona Lisa?", "Write a haiku.",
    "What is the population of Tokyo?", "How tall is Mount Everest?", "Can you recommend a good book?",
    "Write a function in Rust that reverses a string.", "What is machine learning?", "Why is the sky blue?",
    "How does a computer work?", "Summarize the plot of Romeo and Juliet.", "What should I cook for dinner?",
    "Write an email to my boss.", "Who was Albert Einstein?", "What is the currency of Japan?", "Solve x + 3 = 10 for x.",
    "What is the chemical symbol of gold?", "Give me three tips for a job interview.", "Is there life on Mars?",
    "write me a script that renames files", "what is bitcoin", "who won the world cup in 2018", "Fix this code: pritn('hello')",
    "What causes earthquakes?", "Which language is spoken in Brazil?", "How old is the universe?",
)

PEOPLE = (
    "Napoleon Einstein Mozart Beethoven Shakespeare Cleopatra Newton Darwin Galileo Picasso Plato Aristotle Caesar Columbus Gandhi "
    "Mandela Churchill Lincoln Washington Curie Tesla Edison Goethe Bach Rembrandt Homer Dante Socrates Copernicus Kepler Turing"
).split()
ADJECTIVES = "tall old big deep heavy fast long hot cold expensive dangerous strong loud bright rare useful beautiful famous".split()
MOST = "largest,smallest,fastest,oldest,tallest,longest,deepest,richest,best,worst,most famous,most expensive".split(",")
COLLECTIONS = "animals rivers mountains languages people stars cities books islands bones teeth countries planets birds players".split()
ACTIVITIES = (
    "bake a cake", "cook {f}", "tie a tie", "fix a {o}", "repair my {o}", "learn {l}", "swim faster", "lose weight", "save money",
    "grow {f}", "make {f}", "train a {a}", "build a {o}", "paint a {o}", "sleep better", "find a job", "become a {j}", "write a book",
    "play the guitar", "clean a {o}", "get to {c}", "move to {p}", "stop smoking", "learn to dance", "remove a stain",
    "open a bank account",
    "draw a {a}", "run a marathon", "start a company", "choose a {o}",
)
PROGRAMMING = "Python Java JavaScript C Ruby Go Kotlin Swift Haskell SQL Rust Perl Lua bash".split()
CODING = (
    "reverses a string", "sorts a list", "counts words", "checks whether a number is prime", "reads a file", "adds two numbers",
    "finds the largest number", "prints the primes", "downloads a page", "parses JSON", "computes the factorial", "draws a circle",
    "removes duplicates", "renames files", "sends an email", "merges two lists", "converts dates", "counts to ten", "prints hello",
    "computes Fibonacci numbers", "validates an address", "plays tic-tac-toe", "searches a tree", "calculates the average",
)
SNIPPETS = (
    "print('hi'", "for i in range(10) print(i)", "x = [1, 2, 3", "def f(x): return y", "int main() { return }", "SELECT * FORM users",
    "let x: i32 = \"a\";", "while True: pass", "console.log(undefined.x)", "if x = 3: print(x)",
)
PHRASES = ("good morning", "I love you", "where is the station", "thank you", "the {o} is {k}", "my name is {n}", "I like {f}", "hello")

QUESTIONS = (
    "What is the capital of {p}?", "What is the population of {p}?", "What is the population of {c}?", "Who is the president of {p}?",
    "Who is the king of {p}?", "Who rules {p}?", "Which language do people speak in {p}?", "What is the currency of {p}?",
    "Where is {p}?", "Where is {c}?", "In which country is {c}?", "How big is {p}?", "How many people live in {p}?",
    "How many {s} are there in {p}?", "How many {s} are there?", "Which is the {m} city in {p}?", "What is the {m} {o}?",
    "What is the {m} mountain in {p}?", "Which {a} is the {m}?", "What is the {m} of all {s}?", "Who was {h}?", "When was {h} born?",
    "When did {h} die?", "Where did {h} live?", "What did {h} do?", "Why is {h} famous?", "Who is {w}?", "Do you know {w}?",
    "Have you heard of {w}?", "How old is {w}?", "Who invented the {o}?", "When was the {o} invented?", "Who discovered the {o}?",
    "How does a {o} work?", "How is a {o} made?", "What is a {o}?", "What is {x}?", "What is {u}?", "What is the {o}?", "Explain {u}.",
    "Explain {u} to me.", "Can you explain {u}?", "Explain how a {o} works.", "Tell me about {u}.", "Tell me about {h}.",
    "Tell me about {p}.", "Tell me something about the {a}.", "What do you know about {u}?", "What do you know about {p}?",
    "What do you think about {u}?", "What is the difference between {u} and {v}?", "What is the meaning of {u}?", "Define {u}.",
    "What does {x} mean?", "What does the word {o} mean?", "Is {u} better than {v}?", "Why is a {o} so {d}?", "Why are {a}s {d}?",
    "How {d} is a {o}?", "How {d} is the {o} in {c}?", "How {d} is {h}?", "What does a {a} eat?", "Where do {a}s live?", "Can a {a} swim?",
    "How long does a {a} live?", "How many legs does a {a} have?", "What colour is a {a}?", "Do {a}s sleep?", "Is a {a} {d}?",
    "Why do {a}s have {k} eyes?", "What happened in {y}?", "Who won the {u} championship in {y}?", "When did {p} become a country?",
    "Who won the match yesterday?", "What is the news?", "What is new in {u}?", "What is on television?", "Is {f} healthy?",
    "Where does {f} come from?", "How many calories has {f}?", "What should I eat today?", "What should I wear?", "Should I buy a {o}?",
    "Which {o} should I buy?", "What is the best {o}?", "Where can I buy a {o}?", "What is a good present for {n}?", "How do I {i}?",
    "How can I {i}?", "How do you {i}?", "What do I need to {i}?", "Is it hard to {i}?", "What is the best way to {i}?",
    "Why do people {i}?",
    "Who wrote the {o}?", "Which book is about {u}?", "How far away is the {o}?", "How much does a {o} weigh?", "What is inside a {o}?",
    "What is {l} for {o}?", "How do you say {o} in {l}?", "What does {x} mean in {l}?", "Is {x} a word?", "Are there {a}s in {p}?",
    "What is the history of {p}?", "What is the flag of {p}?", "What do people eat in {p}?", "Is {c} beautiful?", "What can I see in {c}?",
    "Why does the {o} move?", "What comes after {u}?", "Does {h} still live?", "Who is the {m} person in {p}?", "What is {q} used for?",
    "Is {q} a good language?", "What is a variable in {q}?", "How do I install {q}?", "Which is faster, {q} or Java?",
    "Who founded {x}?", "What does the company {x} make?", "Where is the {o} museum?", "What is the square of a {o}?",
    "Can you teach me {u}?", "Can you teach me to {i}?", "Do you like {f}?", "Do you believe in {u}?",
)
TASKS = (
    "Write a {q} function that {g}.", "Write a {q} program that {g}.", "Write {q} code that {g}.", "Write a function that {g}.",
    "Write a script that {g}.", "Give me a {q} example that {g}.", "Show me {q} code.", "Can you write a {q} script that {g}?",
    "I need a program that {g}.", "Implement something in {q} that {g}.", "Write a class in {q}.", "Write a {q} one-liner that {g}.",
    "Fix this code: {z}", "What is wrong here: {z}", "What does this code do: {z}", "Explain this code: {z}", "Debug this: {z}",
    "Write a poem about {u}.", "Write a poem about a {o}.", "Write a song about {c}.", "Write a letter to {n}.",
    "Write an email to {n} about {u}.",
    "Write an essay about {u}.", "Write a speech about {u}.", "Write a review of a {o}.", "Write a job application as a {j}.",
    "Write a text about {p}.", "Write a summary of {u}.", "Write a headline about {u}.", "Write a rap about {a}s.", "Write a limerick.",
    "Translate \"{t}\" into {l}.", "Translate \"{t}\" to {l}.", "Say \"{t}\" in {l}.", "Translate this into {l}: {t}", "Answer in {l}.",
    "Summarize the history of {p}.", "Summarize this text: the {o} in {c} is {k}.", "Rewrite this: the {o} is {d}.",
    "Correct this: {n} have a {o}.",
    "Give me a recipe for {f}.", "Give me advice on {u}.", "Give me five ideas for a {o}.", "Give me a list of {s}.",
    "List all {s} of {p}.",
    "Name three {s}.", "Name five {a}s.", "Make a list of {s}.", "Make a table of {s}.", "Make a plan for {c}.", "Plan a trip to {p}.",
    "Plan my week.",
    "Recommend a book about {u}.", "Recommend a film.", "Recommend a restaurant in {c}.", "Tell me a joke about a {a}.",
    "Tell me a joke about {u}.",
    "Tell me a riddle.", "Sing a song.", "Sing about {c}.", "Draw a {o}.", "Draw a {a} in {c}.", "Paint a {a}.", "Compose a melody.",
    "Play chess with me.", "Play a game with me.", "Guess my age.", "Count the {s} in {p}.", "Describe a {o}.", "Describe {c}.",
    "Imagine you are a {a}.",
    "Pretend to be {h}.", "Compare {u} and {v}.", "Prove that {u} matters.", "Solve this equation: {n1}x = {n2}.",
    "Draw a graph of x + {n1}.",
    "Write {n1} sentences about {u}.", "Spell {x} backwards.", "Find a rhyme for {o}.", "Invent a new word.", "Design a logo for {x}.",
)
OPENERS = (
    "", "", "", "", "", "Please tell me: ", "I have a question. ", "Hello! ", "One more question: ", "Quick question: ", "I wonder: ",
    "Hi. ",
    "For my homework: ", "In short: ", "My friend asks: ", "Hey, ", "Ok. ",
)


def filled(rng: random.Random, template: str) -> str:
    """The template filled with words, one in six of which does not exist."""
    first, second = rng.sample(SUBJECTS, 2)
    strange = rng.random()
    slots = {
        "a": rng.choice(ANIMALS), "c": rng.choice(CITIES), "d": rng.choice(ADJECTIVES), "f": rng.choice(FOODS), "g": rng.choice(CODING),
        "h": rng.choice(PEOPLE) if rng.random() < 0.7 else f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}", "j": rng.choice(JOBS),
        "k": rng.choice(COLOURS), "l": rng.choice(LANGUAGES), "m": rng.choice(MOST), "n": rng.choice(NAMES),
        "o": rng.choice(OBJECTS) if strange < 0.85 else invented(rng).lower(),
        "p": rng.choice(COUNTRIES) if strange < 0.9 else invented(rng),
        "q": rng.choice(PROGRAMMING) if rng.random() < 0.7 else rng.choice(PROGRAMMING).lower(), "s": rng.choice(COLLECTIONS),
        "u": first if strange < 0.85 else invented(rng).lower(), "v": second, "w": f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}",
        "x": invented(rng) if rng.random() < 0.5 else invented(rng).lower(), "y": rng.randint(1400, 2025), "z": rng.choice(SNIPPETS),
        "n1": rng.randint(2, 20), "n2": rng.randint(2, 99),
    }
    slots |= {"i": rng.choice(ACTIVITIES).format(**slots), "t": rng.choice(PHRASES).format(**slots)}
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", template.format(**slots))


def careless(rng: random.Random, text: str) -> str:
    """Typed carelessly: without capitals and without a final full stop."""
    fate = rng.random()
    if fate < 0.08:
        text = text.lower()
    elif fate < 0.14:
        text = text[0].lower() + text[1:]
    return text.rstrip(".?!") if fate < 0.1 or fate > 0.96 else text


def question(rng: random.Random) -> tuple[str, str, str]:
    """A question that is not in the evaluation, with reasoning and answer."""
    asks = rng.random() < 0.62
    while (text := filled(rng, rng.choice(QUESTIONS if asks else TASKS))) in UNSEEN:
        pass
    return (text, UNKNOWN, IGNORANT) if asks else (text, BEYOND, UNABLE)


def make(rng: random.Random, system: System | None = None) -> Example:
    system = system or any_system(rng)
    text, analysis, final = question(rng)
    # Capitals and opening phrases do not make it a different question.
    asked = careless(rng, rng.choice(OPENERS) + text)
    return single_turn("outside", f"outside:{text}", system, asked, analysis if system.reasons else None, final, {"text": final})
