"""What a faulty step leaves behind, and that it can be repeated from that alone."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from instseg.engine.black_box import KEPT, BlackBox, FaultyStep, MicroBatch, set_modes
from instseg.engine.black_box_file import (
    BATCHES,
    REPORT,
    WEIGHTS,
    BlackBoxError,
    Report,
    load_black_box,
)
from instseg.engine.buffers import BufferSnapshot
from instseg.engine.errors import CheckpointError
from instseg.engine.module_statistics import examine
from instseg.engine.rng import micro_batch_seed, seed_everything
from instseg.engine.weights import METADATA_KEY, load_weights

from .tiny import TinyModel, make_batch

CPU = torch.device("cpu")
METADATA: Any = {"categories": [{"id": 5, "name": "cell"}]}


def bad_model() -> TinyModel:
    """Its head's values have no square in float32, so that one of its losses overflows."""
    model = TinyModel().train()
    with torch.no_grad():
        model.head.weight.fill_(1e25)
    model.conv.bias.requires_grad_(False)
    model.conv.eval()
    return model


def run_step(model: nn.Module, numbers: list[int], step: int) -> list[MicroBatch]:
    """Forward passes as a training makes them; micro-batch n has the images n and n + 4."""
    found = []
    for number in numbers:
        batch = make_batch([number, number + 4])
        seed = micro_batch_seed(3, step, number)
        seed_everything(seed)
        with torch.no_grad():
            losses = model(batch.images, batch.targets)
        values = {"loss": sum(losses.values()), **losses}
        figures = {name: value.item() for name, value in values.items()}
        found.append(MicroBatch(number, seed, batch, 1 / len(numbers), figures))
    return found


def fault_of(micro_batches: list[MicroBatch], step: int = 3, **changes: Any) -> FaultyStep:
    values: dict[str, Any] = {
        "problem": "loss is inf, loss_fit is inf",
        "step": step,
        "epoch": 1,
        "lr": 0.5,
        "amp": None,
        "loss_scale": 1.0,
        "grad_norm": math.nan,
        "micro_batches": micro_batches,
    }
    return FaultyStep(**values | changes)


def record(run_dir: Path, step: int = 3) -> tuple[str, dict[str, Tensor], list[MicroBatch]]:
    """Record a step; returns the message, the weights before the step, and its batches."""
    model = bad_model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = BufferSnapshot(model)
    batches = run_step(model, [0, 1], step)
    message = BlackBox(run_dir, METADATA).record(model, before, fault_of(batches, step))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    return message, state, batches


def test_a_snapshot_puts_buffers_back() -> None:
    model = TinyModel().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = BufferSnapshot(model)
    run_step(model, [0], 0)
    assert not torch.equal(model.norm.running_mean, state["norm.running_mean"])  # type: ignore[arg-type]
    before.restore()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_step_is_repeated_from_its_folder(tmp_path: Path) -> None:
    message, state, batches = record(tmp_path)
    folder = tmp_path / "black_box" / "step-000003"
    assert message.endswith(f"statistics are in {folder}: instseg replay {folder}.")
    assert "Where it begins: forward: first in the output of the model itself" in message

    report, stored = load_black_box(folder)
    tensors, metadata = load_weights(folder / WEIGHTS)
    assert json.loads(metadata[METADATA_KEY]) == METADATA
    assert all(torch.equal(tensors[name], value) for name, value in state.items())
    model = TinyModel()
    model.load_state_dict(tensors)
    set_modes(model, report)
    assert [m.training for m in (model, model.conv, model.norm)] == [True, False, True]
    assert not model.conv.bias.requires_grad
    assert [entry.about.index for entry in stored] == [0, 1]
    for entry, micro in zip(stored, batches, strict=True):
        seed_everything(entry.about.seed)
        found = examine(model, entry.batch, device=CPU, amp=None, scale=entry.about.share)
        assert found.losses == micro.losses
        assert math.isinf(found.losses["loss_fit"])
        if entry.about.index == report.examined:
            assert report.examination == found


def test_the_report_tells_what_a_person_asks_first(tmp_path: Path) -> None:
    _, _, batches = record(tmp_path)
    content = json.loads((tmp_path / "black_box" / "step-000003" / REPORT).read_text())
    assert list(content)[:3] == ["problem", "findings", "step"]
    assert content["problem"] == "loss is inf, loss_fit is inf"
    figures = {key: content[key] for key in ("step", "epoch", "lr", "loss_scale", "grad_norm")}
    assert figures == {"step": 3, "epoch": 1, "lr": 0.5, "loss_scale": 1.0, "grad_norm": "nan"}
    first, second = content["batches"]
    assert (first["image_ids"], first["paths"]) == ([0, 4], ["0.png", "4.png"])
    assert (second["image_ids"], second["share"]) == ([1, 5], 0.5)
    assert first["losses"]["loss_fit"] == "inf"
    assert first["losses"]["loss_size"] == batches[0].losses["loss_size"]
    assert (content["eval_modules"], content["frozen"]) == (["conv"], ["frozen", "conv.bias"])


def test_the_first_bad_micro_batch_is_examined(tmp_path: Path) -> None:
    """Of three the second alone has a target that is not finite."""
    model = TinyModel().train()
    before = BufferSnapshot(model)
    batches = run_step(model, [0, 1, 2], 3)
    batches[1].batch.targets[0].boxes[0, 0] = math.nan  # type: ignore[attr-defined]
    BlackBox(tmp_path, METADATA).record(model, before, fault_of(batches))
    report, _ = load_black_box(tmp_path / "black_box" / "step-000003")
    assert report.examined == 1
    assert report.findings[0].startswith("forward: first in the targets: 1 NaN")


def test_a_bounded_number_of_folders(tmp_path: Path) -> None:
    """The first ones stay, and the latest."""
    (tmp_path / "black_box" / ".step-000099.tmp").mkdir(parents=True)  # of a process that died
    steps = list(range(1, KEPT + 4))
    for step in steps:
        record(tmp_path, step)
    record(tmp_path, 2)  # again: in place of the first
    kept = sorted(path.name for path in (tmp_path / "black_box").iterdir())
    assert kept == [f"step-{step:06d}" for step in [*steps[: KEPT - 1], steps[-1]]]


def test_what_hinders_the_writing_is_told_beside_the_fault(tmp_path: Path) -> None:
    (tmp_path / "black_box").write_text("in the way")
    message, _, _ = record(tmp_path)
    assert "Where it begins: " in message
    assert "Image ids: [0, 4, 1, 5]. No black box was written: " in message
    assert str(tmp_path / "black_box") in message


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise CheckpointError("weights.safetensors: cannot write 100 bytes: No space left")

    monkeypatch.setattr("instseg.engine.black_box_file.save_file_atomic", full)
    message, _, _ = record(tmp_path)
    assert "No black box was written: weights.safetensors: cannot write 100 bytes" in message
    assert list((tmp_path / "black_box").iterdir()) == []


def test_targets_that_cannot_be_stored(tmp_path: Path) -> None:
    class Other:
        def to(self, device: object) -> Other:
            return self

    class Model(TinyModel):
        def forward(self, images: list[Tensor], targets: Any = None) -> Any:
            return super().forward(images, make_batch([0, 4]).targets)

    model = Model().train()
    before = BufferSnapshot(model)
    micro = run_step(model, [0], 3)[0]
    micro.batch.targets[:] = [Other(), Other()]  # type: ignore[index]
    message = BlackBox(tmp_path, METADATA).record(model, before, fault_of([micro]))
    assert "No black box was written: targets of the type Other cannot be stored" in message


def test_a_repetition_that_fails_does_not_hide_the_fault(tmp_path: Path) -> None:
    class Failing(TinyModel):
        fails = False

        def forward(self, images: list[Tensor], targets: Any = None) -> Any:
            if self.fails:
                raise torch.OutOfMemoryError("no room for statistics")
            return super().forward(images, targets)

    model = Failing().train()
    before = BufferSnapshot(model)
    batches = run_step(model, [0, 1], 3)
    model.fails = True
    BlackBox(tmp_path, METADATA).record(model, before, fault_of(batches))
    report, stored = load_black_box(tmp_path / "black_box" / "step-000003")
    assert report.examination is None
    assert "micro-batch 0 failed: no room for statistics" in str(report.examination_error)
    assert len(stored) == 2


# --- folders that are none ----------------------------------------------------------------------


def _edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / REPORT).read_text())
    (folder / REPORT).write_text(json.dumps(content | changes))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / REPORT).unlink(), f"{REPORT}: no such file; a black box is a folder like"),
        (lambda f: _cut(f / REPORT), f"{REPORT}: cannot be read as JSON"),
        (lambda f: (f / REPORT).write_bytes(b"\xff\xfe"), f"{REPORT}: cannot be read as JSON"),
        (lambda f: (f / REPORT).write_text("[]"), f"{REPORT}: the whole: "),
        (lambda f: _edit(f, step="three"), f"{REPORT}: step: "),
        (lambda f: _edit(f, batches=[]), f"{REPORT}: batches: "),
        (lambda f: _edit(f, format_version=99), "format 99, but this instseg"),
        (lambda f: (f / BATCHES).unlink(), f"{BATCHES}: no such file"),
        (lambda f: _cut(f / BATCHES), f"{BATCHES}: not a complete safetensors file"),
        (
            lambda f: (f / BATCHES).write_bytes((f / WEIGHTS).read_bytes()),
            f"{BATCHES}: the whole: ",
        ),
        (
            lambda f: _edit(f, batches=json.loads((f / REPORT).read_text())["batches"][:1]),
            "holds 2 micro-batches, report.json names 1",
        ),
    ],
)
def test_a_damaged_folder(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    record(tmp_path)
    folder = tmp_path / "black_box" / "step-000003"
    damage(folder)
    with pytest.raises(BlackBoxError) as caught:
        load_black_box(folder)
    assert str(folder) in str(caught.value)
    assert message in str(caught.value)


def test_modes_of_another_model(tmp_path: Path) -> None:
    record(tmp_path)
    report, _ = load_black_box(tmp_path / "black_box" / "step-000003")
    for changes in ({"eval_modules": ["neck"]}, {"frozen": ["neck.weight"]}):
        with pytest.raises(BlackBoxError, match=r"the report and the model do not fit: .*neck"):
            set_modes(TinyModel(), report.model_copy(update=changes))


# --- several processes --------------------------------------------------------------------------


def _record_own_share(run_dir: Path, rank: int) -> None:
    """The third of four micro-batches, which process 0 works on, and the fourth are bad."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{run_dir}/meeting", rank=rank, world_size=2
    )
    model = TinyModel().train()
    before = BufferSnapshot(model)
    batches = run_step(model, [rank, rank + 2], 3)
    batches[1].batch.targets[0].boxes[0, 0] = math.nan  # type: ignore[attr-defined]
    message = BlackBox(run_dir, METADATA).record(model, before, fault_of(batches))
    (run_dir / f"message{rank}").write_text(message)
    dist.destroy_process_group()


def test_two_processes_write_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_record_own_share, args=(tmp_path, rank)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "message0").read_text() == (tmp_path / "message1").read_text()
    report, stored = load_black_box(tmp_path / "black_box" / "step-000003")
    assert isinstance(report, Report)
    assert [entry.about.image_ids for entry in stored] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert report.examined == 2
