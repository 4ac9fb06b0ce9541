"""How a configuration is put together: ``base:`` files, overrides, environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from instseg.config.schema_view import JsonSchema, SchemaView
from instseg.config.yaml_source import (
    MAX_DEPTH,
    ConfigError,
    Node,
    Origin,
    parse_value,
    read_yaml,
    resolve_plain,
)

BASE_KEY = "base"

_VARIABLE = re.compile(
    r"\$(?P<escape>\$)\{"
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}"
    r"|\$\{"
)


def read_with_bases(path: Path, view: SchemaView) -> Node:
    """Read a file and merge it over its ``base`` files, in the order they are listed.

    A base is named relative to the file that names it, and may have bases itself.

    Raises:
        ConfigError: A file cannot be read, or the bases form a cycle.
    """
    return _BaseReader(view).read(path, ())


class _BaseReader:
    """Reads each file once, however many chains of bases lead to it."""

    def __init__(self, view: SchemaView) -> None:
        self._view = view
        self._read: dict[Path, Node] = {}

    def read(self, path: Path, chain: tuple[Path, ...]) -> Node:
        resolved = path.resolve()
        if resolved not in self._read:
            self._read[resolved] = self._merge_bases(path, (*chain, path))
        return self._read[resolved]

    def _merge_bases(self, path: Path, chain: tuple[Path, ...]) -> Node:
        own = read_yaml(path)
        assert isinstance(own.value, dict)
        entries = dict(own.value)
        if BASE_KEY not in entries:
            return own
        merged = Node({}, own.origin)
        for name, origin in _base_names(entries.pop(BASE_KEY)):
            base = path.parent / name
            self._check(base, origin, chain)
            merged = merge(merged, self.read(base, chain), self._view)
        return merge(merged, Node(entries, own.origin), self._view)

    def _check(self, base: Path, origin: Origin, chain: tuple[Path, ...]) -> None:
        if not base.is_file():
            raise ConfigError(f"{origin}: the base file '{base}' does not exist")
        if len(chain) == MAX_DEPTH:
            raise ConfigError(f"{origin}: a chain of more than {MAX_DEPTH} base files")
        looped = [i for i, file in enumerate(chain) if file.resolve() == base.resolve()]
        if looped:
            cycle = " -> ".join(map(str, (*chain[looped[0] :], base)))
            raise ConfigError(f"{origin}: the base files form a cycle: {cycle}")


def _base_names(node: Node) -> list[tuple[str, Origin]]:
    node = expand_variables(node, os.environ, (BASE_KEY,))
    items = node.value if isinstance(node.value, list) else [node]
    names = []
    for item in items:
        if not isinstance(item.value, str):
            raise ConfigError(f"{item.origin}: base: expected a file name or a list of file names")
        names.append((item.value, item.origin))
    return names


def merge(base: Node, child: Node, view: SchemaView, schema: JsonSchema | None = None) -> Node:
    """Lay ``child`` over ``base``: mappings merge key by key, anything else is replaced.

    Where the schema has a tagged union and the child changes the tag (``name: unet``), the child's
    mapping replaces the base's, whose other keys belong to another alternative.
    """
    if not isinstance(base.value, dict) or not isinstance(child.value, dict):
        return child
    schema = view.root if schema is None else schema
    tag_key = view.tag_key(schema, child)
    if tag_key is not None and tag_key in child.value:
        if _differs(base.value.get(tag_key), child.value[tag_key]):
            return child
        settled = view.settle(schema, child)
    else:
        settled = view.settle(schema, base)
    entries = dict(base.value)
    for key, value in child.value.items():
        below = view.child(settled, key) or {}
        entries[key] = merge(entries[key], value, view, below) if key in entries else value
    return Node(entries, child.origin)


def _differs(old: Node | None, new: Node) -> bool:
    return old is not None and old.value != new.value


def apply_overrides(root: Node, overrides: Sequence[str], view: SchemaView) -> Node:
    """Apply command-line settings ``key.path=value``; the value is YAML, and replaces the old one.

    Parts of the path are keys, or indices of items that a list has. Shorter paths go first, and
    tags before their siblings, so that no setting undoes a more specific one; of two with one
    path the later wins. A changed tag drops the keys of the alternative chosen before.

    Raises:
        ConfigError: The text is not ``key.path=value``, the value is not YAML, or a list has no
            such item. Unknown keys are left to validation.
    """
    tag_keys = view.tag_keys() if overrides else frozenset()
    parsed = [_parse_override(text) for text in overrides]
    parsed.sort(key=lambda setting: (len(setting[0]), setting[0][-1] not in tag_keys))
    for keys, value in parsed:
        root = _assign(root, keys, value, view, view.root)
    return root


def _parse_override(text: str) -> tuple[list[str], Node]:
    source = f"command line: '{text}'"
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{source}: expected key.path=value, such as train.lr=1e-3")
    if len(keys) > MAX_DEPTH:
        raise ConfigError(f"{source}: a path of more than {MAX_DEPTH} keys")
    return keys, parse_value(value, source, number_lines=False)


def _assign(
    node: Node | None,
    keys: Sequence[str],
    value: Node,
    view: SchemaView,
    schema: JsonSchema,
    done: str = "",
) -> Node:
    """A copy of ``node`` with ``value`` at the path ``keys``; missing mappings are made."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    path = f"{done}.{key}" if done else key
    if node is not None and isinstance(node.value, list):
        index = _index(key, node.value, done, value.origin)
        below = view.child(view.settle(schema, node), index) or {}
        items = list(node.value)
        items[index] = _assign(items[index], rest, value, view, below, path)
        return Node(items, node.origin)
    if node is None or not isinstance(node.value, dict):
        node = Node({}, value.origin)
    assert isinstance(node.value, dict)
    entries = dict(node.value)
    if not rest and key == view.tag_key(schema, node) and _differs(entries.get(key), value):
        return Node({key: value}, value.origin)
    below = view.child(view.settle(schema, node), key) or {}
    entries[key] = _assign(entries.get(key), rest, value, view, below, path)
    return Node(entries, node.origin)


def _index(key: str, items: Sequence[Node], path: str, origin: Origin) -> int:
    if key.isdecimal() and len(key) < 9 and int(key) < len(items):
        return int(key)
    indices = f"an index from 0 to {len(items) - 1}" if items else "no index: the list is empty"
    raise ConfigError(f"{origin}: {path} is a list: expected {indices}, got '{key}'")


def expand_variables(
    node: Node, environment: Mapping[str, str] | None, path: tuple[str, ...] = ()
) -> Node:
    """Replace ``${VAR}`` and ``${VAR:-default}`` in the strings of a document.

    The default also stands in for an empty variable, as in a shell; ``$${`` writes ``${``. An
    unquoted string is read as YAML again after its expansion, so ``${WORKERS:-4}`` is a number;
    a quoted one stays a string.

    Args:
        node: The document.
        environment: Variable to value; None refuses all variables.
        path: Keys that lead to ``node``, for messages.

    Raises:
        ConfigError: A variable is not set and has no default, or none is allowed.
    """
    if isinstance(node.value, dict):
        entries = {k: expand_variables(v, environment, (*path, k)) for k, v in node.value.items()}
        return Node(entries, node.origin)
    if isinstance(node.value, list):
        items = [
            expand_variables(v, environment, (*path, str(i))) for i, v in enumerate(node.value)
        ]
        return Node(items, node.origin)
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    where = f"{node.origin}: {'.'.join(path)}"
    text = _VARIABLE.sub(lambda match: _variable(match, environment, where), node.value)
    return Node(resolve_plain(text, node.origin) if node.plain else text, node.origin)


def escape_variables(text: str) -> str:
    """Write ``text`` so that `expand_variables` gives it back unchanged."""
    return text.replace("${", "$${")


def _variable(match: re.Match[str], environment: Mapping[str, str] | None, where: str) -> str:
    name, default = match["name"], match["default"]
    if match["escape"]:
        return "${"
    if name is None:
        raise ConfigError(
            f"{where}: a '${{' that begins no variable; write ${{VAR}} or ${{VAR:-default}}, "
            "or $${ for the characters themselves"
        )
    if environment is None:
        raise ConfigError(f"{where}: the variable '{name}' is not allowed in a stored config")
    value = environment.get(name, "" if default is not None else None)
    if value is None:
        raise ConfigError(
            f"{where}: the environment variable '{name}' is not set; run `export {name}=...` "
            f"first, or write a default as ${{{name}:-value}}"
        )
    return value or default or ""
