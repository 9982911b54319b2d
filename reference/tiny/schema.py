"""Renders JSON schemas as TypeScript types, the format in which GPT-OSS reads functions, as the crate `harmony` does.

It differs in references, which it does not follow, in nesting deeper than 64 levels, which it writes out, in numbers with an
exponent, which it writes as Python does, and in descriptions of variants, which it also splits at line separators other than line feeds.
"""

import json


def typescript(schema: dict, indent: str = "") -> str:
    """The type that a schema describes."""
    schema = schema if isinstance(schema, dict) else {}
    if (variants := listed_variants(schema)) is not None:
        return union(variants, None, indent)
    if (variants := any_of(schema)) is not None:
        return " | ".join(or_null(each, typescript(each, indent)) for each in variants)
    match schema.get("type"):
        case list(types):
            names = ["number" if each == "integer" else each for each in types if isinstance(each, str)]
            return " | ".join(names) or "any"
        case "object":
            return fields(schema, indent)
        case "array":
            return typescript(schema["items"], indent) + "[]" if "items" in schema else "Array<any>"
        case "string":
            listed = schema.get("enum") if isinstance(schema.get("enum"), list) else []
            return " | ".join(quoted(each) for each in listed if isinstance(each, str)) or "string"
        case "number" | "integer":
            return "number"
        case "boolean" | "null" as name:
            return name
        case _:
            return "any"


def comment(text: str, indent: str = "") -> str:
    """Each line of a text as a comment."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "".join(f"{indent}// {line}\n" for line in (lines[:-1] if lines[-1] == "" else lines))


def remark(schema: dict, key: str, indent: str) -> str:
    """The value of a schema's key as a comment. An empty value gives an empty comment line."""
    text = schema.get(key)
    if not isinstance(text, str):
        return ""
    return comment(text, indent) if text else f"{indent}// \n"


def fields(schema: dict, indent: str) -> str:
    text = remark(schema, "description", indent) + "{\n"
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    properties = schema.get("properties")
    for name, value in (properties if isinstance(properties, dict) else {}).items():
        text += field(name if name in required else f"{name}?", value if isinstance(value, dict) else {}, indent)
    return f"{text}{indent}}}"


def field(name: str, schema: dict, indent: str) -> str:
    """`NAME: TYPE, // default: VALUE` after comments, or a union with a line per variant."""
    title = f"{remark(schema, 'title', indent)}{indent}//\n" if isinstance(schema.get("title"), str) else ""
    described, shown, default = remark(schema, "description", indent), examples(schema, indent), default_of(schema, True)
    if (variants := listed_variants(schema)) is not None:
        above = f"{indent}// {default}\n" if default else ""
        return f"{title}{shown}{described}{above}{indent}{name}:{union(variants, schema, indent)}\n{indent},\n"
    behind = f" // {default}" if default else ""
    value = or_null(schema, typescript(schema, f"{indent}    "))
    return f"{title}{described}{shown}{indent}{name}: {value},{behind}\n"


def union(variants: list, schema: dict | None, indent: str) -> str:
    """A line for each variant. If the property has a description, that is written above the variants: variants do not repeat it, and
    the first variant's own description is left out."""
    above, text = text_of(schema or {}, "description"), ""
    for index, variant in enumerate(variants):
        variant = variant if isinstance(variant, dict) else {}
        described = text_of(variant, "description")
        if above is not None and (index == 0 or described == above):
            described = None
        default = default_of(variant, schema is not None)
        remarks = ([" ".join(described.splitlines())] if described is not None else []) + ([default] if default else [])
        behind = f" // {' '.join(remarks)}" if remarks else ""
        text += f"\n{indent} | {or_null(variant, typescript(variant, f'{indent}   '))}{behind}"
    return text


def listed_variants(schema: dict) -> list | None:
    """Variants that are written on separate lines."""
    if isinstance(schema.get("oneOf"), list):
        return schema["oneOf"]
    variants = any_of(schema)
    return None if variants is None or all(is_plain(each) for each in variants) else variants


def any_of(schema: dict) -> list | None:
    """Variants of `anyOf`, unless it only narrows a type."""
    variants = schema.get("anyOf")
    return variants if isinstance(variants, list) and variants and "type" not in schema else None


def is_plain(schema: dict) -> bool:
    """Whether a type is short enough for one line."""
    if not isinstance(schema, dict) or any(key in schema for key in ("description", "default", "$ref", "oneOf", "anyOf")):
        return False
    kind = schema.get("type")
    if kind == "array":
        return "items" not in schema or is_plain(schema["items"])
    return kind in ("string", "number", "integer", "boolean", "null")


def or_null(schema: dict, value: str) -> str:
    """Adds null to a type if the schema is `nullable`."""
    nullable = isinstance(schema, dict) and schema.get("nullable") is True
    return f"{value} | null" if nullable and not names_null(schema) else value


def names_null(schema: dict) -> bool:
    schema = schema if isinstance(schema, dict) else {}
    if (variants := any_of(schema)) is not None:
        return any(names_null(each) for each in variants)
    kind = schema.get("type")
    return "null" in kind if isinstance(kind, list) else kind == "null"


def default_of(schema: dict, in_property: bool) -> str | None:
    """`default: VALUE`. Strings have quotes, unless they have no line break and the schema lists values in `enum` and is a property or a
    variant of one."""
    if "default" not in schema:
        return None
    default, listed = schema["default"], isinstance(schema.get("enum"), list) and schema["enum"]
    if isinstance(default, str) and listed and in_property and "\n" not in default and "\r" not in default:
        return f"default: {default}"
    if isinstance(default, str) and not listed:
        return f"default: {quoted(default)}"
    return f"default: {json.dumps(default, ensure_ascii=False, separators=(',', ':'))}"


def examples(schema: dict, indent: str) -> str:
    listed = schema.get("examples")
    if not isinstance(listed, list) or not listed:
        return ""
    lines = [f"{indent}// - {quoted(each)}\n" for each in listed if isinstance(each, str)]
    return f"{indent}// Examples:\n{''.join(lines)}"


def quoted(text: str) -> str:
    """In quotes: as JSON if the text has a line break, otherwise without escapes."""
    return json.dumps(text, ensure_ascii=False) if "\n" in text or "\r" in text else f'"{text}"'


def text_of(schema: dict, key: str) -> str | None:
    text = schema.get(key)
    return text if isinstance(text, str) else None
