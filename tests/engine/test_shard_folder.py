"""Shards that others wrote: only documented errors, and nothing is believed that does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from instseg.engine.errors import UnreadableFileError
from instseg.engine.shard_folder import ShardFolder

KEY = "DCP_SHARDING_INFO"


def write(folder: Path, number: int, info: str | None, rows: int = 2) -> None:
    """A file with ``rows`` of a matrix ``a`` of ones."""
    folder.mkdir(exist_ok=True)
    metadata = None if info is None else {KEY: info}
    path = folder / f"shard-{number:05d}-model-00001-of-00001.safetensors"
    save_file({"a": torch.full((rows, 3), float(number))}, path, metadata)


def offset(*values: object) -> str:
    return json.dumps({"a": {"saved_offsets": list(values)}})


def test_two_shards_of_three_rows(tmp_path: Path) -> None:
    write(tmp_path / "s", 1, offset(0, 0), rows=2)
    write(tmp_path / "s", 2, offset(2, 0), rows=1)
    folder = ShardFolder.open(tmp_path / "s", files=2)
    assert folder.about["a"].shape == (3, 3)
    target = torch.zeros(3, 3)
    folder.read({"a": target})
    assert target[:, 0].tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("files", [0, 1, 3])
def test_another_number_of_files(tmp_path: Path, files: int) -> None:
    write(tmp_path / "s", 1, offset(0, 0))
    write(tmp_path / "s", 2, offset(2, 0))
    with pytest.raises(UnreadableFileError, match=f"has 2 files of the {files} that it had"):
        ShardFolder.open(tmp_path / "s", files)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"none: has 0 files of the 2"):
        ShardFolder.open(tmp_path / "none", 2)


@pytest.mark.parametrize(
    "info",
    [
        "{",
        "[]",
        "7",
        "{}",
        '{"a": {}}',
        '{"a": {"saved_offsets": 3}}',
        offset("x", "y"),
        offset(-9, 0),
        offset(1, 0),  # row 0 is nowhere
        offset(2**70, 0),
        offset(2**61, 2**61),
        offset(None, 0),
        offset(0),
        "[" * 100_000,
    ],
)
def test_metadata_that_does_not_fit(tmp_path: Path, info: str) -> None:
    write(tmp_path / "s", 1, info)
    with pytest.raises(UnreadableFileError, match="do not fit together"):
        ShardFolder.open(tmp_path / "s", files=1)


@pytest.mark.parametrize("starts", [(0, 1), (0, 3), (0, 0, 2), (1, 3), (0, 0)])
def test_shards_that_overlap_or_leave_a_gap(tmp_path: Path, starts: tuple[int, ...]) -> None:
    """Both at once too, where the number of values fits."""
    for number, start in enumerate(starts):
        write(tmp_path / "s", number, offset(start, 0), rows=2)
    with pytest.raises(UnreadableFileError, match=r"the parts of 'a' overlap or leave a gap"):
        ShardFolder.open(tmp_path / "s", files=len(starts))


def test_a_part_of_the_columns(tmp_path: Path) -> None:
    write(tmp_path / "s", 1, offset(0, 3))
    with pytest.raises(UnreadableFileError, match=r"'a' overlap or leave a gap at row 0"):
        ShardFolder.open(tmp_path / "s", files=1)
