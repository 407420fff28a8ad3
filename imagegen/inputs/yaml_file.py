"""YAML files that people write: loaded safely with the line of every value, then checked against a JSON schema."""

from __future__ import annotations

import difflib
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from imagegen.base.errors import BadInput, Problem

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32
TOO_DEEP = f"nested more than {MAX_DEPTH} deep; no cluster needs that"
MAX_ALIASED = 100_000  # values that aliases may add to those written out

STDIN = Path("-")  # the file that stands for standard input
MERGE = "<<"  # YAML 1.1's merge key: not in 1.2's schema, but what people know

MISSING = object()  # what a value becomes that failed a check: it was noted, and nothing more is said about it

# Scalars mean what YAML 1.2's core schema says, as in editors: with YAML 1.1's rules an unquoted MAC address is a
# number in base 60 and the node name `on` is true.
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT = re.compile(r"[-+]?[0-9]{1,300}\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?\Z")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TYPES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping (key: value)",
    "array": "a list",
}


@dataclass(slots=True)
class Value:
    """One YAML value and where it stands."""

    line: int
    content: Any  # dict[str, Value], list[Value], str, int, float, bool or None
    text: str = ""  # a scalar as it was written
    size: int = 1  # values in it, aliases followed
    key_lines: dict[str, int] = field(default_factory=dict)


@dataclass
class Findings:
    """The problems found so far in one file, and the line of every path in it. `secret`: no value is ever shown."""

    file: str
    secret: bool = False
    problems: list[Problem] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)

    def add(self, path: str, message: str, line: int | None = None) -> None:
        """Notes one problem; its line is that of the path, or of the nearest thing around it."""
        around = path
        while line is None and around not in self.lines and around:
            around = around[: max(around.rfind("."), around.rfind("["), 0)]
        self.problems.append(Problem(self.file, line or self.lines.get(around, 1), path, message))

    def stop(self, message: str, line: int = 0) -> BadInput:
        """The error for a file that cannot be read any further."""
        return BadInput([*self.problems, Problem(self.file, line, "", message)])


def load_document(path: Path, found: Findings) -> Value:
    """The one YAML document of the file, or of standard input for `-`. Notes duplicate keys and the like in `found`.

    Raises BadInput when reading cannot go on: the file is not found, over 8 MiB, binary, empty, broken YAML or an
    alias bomb.
    """
    return parse_document(_read_text(path, found), found)


def name_file(path: Path) -> str:
    """A file's name in messages."""
    return "standard input" if path == STDIN else os.fspath(path)


def parse_document(text: str, found: Findings) -> Value:
    """The same for text that has been read already."""
    events: Iterator[Any] = yaml.parse(text, Loader=yaml.CSafeLoader)
    try:
        next(events)  # the stream's start
        if isinstance(next(events), yaml.StreamEndEvent):
            raise found.stop("the file is empty")
        root = _Composer(events, found).compose(next(events), "", 0)
        next(events)  # the document's end
        if not isinstance(after := next(events), yaml.StreamEndEvent):
            raise found.stop("a second YAML document starts here; a file may hold only one", after.start_mark.line + 1)
    except yaml.MarkedYAMLError as error:
        raise _broken(error, text, found) from None
    if root.content is None:
        raise found.stop("the file is empty")
    return root


def check_shape(value: Value, schema: Mapping[str, Any], found: Findings) -> Any:
    """The valid part of the document as plain data; what is not valid is noted in `found` and left out.

    The schema is JSON Schema 2020-12, as far as our own schemas use it, with VS Code's `errorMessage`.
    Keys that failed are left out of mappings; list entries that failed become None.
    """
    return _check(value, schema, "", found, schema)


def quoted(text: str) -> str:
    """Text from a file as a message may show it: short, one line, no control characters."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:61])
    return f"`{plain[:60]}...`" if len(plain) > 60 or len(text) > 60 else f"`{plain}`"


def suggest(word: str, known: list[str]) -> str:
    """`; did you mean ...?` if a known word is close, else empty."""
    close = difflib.get_close_matches(word[:100], known, 1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _read_text(path: Path, found: Findings) -> str:
    try:
        if path == STDIN:
            data = sys.stdin.buffer.read(MAX_BYTES + 1) if sys.stdin else b""
        else:
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_size > MAX_BYTES:
                    raise found.stop(f"the file has {status.st_size} bytes; at most {MAX_BYTES} are read")
                data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise found.stop("not found") from None
    except OSError as error:
        raise found.stop(f"the file cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise found.stop("not a valid file name") from None
    if len(data) > MAX_BYTES:
        raise found.stop(f"the file has more than {MAX_BYTES} bytes; no more are read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise found.stop(f"this is not text: byte {error.start} is not UTF-8", line) from None
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise found.stop(f"this is not text: it holds the control character U+{ord(bad[0]):04X}", line)
    return text


def _broken(error: yaml.MarkedYAMLError, text: str, found: Findings) -> BadInput:
    line = error.problem_mark.line if error.problem_mark else 0
    lines = text.splitlines()
    if line < len(lines) and re.match(r"[ -]*\t", lines[line]):
        return found.stop("a tab in the indentation; YAML allows only spaces", line + 1)
    if "nesting depth" in (error.problem or ""):  # the limit of the library itself
        return found.stop(TOO_DEEP)
    message = f"broken YAML: {error.problem}"
    if error.context and error.context_mark and error.context_mark.line != line:
        message += f", {error.context} that starts on line {error.context_mark.line + 1}"
    if "cannot start any token" in (error.problem or "") or "alias" in (error.context or ""):
        message += "; put the value in quotes"
    return found.stop(message, min(line + 1, max(len(lines), 1)))


class _Composer:
    """Makes values from libyaml's events. An alias is a reference, never a copy, and what it adds is counted."""

    def __init__(self, events: Iterator[Any], found: Findings) -> None:
        self.events = events
        self.found = found
        self.anchors: dict[str, Value] = {}
        self.aliased = 0

    def compose(self, event: Any, path: str, depth: int) -> Value:
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise self.found.stop(TOO_DEEP, line)
        if isinstance(event, yaml.AliasEvent):
            return self._follow(event, path, line)
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style in (None, "") and event.tag is None
            value = Value(line, _resolve(event.value) if plain else event.value, event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._compose_list(path, depth, line)
        else:
            value = self._compose_mapping(path, depth, line)
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            self.found.add(
                path, "YAML tags (`!...`) are not supported here; put a value that starts with ! in quotes", line
            )
            value.content = MISSING
        if event.anchor:  # only now: an alias inside it would be a loop
            self.anchors[event.anchor] = value
        return value

    def _follow(self, event: Any, path: str, line: int) -> Value:
        if (value := self.anchors.get(event.anchor)) is None:
            self.found.add(
                path, "this alias (`*...`) has no anchor above; put a value that starts with * in quotes", line
            )
            return Value(line, MISSING)
        self.aliased += value.size
        if self.aliased > MAX_ALIASED:
            raise self.found.stop(f"the aliases expand to more than {MAX_ALIASED} values; use fewer", line)
        return value

    def _compose_list(self, path: str, depth: int, line: int) -> Value:
        entries: list[Value] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            entries.append(self.compose(event, f"{path}[{len(entries)}]", depth + 1))
        return Value(line, entries, size=1 + sum(entry.size for entry in entries))

    def _compose_mapping(self, path: str, depth: int, line: int) -> Value:
        value, merged = Value(line, {}), list[Value]()
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            merges = isinstance(event, yaml.ScalarEvent) and event.value == MERGE and event.style in (None, "")
            key = self.compose(event, path, depth + 1)
            where = path if merges else _join(path, key.text, self.found)
            entry = self.compose(next(self.events), where, depth + 1)
            value.size += 1 + entry.size
            if merges:
                merged += entry.content if isinstance(entry.content, list) else [entry]
            elif isinstance(key.content, dict | list):
                self.found.add(path, "a key must be a word, not a mapping or a list", key.line)
            elif key.text in value.content:
                first = value.key_lines[key.text]
                self.found.add(where, f"duplicate key; it is already on line {first}", event.start_mark.line + 1)
            else:
                value.content[key.text] = entry
                value.key_lines[key.text] = event.start_mark.line + 1
        self._merge(value, merged, path)
        return value

    def _merge(self, value: Value, merged: list[Value], path: str) -> None:
        """Adds the keys that `<<` brings: the mapping's own win, then those of the mapping that is named first."""
        for source in merged:
            if isinstance(source.content, dict):
                for key, entry in source.content.items():
                    value.content.setdefault(key, entry)
                    value.key_lines.setdefault(key, source.key_lines[key])
            elif source.content is not MISSING:
                self.found.add(path, f"`{MERGE}` takes a mapping, or a list of mappings: {MERGE}: *NAME", source.line)


def _resolve(text: str) -> str | int | float | bool | None:
    if _NULL.match(text):
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.match(text):
        return int(text)
    return float(text) if _FLOAT.match(text) else text


def _join(path: str, key: str, found: Findings) -> str:
    """The path of a key. In a secrets file a stray key may be a password, so none is shown."""
    if found.secret:
        return path
    word = key if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else quoted(key)
    return f"{path}.{word}" if path else word


def _check(value: Value, schema: Mapping[str, Any], path: str, found: Findings, root: Mapping[str, Any]) -> Any:
    found.lines.setdefault(path, value.line)
    if value.content is MISSING:
        return MISSING
    schema = _resolve_ref(schema, root)
    if "anyOf" in schema:
        branches = [branch for each in schema["anyOf"] if _fits(value, branch := _resolve_ref(each, root))]
        if not branches:
            found.add(path, schema["errorMessage"])
            return MISSING
        schema = branches[0]
    if not _has_type(value, schema):
        found.add(path, ("" if path else "the file ") + _type_message(value, schema, found))
        return MISSING
    if isinstance(value.content, dict):
        return _check_mapping(value, schema, path, found, root)
    if isinstance(value.content, list):
        return _check_list(value, schema, path, found, root)
    return _check_scalar(value, schema, path, found)


def _resolve_ref(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What it refers to; what stands beside the reference counts more."""
    while "$ref" in schema:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**root["$defs"][schema["$ref"].removeprefix("#/$defs/")], **beside}
    return schema


def _types(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type", "string")
    return [types] if isinstance(types, str) else list(types)


def _has_type(value: Value, schema: Mapping[str, Any]) -> bool:
    content = value.content
    kinds = {bool: {"boolean"}, int: {"integer", "number"}, str: {"string"}, dict: {"object"}, list: {"array"}}
    kinds[float] = {"number", "integer"} if isinstance(content, float) and content.is_integer() else {"number"}
    return bool(kinds.get(type(content), set()) & set(_types(schema)))


def _fits(value: Value, branch: Mapping[str, Any]) -> bool:
    if not _has_type(value, branch):
        return False
    if isinstance(value.content, dict):
        return all(key in value.content for key in branch.get("required", []))
    return "const" not in branch or bool(value.content == branch["const"])


def _type_message(value: Value, schema: Mapping[str, Any], found: Findings) -> str:
    if value.content is None:
        return "has no value; give one, or remove the key"
    types = _types(schema)
    wanted = " or ".join(_TYPES[name] for name in types)
    if isinstance(value.content, dict | list):
        return f"must be {wanted}, not {'a mapping' if isinstance(value.content, dict) else 'a list'}"
    shown = "" if found.secret else f", not {quoted(value.text)}"
    if "string" in types:
        return f"must be {wanted}{shown}; put it in quotes"
    # A string that is of the right type as soon as it is no string.
    unquoted = Value(value.line, _resolve(value.text)) if isinstance(value.content, str) else value
    return f"must be {wanted}{shown}" + ("; remove the quotes" if _has_type(unquoted, schema) else "")


def _check_mapping(
    value: Value, schema: Mapping[str, Any], path: str, found: Findings, root: Mapping[str, Any]
) -> dict[str, Any]:
    known: Mapping[str, Any] = schema.get("properties", {})
    data = {}
    for key, entry in value.content.items():
        where = _join(path, key, found)
        if key not in known:
            found.add(where, "unknown key" + suggest(key, list(known)), value.key_lines[key])
            continue
        where = f"{path}.{key}" if path else key
        found.lines[where] = value.key_lines[key]
        checked = _check(entry, known[key], where, found, root)
        if checked is not MISSING:
            data[key] = checked
    for key in schema.get("required", []):
        if key not in value.content:
            found.add(path, f"the key `{key}` is missing", value.line)
    return data


def _check_list(
    value: Value, schema: Mapping[str, Any], path: str, found: Findings, root: Mapping[str, Any]
) -> list[Any]:
    if len(value.content) < schema.get("minItems", 0):
        found.add(path, "must have at least one entry")
    checked = [_check(entry, schema["items"], f"{path}[{i}]", found, root) for i, entry in enumerate(value.content)]
    return [None if entry is MISSING else entry for entry in checked]


def _check_scalar(value: Value, schema: Mapping[str, Any], path: str, found: Findings) -> Any:
    content = value.content
    shown = "" if found.secret or schema.get("writeOnly") else f", not {quoted(value.text)}"
    message = ""
    if "enum" in schema and content not in schema["enum"]:
        message = f"must be {' or '.join(map(str, schema['enum']))}{shown}{suggest(value.text, schema['enum'])}"
    elif isinstance(content, str) and "pattern" in schema and not re.search(_ecma(schema["pattern"]), content):
        message = schema["errorMessage"] + (f" (it is {quoted(value.text)})" if shown else "")
    elif isinstance(content, str) and len(content) > schema.get("maxLength", len(content)):
        message = f"must have at most {schema['maxLength']} characters"
    elif isinstance(content, int | float) and not schema.get("minimum", content) <= content <= schema.get(
        "maximum", content
    ):
        message = f"must be {schema['minimum']} to {schema['maximum']}{shown}"
    if message:
        found.add(path, message)
        return MISSING
    # Where a string will do, a number counts as written: 2025.10 is not 2025.1.
    return value.text if "string" in _types(schema) else int(content) if "integer" in _types(schema) else content


def _ecma(pattern: str) -> str:
    """A JSON schema's pattern for Python, whose `$` also matches before a last newline; ECMA-262's is the very end."""
    return re.sub(r"\$(?=\)|\Z)", r"\\Z", pattern)
