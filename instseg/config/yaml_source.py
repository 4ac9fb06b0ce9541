"""YAML text to and from values that know the file and line they came from.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), not the
YAML 1.1 rules of PyYAML: ``1e-3`` is a float, only ``true`` and ``false`` are booleans (``on``,
``off``, ``yes``, ``no`` are strings), ``1:30`` and ``2024-01-01`` are strings. Merge keys (``<<``)
and aliases work. Tags that would build other types are refused, and size, depth and the number of
values are limited, so a hostile document can neither run code nor exhaust memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Scalar = str | int | float | bool | None

MAX_BYTES = 1 << 20
MAX_VALUES = 50_000
MAX_DEPTH = 50
MAX_DIGITS = 1000


class ConfigError(ValueError):
    """A configuration cannot be used; the message has one ``file:line: problem`` per line."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a file and its line, or ``line=None`` for other sources."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its origin, which is the key's line for an entry of a mapping.

    ``plain`` tells of a string that it stood without quotes. ``value`` is never changed in place,
    because aliases and merged files share nodes.
    """

    value: Scalar | list[Node] | dict[str, Node]
    origin: Origin
    plain: bool = False


def read_yaml(path: Path) -> Node:
    """Read a UTF-8 YAML file of at most 1 MiB whose top level is a mapping.

    An empty file is an empty mapping.

    Raises:
        ConfigError: The file is missing, unreadable, too large, not UTF-8 or not such YAML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, so not a configuration file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from error
    return parse_mapping(text, str(path))


def parse_mapping(text: str, source: str) -> Node:
    """Parse YAML text whose top level is a mapping; empty text is an empty mapping.

    Raises:
        ConfigError: The text is not such YAML, or exceeds the limits of `parse_value`.
    """
    node = parse_value(text, source)
    if node.value is None:
        return Node({}, node.origin)
    if not isinstance(node.value, dict):
        raise ConfigError(f"{node.origin}: expected `key: value` lines at the top level")
    return node


def parse_value(text: str, source: str, *, number_lines: bool = True) -> Node:
    """Parse YAML text holding any one value; empty text is null.

    Args:
        text: At most 1 MiB, 50 levels deep, 50 000 values with aliases written out.
        source: The file's name, or other words that tell the user where the text is from.
        number_lines: Whether origins and messages give line (and column).

    Raises:
        ConfigError: The text is not such YAML.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_BYTES} bytes, so not a configuration")
    try:
        composed = _Loader(text).get_single_node()
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, source, number_lines) from error
    if composed is None:
        return Node(None, Origin(source, 1 if number_lines else None))
    builder = _Builder(source, number_lines)
    return builder.build(composed, builder.origin(composed))


def resolve_plain(text: str, origin: Origin) -> Scalar:
    """The value that unquoted ``text`` stands for.

    Raises:
        ConfigError: An integer of more than 1000 digits.
    """
    for tag, (pattern, _) in _SCALARS.items():
        if pattern.match(text):
            return _convert(tag, text, origin)
    return text


def to_yaml(value: Any) -> str:
    """Write plain values (mappings, lists, scalars) as YAML that `parse_value` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _to_int(text: str) -> int:
    if len(text) > MAX_DIGITS:  # Python neither reads nor writes huge decimal numbers
        raise ValueError(f"more than {MAX_DIGITS} digits")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _to_float(text: str) -> float:
    return float(re.sub(r"\.(?=[inIN])", "", text))


_TAG = "tag:yaml.org,2002:"
_MERGE_TAG = _TAG + "merge"
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Scalar]]] = {
    _TAG + "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), lambda text: None),
    _TAG + "bool": (
        re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
        lambda text: text.lower() == "true",
    ),
    _TAG + "int": (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), _to_int),
    _TAG + "float": (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        _to_float,
    ),
}


def _convert(tag: str, text: str, origin: Origin) -> Scalar:
    pattern, convert = _SCALARS[tag]
    kind = tag.removeprefix(_TAG)
    if not pattern.match(text):
        raise ConfigError(f"{origin}: {text!r} does not fit the tag !!{kind}")
    try:
        return convert(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: not a readable {kind}: {error}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe composer with the core schema's scalars, bounded in depth and node count."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own class attribute)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels")
        if self._count > MAX_VALUES:
            self._refuse(f"more than {MAX_VALUES} values")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refuse(self, problem: str) -> None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        raise yaml.composer.ComposerError(None, None, problem, mark)


class _Dumper(yaml.SafeDumper):
    """Writes values out in full, and quotes exactly what `_Loader` would read as another type."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own class attribute)

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML folds the rarer line breaks (U+0085, U+2028) of any other style into spaces.
        style = None if data.isprintable() else '"'
        return self.represent_scalar(_TAG + "str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
for _class in (_Loader, _Dumper):
    for _tag, (_pattern, _) in _SCALARS.items():
        _class.add_implicit_resolver(_tag, _pattern, None)
    _class.add_implicit_resolver(_MERGE_TAG, re.compile(r"<<\Z"), None)


def _syntax_error(error: yaml.YAMLError, text: str, source: str, number_lines: bool) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        problem = ", ".join(filter(None, (error.context, error.problem)))
    elif isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position)
        column = error.position - (text.rfind("\n", 0, error.position) + 1)
        problem = f"{error.reason} ({error.character!r})"
    else:
        raise error
    if "${" in "".join(text.split("\n")[line : line + 1]):
        problem += '; within {} or [], write a variable in quotes: "${VAR}"'
    where = f"{source}:{line + 1}:{column + 1}" if number_lines else source
    return ConfigError(f"{where}: invalid YAML: {problem}")


class _Builder:
    """Turns PyYAML's nodes into `Node`s, writing out aliases and merge keys."""

    def __init__(self, source: str, number_lines: bool) -> None:
        self._source = source
        self._number_lines = number_lines
        self._count = 0

    def origin(self, node: yaml.Node) -> Origin:
        return Origin(self._source, node.start_mark.line + 1 if self._number_lines else None)

    def build(self, node: yaml.Node, origin: Origin, depth: int = 1) -> Node:
        self._count += 1
        if self._count > MAX_VALUES:
            raise ConfigError(f"{origin}: more than {MAX_VALUES} values once aliases are expanded")
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"{origin}: nested deeper than {MAX_DEPTH} levels once aliases are expanded"
            )
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Node(self._entries(node, depth), origin)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            items = [self.build(item, self.origin(item), depth + 1) for item in node.value]
            return Node(items, origin)
        if isinstance(node, yaml.ScalarNode):
            if node.tag in (_TAG + "str", _MERGE_TAG):
                return Node(str(node.value), origin, plain=node.style is None)
            if node.tag in _SCALARS:
                return Node(_convert(node.tag, node.value, origin), origin)
        raise ConfigError(f"{origin}: the tag {node.tag!r} is not allowed; only plain values are")

    def _entries(self, mapping: yaml.MappingNode, depth: int) -> dict[str, Node]:
        """The mapping's own entries, which win over those of its merge keys."""
        inherited: dict[str, Node] = {}
        own: dict[str, Node] = {}
        seen: dict[str, Origin] = {}
        for key_node, value_node in mapping.value:
            origin = self.origin(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{origin}: a key must be a string or number")
            key = str(key_node.value)
            if key in seen:
                line = seen[key].line
                first = "" if line is None else f" (first on line {line})"
                raise ConfigError(f"{origin}: duplicate key {key!r}{first}")
            seen[key] = origin
            if key_node.tag == _MERGE_TAG:
                inherited = self._merged(value_node, origin, depth)
            else:
                own[key] = self.build(value_node, origin, depth + 1)
        return {**inherited, **own}

    def _merged(self, node: yaml.Node, origin: Origin, depth: int) -> dict[str, Node]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        entries: dict[str, Node] = {}
        for source in sources:
            merged = self.build(source, origin, depth + 1).value
            if not isinstance(merged, dict):
                raise ConfigError(f"{origin}: '<<' takes a mapping or a list of mappings")
            entries = {**merged, **entries}
        return entries
