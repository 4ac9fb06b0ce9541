"""Checkpoints: full disks, and files that were cut short or made by hand."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from instseg.engine.checkpoint import FORMAT_VERSION, CheckpointFolder, read_checkpoint
from instseg.engine.errors import CheckpointError
from instseg.engine.tensor_file import save_file_atomic

from .test_weights import Payload
from .tiny import TinyLoader, make_options, make_trainer

KEY = "instseg_checkpoint"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished")
    make_trainer(run_dir, optimizer="adamw", options=make_options(epochs=1)).run()
    return run_dir


@pytest.fixture
def content(finished: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A good checkpoint's tensors and header, to be spoiled."""
    with safe_open(finished / "last.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()[KEY])


def assert_refused(
    run_dir: Path, tensors: dict[str, torch.Tensor], header: Any, message: str, **changes: Any
) -> None:
    """The file is named with what is wrong, and the trainer's state is as before."""
    path = run_dir / "last.safetensors"
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, {KEY: text})
    options = changes.pop("options", make_options(epochs=1))
    trainer = make_trainer(run_dir, optimizer="adamw", options=options, **changes)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        trainer.run(resume=True)
    assert str(path) in str(caught.value)
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert trainer.state.step == 0


# --- the file's tensors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.conv.weight"), r"lacks 'model\.conv\.weight' \(1 in all\)"),
        (lambda t: t.pop("ema.n_averaged"), r"lacks 'ema\.n_averaged'"),
        (lambda t: t.pop("optimizer.conv.weight.exp_avg"), "lacks 'optimizer.conv.weight.exp_avg'"),
        (lambda t: t.update({"model.x": torch.ones(1)}), r"has the unknown 'model\.x'"),
        (
            lambda t: t.update({"optimizer.frozen.exp_avg": torch.ones(2)}),
            "has the unknown 'optimizer.frozen.exp_avg'",
        ),
        (
            lambda t: t.update({"model.conv.weight": torch.ones(4, 3, 3)}),
            r"'model\.conv\.weight' is torch\.float32 \[4, 3, 3\], "
            r"this run needs torch\.float32 \[4, 3, 3, 3\]",
        ),
        (
            lambda t: t.update({"model.head.bias": torch.ones(2, dtype=torch.float64)}),
            r"'model\.head\.bias' is torch\.float64 \[2\], this run needs torch\.float32 \[2\]",
        ),
        (
            lambda t: t.update({"optimizer.head.bias.exp_avg_sq": torch.ones(3)}),
            r"'optimizer\.head\.bias\.exp_avg_sq' is torch\.float32 \[3\]",
        ),
    ],
)
def test_tensors_made_by_hand(tmp_path: Path, content: Any, change: Any, message: str) -> None:
    tensors, header = content
    change(tensors)
    assert_refused(tmp_path, tensors, header, message)


# --- the file's header --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "3"}, "header key 'step': Input should be a valid integer"),
        ({"step": -1}, "header key 'step': Input should be greater than or equal to 0"),
        ({"step": 99}, "step 99 does not lie in epoch 2 of 3 steps each"),
        ({"surprise": 1}, "header key 'surprise': Extra inputs are not permitted"),
        ({"window": {"loss": [1.0]}}, r"header key 'window\.loss"),
        ({"optimizer": "SGD"}, "was trained with optimizer SGD, this run has AdamW"),
        ({"batches_per_epoch": 7}, "was trained with batches_per_epoch 7, this run has 5"),
        ({"accumulate": 3}, "was trained with accumulate 3, this run has 2"),
        ({"scaler": {"scale": 2.0}}, r"header key 'scaler' has \['scale'\], this run needs \[\]"),
        (
            {"optimizer_slots": {"nobody": ["exp_avg"]}},
            r"lacks 'optimizer\.nobody\.exp_avg'",
        ),
        (
            {"format_version": FORMAT_VERSION + 1, "unheard": "of"},
            rf"checkpoint format {FORMAT_VERSION + 1}, but .* reads up to {FORMAT_VERSION}; "
            "install a newer instseg",
        ),
        (
            {"format_version": FORMAT_VERSION - 1, "generators": "of old"},
            rf"checkpoint format {FORMAT_VERSION - 1}, of an older instseg, .*train\.init_from",
        ),
    ],
)
def test_header_made_by_hand(
    tmp_path: Path, content: Any, change: dict[str, Any], message: str
) -> None:
    tensors, header = content
    assert_refused(tmp_path, tensors, header | change, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "'instseg_checkpoint' is not JSON"),
        ("[" * 100_000, "'instseg_checkpoint' is not JSON"),
        ("[]", "header key 'instseg_checkpoint': "),
        ("{}", "header key 'step': Field required"),
    ],
)
def test_header_of_other_content(tmp_path: Path, content: Any, text: str, message: str) -> None:
    assert_refused(tmp_path, content[0], text, message)


def test_state_of_a_parameter_that_is_not_trained(tmp_path: Path, content: Any) -> None:
    tensors, header = content
    tensors["optimizer.frozen.exp_avg"] = torch.ones(2)
    header["optimizer_slots"]["frozen"] = ["exp_avg"]
    assert_refused(tmp_path, tensors, header, "optimizer state for 'frozen', which this run does")


def test_other_settings_than_the_run_was_started_with(tmp_path: Path, content: Any) -> None:
    tensors, header = content
    no_ema = make_options(epochs=1, ema_decay=None)
    assert_refused(tmp_path, tensors, header, "has the unknown 'ema", options=no_ema)
    fp16 = make_options(epochs=1, amp="fp16")
    assert_refused(tmp_path, tensors, header, "resume with the same amp setting", options=fp16)
    more_images = TinyLoader(images=12)
    assert_refused(
        tmp_path, tensors, header, "batches_per_epoch 5, this run has 6", loader=more_images
    )


def test_a_weights_file_is_no_checkpoint(finished: Path) -> None:
    with pytest.raises(CheckpointError, match=r"final\.safetensors: not a training checkpoint"):
        read_checkpoint(finished / "final.safetensors")


def test_two_damaged_checkpoints_are_not_a_fresh_start(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name in ("last.safetensors", "previous.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(CheckpointError, match=r"no usable checkpoint: .*last\.s.*previous\.s"):
        make_trainer(tmp_path).run(resume=True)
    assert not marker.exists()


# --- full disks ---------------------------------------------------------------------------------


def fail_in(monkeypatch: pytest.MonkeyPatch, name: str, after: int = 0) -> None:
    """Make ``os.<name>`` fail as on a full disk, after so many good calls."""
    original = getattr(os, name)
    calls = iter(range(10**9))

    def full(*arguments: Any) -> Any:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(os, name, full)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "w.safetensors"
    save_file_atomic(path, {"a": torch.zeros(5)}, {})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        fail_in(patch, call)
        with pytest.raises(CheckpointError) as caught:
            save_file_atomic(path, {"a": torch.ones(1000)}, {})
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot write 4,0")  # 4000 bytes and a header
    assert "No space left on device" in message
    assert "bytes are free there" in message
    assert "make room" in message
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert path.read_bytes() == before


def test_training_on_a_full_disk_stops_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(tmp_path / "whole", loggers=[]).run()
    with monkeypatch.context() as patch:
        fail_in(patch, "fsync", after=9)
        with pytest.raises(CheckpointError, match="No space left"):
            make_trainer(tmp_path / "parts", loggers=[]).run()
    names = {p.name for p in (tmp_path / "parts").iterdir()}
    assert names == {"last.safetensors", "previous.safetensors", "best.safetensors"}
    _, header = read_checkpoint(tmp_path / "parts" / "last.safetensors")
    assert 0 < header.step < 24
    make_trainer(tmp_path / "parts", loggers=[]).run(resume=True)
    for name in ("last.safetensors", "best.safetensors", "final.safetensors"):
        whole, parts = ((tmp_path / run / name).read_bytes() for run in ("whole", "parts"))
        assert whole == parts, name


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    path = small_disk / "last.safetensors"
    save_file_atomic(path, {"a": torch.ones(25_000)}, {})
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_file_atomic(path, {"a": torch.ones(50_000)}, {})
    assert [p.name for p in small_disk.iterdir()] == ["last.safetensors"]
    assert path.read_bytes() == before


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone/w\.safetensors: cannot write .*No such file"):
        save_file_atomic(tmp_path / "gone" / "w.safetensors", {"a": torch.zeros(1)}, {})


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert not folder.exists()
    assert folder.load() is None
