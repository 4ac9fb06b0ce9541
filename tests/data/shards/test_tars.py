"""Tars that others made, good and bad: errors name the shard and the member."""

import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.data.shards.errors import ShardError
from instseg.data.shards.index import build_index
from instseg.data.shards.tar import MAX_MEMBER

from .helpers import error_or_result

RECORD = json.dumps({"image": {"id": 1}, "annotations": []}, indent=2).encode()


def tar_bytes(*members, **options) -> bytes:
    """A tar of members: (name, content), or a `tarfile.TarInfo`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mtime = len(member[1]), 1.25
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def index_of(data: bytes):
    return build_index(io.BytesIO(data), "s.tar")


@pytest.mark.parametrize("options", [{"format": f} for f in range(3)])
def test_tars_of_every_format_are_read(options):
    folder = tarfile.TarInfo("./")
    folder.type = tarfile.DIRTYPE
    long = "k" * 120
    data = tar_bytes(
        folder,
        ("./1.jpg", b"one"),
        ("./1.json", RECORD),
        ("1.seg.png", b"no image"),
        ("sub/2.txt", b"no image"),
        *([] if options["format"] == tarfile.USTAR_FORMAT else [(f"{long}.json", RECORD)]),
        *([] if options["format"] == tarfile.USTAR_FORMAT else [(f"{long}.PNG", b"three")]),
        **options,
    )
    index = index_of(data)
    names = [sample.member for sample in index.samples]
    assert names == ["1.jpg", f"{long}.PNG"][: len(names)]
    assert len(names) == 1 + (options["format"] != tarfile.USTAR_FORMAT)
    for name, content in zip(names, (b"one", b"three"), strict=False):
        offset, size, _ = index.table.find(name)
        assert data[offset : offset + size] == content
    assert index.table.find("1.seg.png") is None


def special(name: str, kind: bytes, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def huge(size: int) -> bytes:
    """A header that declares ``size`` bytes, and little after it."""
    info = tarfile.TarInfo("7.jpg")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def extended(size: int) -> bytes:
    return special("x", tarfile.XHDTYPE, size=size).tobuf(tarfile.GNU_FORMAT) + bytes(2**17)


PAIR = [("1.jpg", b"one"), ("1.json", RECORD)]
BAD = {
    "climbing": (tar_bytes(("../1.jpg", b"x")), r"s\.tar#'\.\./1\.jpg': its name does not stay"),
    "within": (tar_bytes(("a/../../b.jpg", b"x")), r"does not stay in the folder"),
    "absolute": (tar_bytes(("/etc/1.jpg", b"x")), r"s\.tar#'/etc/1\.jpg': its name does not stay"),
    "backslash": (tar_bytes(("..\\1.jpg", b"x")), r"does not stay in the folder"),
    "newline": (tar_bytes(("a\n1.jpg", b"x")), r"does not stay in the folder"),
    "long": (tar_bytes(("k" * 300 + ".jpg", b"x")), "its name is longer than 255 bytes"),
    "symlink": (
        tar_bytes(special("1.jpg", tarfile.SYMTYPE, linkname="/etc/passwd")),
        r"s\.tar#1\.jpg: is a link; shards hold plain files",
    ),
    "hard link": (
        tar_bytes(*PAIR, special("2.jpg", tarfile.LNKTYPE, linkname="1.jpg")),
        r"s\.tar#2\.jpg: is a link",
    ),
    "device": (tar_bytes(special("1.jpg", tarfile.CHRTYPE)), r"s\.tar#1\.jpg: is no plain file"),
    "pipe": (tar_bytes(special("1.jpg", tarfile.FIFOTYPE)), r"s\.tar#1\.jpg: is no plain file"),
    "huge": (huge(2**60), r"s\.tar#7\.jpg: declares 1152921504606846976 bytes; the limit is"),
    "large": (huge(MAX_MEMBER), r"s\.tar#7\.jpg: the tar is cut short at byte 2560"),
    "negative": (huge(-1), r"declares -1 bytes"),
    "extended": (extended(2**40), r"has 1099511627776 bytes of extended header"),
    "twice": (tar_bytes(*PAIR, ("./1.jpg", b"x")), r"s\.tar#1\.jpg: is there twice"),
    "two images": (tar_bytes(*PAIR, ("1.png", b"x")), r"1\.png: its key has another image, 1\.jpg"),
    "no json": (tar_bytes(("1.jpg", b"x")), r"s\.tar#1\.jpg: there is no 1\.json beside it"),
    "no image": (tar_bytes(("1.json", RECORD)), r"s\.tar#1\.json: there is no image"),
    "json": (tar_bytes(("1.json", b"{")), r"s\.tar#1\.json: is not \{\"image\""),
    "records": (tar_bytes(("1.json", b'{"image": 3}')), r"s\.tar#1\.json: is not .*image"),
    "deep": (tar_bytes(("1.json", b"[" * 10**5)), r"s\.tar#1\.json: is not"),
    "no tar": (b"\xff\xd8" + bytes(range(250)) * 9, r"s\.tar: the first header is damaged"),
    "empty": (b"", r"s\.tar: the tar is cut short at byte 0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_tars_are_refused_by_name(kind):
    data, message = BAD[kind]
    with pytest.raises(ShardError, match=message):
        index_of(data)


def test_a_tar_cut_short_anywhere_is_refused():
    data = tar_bytes(*PAIR, ("2.jpg", b"x" * 700), ("2.json", RECORD))
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    index_of(data[: end + 512])
    for length in range(0, end + 511, 37):
        with pytest.raises(ShardError, match="cut short"):
            index_of(data[:length])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_tars_raise_only_shard_errors(data):
    tar = bytearray(tar_bytes(*PAIR, ("k" * 120 + ".jpg", b"x"), ("k" * 120 + ".json", RECORD)))
    for _ in range(data.draw(st.integers(1, 6))):
        tar[data.draw(st.integers(0, 5000))] = data.draw(st.integers(0, 255))
    message, index = error_or_result(lambda: index_of(bytes(tar)))
    if index is None:
        assert message.startswith("s.tar")
    else:
        assert (index.table.offsets + index.table.sizes <= len(tar)).all()
