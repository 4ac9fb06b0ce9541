"""A pydantic model's JSON schema as a map to walk: which keys stand where, which tags choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema

from instseg.config.yaml_source import Node

JsonSchema = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """One model of the schema: the path it stands at and its keys.

    Where a tagged union chooses among models, ``tag`` is the ``name: unet`` that chooses this one.
    List items and values of free mappings have the path part ``*``.
    """

    path: tuple[str, ...]
    keys: tuple[str, ...]
    tag: str | None = None

    def __str__(self) -> str:
        path = ".".join(self.path) or "the top level"
        return path if self.tag is None else f"{path} ({self.tag})"


@dataclass(frozen=True)
class Place:
    """Where an error stands: path of keys and indices, the schema there, and the nearest node.

    ``node`` is the value at ``path``, or its closest ancestor in the document. ``in_union`` marks
    an error about one alternative of an untagged union as a whole.
    """

    path: tuple[str, ...]
    schema: JsonSchema
    node: Node
    in_union: bool = False


class _Generator(GenerateJsonSchema):
    """Types JSON schema cannot express become "anything": only the structure is of interest."""

    def handle_invalid_for_json_schema(
        self, schema: CoreSchema, error_info: str
    ) -> JsonSchemaValue:
        return {}

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Say nothing: the warnings concern published schemas."""


class SchemaView:
    """Navigation in the schema of one model class."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.root: JsonSchema = model.model_json_schema(schema_generator=_Generator)
        self._definitions: Mapping[str, JsonSchema] = self.root.get("$defs", {})

    def tag_key(self, schema: JsonSchema, node: Node) -> str | None:
        """The discriminator's key if ``schema`` is, for a value like ``node``, a tagged union."""
        return _discriminator(self._unwrap(schema, node))

    def tag_keys(self) -> frozenset[str]:
        """The discriminator keys used anywhere in the schema."""
        tags = (section.tag for section in self.sections())
        return frozenset(tag.partition(":")[0] for tag in tags if tag is not None)

    def settle(self, schema: JsonSchema, node: Node) -> JsonSchema:
        """The alternative of (nested) unions that ``node`` takes.

        A tagged union stays itself where ``node`` has no tag or an unknown one.
        """
        schema = self._unwrap(schema, node)
        key = _discriminator(schema)
        if key is None or not isinstance(node.value, dict) or key not in node.value:
            return schema
        branch = _tags(schema).get(str(node.value[key].value))
        return schema if branch is None else self.settle(branch, node)

    def child(self, schema: JsonSchema, part: str | int) -> JsonSchema | None:
        """The schema of a key or index below a settled ``schema``; None where there is none."""
        found: JsonSchema | bool | None
        if _kind(schema) is list:
            if not isinstance(part, int):
                return None
            prefix = schema.get("prefixItems", ())
            found = prefix[part] if part < len(prefix) else schema.get("items")
        else:
            found = schema.get("properties", {}).get(str(part), schema.get("additionalProperties"))
        if found is True:
            return {}
        return found if isinstance(found, dict) else None

    def locate(self, loc: Sequence[str | int], root: Node) -> Place:
        """Map the ``loc`` of a pydantic error to the document.

        Pydantic mixes union labels (a tag, a class name, ``list[int]``) with keys and indices. A
        label follows wherever the schema has a union, so the schema says which is which; a part
        known neither to the schema nor to the document is taken for a label too.
        """
        schema, node, path, in_union = self._deref(self.root), root, [], False
        on_document = True
        for part in loc:
            options = self._options(schema)
            if len(options) == 1 and _discriminator(schema) is None:
                schema = self._deref(options[0])
                options = self._options(schema)
            if options:
                in_union = _discriminator(schema) is None
                schema = self._labelled(schema, options, part, node)
                continue
            child = self.child(schema, part)
            value = _entry(node, part) if on_document else None
            if child is None and value is None:
                continue
            path.append(str(part))
            schema, in_union = self._deref(child or {}), False
            on_document = value is not None
            node = value or node
        return Place(tuple(path), schema, node, in_union)

    def tags(self, place: Place) -> list[str]:
        """The tags to choose from at ``place``; none where no tagged union stands."""
        schema = self._unwrap(place.schema, place.node)
        return [] if _discriminator(schema) is None else list(_tags(schema))

    def sections(self) -> Iterator[Section]:
        """Every model of the schema, in the order of definition."""
        return self._walk(self.root, (), None, frozenset())

    def _walk(
        self, schema: JsonSchema, path: tuple[str, ...], tag: str | None, seen: frozenset[str]
    ) -> Iterator[Section]:
        reference = schema.get("$ref")
        if reference in seen:  # a model that contains itself
            return
        seen = seen if reference is None else seen | {reference}
        schema = self._deref(schema)
        key = _discriminator(schema)
        if key is not None:
            tags = _tags(schema)
            for branch in self._options(schema):
                names = [name for name, chosen in tags.items() if chosen == branch]
                yield from self._walk(branch, path, f"{key}: {' | '.join(names)}", seen)
            return
        for option in self._options(schema):
            yield from self._walk(option, path, tag, seen)
        properties: Mapping[str, JsonSchema] = schema.get("properties", {})
        if properties:
            yield Section(path, tuple(properties), tag)
        for name, below in properties.items():
            yield from self._walk(below, (*path, name), None, seen)
        for element in (schema.get("items"), schema.get("additionalProperties")):
            if isinstance(element, dict):
                yield from self._walk(element, (*path, "*"), None, seen)

    def _deref(self, schema: JsonSchema) -> JsonSchema:
        while "$ref" in schema:
            schema = self._definitions[schema["$ref"].removeprefix("#/$defs/")]
        return schema

    def _options(self, schema: JsonSchema) -> list[JsonSchema]:
        """The alternatives of a union but null; none where ``schema`` is no union."""
        options = schema.get("anyOf") or schema.get("oneOf") or ()
        return [option for option in options if option.get("type") != "null"]

    def _unwrap(self, schema: JsonSchema, node: Node) -> JsonSchema:
        """Choose among the alternatives of untagged unions by the kind of the value."""
        schema = self._deref(schema)
        options = self._options(schema)
        if not options or _discriminator(schema) is not None:
            return schema
        return self._unwrap(self._fitting(options, node), node)

    def _fitting(self, options: Sequence[JsonSchema], node: Node) -> JsonSchema:
        kind = type(node.value) if isinstance(node.value, dict | list) else None
        fitting = (option for option in options if _kind(self._deref(option)) is kind)
        return next(fitting, options[0])

    def _labelled(
        self, schema: JsonSchema, options: Sequence[JsonSchema], label: str | int, node: Node
    ) -> JsonSchema:
        """The alternative that pydantic calls ``label``."""
        if _discriminator(schema) is not None:
            return self._deref(_tags(schema).get(str(label), {}))
        titled = [o for o in map(self._deref, options) if o.get("title") == label]
        tagged = [o for o in options if _discriminator(o) and str(label).startswith("tagged-union")]
        return next(iter(titled + tagged), self._deref(self._fitting(options, node)))


def _discriminator(schema: JsonSchema) -> str | None:
    key: str | None = schema.get("discriminator", {}).get("propertyName")
    return key


def _tags(schema: JsonSchema) -> dict[str, JsonSchema]:
    """The alternatives of a tagged union by tag."""
    mapping: Mapping[str, str | JsonSchema] = schema["discriminator"]["mapping"]
    return {tag: {"$ref": x} if isinstance(x, str) else x for tag, x in mapping.items()}


def _kind(schema: JsonSchema) -> type | None:
    """`dict`, `list`, or None for a scalar or anything."""
    if schema.get("type") == "array":
        return list
    return dict if schema.get("type") == "object" or "discriminator" in schema else None


def _entry(node: Node, part: str | int) -> Node | None:
    """The entry of a mapping or item of a list, if there is one."""
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None
