"""Functions for a home and its calendar: flags, numbers, lists and objects among their arguments."""

import random

from corpus.functions import BOOLEAN, INTEGER, NUMBER, STRING, Function, Request, listed, one_of, or_null, structure
from corpus.words import DAYS, FOODS, NAMES, ROOMS, invented, joined, some

DOES = (
    "call {n}", "water the plants", "feed the cat", "buy {f}", "wash the car", "open the window", "take out the trash",
    "write to {n}", "bake {f}", "pick up {n}", "check the oven", "pay the rent",
)
TITLES = (
    "Lunch", "Team meeting", "Dentist", "Birthday of {n}", "Dinner with {n}", "Book club", "Yoga", "Call with {n}", "Concert",
    "Cooking {f}", "Parents evening", "Project review", "Coffee", "Piano lesson",
)
SONGS = ("Blue Moon", "Yesterday", "Summer Rain", "The River", "Golden Hour", "Night Train", "Paper Boats", "Wild Horses", "Home")
TAGS = "work home ideas travel family school garden money health music urgent later".split()


def filled(rng: random.Random, text: str) -> str:
    return text.format(n=rng.choice(NAMES), f=rng.choice(FOODS))


def hour(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02}:{rng.choice((0, 0, 15, 30, 45)):02}"


class Light(Function):
    names = ("set_light", "control_light", "switch_light", "light")
    does = ("Switch a light on or off.", "Controls the lights of a room.")

    def declare(self, rng: random.Random) -> None:
        self.rooms = rng.sample(ROOMS, rng.randint(3, 6))
        self.room = self.take(rng, ("room", "where", "area"), one_of(self.rooms) if rng.random() < 0.5 else STRING, "Which room.")
        self.on = self.take(rng, ("on", "state", "is_on", "enabled"), BOOLEAN, "Whether it shall be on.")
        self.level = self.perhaps(rng, ("brightness", "level"), {**NUMBER, "default": 100}, "In percent.")

    def ask(self, rng: random.Random) -> Request:
        room, on = rng.choice(self.rooms), rng.random() < 0.5
        word = "on" if on else "off"
        text = rng.choice((
            "Turn {w} the light in the {r}.", "Switch {w} the {r} light.", "Turn the light in the {r} {w}.",
            "Light {w} in the {r}, please.",
        )).format(w=word, r=room)
        arguments = {self.room: room, self.on: on}
        if self.level and on and rng.random() < 0.6:
            arguments[self.level] = level = rng.randint(1, 100)
            text = rng.choice((f"{text[:-1]} at {level} percent.", f"{text} Set it to {level} percent."))
        return Request(text, self.ordered(arguments), {"ok": True}, f"The light in the {room} is {word}.", f"{room} is {word}")


class Heating(Function):
    names = ("set_temperature", "thermostat", "set_heating", "heat_room")
    does = ("Set the temperature of a room.", "Controls the heating.")

    def declare(self, rng: random.Random) -> None:
        self.rooms = rng.sample(ROOMS, rng.randint(2, 5))
        self.room = self.take(rng, ("room", "zone"), one_of(self.rooms) if rng.random() < 0.4 else STRING, "Which room.")
        self.degrees = self.take(rng, ("degrees", "temperature", "target"), rng.choice((NUMBER, INTEGER)), "In degrees.")

    def ask(self, rng: random.Random) -> Request:
        room, degrees = rng.choice(self.rooms), rng.randint(5, 30)
        if self.properties[self.degrees]["type"] == "number" and rng.random() < 0.5:
            degrees += 0.5
        text = rng.choice((
            "Set the {r} to {d} degrees.", "Make it {d} degrees in the {r}.", "Warm the {r} to {d} degrees.",
            "Heat the {r} to {d} degrees.",
            "I want {d} degrees in the {r}.", "Set the temperature in the {r} to {d}.",
        )).format(r=room, d=degrees)
        arguments = self.ordered({self.room: room, self.degrees: degrees})
        return Request(text, arguments, {"ok": True}, f"The {room} will have {degrees} degrees.", f"{degrees} degrees")


class Event(Function):
    names = ("create_event", "add_event", "schedule_meeting", "schedule", "new_appointment")
    does = ("Create an event in the calendar.", "Puts an appointment into the calendar.")

    def declare(self, rng: random.Random) -> None:
        self.title = self.take(rng, ("title", "name", "subject"), STRING, "What it is.")
        self.day = self.take(rng, ("day", "weekday"), one_of(DAYS) if rng.random() < 0.5 else STRING, "The day of the week.")
        self.time = self.take(rng, ("time", "start", "start_time"), STRING, "As HH:MM.", needed=rng.random() < 0.5)
        self.guests = self.perhaps(rng, ("guests", "attendees", "with", "people"), listed(STRING), "Who is invited.")
        self.minutes = self.perhaps(rng, ("minutes", "duration"), {**INTEGER, "default": 60}, "How long.", often=0.3)

    def ask(self, rng: random.Random) -> Request:
        title, day, time = filled(rng, rng.choice(TITLES)), rng.choice(DAYS), hour(rng)
        text = rng.choice((
            'Create an event "{t}" on {d} at {h}', 'Schedule "{t}" for {d} at {h}', 'Put "{t}" into my calendar on {d} at {h}',
            'On {d} at {h} I have "{t}", please add it', 'New event on {d}, {h}: "{t}"',
        )).format(t=title, d=day, h=time)
        arguments = {self.title: title, self.day: day, self.time: time}
        if self.guests and rng.random() < 0.7:
            arguments[self.guests] = guests = some(rng, NAMES)
            text += f" with {joined(guests)}"
        text += "."
        if self.minutes and rng.random() < 0.5:
            arguments[self.minutes] = minutes = rng.choice((15, 20, 30, 45, 90, 120))
            text += f" It takes {minutes} minutes."
        found = rng.choice(({"ok": True}, {"id": rng.randint(100, 999)}, {"created": True}))
        return Request(text, self.ordered(arguments), found, f"{title} is in your calendar on {day} at {time}.", f"{day} at {time}")


class Shopping(Function):
    names = ("add_items", "add_to_list", "buy", "shopping_list")
    does = ("Add items to the shopping list.", "Puts things on a list.")

    def declare(self, rng: random.Random) -> None:
        self.counts = rng.random() < 0.5
        item = STRING
        if self.counts:
            self.item, self.count = rng.choice((("name", "count"), ("item", "quantity"), ("product", "amount")))
            item = structure({self.item: STRING, self.count: INTEGER}, (self.item, self.count))
        self.items = self.take(rng, ("items", "things", "products"), listed(item), "What to add.")
        self.urgent = self.perhaps(rng, ("urgent", "today"), {**BOOLEAN, "default": False}, "Whether it is urgent.", often=0.3)

    def ask(self, rng: random.Random) -> Request:
        foods = some(rng, FOODS)
        if self.counts:
            counted = [(food, rng.randint(2, 20)) for food in foods]
            items, shown = [{self.item: food, self.count: count} for food, count in counted], [f"{n} {food}" for food, n in counted]
        else:
            items, shown = foods, foods
        text = rng.choice((
            "Add {i} to the list.", "Put {i} on the shopping list.", "I need {i}.", "We have to buy {i}.", "Buy {i}, please.",
        )).format(i=joined(shown))
        arguments = {self.items: items}
        if self.urgent and rng.random() < 0.6:
            arguments[self.urgent] = True
            text += " It is urgent."
        return Request(text, self.ordered(arguments), {"ok": True}, f"The list now has {joined(shown)}.", joined(shown))


class Note(Function):
    names = ("save_note", "create_note", "write_note", "note")
    does = ("Save a note.", "Writes a note down.")

    def declare(self, rng: random.Random) -> None:
        # Without a title the argument may be null.
        self.title = self.take(rng, ("title", "heading"), or_null(rng, STRING), "The title, if there is one.")
        self.text = self.take(rng, ("text", "body", "content"), STRING, "What it says.")
        self.tags = self.perhaps(rng, ("tags", "labels"), listed(rng.choice((STRING, one_of(TAGS)))), "Words to find it by.")

    def ask(self, rng: random.Random) -> Request:
        said, title = filled(rng, rng.choice(DOES)), filled(rng, rng.choice(TITLES)) if rng.random() < 0.5 else None
        text = rng.choice(
            ('Save a note "{t}": "{s}".', 'Write a note with the title "{t}": "{s}".', 'Note under "{t}": "{s}".') if title
            else ('Save a note: "{s}".', 'Write down "{s}".', 'Note "{s}".', 'Make a note that says "{s}".')
        ).format(t=title, s=said)
        arguments = {self.title: title, self.text: said}
        if self.tags and rng.random() < 0.6:
            arguments[self.tags] = tags = some(rng, TAGS)
            text += rng.choice((f" Tag it {joined(tags)}.", f" The tags are {joined(tags)}."))
        return Request(text, self.ordered(arguments), {"ok": True}, f'I saved the note "{said}".', said)


class Reminder(Function):
    names = ("remind", "set_reminder", "add_reminder", "create_alarm")
    does = ("Remind of something.", "Sets a reminder.")

    def declare(self, rng: random.Random) -> None:
        self.text = self.take(rng, ("text", "what", "task"), STRING, "What to be reminded of.")
        self.nested = rng.random() < 0.4
        if self.nested:
            when = structure({"day": one_of(DAYS) if rng.random() < 0.5 else STRING, "time": STRING}, ("day", "time"))
            self.when = self.take(rng, ("when", "at", "date"), when, "When.")
        else:
            self.when = self.take(rng, ("time", "at", "when"), STRING, "When, as HH:MM.")
        self.repeat = self.perhaps(rng, ("repeat", "every"), one_of(("never", "daily", "weekly"), "never"), often=0.3)

    def ask(self, rng: random.Random) -> Request:
        what, time, day = filled(rng, rng.choice(DOES)), hour(rng), rng.choice(DAYS)
        at = f"on {day} at {time}" if self.nested else f"at {time}"
        text = rng.choice((
            "Remind me {a} to {s}.", "Please remind me to {s} {a}.", "I have to {s} {a}, remind me.", "Set a reminder {a}: {s}.",
        )).format(a=at, s=what)
        arguments = {self.text: what, self.when: {"day": day, "time": time} if self.nested else time}
        if self.repeat and rng.random() < 0.5:
            arguments[self.repeat] = often = rng.choice(("daily", "weekly"))
            text += f" Repeat it {often}."
        return Request(text, self.ordered(arguments), {"ok": True}, f"I will remind you {at} to {what}.", what)


class Music(Function):
    names = ("play_song", "play_music", "play", "start_music")
    does = ("Play music.", "Plays a song.")

    def declare(self, rng: random.Random) -> None:
        self.song = self.take(rng, ("song", "title", "track"), STRING, "The title.")
        self.artist = self.perhaps(rng, ("artist", "by", "singer"), STRING, "Who sings it.")
        self.volume = self.perhaps(rng, ("volume", "loudness"), NUMBER, "From 0 to 100.", often=0.4)
        self.shuffle = self.perhaps(rng, ("shuffle", "loop"), {**BOOLEAN, "default": False}, often=0.3)

    def ask(self, rng: random.Random) -> Request:
        song = rng.choice(SONGS)
        arguments, by = {self.song: song}, ""
        if self.artist and rng.random() < 0.6:
            arguments[self.artist] = artist = rng.choice((*NAMES, invented(rng)))
            by = f" by {artist}"
        text = rng.choice(('Play "{s}"{b}.', 'Please play "{s}"{b}.', 'I want to hear "{s}"{b}.', 'Put on "{s}"{b}.')).format(s=song, b=by)
        if self.volume and rng.random() < 0.5:
            arguments[self.volume] = volume = rng.randint(0, 100)
            text = rng.choice((f"{text[:-1]} at volume {volume}.", f"{text} The volume is {volume}."))
        if self.shuffle and rng.random() < 0.4:
            arguments[self.shuffle] = True
            text += f" With {self.shuffle}."
        return Request(text, self.ordered(arguments), {"playing": True}, f'Now playing "{song}"{by}.', song)


HOME: tuple[type[Function], ...] = (Light, Heating, Event, Shopping, Note, Reminder, Music)
