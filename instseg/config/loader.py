"""The strict configuration loader: YAML checked against a pydantic model.

A configuration is a YAML file (see `instseg.config.yaml_source` for how scalars are read) that may
build on others by ``base: other.yaml``, is changed by ``key.path=value`` settings, and may name
environment variables as ``${VAR}`` or ``${VAR:-default}``. Values must have the type of their
field: ``'4'`` and ``true`` are no integers. Paths stay as written. Every problem is reported at
once, with file and line, as a `ConfigError`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from instseg.config.composition import (
    BASE_KEY,
    apply_overrides,
    escape_variables,
    expand_variables,
    read_with_bases,
)
from instseg.config.diagnostics import explain
from instseg.config.schema_view import SchemaView
from instseg.config.yaml_source import ConfigError, Node, Origin, parse_mapping, to_yaml

__all__ = ["ConfigError", "dump_config", "load_config", "parse_config"]

T = TypeVar("T", bound=BaseModel)


def load_config(path: Path, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a configuration file, its bases, overrides and environment variables.

    Args:
        path: The YAML file.
        schema: The model to check against; ``base`` cannot be a field of it.
        overrides: Settings such as ``train.lr=1e-3``, ``model.mask_head={name: unet, depth: 2}``
            or ``stages.0.depth=3``.

    Raises:
        ConfigError: The configuration cannot be read or does not fit the schema.
    """
    view = _view(schema)
    root = apply_overrides(read_with_bases(path, view), overrides, view)
    return _validate(expand_variables(root, os.environ), schema, view)


def parse_config(text: str, schema: type[T], *, source: str) -> T:
    """Read a configuration stored as text by `dump_config`, for instance in a file of weights.

    Such text is complete, and may come from a stranger: ``base`` and environment variables are
    refused, so that it reaches neither files nor the environment.

    Args:
        text: What `dump_config` wrote.
        schema: The model to check against.
        source: Name of the text's file, for messages.

    Raises:
        ConfigError: The text does not fit the schema.
    """
    root = parse_mapping(text, source)
    assert isinstance(root.value, dict)
    if BASE_KEY in root.value:
        origin = root.value[BASE_KEY].origin
        raise ConfigError(f"{origin}: '{BASE_KEY}' is not allowed in a stored config")
    return _validate(expand_variables(root, None), schema, _view(schema))


def dump_config(config: BaseModel) -> str:
    """Write every value of ``config``, defaults included, as YAML that loads back to an equal one.

    Paths are written as strings. The text has no ``base`` and no environment variables.
    """
    return to_yaml(_escape(config.model_dump(mode="json", by_alias=True, round_trip=True)))


@cache  # making it takes ten times as long as reading a configuration
def _view(schema: type[BaseModel]) -> SchemaView:
    return SchemaView(schema)


def _validate(root: Node, schema: type[T], view: SchemaView) -> T:
    # As JSON, pydantic's strict mode still takes a string for a path and a list for a tuple.
    document = json.dumps(_to_plain(root))
    try:
        return schema.model_validate_json(document, strict=True)
    except ValidationError as error:
        raise explain(error, view, root) from error


def _to_plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {_text(key, value.origin): _to_plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [_to_plain(item) for item in node.value]
    return _text(node.value, node.origin) if isinstance(node.value, str) else node.value


def _text(text: str, origin: Origin) -> str:
    if re.search(r"[\ud800-\udfff]", text):  # from an escape, or from bytes that are not UTF-8
        raise ConfigError(f"{origin}: {text!r} is not valid Unicode")
    return text


def _escape(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return escape_variables(value) if isinstance(value, str) else value
