"""What the values or colours of semantic masks mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Value = int | Sequence[int]
"""A pixel value from 0, or a colour (red, green, blue) of values in 0..255."""

_IGNORE = 255
_BINARY = {0, 1, 255}


@dataclass(frozen=True)
class Legend:
    """What the values of the masks mean; a colour is the number 0xRRGGBB."""

    names: dict[int, str]
    background: int | None
    ignore: int | None
    of_colours: bool = False

    def show(self, value: int) -> str:
        """A value as it is written in a configuration."""
        return str(list(value.to_bytes(3, "big"))) if self.of_colours else str(value)

    def describe(self) -> str:
        """All values with their meanings."""
        meanings = dict(self.names)
        for value, meaning in ((self.background, "background"), (self.ignore, "ignored")):
            if value is not None:
                meanings[value] = meaning
        return ", ".join(f"{self.show(v)} = {meanings[v]}" for v in sorted(meanings))

    @property
    def known(self) -> set[int]:
        """The values that mean something."""
        values = (*self.names, self.background, self.ignore)
        return {value for value in values if value is not None}


def make_legend(
    classes: Mapping[str, Value], background: Value | None, ignore: Value | None
) -> Legend:
    """The meanings as given, with the defaults where they are free.

    Raises:
        ValueError: no class, values and colours mixed, or two meanings of one value.
    """
    if not classes:
        raise ValueError("classes must name at least one class, got none")
    given = {f"classes['{name}']": value for name, value in classes.items()}
    given |= {"background": background} if background is not None else {}
    given |= {"ignore": ignore} if ignore is not None else {}
    if len({isinstance(value, int) for value in given.values()}) > 1:
        raise ValueError(f"give values or colours [r, g, b], not both: {given}")
    of_colours = not isinstance(next(iter(given.values())), int)
    numbers: dict[int, str] = {}
    for key, value in given.items():
        other = numbers.setdefault(_number(key, value), key)
        if other != key:
            raise ValueError(f"{key} and {other} have one value, {value}; give each its own")
    back = 0 if background is None else _number("background", background)
    unknown = _IGNORE if ignore is None else _number("ignore", ignore)
    return Legend(
        names={_number(name, value): name for name, value in classes.items()},
        background=None if background is None and back in numbers else back,
        ignore=None if ignore is None and (of_colours or unknown in numbers) else unknown,
        of_colours=of_colours,
    )


def binary_values(background: Value | None, ignore: Value | None) -> set[int]:
    """The values that masks may hold which `detect_binary` is to understand."""
    given = {"background": background, "ignore": ignore}
    return _BINARY | {_number(name, v) for name, v in given.items() if v is not None}


def detect_binary(
    values: Collection[int], background: Value | None, ignore: Value | None, category: str
) -> Legend:
    """The meanings of the values of a set of binary masks, of 0 and 1 or of 0 and 255.

    255 beside 0 and 1 is to be ignored.

    Raises:
        ValueError: the values do not tell their meanings.
    """
    back = 0 if background is None else _number("background", background)
    unknown = None if ignore is None else _number("ignore", ignore)
    rest = sorted(set(values) - {back, unknown})
    if len(rest) == 2 and rest[1] == _IGNORE and unknown is None:
        unknown = rest.pop()
    if len(rest) > 1:
        raise ValueError(
            f"the values {sorted(values)} are not those of binary masks; name them in `classes`"
        )
    return Legend(dict.fromkeys(rest, category), back, unknown)


def _number(name: str, value: Value) -> int:
    """A value as it is, a colour as 0xRRGGBB.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 3:
        if all(isinstance(v, int) and 0 <= v <= 255 for v in value):
            return int.from_bytes(bytes(value), "big")
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(
        f"{name} must be a value from 0 or a colour [r, g, b] of 0..255, got {value!r}"
    )
