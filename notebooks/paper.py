"""The numbers in the tables of the paper, and for each of them the figure of every machine that has a record.

The paper is `MLX vs GGUF: Performance Comparison for GPT-OSS 20B` of 2026-01-25. Its expectations, called guesses here, are ranges; `about`
stands for 20 % more or less, a number alone for 5 %. Only records of models in gpt-oss-20b's shape count, except for the speed-up from
the KV cache."""

import re
from collections import defaultdict
from statistics import median
from typing import NamedTuple

from records import engine_runs, of_format, records, where

APPLE = "Apple, 16 GB (the paper's)"
# Layers, hidden size and experts of gpt-oss-20b.
SHAPE = (24, 2880, 32)
# The mark of a figure that was copied from a README by hand.
TRANSCRIBED = "†"

COMPARE = "gptoss compare 20b.gguf"
DEEP = "gptoss compare 20b.gguf --engine flash,mlx,llama.cpp --depth "
PLAN = "gptoss memory 20b.gguf --device cpu --context {0} --json > notebooks/measurements/memory-MACHINE-{0}.json"
PROFILE = "gptoss profile 20b.gguf --engine {0} --decode 4096 --json > notebooks/measurements/profile-MACHINE-{0}.json"


class Measure(NamedTuple):
    # The command that writes a record with the measure, and whether `less` or `more` is better.
    command: str
    better: str = "less"
    # Whether MLX reports the measure.
    of_mlx: bool = True


MEASURES = {
    "token": Measure(COMPARE),
    "token, deep": Measure(COMPARE),
    "speed": Measure(COMPARE, "more"),
    "speed, deep": Measure(COMPARE, "more"),
    "hundred": Measure(COMPARE),
    "hundred, deep": Measure(COMPARE),
    "ten": Measure(COMPARE, "more"),
    "each of ten": Measure(COMPARE),
    "ten, deep": Measure(
        "gptoss bench 20b.gguf --engine flash,mlx --depth 4096 --batch 10 --json > notebooks/measurements/bench-MACHINE.json", "more"
    ),
    "growth": Measure(DEEP + "0,4096,16384"),
    "start": Measure(COMPARE),
    "first": Measure(COMPARE),
    "start and first": Measure(COMPARE),
    "memory at 4096": Measure(COMPARE),
    "memory at 8192": Measure(DEEP + "0,8192"),
    "weights": Measure(COMPARE),
    "allocated": Measure(COMPARE, of_mlx=False),
    "cache at 4096": Measure(PLAN.format(4096), of_mlx=False),
    "cache at 8192": Measure(PLAN.format(8192), of_mlx=False),
    "cache's gain": Measure("notebooks/bench --bench generation", "more"),
    "flash attention's gain": Measure(f"{PROFILE.format('cached')} && {PROFILE.format('flash')}", "more"),
}


class Row(NamedTuple):
    what: str
    measure: str
    # The paper's guesses for gptoss's engine and for MLX; `None` where it has none.
    ours: str | None = None
    mlx: str | None = None
    # The engine of gptoss to which the guess applies: phase 5, unless the row names another.
    engine: str = "flash"


TABLES = {
    "Performance metrics": [
        Row("time for a token, ms", "token", "30–50", "40–80"),
        Row("ten requests, tok/s in all", "ten", "150–200", "80–150"),
        Row("memory at 4,096 tokens, GB", "memory at 4096", "14–15", "13–13.5"),
        Row("memory at 8,192 tokens, GB", "memory at 8192", "15–16", "13.4–14"),
        Row("start, ms", "start", "about 100", "about 200"),
        Row("first token, ms", "first", "30–50", "50–100"),
        Row("long context: growth of a token's time from 4,096 to 16,384, over that from 0 to 4,096", "growth", "at most 3", "at most 3"),
    ],
    "Theoretical peak with 4,096 tokens": [
        Row("time for a token, ms", "token, deep", "50, at best 25–30", "40–80"),
        Row("one sequence, tok/s", "speed, deep", "20, at best 33–40", "12–25"),
        Row("100 tokens, s", "hundred, deep", "about 5", "4–8"),
        Row("peak throughput: ten requests at 4,096 tokens, tok/s in all", "ten, deep", "100–200", "80–150"),
        Row("ten requests, tok/s in all", "ten", "150–200", "80–150"),
        Row("ten requests: ms between two tokens of one", "each of ten", None, "60–120"),
    ],
    "Realistic performance": [
        Row("after phases 1 to 3: time for a token, ms", "token", "100–200", engine="cached"),
        Row("after phases 1 to 3: tok/s", "speed", "5–10", engine="cached"),
        Row("after phases 1 to 3: 100 tokens, s", "hundred", "10–20", engine="cached"),
        Row("after phases 4 and 5; MLX at once: time for a token, ms", "token", "30–50", "50–100"),
        Row("after phases 4 and 5; MLX at once: tok/s", "speed", "20–30", "10–20"),
        Row("after phases 4 and 5; MLX at once: 100 tokens, s", "hundred", "3–5", "5–10"),
        Row("after more tuning: time for a token, ms", "token", "25–30", "40–80"),
        Row("after more tuning: tok/s", "speed", "30–40", "12–25"),
        Row("after more tuning: 100 tokens, s", "hundred", "2–3", "4–8"),
    ],
    "Memory": [
        Row("weights, GB", "weights", "12.1", "12.1"),
        Row("keys and values of 4,096 tokens, GB (planned)", "cache at 4096", "0.5", "0.4"),
        Row("keys and values of 8,192 tokens, GB (planned)", "cache at 8192", "1.0", "0.8"),
        Row("allocated besides the mapped file, keys and values included, GB", "allocated", "1–2", "0.5–1"),
        Row("total at 4,096 tokens on a 16 GB machine, GB", "memory at 4096", "14.1", "13.3"),
        Row("total at 4,096 tokens, GB", "memory at 4096", "14–15", "13–13.5"),
        Row("total at 8,192 tokens, GB", "memory at 8192", "15–16", "13.4–14"),
    ],
    "Speed-ups and criteria of success": [
        Row("KV cache: times faster than without, 256 tokens", "cache's gain", "8–20", engine="cached"),
        Row("flash attention: times faster than phase 3's attention", "flash attention's gain", "3–5"),
        Row("single user, tok/s", "speed", "20–40", "10–25"),
        Row("maximum throughput, ten requests, tok/s in all", "ten", "at least 200", "80–150"),
        Row("start and first token, ms", "start and first", None, "under 1000"),
        Row("100 tokens, s", "hundred", None, "under 10"),
        Row("memory at 4,096 tokens, GB", "memory at 4096", None, "under 14"),
    ],
}


def bounds(guess):
    """The least and the greatest figure that a guess admits."""
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", guess)]
    if guess.startswith(("under", "at most")):
        return 0.0, numbers[-1]
    if guess.startswith("at least"):
        return numbers[-1], float("inf")
    spread = 0.2 if guess.startswith("about") else 0.05
    return (min(numbers), max(numbers)) if len(numbers) > 1 else ((1 - spread) * numbers[0], (1 + spread) * numbers[0])


def verdict(figure, guess, better):
    low, high = bounds(guess)
    if low <= figure <= high:
        return "as expected"
    return "better" if (figure < low) == (better == "less") else "worse"


def is_20b(record):
    """Whether a record is of gpt-oss-20b's shape. A record that has only the model's name counts, unless it is the embedded model."""
    model = record.get("model")
    if isinstance(model, dict):
        return tuple(model.get(name) for name in ("layers", "hidden", "experts")) == SHAPE
    return model != "embedded"


def over(dividend, divisor):
    return dividend / divisor if dividend is not None and divisor else None


def decoding(run):
    """Tokens per second of greedy decoding by depth and number of sequences. If a record has only a range, its middle is used."""
    found = defaultdict(list)
    for result in run.get("results", []):
        if result["what"] == "decode" and result.get("draw", "greedy") == "greedy":
            speed = result["tok_s"] if result["tok_s"] is not None else (result["tok_s_min"] + result["tok_s_max"]) / 2
            found[result["depth"], result["batch"]].append(speed)
    return {at: median(speeds) for at, speeds in found.items()}


def growth(speed):
    """How much longer a token takes at depth 16,384 than at 4,096, divided by the same for 4,096 and 0. For linear growth this is 3."""
    times = [over(1000, speed.get((depth, 1))) for depth in (0, 4096, 16384)]
    if None in times or times[1] <= times[0]:
        return None
    return (times[2] - times[1]) / (times[1] - times[0])


def of_run(record, run):
    """The measures of a run of an engine; `None` for those that it does not have."""
    speed = decoding(run)
    one, deep, ten = speed.get((0, 1)), speed.get((4096, 1)), speed.get((0, 10))
    found = {
        "token": over(1000, one),
        "token, deep": over(1000, deep),
        "speed": one,
        "speed, deep": deep,
        "hundred": over(100, one),
        "hundred, deep": over(100, deep),
        "ten": ten,
        "each of ten": over(10_000, ten),
        "ten, deep": speed.get((4096, 10)),
        "growth": growth(speed),
    }
    if not record.get("format", "").startswith(("gptoss compare", "gptoss transcribed")):
        return found
    first = next((each["ms"] for each in run.get("first_tokens", []) if each["prompt"] == 1), None)
    # The larger of the process's and the GPU's memory: if the GPU has its own memory, the system can evict the file's pages after loading.
    memory = max(filter(None, [run.get("peak_rss_bytes"), run.get("device_bytes")]), default=None)
    weights = record["model"].get("weight_bytes") if isinstance(record["model"], dict) else None
    found |= {
        "start": run.get("start_ms"),
        "first": first,
        "start and first": run.get("start_to_first_token_ms"),
        "weights": over(weights, 1e9),
        "allocated": over(run.get("anonymous_bytes"), 1e9),
    }
    if speed:
        found[f"memory at {max(depth for depth, _ in speed)}"] = over(memory, 1e9)
    return found


def cache_gains():
    """The machines' speed-ups from the KV cache: (machine, speed-up, whether it is transcribed)."""
    for record in of_format("generation transcribed"):
        yield record["machine"], over(record["seconds"]["reference"], record["seconds"]["cached"]), True
    for record in of_format("gptoss benches"):
        times = {case["value"]: case["ns"] for case in record["benches"] if case["group"].startswith("generate ")}
        if {"reference", "cached"} <= set(times):
            yield record["machine"], over(times["reference"], times["cached"]), False


def flash_gains():
    """The machines' speed-ups of the attention operation of a token at depth 4,096, phase 5 over phase 3."""
    times = defaultdict(lambda: defaultdict(list))
    for record in records():
        if "steps" in record and record.get("workload", {}).get("depth") == 4096 and is_20b(record):
            spent = sum(span["duration"] for step in record["steps"] for span in step["spans"] if span["name"] == "attn.scores")
            sequences = record["workload"].get("sequences", 1)
            times[where(record, record["device"]), sequences][record["phase"]].append(spent / len(record["steps"]))
    for (machine, _), phases in times.items():
        if {3, 5} <= set(phases):
            yield machine, over(median(phases[3]), median(phases[5]))


def figures():
    """For each machine, engine and measure, the median of the records, and whether one of them is transcribed."""
    found = defaultdict(list)

    def add(machine, engine, measure, figure, is_transcribed=False):
        if figure is not None:
            found[machine, engine, measure].append((figure, is_transcribed))

    for record, run in engine_runs():
        if is_20b(record):
            is_transcribed = "transcribed" in record.get("format", "")
            for measure, figure in of_run(record, run).items():
                add(where(record, run.get("device")), run["engine"], measure, figure, is_transcribed)
    for record in of_format("gptoss memory"):
        if is_20b(record):
            cache = sum(part["bytes"] for part in record["parts"] if part["what"].startswith("cache "))
            add(where(record, record["device"]), record["engine"], f"cache at {record['context']}", cache / 1e9)
    for machine, gain, is_transcribed in cache_gains():
        add(machine, "cached", "cache's gain", gain, is_transcribed)
    for machine, gain in flash_gains():
        add(machine, "flash", "flash attention's gain", gain)
    return {at: (median(each for each, _ in all), any(mark for _, mark in all)) for at, all in found.items()}


def machine_class(machine):
    if "apple" in machine.lower():
        return "Apple"
    on_gpu = re.search(r"NVIDIA|Radeon|\((?:vulkan|dx12|metal)\)", machine)
    return "GPU" if on_gpu else "CPU"


def cells(title):
    """Each cell of a table that has a guess: (row, engine's name, engine, guess)."""
    for row in TABLES[title]:
        for name, engine, guess in [("our engine", row.engine, row.ours), ("MLX", "mlx", row.mlx)]:
            if guess:
                yield row, name, engine, guess


def written(figure):
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def answer(found, machine, engine, row, guess):
    measure = MEASURES[row.measure]
    if engine == "mlx" and not measure.of_mlx:
        return "MLX does not report it"
    if (machine, engine, row.measure) not in found:
        return "not measured"
    figure, is_transcribed = found[machine, engine, row.measure]
    return f"{verdict(figure, guess, measure.better)}: {written(figure)}{TRANSCRIBED if is_transcribed else ''}"


def answers(title, found):
    """A table of the paper: for each cell (what, engine, guess), the answer of each machine that has a figure, by (class, machine), and the
    command for those that have none."""
    all_cells = list(cells(title))
    measured = {machine for row, _, engine, _ in all_cells for machine, of, measure in found if (of, measure) == (engine, row.measure)}
    machines = sorted(measured, key=lambda machine: (machine_class(machine), machine))
    if not any(machine_class(machine) == "Apple" for machine in machines):
        machines.insert(0, APPLE)
    table = []
    for row, name, engine, guess in all_cells:
        by_machine = {(machine_class(machine), machine): answer(found, machine, engine, row, guess) for machine in machines}
        command = MEASURES[row.measure].command if "not measured" in by_machine.values() else ""
        table.append(((row.what, name, guess), {**by_machine, ("not measured", "fill by"): command}))
    return table


def relative(found):
    """The figures of the performance metrics over the middles of their guesses: (what, machine and engine, ratio). Guesses of the form `at
    most` have no middle and are left out."""
    for row, name, engine, guess in cells("Performance metrics"):
        if guess.startswith("at most"):
            continue
        low, high = bounds(guess)
        for machine, of, measure in sorted(found):
            if (of, measure) == (engine, row.measure):
                yield row.what, f"{name}, {machine}", 2 * found[machine, of, measure][0] / (low + high)
