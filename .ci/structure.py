#!/usr/bin/env python3
"""Fails if files of a crate import each other in a cycle, if one group of kernels imports another, if a kernel crate has a dependency
that is not in its list, or if a product file has more than 500 lines.

Takes the names of crates to check; without arguments, checks every crate of the workspace.

An import is a path in a `use` or in the code that begins with `crate::`, `super::`, `self::` or a submodule. The imported file is the one
that defines the item: re-exports are followed. A `pub use` counts as an import only if its file also uses the name.
Only files in `src` are product files. Test modules are ignored, both as importers and in line counts.
"""

import re
import sys
import tomllib
from pathlib import Path

MOST_LINES = 500
# Folders of a crate that must not import each other.
KERNEL_GROUPS = {"gpu-kernels": ["matvec", "matmul", "attention", "sampling"]}
# The dependencies that kernel crates may have.
DEPENDENCIES = {
    "cpu-kernels": {"formats", "half"},
    "gpu-kernels": {"cubecl", "cubecl-environment", "formats", "half", "rayon", "serde", "thiserror"},
    "formats": {"cubecl", "half"},
}

TEST = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*")
USE = re.compile(r"\b(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);")
PATH = re.compile(r"(?<![\w:])(?:crate|super|self)(?:::\w+)+")


def without_comments(text):
    """The code with comments and the contents of strings blanked out; line numbers do not change."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|r#*".*?"#*|"(?:\\.|[^"\\])*"|\'(?:\\.[^\']*|[^\'\\])\'', re.DOTALL)
    return token.sub(lambda found: "\n" * found.group().count("\n") or '""', text)


def item_end(code, start):
    """The end of the item that begins at `start`: after its semicolon or its closing brace."""
    depth = 0
    for at in range(start, len(code)):
        if code[at] == ";" and depth == 0:
            return at + 1
        if code[at] in "{([":
            depth += 1
        if code[at] in "})]":
            depth -= 1
            if depth == 0 and code[at] == "}":
                return at + 1
    return len(code)


def split_tests(code):
    """The code without test items, the test modules in their own files, and the number of lines before a test module at the end."""
    test_modules, lines = [], code.count("\n")
    while found := TEST.search(code):
        end = item_end(code, found.end())
        item = code[found.end() : end]
        if module := re.match(r"(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*([;{])", item):
            if module[2] == ";":
                test_modules.append(module[1])
            elif not code[end:].strip():
                lines = code[: found.start()].count("\n")
        code = code[: found.start()] + "\n" * code[found.start() : end].count("\n") + code[end:]
    return code, test_modules, lines


def expand(tree):
    """The paths of a `use` with their local names: `a::{b, c as d}` is a::b as b and a::c as d."""
    tree = re.sub(r"\s+", " ", tree).strip()
    brace = tree.find("{")
    if brace < 0:
        path, _, name = tree.partition(" as ")
        path = path.replace(" ", "").removesuffix("::self")
        return [(path, name.strip() or path.split("::")[-1])]
    prefix, inside, part, depth, parts = tree[:brace], tree[brace + 1 : tree.rindex("}")], "", 0, []
    for character in inside + ",":
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts += [part] if part.strip() else []
            part = ""
        else:
            part += character
    return [found for part in parts for found in expand(prefix + part.strip())]


class Crate:
    """The files of a crate by module, and their imports."""

    def __init__(self, folder):
        self.source = folder / "src"
        self.files, self.code, self.exports, self.lines = {}, {}, {}, {}
        test_modules = []
        for file in sorted(self.source.rglob("*.rs")):
            module = file.relative_to(self.source).with_suffix("").parts
            module = module[:-1] if module[-1] in ("mod", "lib", "main") else module
            code, tests, self.lines[module] = split_tests(without_comments(file.read_text()))
            self.files[module], self.code[module] = file, code
            test_modules += [(*module, name) for name in tests]
        for module in [m for m in self.files if any(m[: len(test)] == test for test in test_modules)]:
            del self.files[module], self.code[module], self.lines[module]
        for module, code in self.code.items():
            uses = [(public, use) for public, tree in USE.findall(code) for use in expand(tree) if public]
            self.exports[module] = {name: path for _, (path, name) in uses}

    def absolute(self, module, path):
        """A path relative to the crate's root; `None` for a path of another crate."""
        first, *rest = path.split("::")
        base = list(module)
        if first == "crate":
            base = []
        elif first == "super":
            base = base[:-1]
            while rest and rest[0] == "super":
                base, rest = base[:-1], rest[1:]
        elif (*module, first) in self.files:
            rest = [first, *rest]
        elif first != "self":
            return None
        return (*base, *rest)

    def definition(self, path, depth=0):
        """The module whose file defines the item of a path."""
        module = path
        while module not in self.files:
            module = module[:-1]
        name = path[len(module)] if len(path) > len(module) else None
        export = self.exports[module].get(name)
        target = export and depth < 8 and self.absolute(module, export)
        return self.definition((*target, *path[len(module) + 1 :]), depth + 1) if target else module

    def imports(self, module):
        uses = [(public, *use) for public, tree in USE.findall(self.code[module]) for use in expand(tree)]
        code = USE.sub("", self.code[module])
        paths = [path for public, path, name in uses if not public or re.search(rf"\b{re.escape(name)}\b", code)]
        paths += PATH.findall(code)
        for child in [other[-1] for other in self.files if other[:-1] == module and other]:
            paths += re.findall(rf"(?<![\w:.]){child}::\w+", code)
        found = [self.absolute(module, path) for path in paths]
        return {self.definition(path) for path in found if path is not None} - {module}


def circle(edges):
    """An import cycle, as a list of modules that ends with its first; `None` if there is no cycle."""
    done, trail = set(), []

    def visit(node):
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        trail.append(node)
        for target in sorted(edges[node]):
            if found := visit(target):
                return found
        done.add(trail.pop())
        return None

    return next(filter(None, map(visit, sorted(edges))), None)


def check(root, folder, manifest):
    """The failures of the crate in `folder`, one line each."""
    name, crate, failures = manifest["package"]["name"], Crate(folder), []
    edges = {module: crate.imports(module) for module in crate.files}
    short = lambda module: str(crate.files[module].relative_to(root))
    for module, targets in edges.items():
        for target in targets:
            groups = KERNEL_GROUPS.get(name, [])
            if module and target and module[0] != target[0] and {module[0], target[0]} <= set(groups):
                failures.append(f"{short(module)} imports {short(target)}, which belongs to another group of kernels")
    while found := circle(edges):
        failures.append(f"{name}: import cycle: " + " → ".join(map(short, found)))
        # Removing the last edge breaks this cycle, so that the next one is found.
        edges[found[-2]] = edges[found[-2]] - {found[-1]}
    foreign = set(manifest.get("dependencies", {})) - DEPENDENCIES.get(name, set())
    if name in DEPENDENCIES and foreign:
        failures.append(f"{name} depends on {', '.join(sorted(foreign))}, which DEPENDENCIES in .ci/structure.py does not allow")
    for module, lines in crate.lines.items():
        if lines > MOST_LINES:
            failures.append(f"{short(module)} has {lines} lines before its tests; at most {MOST_LINES} are allowed")
    return failures


def main():
    root = Path(__file__).resolve().parent.parent
    members = tomllib.loads((root / "Cargo.toml").read_text())["workspace"]["members"]
    crates = {}
    for folder in [root, *(root / member for member in members)]:
        manifest = tomllib.loads((folder / "Cargo.toml").read_text())
        crates[manifest["package"]["name"]] = (folder, manifest)
    wanted = sys.argv[1:] or list(crates)
    if unknown := [name for name in wanted if name not in crates]:
        sys.exit(f"not in the workspace: {', '.join(unknown)}; its crates are {', '.join(crates)}")
    failures = [failure for name in wanted for failure in check(root, *crates[name])]
    print("\n".join(failures) or f"{len(wanted)} crates passed")
    sys.exit(bool(failures))


main()
