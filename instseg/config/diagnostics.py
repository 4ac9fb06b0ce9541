"""Pydantic's validation errors, told in terms of the file the user wrote."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from instseg.config.schema_view import Place, SchemaView
from instseg.config.yaml_source import ConfigError, Node

_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "a string",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "dataclass": "a mapping",
}
_KIND_ERROR = re.compile(r"(\w+?)_(?:type|parsing|parsing_size|from_float)")


@dataclass
class _Mismatch:
    """A value that does not fit, and all that the alternatives of a union would have taken."""

    place: Place
    value: Any
    expected: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        *others, last = dict.fromkeys(self.expected)
        expected = f"{', '.join(others)} or {last}" if others else last
        hints = "".join(self.hints)
        return f"{_where(self.place)}expected {expected}, got {_show(self.value)}{hints}"


def explain(error: ValidationError, view: SchemaView, root: Node) -> ConfigError:
    """One `ConfigError` with a line for every problem: where it is, what it is, how to mend it.

    Args:
        error: What validating the document ``root`` raised.
        view: The schema it was validated against.
        root: The document.
    """
    details = error.errors(include_url=False, include_context=True)
    places = [view.locate(detail["loc"], root) for detail in details]
    problems: dict[object, str | _Mismatch] = {}  # in order, each once
    for detail, place in zip(details, places, strict=True):
        expected = _expected(detail)
        if expected is None:
            text = _describe(detail, place, view, root)
            problems[text] = text
        elif not (place.in_union and _has_deeper(place, places)):
            mismatch = problems.setdefault(place.path, _Mismatch(place, detail["input"]))
            assert isinstance(mismatch, _Mismatch)
            mismatch.expected.append(expected)
            mismatch.hints.append(_hint(detail, place, view))
    return ConfigError("\n".join(map(str, problems.values())))


def _expected(detail: ErrorDetails) -> str | None:
    """What an error of type or choice says should have stood there; None for other errors."""
    if detail["type"] in ("literal_error", "enum"):
        return str(detail["ctx"]["expected"])
    kind = _KIND_ERROR.fullmatch(detail["type"])
    return _KINDS.get(kind[1]) if kind else None


def _hint(detail: ErrorDetails, place: Place, view: SchemaView) -> str:
    value = detail["input"]
    if isinstance(value, int | float):
        return "; write it in quotes" if detail["type"] == "string_type" else ""
    if not isinstance(value, str):
        return ""
    if detail["type"] in ("literal_error", "enum"):
        return _nearest(value, re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    key = view.tag_key(place.schema, place.node)
    return f"; write it as {{{key}: {value}}}" if value in view.tags(place) else ""


def _has_deeper(place: Place, places: Sequence[Place]) -> bool:
    """Whether another alternative of the union got further, so was the one meant."""
    depth = len(place.path)
    return any(len(p.path) > depth and p.path[:depth] == place.path for p in places)


def _describe(detail: ErrorDetails, place: Place, view: SchemaView, root: Node) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(str(detail["loc"][-1]), place, detail, view, root)
        case "missing":
            return _missing(detail, view, root)
        case "union_tag_not_found":
            key = view.tag_key(place.schema, place.node)
            choices = ", ".join(view.tags(place))
            return f"{place.node.origin}: missing key '{key}'{_inside(place)} (choices: {choices})"
        case "union_tag_invalid":
            return _unknown_tag(place, view)
        case "too_long":
            return f"{_where(place)}expected at most {_count(detail, 'max_length')}"
        case "too_short":
            return f"{_where(place)}expected at least {_count(detail, 'min_length')}"
        case "value_error" | "assertion_error":
            message = detail["msg"].partition(", ")[2]
            return f"{_where(place)}{message}"
    message = detail["msg"].replace("Input should be", "should be")
    return f"{_where(place)}{message[:1].lower()}{message[1:]}, got {_show(detail['input'])}"


def _unknown_key(key: str, place: Place, detail: ErrorDetails, view: SchemaView, root: Node) -> str:
    parent = view.locate(detail["loc"][:-1], root)
    valid = list(parent.schema.get("properties", ()))
    hint = _nearest(key, valid) or _elsewhere(key, view)
    keys = ", ".join(valid) or "none"
    return f"{place.node.origin}: unknown key '{key}'{_inside(parent)}{hint} (valid keys: {keys})"


def _elsewhere(key: str, view: SchemaView) -> str:
    """Tell of the same or a similar key in other sections of the schema."""
    sections = list(view.sections())
    every_key = {name for section in sections for name in section.keys}
    for name in get_close_matches(key, sorted(every_key), n=1):
        owners = dict.fromkeys(str(section) for section in sections if name in section.keys)
        return f"; a key '{name}' exists in {', '.join(list(owners)[:3])}"
    return ""


def _missing(detail: ErrorDetails, view: SchemaView, root: Node) -> str:
    parent = view.locate(detail["loc"][:-1], root)
    if isinstance(parent.node.value, list):
        count = parent.schema.get("minItems", "more")
        return f"{_where(parent)}expected {count} items, got {len(parent.node.value)}"
    return f"{parent.node.origin}: missing key '{detail['loc'][-1]}'{_inside(parent)}"


def _unknown_tag(place: Place, view: SchemaView) -> str:
    key = view.tag_key(place.schema, place.node)
    assert key is not None
    assert isinstance(place.node.value, dict)
    tag = place.node.value[key]
    choices = view.tags(place)
    path = ".".join((*place.path, key))
    hint = _nearest(str(tag.value), choices)
    unknown = f"unknown {key} {_show(tag.value)}{hint}"
    return f"{tag.origin}: {path}: {unknown} (choices: {', '.join(choices)})"


def _count(detail: ErrorDetails, limit: str) -> str:
    return f"{detail['ctx'][limit]} items, got {len(detail['input'])}"


def _nearest(word: str, valid: Sequence[str]) -> str:
    close = get_close_matches(word, valid, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _where(place: Place) -> str:
    path = ".".join(place.path)
    return f"{place.node.origin}: {path}: " if path else f"{place.node.origin}: "


def _inside(place: Place) -> str:
    return f" in {'.'.join(place.path)}" if place.path else " at the top level"


def _show(value: Any) -> str:
    """A value as YAML spells it, shortened."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "a mapping"
    return reprlib.repr(value)
