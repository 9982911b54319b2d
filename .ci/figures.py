#!/usr/bin/env python3
"""Compares measured figures in Markdown with the records that they come from, and finds speeds without a record.

A comment below a table or paragraph names the source of each of its figures, one per line:

    <!-- record: notebooks/measurements/bench-h200-2026-11-29-1.json
    484 = 0.results[what=decode,depth=0,batch=1].tok_s
    12.7 = 0.peak_rss_bytes / 1e9
    1.7 = 484 / 283
    450 = median([engine=flash].results[what=decode,depth=0,batch=1].tok_s)
    -->

The file is a record; its path is relative to the root of the repository, and its name must also be in the text of the page. The left side
is a figure of the block above the comment. The right side is a path in the record: keys and list indices separated by dots, where
`[key=value,…]` keeps the elements of a list that have those values. A path must give one value; `median(path)` may give several. The right
side may also be a product or a quotient of two such paths or numbers. The figure must equal its value, rounded to the digits of the figure.

A number before `tok/s`, `GB/s`, `MB/s` or `TFLOP/s` that has no line in a comment of its section is a failure, unless the section, or one
that contains it, says "before records were kept". Code blocks and the changelog are not checked.

`.ci/figures.py --test` checks this program itself. Needs Python 3.11.
"""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {"CHANGELOG.md"}
OLDER = "before records were kept"
COMMENT = re.compile(r"<!--\s*record:\s*(\S+)\s*\n(.*?)-->", re.DOTALL)
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
SPEED = re.compile(rf"({NUMBER})(?:\s*(?:–|to|and|or|,)\s*({NUMBER}))?\s*(?:tok/s|GB/s|MB/s|TFLOP/s)")
SEGMENT = re.compile(r"([^.\[\]]*)((?:\[[^\[\]]*\])*)(?:\.|$)")


class Wrong(Exception):
    """A line of a comment that is malformed, or that its record contradicts."""


def number(text):
    return float(text.replace(",", ""))


def kept(values, condition):
    """The elements of lists whose fields match a condition such as `what=decode,depth=0`."""
    pairs = [part.split("=", 1) for part in condition.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise Wrong(f"[{condition}] is not a condition: write [key=value]")
    elements = [element for value in values if isinstance(value, list) for element in value]
    return [element for element in elements if all(str(element.get(key)) == value for key, value in pairs)]


def at(record, path):
    """All values at a path."""
    values, position = [record], 0
    while position < len(path):
        segment = SEGMENT.match(path, position)
        if not segment or segment.end() == position:
            raise Wrong(f"{path} is not a path")
        position = segment.end()
        name, conditions = segment.groups()
        if name.isdigit():
            values = [value[int(name)] for value in values if isinstance(value, list) and int(name) < len(value)]
        elif name:
            values = [value[name] for value in values if isinstance(value, dict) and name in value]
        for condition in re.findall(r"\[([^\[\]]*)\]", conditions):
            values = kept(values, condition)
    return values


def term(record, text):
    """A number, the one value at a path, or the median of the values at a path."""
    if re.fullmatch(rf"{NUMBER}(?:e\d+)?", text):
        return number(text)
    median = re.fullmatch(r"median\((.*)\)", text)
    path = median[1] if median else text
    values = at(record, path)
    if not values or not median and len(values) != 1:
        raise Wrong(f"{path} leads to {len(values)} values of the record")
    if not all(isinstance(value, (int, float)) for value in values):
        raise Wrong(f"{path} is not a number")
    return statistics.median(values)


def value(record, expression):
    match re.split(r"\s+([*/])\s+", expression):
        case [single]:
            return term(record, single)
        case [left, "/", right] if divisor := term(record, right):
            return term(record, left) / divisor
        case [left, "*", right]:
            return term(record, left) * term(record, right)
    raise Wrong(f"{expression} is neither a term nor a product or quotient of two terms, or it divides by 0")


def check_figure(record, figure, expression, block):
    if not re.fullmatch(NUMBER, figure):
        raise Wrong(f"{figure} is not a figure")
    if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?!\d|[.,]\d)", block):
        raise Wrong(f"{figure} is not in the block above")
    found = value(record, expression)
    half_a_digit = 0.5 * 10.0 ** -len(figure.partition(".")[2])
    if abs(found - number(figure)) > half_a_digit * (1 + 1e-9):
        raise Wrong(f"{figure} is {found:.8g} in the record ({expression})")


def blank(match):
    """The same number of empty lines."""
    return "\n" * match[0].count("\n")


def block_above(text, end):
    """The last paragraph before `end`, without comments."""
    above = COMMENT.sub(blank, text[:end]).rstrip()
    return re.split(r"\n[ \t]*\n", above)[-1]


def sections(text):
    """For each heading its level, its line number, and the lines up to the next heading, without comments."""
    text = re.sub(r"<!--.*?-->", blank, text, flags=re.DOTALL)
    found = [(0, 1, [])]
    for line_number, line in enumerate(text.split("\n"), 1):
        if heading := re.match(r"(#{1,6})\s", line):
            found.append((len(heading[1]), line_number, []))
        found[-1][2].append(line)
    return found


def unnamed(name, text, named):
    """Speeds without a record, one line each. `named` has the figures of comments: (line, figure)."""
    failures, parents = [], []
    found = sections(text)
    for index, (level, first, lines) in enumerate(found):
        parents = [parent for parent in parents if parent[0] < level]
        own = " ".join(" ".join(lines).split())
        parents.append((level, OLDER in own))
        if any(is_older for _, is_older in parents):
            continue
        end = found[index + 1][1] if index + 1 < len(found) else text.count("\n") + 2
        here = {figure for line, figure in named if first <= line < end}
        for line_number, line in enumerate(lines, first):
            for speed in SPEED.finditer(line):
                failures += [
                    f"{name}:{line_number}: {figure} has no record ({speed[0]})"
                    for figure in filter(None, speed.groups())
                    if figure not in here
                ]
    return failures


def check(name, text, read):
    """The number of compared figures of a page, and its failures, one line each. `read` returns a record by its path."""
    failures, named = [], []
    text = re.sub(r"^(```|~~~).*?^\1[^\n]*$", blank, text, flags=re.DOTALL | re.MULTILINE)
    if text.count("<!-- record:") != len(COMMENT.findall(text)):
        failures.append(f"{name}: a comment about a record is not of the form that .ci/figures.py describes")
    visible = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for comment in COMMENT.finditer(text):
        line_number = text.count("\n", 0, comment.start()) + 1
        path, block = comment[1], block_above(text, comment.start())
        if Path(path).name not in visible:
            failures.append(f"{name}:{line_number}: the page does not name {Path(path).name}")
        try:
            record = read(path)
        except (OSError, ValueError) as error:
            failures.append(f"{name}:{line_number}: {path}: {error}")
            continue
        for offset, line in enumerate(comment[2].split("\n"), 1):
            if not line.strip():
                continue
            figure, _, expression = (part.strip() for part in line.partition(" = "))
            named.append((line_number, figure))
            try:
                check_figure(record, figure, expression, block)
            except Wrong as wrong:
                failures.append(f"{name}:{line_number + offset}: {wrong}")
    return len(named), failures + unnamed(name, text, named)


def pages():
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({name for name in names if name and name not in LEFT_OUT and (ROOT / name).is_file()})


def read_record(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def main():
    if sys.argv[1:] == ["--test"]:
        return test()
    if sys.argv[1:]:
        sys.exit(__doc__)
    count, failures = 0, []
    for name in pages():
        compared, wrong = check(name, (ROOT / name).read_text(encoding="utf-8"), read_record)
        count, failures = count + compared, failures + wrong
    print("\n".join(failures) or f"{count} figures equal those of their records")
    sys.exit(bool(failures))


def test():
    """Tests with correct pages, and with pages that have one mistake each."""
    record = {
        "runs": [
            {"engine": "ours", "bytes": 12_650_000_000, "results": [{"depth": 0, "tok_s": 1076.5}, {"depth": 8, "tok_s": 9}]},
            {"engine": "theirs", "bytes": None, "results": [{"depth": 0, "tok_s": 640}]},
        ]
    }
    page = "# Title\n\nFrom r.json: 1,077 tok/s, 12.7 GB, 1.7 × theirs.\n\n<!-- record: r.json\n{}\n-->\n"
    ours = "runs[engine=ours].results[depth=0].tok_s"
    listed = f"1,077 = {ours}"

    def failures(text):
        return check("page.md", text, lambda path: {"r.json": record}[path] if path == "r.json" else read_record(path))[1]

    right = [
        page.format(listed),
        page.format(f"{listed}\n12.7 = runs.0.bytes / 1e9\n1.7 = {ours} / runs[engine=theirs].results[depth=0].tok_s"),
        page.format(f"{listed}\n1.7 = median(runs[engine=theirs].results.0.tok_s) / 380"),
        "# Older\n\nMeasured before records\nwere kept.\n\n## Part\n\n21.1 tok/s\n",
        "# Code\n\n```\n21.1 tok/s\n```\n",
    ]
    for text in right:
        assert not failures(text), (text, failures(text))
    wrong = {
        page.format(f"1,076 = {ours}"): "page.md:6: 1,076 is not in the block above",
        page.format(listed.replace("depth=0", "depth=8")): "page.md:6: 1,077 is 9 in the record",
        page.format(listed.replace("[depth=0]", "")): "page.md:6: runs[engine=ours].results.tok_s leads to 0 values",
        page.format(f"{listed}\n1.7 = runs[engine=theirs].bytes"): "page.md:7: runs[engine=theirs].bytes is not a number",
        page.format(f"{listed}\n1.7 = runs[engine].bytes"): "page.md:7: [engine] is not a condition",
        page.format("12.7 = runs.0.bytes / 1e9"): "page.md:3: 1,077 has no record (1,077 tok/s)",
        page.format(listed).replace("From r.json: ", ""): "page.md:5: the page does not name r.json",
        page.format(listed).replace("r.json", "no-such.json"): "page.md:5: no-such.json: ",
        page.format(listed).replace("r.json\n1", "r.json 1"): "page.md: a comment about a record is not of the form",
        page.format(f"{listed}\n1.7 = {ours} / 0"): f"page.md:7: {ours} / 0 is neither",
        page.format(f"{listed}\n1.7 = 1 + 0.7"): "page.md:7: 1 + 0.7 leads to 0 values",
        "# Newer\n\n303–315 tok/s\n": "page.md:3: 315 has no record",
        "# A\n\n## Older\n\nbefore records were kept\n\n## Newer\n\n21.1 tok/s\n": "page.md:9: 21.1 has no record",
    }
    for text, expected in wrong.items():
        assert any(failure.startswith(expected) for failure in failures(text)), (expected, failures(text))
    print(f"{len(right) + len(wrong)} test pages gave the expected results")


main()
