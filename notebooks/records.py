"""Reads the records in `measurements/` for the notebooks: the output of `gptoss compare`, of the commands `bench`, `bench-serve`, `profile`,
`memory` and `gates` with `--json`, and of `notebooks/bench`, and figures transcribed from READMEs. `measurements/earlier` is not read: its records are of
earlier versions of gptoss, and only READMEs use them."""

import json
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display

FOLDER = Path(__file__).parent / "measurements"
# The engine of each phase, and all engines in the order of tables and plots.
PHASES = {2: "reference", 3: "cached", 5: "flash"}
ENGINES = ["reference", "cached", "flash", "mlx", "llama.cpp"]
# Settings that every plot shares.
STYLE = {"figure.figsize": (8, 3.6), "figure.dpi": 90, "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "gptoss"}

# `turn` is the number of a round of `gptoss compare`, in which each engine runs once.
SPEEDS = ["machine", "model", "engine", "turn", "what", "depth", "batch", "tokens", "tok_s", "tok_s_min", "tok_s_max", "roofline"]
RUNS = ["machine", "model", "engine", "turn", "start_ms", "start_to_first_token_ms", "first_ms", "peak_gb", "own_gb", "device_gb", "rope", "device"]
AGREEMENTS = ["machine", "model", "engine", "turn", "rope", "against", "rms", "max", "tokens", "likeliest_equal", "greedy", "greedy_equal"]
CHECKS = ["machine", "engine", "case", "tensor", "rms", "max", "rms_limit", "max_limit", "passed"]
BENCHES = ["machine", "group", "function", "value", "ns", "ns_min", "ns_max", "bytes", "elements"]
SPANS = ["machine", "model", "phase", "workload", "depth", "tokens", "sequences", "operation", "layer", "ms", "gb_s"]
# The figures of a server with several clients, and their headings.
SERVER_FIGURES = {
    "tok_s": "tokens/s",
    **{f"first_{share}": f"first token, ms, {share}" for share in ("p50", "p95", "p99")},
    **{f"between_{share}": f"between tokens, ms, {share}" for share in ("p50", "p95", "p99")},
}
SERVERS = ["machine", "model", "prompt", "generate", "clients", "server", "failures", *SERVER_FIGURES]
SOURCE = ["date", "source"]


def records():
    """The content of each file, with `source`: the file's name, or the README that it was transcribed from."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        content = json.loads(path.read_text())
        # `gptoss profile --json` writes a list; transcribed records name their source.
        for record in content if isinstance(content, list) else [content]:
            found.append({"source": path.name, **record} if "format" not in record or "source" not in record else record)
    return found


def of_format(prefix):
    return [record for record in records() if record.get("format", "").startswith(prefix)]


def where(record, device=None):
    """The machine, preceded by the GPU if the engine ran on one."""
    adapter = (device or "cpu").split(" through ")[0]
    return record["machine"] if adapter == "cpu" else f"{adapter}, {record['machine']}"


def common(record, device=None):
    model = record["model"]["name"] if isinstance(record["model"], dict) else Path(record["model"]).name
    return {"machine": where(record, device), "model": model, "date": record["date"][:10], "source": record["source"]}


def engine_runs():
    """Yields a record and a run of an engine in it. A record of `gptoss bench --json` is itself the run of one engine."""
    for record in of_format("gptoss compare") + of_format("gptoss transcribed"):
        for run in record["runs"]:
            yield record, run
    for record in records():
        if "ceiling" in record and "results" in record:
            # Until 2026-11-29 such records had no model, and the machine only in the field `ceiling`.
            about = {"machine": record["ceiling"]["machine"], "date": record["ceiling"]["date"], "model": "not named", **record}
            yield about, {"engine": PHASES.get(record["phase"]), **record}


def gigabytes(count):
    return None if count is None else count / 1e9


def speeds():
    """A row for each measurement of prefill, of greedy decoding, or of steps with both (`mixed` in the column `what`)."""
    rows = []
    for record, run in engine_runs():
        for result in run.get("results", []):
            if result.get("draw", "greedy") == "greedy":
                place = common(record, run.get("device"))
                rows.append({**place, "engine": run["engine"], "turn": run.get("turn"), **result})
    return table(rows, SPEEDS)


def runs():
    """A row for each run of an engine that did not fail, in records of `gptoss compare` and transcribed ones: its start and its memory."""
    rows = []
    for record in of_format("gptoss compare") + of_format("gptoss transcribed"):
        for run in record["runs"]:
            if "error" in run:
                continue
            first = {each["prompt"]: each["ms"] for each in run.get("first_tokens", [])}
            rows.append({
                **common(record, run.get("device")),
                **{name: run.get(name) for name in ("engine", "turn", "start_ms", "start_to_first_token_ms", "rope", "device")},
                "first_ms": first.get(1),
                "peak_gb": gigabytes(run.get("peak_rss_bytes")),
                "own_gb": gigabytes(run.get("anonymous_bytes")),
                "device_gb": gigabytes(run.get("device_bytes")),
            })
    return table(rows, RUNS)


def agreements():
    """A row for each run of an engine and each reference: the difference of its logits from phase 3's in f32, with the variant of YaRN's ramp in
    the column `against`."""
    rows = []
    for record in of_format("gptoss compare"):
        for run in record["runs"]:
            for against, distance in run.get("agreement", {}).items():
                own = {name: run.get(name) for name in ("engine", "turn", "rope")}
                rows.append({**common(record, run.get("device")), **own, "against": against, **distance})
    return table(rows, AGREEMENTS)


def checks():
    """A row for each comparison of a tensor with MLX's by `gptoss gates`. Errors are in units of the tensor's standard deviation; for
    integers (tokens and expert ids), `rms` is the share of positions that differ."""
    rows = []
    for record in of_format("gptoss gates"):
        place = {"machine": where(record, record["device"]), "date": record["date"][:10], "source": record["source"]}
        rows += [{**place, "engine": record["engine"] or PHASES.get(check["phase"]), **check} for check in record["checks"]]
    return table(rows, CHECKS)


def benches():
    """A row for each case of criterion's benches: nanoseconds per execution, and bytes or elements per execution."""
    rows = []
    for record in of_format("gptoss benches"):
        place = {"machine": record["machine"], "date": record["date"][:10], "source": record["source"]}
        rows += [{**place, **case} for case in record["benches"]]
    return table(rows, BENCHES)


def server_name(record):
    """A server's name and version as it reports them, and the label of the measurement; its address if it has none of them."""
    server = record["server"]
    # The name that llama-server reports as the owner of its models.
    name = "llama-server" if server["name"] == "llamacpp" else server["name"]
    reported = " ".join(filter(None, [name, server["version"]]))
    return ", ".join(filter(None, [reported, record["label"]])) or record["url"]


def servers():
    """A row for each number of clients with which `gptoss bench-serve` measured a server. All prompts of a record have the same
    length, and so have all answers."""
    rows = []
    for record in of_format("gptoss bench-serve"):
        if record["workload"] != "load":
            continue
        place = {**common(record), "server": server_name(record), "prompt": record["prompt"], "generate": record["generate"]}
        for level in record["levels"]:
            first, between = level["first_token_ms"], level["between_tokens_ms"]
            rows.append({
                **place,
                **{name: level[name] for name in ("clients", "failures")},
                "tok_s": level["generated_tokens_per_second"],
                **{f"first_{share}": time for share, time in first.items()},
                **{f"between_{share}": time for share, time in between.items()},
            })
    return table(rows, SERVERS)


def spans():
    """A row for each time interval (span) of each profiled step: operations, by layer, and the time between them (`launch`, `readback`).
    `ms` is divided by the number of steps, so that the sum over the rows of an operation is its time in the mean step."""
    rows = []
    for record in records():
        if "steps" not in record or "workload" not in record:
            continue
        work = record["workload"]
        for step in record["steps"]:
            for span in step["spans"]:
                rows.append({
                    **common(record, record["device"]),
                    "phase": record["phase"],
                    "workload": work["kind"],
                    "depth": work.get("depth", 0),
                    "tokens": work.get("tokens", 1),
                    "sequences": work.get("sequences", 1),
                    "operation": span["name"],
                    "layer": span.get("layer"),
                    "ms": span["duration"] * 1e3 / len(record["steps"]),
                    "gb_s": span["bytes"] / span["duration"] / 1e9 if span["duration"] else None,
                })
    return table(rows, SPANS)


def table(rows, columns):
    frame = pd.DataFrame(rows, columns=columns + SOURCE)
    return frame.dropna(axis="columns", how="all").reindex(columns=columns + SOURCE) if rows else frame


def has(frame, command):
    """Whether a table has rows. If not, displays the command that measures them."""
    if frame.empty:
        display(Markdown(f"**Not measured yet.** To fill this cell, run\n\n```\n{command}\n```"))
    return not frame.empty


def figure(row):
    """A speed as text: a number, or a range."""
    if pd.notna(row.tok_s):
        return f"{row.tok_s:,.1f}"
    return f"{row.tok_s_min:,.4g}–{row.tok_s_max:,.4g}"


def engines_in(frame):
    return [engine for engine in ENGINES if engine in set(frame.engine)]


def by_engine(frame, index):
    """A table of speeds with a column per engine: medians over the record's rounds (`turn`), or a range if the record has only a range."""
    if frame.tok_s.notna().any():
        medians = frame.groupby([*index, "engine"], dropna=False).tok_s.median().reset_index()
    else:
        medians = frame.assign(tok_s=None)
    ranges = frame[frame.tok_s.isna()].set_index([*index, "engine"])
    shown = medians.set_index([*index, "engine"]).tok_s.map(lambda speed: f"{speed:,.1f}" if pd.notna(speed) else None)
    for key, row in ranges.iterrows():
        shown[key] = figure(row)
    wide = shown.unstack("engine")
    return wide.reindex(columns=[engine for engine in ENGINES if engine in wide.columns]).fillna("–")


def by_clients(frame):
    """A table of servers, those with equally many clients below each other: medians over records, and the number of failed requests."""
    groups = frame.groupby(["machine", "model", "prompt", "generate", "clients", "server"])
    shown = groups[list(SERVER_FIGURES)].median().round(1).rename(columns=SERVER_FIGURES)
    return shown.assign(failures=groups.failures.sum())
