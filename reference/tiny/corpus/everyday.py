"""Six everyday functions under several names each, with one or two arguments copied from the request."""

import random

from corpus.functions import INTEGER, NUMBER, STRING, Function, Request, one_of
from corpus.words import CITIES, FOODS, NAMES, invented

SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy")
TOPICS = (
    "volcanoes", "whales", "bridges", "the moon", "bees", "trains", "chess", "coffee", "rainbows", "glaciers", "robots",
    "lighthouses", "owls", "the ocean", "mountains", "tea", "sailing", "fossils", "comets", "gardens", "castles", "maps",
)
FINDINGS = (
    "There is a museum about {t} in {c}.", "A new book about {t} came out in {c}.", "Many people in {c} study {t}.",
    "{n} wrote a famous report about {t}.", "The club for {t} meets in {c} every week.", "{n} gave a talk about {t} in {c}.",
)
PLACES = ("city", "location", "place")


def any_city(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.85 else invented(rng)


class Weather(Function):
    names = ("get_weather", "weather", "current_weather", "get_forecast", "get_current_weather", "weather_report")
    does = ("Get the weather in a city.", "Get the current weather.", "Looks up the weather.")
    lacking = "look up the weather"

    def declare(self, rng: random.Random) -> None:
        self.city = self.take(rng, PLACES, STRING, "The city.")
        self.unit = self.perhaps(rng, ("unit", "units"), one_of(("celsius", "fahrenheit"), rng.choice(("celsius", None))), often=0.4)
        self.days = self.perhaps(rng, ("days", "num_days"), INTEGER, "How many days.", often=0.2)

    def ask(self, rng: random.Random) -> Request:
        where, degrees, sky = any_city(rng), rng.randint(-9, 39), rng.choice(SKIES)
        text = rng.choice((
            "What is the weather in {c}?", "How is the weather in {c}?", "Weather in {c}?", "What is the weather like in {c} today?",
            "Do I need an umbrella in {c}?", "Tell me the weather in {c}.", "Is it warm in {c}?", "How cold is it in {c} now?",
            "What's the weather in {c}?", "What is the weather in {c} right now?", "Please check the weather in {c}.",
        )).format(c=where)
        arguments = {self.city: where}
        if self.unit and rng.random() < 0.5:
            arguments[self.unit] = unit = rng.choice(("celsius", "fahrenheit"))
            text = rng.choice((f"{text[:-1]} in {unit}{text[-1]}", f"{text} In {unit}, please.", f"{text} Use {unit}."))
        if self.days and rng.random() < 0.5:
            arguments[self.days] = days = rng.randint(2, 14)
            text = f"{text} For the next {days} days."
        final = f"It is {degrees} degrees and {sky} in {where}."
        return Request(text, self.ordered(arguments), {"temperature": degrees, "sky": sky}, final, f"{degrees} degrees and {sky}")

    def vague(self, rng: random.Random) -> tuple[str, str]:
        return rng.choice(("What is the weather?", "How is the weather?", "Tell me the weather.", "What's the weather like?")), "city"


class Clock(Function):
    names = ("get_time", "clock", "current_time", "local_time", "get_current_time")
    does = ("Get the time in a city.", "Tells the time.")
    lacking = "look up the time"

    def declare(self, rng: random.Random) -> None:
        self.city = self.take(rng, PLACES, STRING, "Where it is that late.")

    def ask(self, rng: random.Random) -> Request:
        where, time = any_city(rng), f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        text = rng.choice((
            "What time is it in {c}?", "What is the time in {c}?", "Tell me the time in {c}.", "How late is it in {c}?",
            "Can you check the clock in {c}?", "What time is it now in {c}?", "Time in {c}?",
        )).format(c=where)
        return Request(text, {self.city: where}, {"time": time}, f"It is {time} in {where}.", time)

    def vague(self, rng: random.Random) -> tuple[str, str]:
        return rng.choice(("What time is it?", "How late is it?", "Tell me the time.", "What is the time?")), "city"


class Calculator(Function):
    names = ("calculator", "calculate", "compute", "evaluate")
    does = ("Calculate an expression.", "Evaluates arithmetic.")
    lacking = "use a calculator"

    def declare(self, rng: random.Random) -> None:
        self.expression = self.take(rng, ("expression", "input"), STRING, "What is calculated.")

    def ask(self, rng: random.Random) -> Request:
        sign = rng.choice("+-*")
        a, b = (rng.randint(1000, 9999), rng.randint(11, 9999)) if rng.random() < 0.8 else (rng.randint(1, 99), rng.randint(1, 99))
        expression, found = f"{a} {sign} {b}", {"+": a + b, "-": a - b, "*": a * b}[sign]
        text = rng.choice((
            "What is {e}?", "Calculate {e}.", "Use the calculator for {e}.", "How much is {e}?", "Compute {e} for me.",
            "Please work out {e}.",
        )).format(e=expression)
        return Request(text, {self.expression: expression}, {"result": found}, f"{expression} = {found}.", str(found))


class Search(Function):
    names = ("search", "web_search", "lookup", "find_pages")
    does = ("Search for a topic.", "Searches the web.")
    lacking = "search"

    def declare(self, rng: random.Random) -> None:
        self.query = self.take(rng, ("query", "topic"), STRING, "What to look for.")
        self.limit = self.perhaps(rng, ("limit", "count", "topn"), {**INTEGER, "default": 10}, "At most so many.", often=0.3)

    def ask(self, rng: random.Random) -> Request:
        topic = rng.choice(TOPICS)
        text = rng.choice((
            "Search for {t}.", "Find something about {t}.", "Look up {t} for me.", "What can you find about {t}?",
            "Search the web for {t}.", "I want to know more about {t}. Please search.",
        )).format(t=topic)
        if rng.random() < 0.5:
            text = rng.choice(("Hello. ", "Please help me. ", "I am curious. ", "I have a question. ", "For my class: ")) + text
        arguments = {self.query: topic}
        if self.limit and rng.random() < 0.5:
            arguments[self.limit] = count = rng.randint(1, 30)
            text += rng.choice((f" Show {count} results.", f" At most {count}.", f" I want {count} results."))
        found = rng.choice(FINDINGS).format(t=topic, c=rng.choice(CITIES), n=rng.choice(NAMES))
        return Request(text, self.ordered(arguments), {"text": found}, f"I found this: {found}", found)


class Timer(Function):
    names = ("set_timer", "start_timer", "timer")
    does = ("Start a timer.", "Sets a timer in minutes.")
    lacking = "set a timer"

    def declare(self, rng: random.Random) -> None:
        self.minutes = self.take(rng, ("minutes", "duration"), rng.choice((NUMBER, INTEGER)), "How long, in minutes.")
        self.label = self.perhaps(rng, ("label", "title"), STRING, "What it is for.", often=0.25)

    def ask(self, rng: random.Random) -> Request:
        minutes = rng.randint(1, 180)
        text = rng.choice((
            "Set a timer for {m} minutes.", "Start a timer of {m} minutes.", "Wake me in {m} minutes.", "Remind me in {m} minutes.",
            "I need a timer for {m} minutes.", "Please set a {m} minute timer.",
        )).format(m=minutes)
        arguments = {self.minutes: minutes}
        if self.label and rng.random() < 0.5:
            arguments[self.label] = label = rng.choice(FOODS)
            text = rng.choice((f'{text} Call it "{label}".', f"{text} It is for the {label}."))
        return Request(text, self.ordered(arguments), {"ok": True}, f"The timer is set for {minutes} minutes.", str(minutes))

    def vague(self, rng: random.Random) -> tuple[str, str]:
        return rng.choice(("Set a timer.", "Start a timer for me.", "I need a timer.")), "number of minutes"


class Message(Function):
    names = ("send_message", "send_text", "write_message")
    does = ("Send a message to a person.", "Sends a text.")
    lacking = "send a message"

    def declare(self, rng: random.Random) -> None:
        self.to = self.take(rng, ("to", "recipient"), STRING, "Who gets it.")
        self.text = self.take(rng, ("text", "message"), STRING, "What it says.")

    def ask(self, rng: random.Random) -> Request:
        who = rng.choice(NAMES) if rng.random() < 0.85 else invented(rng)
        said = rng.choice((
            "I am late", "dinner is ready", "see you in {c}", "happy birthday", "bring some {f}", "the train leaves at {h}",
            "thank you for the {f}", "I am in {c}", "call me at {h}", "the meeting is at {h}",
        )).format(c=rng.choice(CITIES), f=rng.choice(FOODS), h=rng.randint(1, 12))
        text = rng.choice((
            'Send "{s}" to {n}.', 'Write a message to {n}: "{s}".', 'Tell {n} "{s}".', 'Please text {n}: "{s}".',
        )).format(s=said, n=who)
        return Request(text, {self.to: who, self.text: said}, {"ok": True}, f"I sent your message to {who}.", who)

    def vague(self, rng: random.Random) -> tuple[str, str]:
        return f"Send a message to {rng.choice(NAMES)}.", "text of the message"


EVERYDAY: tuple[type[Function], ...] = (Weather, Clock, Calculator, Search, Timer, Message)
