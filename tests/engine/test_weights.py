"""Weights files: what comes back, and what is refused without running anything."""

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from instseg.engine.errors import CheckpointError, UnreadableFileError
from instseg.engine.weights import load_weights, save_weights


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        assert torch.equal(one[key], other[key])


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = {
        "half": torch.randn(3, 2).to(torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "strided": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).T,
    }
    save_weights(path, state, {"instseg": json.dumps({"categories": ["Zelle"]})})
    tensors, metadata = load_weights(path)
    assert_same(tensors, state)
    assert json.loads(metadata["instseg"]) == {"categories": ["Zelle"]}


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    base = torch.randn(4, 4)
    state = {"a": base, "tied": base, "row": base[1]}
    save_weights(tmp_path / "w.safetensors", state, {})
    assert_same(load_weights(tmp_path / "w.safetensors")[0], state)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path: Path, wrap: Any, zipped: bool) -> None:
    state = nn.Linear(3, 2).state_dict()
    path = tmp_path / "w.pth"
    torch.save(wrap(dict(state)), path, _use_new_zipfile_serialization=zipped)
    tensors, metadata = load_weights(path)
    assert_same(tensors, dict(state))
    assert metadata == {}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("writer", [partial(pickle.dump, protocol=2), torch.save])
def test_no_file_runs_code(tmp_path: Path, name: str, writer: Any) -> None:
    marker = tmp_path / "ran"
    with open(tmp_path / name, "wb") as file:
        writer({"weight": Payload(marker)}, file)
    with pytest.raises(UnreadableFileError, match=name):
        load_weights(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 0.3, 0.9])
def test_cut_short(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    if name == "w.pth":
        torch.save({"a": torch.randn(100)}, path)
    else:
        save_weights(path, {"a": torch.randn(100)}, {})
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(UnreadableFileError, match=name):
        load_weights(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.zeros(1)], "found a list"),
        ({"weight": 3, "bias": torch.zeros(1)}, "found a dict with the keys 'weight', 'bias'"),
        ({"model": {}}, "found a dict with the keys 'model'"),
        ({3: torch.zeros(1)}, "found a dict with the keys 3"),
    ],
)
def test_torch_files_of_other_content(tmp_path: Path, content: Any, found: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"w\.pth: expected a dict of tensors.*{found}"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(tmp_path / name)
