"""Seeded changes of inputs: of bytes, of JSON values, and of formats with lengths or checksums."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes, Sequence[bytes]], bytes]
"""(source of chance, the input to change, inputs to take parts from) -> a changed input."""

_MAX_BYTES = 200_000

NUMBERS = (
    b"0", b"-1", b"1", b"255", b"65536", b"2147483647", b"2147483648", b"4294967295",
    b"9223372036854775807", b"18446744073709551616", b"-9223372036854775809", b"1e308", b"1e400",
    b"1e-320", b"0.5", b"NaN", b"Infinity", b"-Infinity", b"1" + b"0" * 400, b"9" * 5000, b"0x7f",
)  # fmt: skip
PATHS = ("../../etc/passwd", "/etc/passwd", "C:\\x.png", "\\\\host\\x", "a/../../b", ".", "~/x")
TOKENS: tuple[bytes, ...] = (
    b"", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n", b"\t", b"[" * 3000,
    b"{" * 200, b"null", b"true", b'""', b"'", b"&a *a", b"<<: *a", b"!!python/name:os.system ",
    b"${HOME}", b"${", b"]]>", b"&lol;", b"<!ENTITY x SYSTEM 'file:///etc/passwd'>", b"%s%n",
    *NUMBERS, *(path.encode() for path in PATHS),
)  # fmt: skip
_WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 100_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1.5, -0.0, 255, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63,
    -(2**63) - 1, 10**400, 1e308, 1e-320, float("nan"), float("inf"), "", "a", "1", "\0", "\ud800",
    "é" * 100, "oooooooooooo" * 20, "0", "P`0", [], {}, [[]], [None], [0] * 3, [1] * 1000,
    [-1, 2401], [2**31, 2**31], [2**32, -(2**32)], [1e9] * 6, [float("nan")] * 6, ["1"] * 4,
    {"size": [2**31, 2**31], "counts": "0"}, {"size": [40, 60], "counts": [2**31]}, {"name": "x"},
    *PATHS,
)  # fmt: skip


def change_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to four changes at random places; half of the inputs get one alone."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        data = rng.choice(_BYTE_CHANGES)(rng, data, others)
    return data[:_MAX_BYTES]


def change_json(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Other values, keys or lengths somewhere in a JSON document; sometimes bytes instead."""
    if rng.random() < 0.25:
        return change_bytes(rng, data, others)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):  # a hostile input of the corpus
        return change_bytes(rng, data, others)
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = _change_value(rng, content)
    return json.dumps(content).encode()


def change_png(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes, mostly with the checksums of the chunks made right again."""
    changed = change_bytes(rng, data, others)
    return with_checksums(changed) if rng.random() < 0.7 else changed


def change_safetensors(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The header's JSON with its length made right, the length alone, or bytes."""
    length = int.from_bytes(data[:8], "little")
    choice = rng.random()
    if choice < 0.6 and 8 + length <= len(data):
        header = change_json(rng, data[8 : 8 + length], ())
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    if choice < 0.7:
        lie = rng.choice((0, 1, length - 1, length + 1, len(data), *_WORDS, 2**62, 2**64 - 1))
        return struct.pack("<Q", lie % 2**64) + data[8:]
    return change_bytes(rng, data, others)


def _change_value(rng: Random, value: Any) -> Any:
    """A copy with one change somewhere below; JSON inside a text is gone into."""
    if isinstance(value, str) and value[:1] in ("{", "[") and rng.random() < 0.9:
        try:
            return json.dumps(_change_value(rng, json.loads(value)))
        except ValueError:
            return rng.choice(VALUES)
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    choice = rng.random()
    if choice < 0.1:
        del copy[key]
    elif choice < 0.2:
        other = value[rng.choice(keys)]
        if isinstance(copy, list):
            copy.insert(key, other)
        else:
            copy[key] = other
    else:
        copy[key] = _change_value(rng, value[key])
    return copy


def _place(rng: Random, data: bytes) -> int:
    """A place, more often near the start, where the headers are."""
    return int(len(data) * rng.random() ** rng.choice((1, 3)))


def _flip(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(rng, data)
    return (
        data[:place]
        + bytes(b ^ 1 << rng.randrange(8) for b in data[place : place + 1])
        + (data[place + 1 :])
    )


def _set(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(rng, data)
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def _set_word(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place, size = _place(rng, data), rng.choice((1, 2, 4, 8))
    word = rng.choice(_WORDS) & (1 << 8 * size) - 1
    return data[:place] + word.to_bytes(size, rng.choice(("big", "little"))) + data[place + size :]


def _delete(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(rng, data)
    return data[:place] + data[place + rng.choice((1, 2, 8, 64)) :]


def _cut(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _repeat(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(rng, data)
    end = place + rng.choice((1, 4, 30, 200))
    return data[:end] + data[place:end] * rng.choice((1, 2, 50)) + data[end:]


def _insert(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(rng, data)
    return data[:place] + rng.choice(TOKENS) + data[place:]


def _number(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", data))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(NUMBERS) + data[match.end() :]


def _splice(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    return data[: _place(rng, data)] + other[_place(rng, other) :]


_BYTE_CHANGES = (
    _flip, _flip, _set, _set, _set_word, _delete, _cut, _repeat, _insert, _number, _splice,
)  # fmt: skip


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of their bytes."""
    position, parts = 8, [data[:8]]
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + length]
        parts += [data[position : position + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        position += length + 12
    return b"".join(parts)
