"""Word pools that several grammars share."""

import random
from collections.abc import Sequence

NAMES = (
    "Anna Ben Clara David Emma Felix Greta Hugo Iris Jonas Klara Leo Mia Noah Olga Paul Rosa Sam Tina Uma Victor Wanda "
    "Xenia Yara Zoe Adam Bella Carl Dora Erik Fiona Gustav Helen Ivan Julia Kevin Laura Martin Nina Oscar Petra Quentin "
    "Robert Sara Tom Ursula Vera Walter Alice Bruno Celia Daniel Elsa Frank Grace Henry Ida Jack Karen Lucas Maria Nils "
    "Otto Paula Ralf Sofia Theo Vincent Wilma Amir Bianca Chen Diego Eva Farid Gina Hana Igor Jana Kofi Lena Marco Nora "
    "Omar Priya Rita Stefan Tara Viktor Yuki Zara Aisha Boris Carmen Dario Ella Flora"
).split()

CITIES = (
    "Paris London Berlin Madrid Rome Vienna Prague Lisbon Dublin Oslo Stockholm Helsinki Copenhagen Amsterdam Brussels "
    "Zurich Geneva Munich Hamburg Cologne Milan Venice Naples Athens Warsaw Budapest Bucharest Sofia Belgrade Zagreb "
    "Istanbul Cairo Tunis Lagos Nairobi Accra Dakar Casablanca Tokyo Osaka Kyoto Seoul Beijing Shanghai Taipei Bangkok "
    "Hanoi Manila Jakarta Singapore Delhi Mumbai Chennai Karachi Dubai Tehran Baghdad Sydney Melbourne Perth Auckland "
    "Toronto Montreal Vancouver Boston Chicago Denver Seattle Houston Dallas Miami Atlanta Phoenix Havana Lima Quito "
    "Bogota Caracas Santiago Montevideo Reykjavik Edinburgh Glasgow Liverpool Bristol Lyon Marseille Bordeaux Porto "
    "Seville Valencia Krakow Riga Vilnius Tallinn Kyiv Tbilisi Baku Almaty"
).split()

COLOURS = "red blue green yellow purple orange black white pink brown grey silver gold turquoise violet crimson".split()

FOODS = (
    "soup bread cheese pasta rice salad pizza curry pancakes noodles apples cherries chocolate honey mushrooms olives "
    "tomatoes strawberries potatoes beans cake cookies dumplings waffles grapes plums peaches carrots pumpkin figs"
).split()

CODE_WORDS = (
    "lantern river falcon marble thunder walnut compass velvet harbor comet meadow granite whistle anchor maple copper "
    "saddle feather glacier pepper orchid tunnel ribbon canyon puzzle violin amber button castle dragon engine forest"
).split()

PETS = "cat dog rabbit parrot hamster turtle pony goldfish".split()
JOBS = "baker teacher doctor gardener pilot painter farmer singer carpenter nurse writer sailor cook plumber".split()
MONTHS = "January February March April May June July August September October November December".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ROOMS = "kitchen bathroom bedroom hall garage office cellar attic garden library studio balcony".split()
ANIMALS = (
    "elephant giraffe lion tiger zebra whale shark dolphin penguin eagle spider butterfly crocodile camel monkey kangaroo "
    "horse cow pig chicken ant octopus lizard snake bat salmon beetle"
).split()
# Commonly known things. The questions about this project explain none of them.
OBJECTS = (
    "car train plane bicycle ship rocket telescope microscope piano guitar camera telephone radio television computer battery "
    "magnet compass fridge oven kettle pencil ladder hammer engine bridge tower castle pyramid volcano desert glacier river "
    "mountain ocean island planet star comet moon galaxy atom molecule crystal diamond rainbow cloud tornado earthquake tide "
    "tree flower mushroom forest seed brain heart lung bone muscle tooth virus vaccine bank coin stamp passport museum "
    "cathedral stadium orchestra novel newspaper painting statue satellite robot drone laser turbine dam harbour lighthouse"
).split()
SUBJECTS = (
    "photosynthesis gravity evolution democracy inflation philosophy electricity magnetism chemistry biology physics geometry "
    "algebra calculus history geography astronomy medicine psychology economics politics religion law music football tennis "
    "chess basketball cricket cooking fashion architecture poetry opera jazz ballet nutrition climate weathering insurance "
    "taxation marketing agriculture fishing mining engineering genetics linguistics mythology democracy monarchy slavery "
    "capitalism socialism feminism buddhism christianity islam yoga meditation happiness love friendship freedom justice"
).split()
COUNTRIES = (
    "France Germany Italy Spain Portugal Sweden Norway Finland Denmark Poland Austria Switzerland Belgium Ireland Iceland "
    "Greece Turkey Russia Ukraine Hungary Romania Bulgaria Croatia Serbia Egypt Morocco Algeria Nigeria Ghana Kenya Ethiopia "
    "Tanzania Uganda Angola Namibia China Japan Korea India Pakistan Bangladesh Nepal Vietnam Thailand Malaysia Indonesia "
    "Australia Canada Mexico Cuba Jamaica Brazil Argentina Chile Peru Bolivia Colombia Ecuador Venezuela Iran Iraq Israel "
    "Jordan Lebanon Syria Mongolia Kazakhstan"
).split()
LANGUAGES = (
    "French German Spanish Italian Portuguese Dutch Swedish Polish Russian Greek Turkish Arabic Chinese Japanese Korean Hindi"
).split()
SURNAMES = (
    "Smith Miller Brown Fischer Weber Rossi Garcia Silva Novak Kowalski Jensen Larsen Virtanen Dubois Moreau Tanaka Sato Kim "
    "Chen Singh Khan Okafor Mensah Haddad Cohen Murphy Walsh Taylor Wilson Clark"
).split()

ONSETS = "b br d dr f g gr h k kl l m n p pr r s sh st t tr v w z".split()
VOWELS = "a e i o u ai ea ou".split()
CODAS = ["", "", "n", "r", "l", "s", "k", "m", "nd", "rt"]


def invented(rng: random.Random) -> str:
    """A name that is in no list, so that it must be copied piece by piece."""
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.randint(2, 3))]
    return "".join(syllables).capitalize()


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def some(rng: random.Random, words: Sequence[str], most: int = 3) -> list[str]:
    """One or more words, mostly two."""
    return rng.sample(words, min(most, rng.choice((1, 2, 2, 3, 3))))
