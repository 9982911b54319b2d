"""Functions of services and programs: journeys, orders, records, files, numbers and texts."""

import random

from corpus.functions import BOOLEAN, INTEGER, NUMBER, STRING, Function, Request, listed, one_of, or_null, structure
from corpus.home import hour
from corpus.words import CITIES, COLOURS, FOODS, LANGUAGES, NAMES, OBJECTS, SURNAMES, invented, joined, some

STREETS = ("Mill Street", "Oak Lane", "High Street", "River Road", "Park Avenue", "Church Lane", "Station Road", "Hill Street")
PHRASES = (
    "Good morning", "Where is the station", "I would like some {f}", "Thank you very much", "See you in {c}", "Guten Morgen",
    "¿Dónde está {c}?", "Où est la gare ?", "Buongiorno a tutti", "Grüße aus {c}", "今日は", "Привет, мир", "The night is long",
    "My name is {n}", "Jag bor i {c}", "A cup of tea, please",
)
SENTENCES = (
    "The {o} is old", "{n} lives in {c}", "I bought a {o} in {c}", "Every {o} needs some care", "We eat {f} today",
    "The {o} of {n} is {k}", "{n} and I went to {c}",
)
TABLES = "users orders products books songs cars rooms invoices tickets employees".split()
COLUMNS = "name city status colour price year country owner category id".split()


def phrase(rng: random.Random, phrases: tuple[str, ...]) -> str:
    return rng.choice(phrases).format(
        f=rng.choice(FOODS), c=rng.choice(CITIES), n=rng.choice(NAMES), o=rng.choice(OBJECTS), k=rng.choice(COLOURS)
    )


def day(rng: random.Random) -> str:
    return f"{rng.randint(2025, 2030)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


class Flights(Function):
    names = ("search_flights", "find_flights", "flights", "book_flight")
    does = ("Find flights between two cities.", "Searches flights.")

    def declare(self, rng: random.Random) -> None:
        self.start, self.goal = rng.choice((("from", "to"), ("origin", "destination"), ("departure", "arrival")))
        self.take(rng, (self.start,), STRING, "Where it starts.")
        self.take(rng, (self.goal,), STRING, "Where it ends.")
        self.date = self.perhaps(rng, ("date", "day"), STRING, "As YYYY-MM-DD.")
        self.seat = self.perhaps(rng, ("class", "seat"), one_of(("economy", "business", "first"), "economy"), often=0.4)
        self.direct = self.perhaps(rng, ("direct", "nonstop"), BOOLEAN, "Whether it must not stop on the way.", often=0.4)

    def ask(self, rng: random.Random) -> Request:
        start, goal = rng.sample(CITIES, 2)
        text = rng.choice((
            "Find a flight from {a} to {b}", "I want to fly from {a} to {b}", "Flights from {a} to {b}", "Search flights from {a} to {b}",
        )).format(a=start, b=goal)
        arguments = {self.start: start, self.goal: goal}
        if self.date and rng.random() < 0.6:
            arguments[self.date] = date = day(rng)
            text += f" on {date}"
        if self.seat and rng.random() < 0.5:
            arguments[self.seat] = seat = rng.choice(("economy", "business", "first"))
            text += f" in {seat} class"
        text += "."
        if self.direct and rng.random() < 0.5:
            arguments[self.direct] = True
            text += rng.choice((" It must be direct.", " Only direct flights."))
        number = f"{rng.choice('ABKLSU')}{rng.choice('ABKLSU')}{rng.randint(100, 999)}"
        final = f"The flight {number} goes from {start} to {goal}."
        return Request(text, self.ordered(arguments), {"flight": number}, final, number)


class Order(Function):
    names = ("order_food", "place_order", "order", "deliver")
    does = ("Order something to an address.", "Places an order.")

    def declare(self, rng: random.Random) -> None:
        self.dish = self.take(rng, ("dish", "item", "product"), STRING, "What to bring.")
        self.count = self.take(rng, ("count", "quantity", "amount"), INTEGER, "How many.")
        self.nested = rng.random() < 0.7
        if self.nested:
            self.street, self.town = rng.choice((("street", "city"), ("road", "town")))
            address = {self.street: STRING, self.town: STRING, **({"zip": STRING} if rng.random() < 0.3 else {})}
            self.address = self.take(rng, ("address", "where", "deliver_to"), structure(address, (self.street, self.town)), "Where to.")
        else:
            self.address = self.take(rng, ("city", "where", "town"), STRING, "Where to.")

    def ask(self, rng: random.Random) -> Request:
        dish, count, city = rng.choice(FOODS), rng.randint(1, 12), rng.choice(CITIES)
        street = f"{rng.randint(1, 99)} {rng.choice(STREETS)}"
        where = f"{street} in {city}" if self.nested else city
        text = rng.choice((
            "Order {n} {d} to {w}.", "Please bring {n} {d} to {w}.", "I want {n} {d} delivered to {w}.", "Send {n} {d} to {w}.",
        )).format(n=count, d=dish, w=where)
        arguments = {self.dish: dish, self.count: count}
        arguments[self.address] = {self.street: street, self.town: city} if self.nested else city
        number = rng.randint(1000, 9999)
        return Request(text, self.ordered(arguments), {"order": number}, f"Your order has the number {number}.", str(number))


class Table(Function):
    names = ("book_table", "reserve_table", "reservation")
    does = ("Book a table in a restaurant.", "Reserves a table.")

    def declare(self, rng: random.Random) -> None:
        self.people = self.take(rng, ("people", "guests", "party_size"), INTEGER, "How many come.")
        self.time = self.take(rng, ("time", "at"), STRING, "As HH:MM.")
        self.under = self.take(rng, ("name", "under"), or_null(rng, STRING), "The name, if it was told.")
        self.outside = self.perhaps(rng, ("outside", "terrace"), {**BOOLEAN, "default": False}, often=0.4)

    def ask(self, rng: random.Random) -> Request:
        people, time, name = rng.randint(2, 12), hour(rng), rng.choice(NAMES) if rng.random() < 0.5 else None
        text = rng.choice((
            "Book a table for {p} people at {t}", "Reserve a table at {t} for {p}", "We need a table for {p} at {t}",
        )).format(p=people, t=time)
        text += f" under the name {name}." if name else "."
        arguments = {self.people: people, self.time: time, self.under: name}
        if self.outside and rng.random() < 0.5:
            arguments[self.outside] = True
            text += rng.choice((" We sit outside.", " On the terrace, please."))
        return Request(text, self.ordered(arguments), {"ok": True}, f"A table for {people} is booked at {time}.", time)


class Person(Function):
    names = ("create_user", "register_user", "add_contact", "new_customer")
    does = ("Add a person.", "Registers somebody.")

    def declare(self, rng: random.Random) -> None:
        self.nested = rng.random() < 0.6
        self.who, self.age, self.city = rng.choice(("name", "full_name")), rng.choice(("age", "years")), "city"
        fields = {self.who: STRING, self.age: rng.choice((INTEGER, NUMBER, {"type": ["integer", "null"]})), self.city: STRING}
        if self.nested:
            self.whole = self.take(rng, ("user", "person", "contact"), structure(fields, (self.who, self.age)), "Who it is.")
        else:
            for field, schema in fields.items():
                self.take(rng, (field,), schema, needed=field != "city")

    def ask(self, rng: random.Random) -> Request:
        name, age = f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}", rng.randint(1, 99)
        person, from_city = {self.who: name, self.age: age}, ""
        if rng.random() < 0.5:
            person[self.city] = rng.choice(CITIES)
            from_city = f" from {person[self.city]}"
        text = rng.choice((
            "Add {n}, {a} years old{c}.", "Register {n}{c}, {a} years old.", "New contact: {n}{c}, who is {a}.",
            "Please add {n}{c}. Age {a}.",
        )).format(n=name, a=age, c=from_city)
        person = {field: person[field] for field in (self.who, self.age, self.city) if field in person}
        arguments = {self.whole: person} if self.nested else self.ordered(person)
        number = rng.randint(1, 999)
        return Request(text, arguments, {"id": number}, f"{name} was added with the number {number}.", str(number))


class Records(Function):
    names = ("query_database", "run_query", "list_records", "find_records")
    does = ("Read rows of a table.", "Queries the database.")

    def declare(self, rng: random.Random) -> None:
        self.tables = rng.sample(TABLES, rng.randint(3, 5))
        self.table = self.take(rng, ("table", "collection"), one_of(self.tables) if rng.random() < 0.7 else STRING, "Which table.")
        self.limit = self.perhaps(rng, ("limit", "max_rows"), {**INTEGER, "default": 10}, "At most so many rows.")
        self.key, self.value = rng.choice((("column", "value"), ("field", "equals"), ("key", "value")))
        condition = structure({self.key: STRING, self.value: rng.choice((STRING, {"type": ["string", "number"]}))}, (self.key, self.value))
        self.where = self.perhaps(rng, ("where", "filter", "condition"), condition, "Which rows.")

    def ask(self, rng: random.Random) -> Request:
        table = rng.choice(self.tables)
        arguments, which = {self.table: table}, ""
        if self.where and rng.random() < 0.6:
            column, value = rng.choice(COLUMNS), rng.choice((*COLOURS, *CITIES))
            arguments[self.where] = {self.key: column, self.value: value}
            which = f" where {column} is {value}"
        if self.limit and rng.random() < 0.6:
            arguments[self.limit] = limit = rng.randint(1, 100)
            text = rng.choice(("Show {n} rows of {t}{w}.", "Give me the first {n} {t}{w}.", "List {n} {t}{w}."))
            text = text.format(n=limit, t=table, w=which)
        else:
            text = rng.choice(("Show the {t}{w}.", "List all {t}{w}.", "Find {t}{w}.", "Which {t} are there{w}?")).format(t=table, w=which)
        count = rng.randint(0, 99)
        return Request(text, self.ordered(arguments), {"rows": count}, f"There are {count} rows of {table}.", str(count))


class Chart(Function):
    names = ("draw_chart", "generate_chart", "plot", "make_chart")
    does = ("Draw a chart.", "Plots numbers.")

    def declare(self, rng: random.Random) -> None:
        self.kinds = rng.sample(("bar", "line", "pie", "area", "scatter"), 3)
        self.kind = self.take(rng, ("kind", "type", "chart_type"), one_of(self.kinds), "Which chart.")
        self.pairs = rng.random() < 0.4
        self.values = self.take(rng, ("values", "data", "numbers"), listed(listed(NUMBER) if self.pairs else NUMBER), "What is shown.")
        self.title = self.perhaps(rng, ("title", "caption"), STRING, "What stands above it.", often=0.4)

    def ask(self, rng: random.Random) -> Request:
        kind, count = rng.choice(self.kinds), rng.randint(2, 5)
        if self.pairs:
            values = [[rng.randint(0, 50), rng.randint(0, 50)] for _ in range(count)]
            shown = joined([f"({a}, {b})" for a, b in values])
        else:
            values = [rng.choice((rng.randint(0, 200), rng.randint(0, 20), rng.randint(1, 99) / 10)) for _ in range(count)]
            shown = joined([str(each) for each in values])
        text = rng.choice(("Draw a {k} chart of {v}", "Make a {k} chart with {v}", "Plot {v} as a {k} chart")).format(k=kind, v=shown)
        arguments = {self.kind: kind, self.values: values}
        if self.title and rng.random() < 0.6:
            arguments[self.title] = title = rng.choice(OBJECTS).capitalize() + "s"
            text += f' called "{title}"'
        path = f"{invented(rng).lower()}.png"
        return Request(f"{text}.", self.ordered(arguments), {"file": path}, f"The {kind} chart is in {path}.", path)


class Status(Function):
    names = ("get_status", "system_health", "check_system", "ping_server", "get_system_status", "health")
    does = ("Tells how the system is.", "Check the health of the system.")

    def ask(self, rng: random.Random) -> Request:
        text = rng.choice((
            "How is the system?", "Is the server healthy?", "Check the system.", "Is everything running?",
            "Check the health of the system.",
            "What is the status of the system?", "Is the system up?", "Ping the server.", "Are all services running?", "System status?",
        ))
        opener = rng.choice(("", "", "Please tell me: ", "Quick question: ", "Hello. ", "One more thing: "))
        status, hours = rng.choice(("ok", "healthy", "degraded", "slow", "down")), rng.randint(1, 500)
        final = f"The system is {status} and has been up for {hours} hours."
        return Request(opener + text, {}, {"status": status, "hours": hours}, final, f"{status} and has been up for {hours} hours")


class Dice(Function):
    names = ("roll_dice", "dice", "throw_dice")
    does = ("Roll dice.",)

    def declare(self, rng: random.Random) -> None:
        self.sides = self.take(rng, ("sides", "faces"), {**INTEGER, "default": 6}, "Sides of each.", needed=False)
        self.count = self.take(rng, ("count", "number", "dice"), INTEGER, "How many.")

    def ask(self, rng: random.Random) -> Request:
        count = rng.randint(2, 9)
        arguments, text = {self.count: count}, rng.choice(("Roll {n} dice", "Throw {n} dice", "Please roll {n} dice")).format(n=count)
        if rng.random() < 0.6:
            arguments[self.sides] = sides = rng.choice((4, 6, 8, 10, 12, 20, 100))
            text += f" with {sides} sides"
        total = rng.randint(count, count * 6)
        return Request(f"{text}.", self.ordered(arguments), {"total": total}, f"The dice show {total}.", str(total))


class File(Function):
    names = ("write_file", "save_file", "create_file")
    does = ("Write a file.",)
    reading = ("read_file", "open_file", "show_file")

    def __init__(self, rng: random.Random):
        self.reads = rng.random() < 0.5
        if self.reads:
            self.names, self.does = self.reading, ("Read a file.",)
        super().__init__(rng)

    def declare(self, rng: random.Random) -> None:
        self.path = self.take(rng, ("path", "file", "filename"), STRING, "The file.")
        self.text = None if self.reads else self.take(rng, ("text", "content"), STRING, "What it holds.")
        self.append = None if self.reads else self.perhaps(rng, ("append", "overwrite"), {**BOOLEAN, "default": False}, often=0.4)

    def ask(self, rng: random.Random) -> Request:
        path = rng.choice(("", "data/", "docs/", "src/")) + rng.choice((rng.choice(OBJECTS), invented(rng).lower()))
        path += rng.choice((".txt", ".md", ".csv", ".json", ".py"))
        if self.reads:
            text, held = rng.choice(("Read the file {p}.", "Open {p}.", "What is in {p}?", "Show me {p}.")), phrase(rng, SENTENCES)
            return Request(text.format(p=path), {self.path: path}, {"text": held}, f"The file says: {held}", held)
        said = phrase(rng, SENTENCES)
        text = rng.choice(('Write "{s}" to {p}.', 'Save "{s}" in {p}.', 'Create the file {p} with "{s}".')).format(s=said, p=path)
        arguments = {self.path: path, self.text: said}
        if self.append and rng.random() < 0.5:
            arguments[self.append] = True
            text += f" Please {self.append}."
        return Request(text, self.ordered(arguments), {"ok": True}, f"I wrote it to {path}.", path)


class Route(Function):
    names = ("get_distance", "route", "plan_route", "travel_time")
    does = ("Tells how far it is from one city to another.",)

    def declare(self, rng: random.Random) -> None:
        self.start, self.goal = rng.choice((("from", "to"), ("start", "end"), ("origin", "destination")))
        self.take(rng, (self.start,), STRING)
        self.take(rng, (self.goal,), STRING)
        self.mode = self.perhaps(rng, ("mode", "by"), one_of(("car", "train", "bike", "foot"), rng.choice(("car", None))), "How to travel.")

    def ask(self, rng: random.Random) -> Request:
        start, goal = rng.sample(CITIES, 2)
        arguments, by = {self.start: start, self.goal: goal}, ""
        if self.mode and rng.random() < 0.6:
            arguments[self.mode] = mode = rng.choice(("car", "train", "bike", "foot"))
            by = f" by {mode}"
        text = rng.choice(("How far is it from {a} to {b}{m}?", "Plan a route from {a} to {b}{m}.", "Distance from {a} to {b}{m}?"))
        far = rng.randint(20, 9000)
        final = f"From {start} to {goal} it is {far} kilometres."
        return Request(text.format(a=start, b=goal, m=by), self.ordered(arguments), {"kilometres": far}, final, str(far))


class Convert(Function):
    names = ("convert", "convert_units", "unit_converter")
    does = ("Convert a number from one unit to another.",)
    units = "metres feet miles kilometres grams pounds litres gallons dollars euros yen celsius fahrenheit hours minutes".split()

    def declare(self, rng: random.Random) -> None:
        self.amount = self.take(rng, ("amount", "value", "number"), NUMBER, "How much.")
        self.start, self.goal = rng.choice((("from", "to"), ("from_unit", "to_unit"), ("source", "target")))
        self.take(rng, (self.start,), STRING, "The unit that it has.")
        self.take(rng, (self.goal,), STRING, "The unit that is wanted.")

    def ask(self, rng: random.Random) -> Request:
        amount, found = rng.choice((rng.randint(1, 999), rng.randint(1, 999) / 10)), rng.randint(1, 9999) / 10
        start, goal = rng.sample(self.units, 2)
        text = rng.choice(("Convert {n} {a} to {b}.", "How many {b} are {n} {a}?", "What is {n} {a} in {b}?", "{n} {a} in {b}?"))
        arguments = self.ordered({self.amount: amount, self.start: start, self.goal: goal})
        final = f"{amount} {start} are {found} {goal}."
        return Request(text.format(n=amount, a=start, b=goal), arguments, {"value": found}, final, f"{found} {goal}")


class Translate(Function):
    names = ("translate", "translate_text", "translator")
    does = ("Translate a text.",)

    def declare(self, rng: random.Random) -> None:
        self.languages = rng.sample(LANGUAGES, rng.randint(3, 5))
        self.text = self.take(rng, ("text", "phrase"), STRING, "What to translate.")
        schema = one_of(self.languages) if rng.random() < 0.5 else STRING
        self.language = self.take(rng, ("language", "to", "target_language"), schema, "Into which language.")

    def ask(self, rng: random.Random) -> Request:
        said, language = phrase(rng, PHRASES), rng.choice(self.languages)
        text = rng.choice(('Translate "{s}" into {l}.', 'What is "{s}" in {l}?', 'How do you say "{s}" in {l}?')).format(s=said, l=language)
        found = " ".join(invented(rng).lower() for _ in range(rng.randint(1, 4)))
        arguments = self.ordered({self.text: said, self.language: language})
        return Request(text, arguments, {"text": found}, f'In {language} it is "{found}".', found)


class Text(Function):
    """An operation on one text."""

    tasks = {
        "detect_language": ('Which language is "{s}"?', 'Detect the language of "{s}".', 'What language is "{s}" written in?'),
        "count_words": ('Count the words in "{s}".', 'How many words has "{s}"?'),
        "to_uppercase": ('Write "{s}" in capitals.', 'Make "{s}" uppercase.', 'Convert "{s}" to uppercase.'),
        "markdown_to_html": ('Convert "{s}" to HTML.', 'Turn the markdown "{s}" into HTML.', 'Make HTML of "{s}".'),
        "check_spelling": ('Check the spelling of "{s}".', 'Is "{s}" spelled right?'),
        "reverse_text": ('Reverse "{s}".', 'Write "{s}" backwards.'),
    }

    def __init__(self, rng: random.Random):
        task = rng.choice(list(self.tasks))
        self.asks, self.names, self.does = self.tasks[task], (task,), (task.replace("_", " ").capitalize() + ".",)
        super().__init__(rng)

    def declare(self, rng: random.Random) -> None:
        self.text = self.take(rng, ("text", "input", "content"), STRING, "The text.")

    def ask(self, rng: random.Random) -> Request:
        said = phrase(rng, rng.choice((PHRASES, SENTENCES)))
        if rng.random() < 0.25:
            said = rng.choice(("# {s}", "**{s}**", "- {s}", "*{s}*")).format(s=said)
        found = rng.choice((rng.choice(LANGUAGES), str(rng.randint(1, 30)), invented(rng)))
        return Request(rng.choice(self.asks).format(s=said), {self.text: said}, {"result": found}, f"The result is {found}.", found)


class Operation(Function):
    """Arithmetic with the operation and both operands as separate arguments."""

    names = ("arithmetic", "calculate", "math", "binary_operation")
    does = ("Calculate with two numbers.",)
    signs = {"add": "{a} + {b}", "subtract": "{a} - {b}", "multiply": "{a} * {b}", "divide": "{a} / {b}"}

    def declare(self, rng: random.Random) -> None:
        self.operation = self.take(rng, ("operation", "op", "operator"), one_of(list(self.signs)), "What to do.")
        self.a, self.b = rng.choice((("a", "b"), ("x", "y"), ("left", "right"), ("first", "second")))
        self.take(rng, (self.a,), NUMBER)
        self.take(rng, (self.b,), NUMBER)

    def ask(self, rng: random.Random) -> Request:
        operation, a, b = rng.choice(list(self.signs)), rng.randint(0, 9999), rng.randint(1, 999)
        shown = self.signs[operation].format(a=a, b=b)
        words = {
            "add": "Add {a} and {b}.", "subtract": "Subtract {b} from {a}.", "multiply": "Multiply {a} by {b}.",
            "divide": "Divide {a} by {b}.",
        }[operation].format(a=a, b=b)
        text = rng.choice((words, f"What is {shown}?", f"Calculate {shown}."))
        found = rng.randint(0, 99999)
        arguments = self.ordered({self.operation: operation, self.a: a, self.b: b})
        return Request(text, arguments, {"result": found}, f"{shown} = {found}.", str(found))


SERVICES: tuple[type[Function], ...] = (
    Flights, Order, Table, Person, Records, Chart, Status, Dice, File, Route, Convert, Translate, Text, Operation,
)
