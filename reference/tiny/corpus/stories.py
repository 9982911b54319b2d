"""Short stories: a hero, a place, a friend and one of the plots, asked for by the user.

The friend depends on the hero, and the plot on the hero's kind. If friends were drawn uniformly from all names, a model that named the
hero again would have hardly more loss.
"""

import random

from corpus.plots import OPENINGS, PLOTS
from corpus.words import NAMES, article, invented
from corpus.setting import any_system
from harmony import Example, System, single_turn
from split import held_out

HEROES = (
    "Pip Milo Luna Bramble Hazel Otis Willow Nutmeg Juniper Basil Clover Finn Poppy Rusty Sunny Tilda Fern Barnaby Coco Daisy "
    "Ember Gus Holly Jasper Kiki Lark Moss Nell Olive Piper Quill Robin Sage Teddy Wren"
).split()
KINDS = (
    "fox bear mouse rabbit hedgehog squirrel cat dog duck frog turtle owl goose goat pony wolf badger otter sparrow snail "
    "dragon robot boy girl prince pirate"
).split()
PLACES = (
    "in the old mill", "in a small village", "at the edge of the forest", "by the sea", "on a high mountain", "under a big oak",
    "in a quiet valley", "on a little island", "in the castle garden", "near the lighthouse", "in a hollow tree", "by the lake",
    "in a busy town", "behind the bakery", "at the end of the road",
)
TRAITS = "small brave curious clever kind shy merry lonely gentle cheerful stubborn quiet young patient".split()
THINGS = (
    "key lantern bell drum whistle scarf crown compass kite feather ring basket boat book blanket spoon hat shell mirror clock"
).split()
WEATHERS = "sunny rainy windy foggy cold warm snowy grey bright stormy".split()
REQUESTS = (
    "Tell me a story about {a_k}.", "Tell me a story about {a_k}.", "Write a story about {a_k}.", "I want to hear a story about {a_k}.",
    "Please tell me a short story.", "Tell me a story.", "Can you tell me a story about {a_k} and {a_fk}?",
    "A story about {a_k}, please.", "Tell me a bedtime story about {a_k}.", "Tell me a story about {a_k} named {h}.",
    "Write a short story with {a_k} and a {o}.", "Can you tell me a story?", "Tell me a story about {a_k} and {a_fk}.", "Tell me a tale.",
    "Tell me a story about {h}.", "I am bored. Tell me a story.", "Tell me a story about two friends.", "Write a short story.",
)
# Only requests that name hero, kind and place can be kept for evaluation.
DETAILED = (
    "Tell me a story about {a_k} named {h} who lives {p}.", "Write a story about {h}, {a_k} who lives {p}.",
    "I want a story about {a_k} called {h}. It should happen {p}.", "Tell me about {h}, the {t} {k} who lives {p}.",
    "Tell me a story about {h} the {k} and {f} the {fk}, {p}.", "Write a story about {h}, {a_k}, and {f}, {a_fk}. It happens {p}.",
)
FRIENDS, PLOTS_A_KIND = 5, 3


def others(word: str, words: list[str], count: int) -> list[str]:
    """The same alternatives for a word every time, without the word itself."""
    return random.Random(word).sample([other for other in words if other != word], count)


FRIENDS_OF = {hero: others(hero, HEROES, FRIENDS) for hero in HEROES}
KINDS_MET_BY = {kind: others(kind, KINDS, FRIENDS) for kind in KINDS}
PLOTS_OF = {kind: others(kind, list(PLOTS), PLOTS_A_KIND) for kind in KINDS}


def compose(rng: random.Random, request: str) -> tuple[dict[str, str], str]:
    """The choices, and the story that they give. The user may specify any of them."""
    kind, hero = rng.choice(KINDS), rng.choice(HEROES)
    if "{h}" in request and rng.random() < 0.3:
        hero = rng.choice((rng.choice(NAMES), invented(rng)))
    chosen = hero not in FRIENDS_OF or "{f}" in request
    friend = rng.choice([other for other in HEROES if other != hero] if chosen else FRIENDS_OF[hero])
    friend_kind = rng.choice([other for other in KINDS if other != kind] if "fk}" in request else KINDS_MET_BY[kind])
    place, trait, weather = rng.choice(PLACES), rng.choice(TRAITS), rng.choice(WEATHERS)
    slots = {
        "h": hero, "k": kind, "p": place, "P": place.capitalize(), "f": friend, "fk": friend_kind, "o": rng.choice(THINGS),
        "w": weather, "t": trait, "a_k": article(kind), "a_fk": article(friend_kind), "a_t": article(trait), "a_w": article(weather),
        "plot": rng.choice(PLOTS_OF[kind]),
    }
    sentences = [rng.choice(step) for step in (OPENINGS, *PLOTS[slots["plot"]])]
    return slots, " ".join(sentences).format(**slots)


def key(slots: dict[str, str]) -> str:
    return "story:{h} {k} {p}".format(**slots)


def short(rng: random.Random) -> tuple[str, str]:
    """A request and its story, as a turn in the history of another conversation."""
    while True:
        request = rng.choice(REQUESTS)
        slots, story = compose(rng, request)
        if not held_out(key(slots)):
            return request.format(**slots), story


def make(rng: random.Random, system: System | None = None) -> Example:
    system = system or any_system(rng)
    detailed = rng.random() < 0.5
    request = rng.choice(DETAILED if detailed else REQUESTS)
    slots, story = compose(rng, request)
    if held_out(key(slots)) and not detailed:
        return make(rng, system)
    analysis = "A story about {h}, {a_k} {p}, with {f} the {fk}.".format(**slots) if system.reasons else None
    names = HEROES if slots["h"] in HEROES else [*HEROES, slots["h"]]
    expected = {"text": story, "two_of": [names, KINDS]}
    return single_turn(
        "stories", key(slots) if detailed else None, system, request.format(**slots), analysis, story, expected
    )
