"""A model sharded among processes trains as a whole one in one, and any number resumes it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from instseg.engine.checkpoint import CheckpointFolder, read_checkpoint
from instseg.engine.distributed import rank_and_size
from instseg.engine.errors import CheckpointError, NonFiniteLossError
from instseg.engine.freeze import FreezeRule, FreezeSchedule
from instseg.engine.sharding import Sharding, whole_tensor
from instseg.engine.tensor_file import read_tensor_file
from instseg.engine.weights import load_weights
from instseg.structures import Instances

from .group import finish, run_group, start
from .tiny import TinyLoader, TinyModel, assert_close_rows, make_options, make_trainer, read_rows


class Blocks(TinyModel):
    """With two blocks, and a parameter smaller than the number of processes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        self.norm = nn.GroupNorm(2, 4)  # type: ignore[assignment]
        self.conv = nn.Sequential(  # type: ignore[assignment]
            self.conv,
            nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.ReLU()),
        )
        self.scale = nn.Parameter(torch.ones(1))
        for parameter in self.conv[1:].parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, images: list[Tensor], targets: list[Instances] | None = None) -> Any:
        found = super().forward(images, targets)
        if targets is not None:
            found["loss_size"] = found["loss_size"] * self.scale.squeeze()
        return found


class WithBatchNorm(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)


UNITS = ("conv.1", "conv.2")


def train(
    run_dir: Path,
    model: Callable[[], nn.Module] = Blocks,
    *,
    accumulate: int = 2,
    optimizer: str = "sgd",
    empty: frozenset[tuple[int, int]] = frozenset(),
    stop_at: tuple[int, int] | None = None,
    thaw: bool = False,
    delay: float = 0.0,
    **changes: Any,
) -> None:
    """A training, resumed where it was begun; sharded where there is more than one process."""

    def interrupt(batch: int) -> None:
        if (rank_and_size()[0], batch) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    built = model()
    freeze = FreezeSchedule(built, [FreezeRule(("conv.1",), until_epoch=2)]) if thaw else None
    sharding = Sharding(built, UNITS) if rank_and_size()[1] > 1 else None
    make_trainer(
        run_dir,
        model=built,
        sharding=sharding,
        freeze=freeze,
        optimizer=optimizer,
        options=make_options(accumulate=accumulate, **changes),
        loader=TinyLoader(empty=empty, on_batch=interrupt, delay=delay),
    ).run(resume=True)


def in_a_group(run_dir: Path, settings: dict[str, Any]) -> None:
    train(run_dir, **settings)


def assert_close_runs(one: Path, other: Path) -> None:
    """Equal but for the order in which sums were taken."""
    assert_close_rows(one, other)
    for name in ("best.safetensors", "final.safetensors"):
        tensors, others = load_weights(one / name)[0], load_weights(other / name)[0]
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, others[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 3, "optimizer": "adamw"},  # shared unevenly
        {"empty": frozenset({(0, 1), (1, 4), (2, 2), (2, 3), (3, 0)})},
        {"amp": "bf16", "clip_norm": None},
        {"amp": "fp16", "optimizer": "adamw"},
        {"thaw": True},
    ],
    ids=["plain", "three batches", "unreadable images", "bf16", "fp16", "thawed"],
)
def test_two_processes_train_as_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Five batches an epoch: the last step leaves the second process without one."""
    torch.set_num_threads(1)
    train(tmp_path / "one", **settings)
    run_group(in_a_group, tmp_path / "two", settings)
    assert_close_runs(tmp_path / "one", tmp_path / "two")


def test_batch_norm_is_averaged_and_a_stop_changes_nothing(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": WithBatchNorm, "optimizer": "adamw"}
    run_group(in_a_group, tmp_path / "whole", settings)
    run_group(in_a_group, tmp_path / "parts", settings | {"stop_at": (1, 8)})
    assert read_checkpoint(tmp_path / "parts" / "last.safetensors")[1].step == 5
    run_group(in_a_group, tmp_path / "parts", settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def assert_same_run(one: Path, other: Path) -> None:
    """To the last bit, the shards of the two newest checkpoints among it."""
    assert read_rows(one) == read_rows(other)
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(other) for path in other.rglob("*.safetensors"))
    assert len(files) == 4 + 2 * 2
    for name in files:
        mine, theirs = read_tensor_file(one / name)[0], read_tensor_file(other / name)[0]
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name


def test_any_number_of_processes_goes_on(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"accumulate": 3, "optimizer": "adamw"}
    train(tmp_path / "one", **settings)
    mixed = tmp_path / "mixed"
    run_group(in_a_group, mixed, settings | {"stop_at": (0, 8)}, size=3)
    assert read_checkpoint(mixed / "last.safetensors")[1].shards is not None
    run_group(in_a_group, mixed, settings | {"stop_at": (1, 14)}, size=2)
    train(mixed, stop_at=(0, 25), **settings)
    assert read_checkpoint(mixed / "last.safetensors")[1].shards is None
    run_group(in_a_group, mixed, settings, size=2)
    assert_close_runs(tmp_path / "one", mixed)


def test_killed_while_shards_are_written(tmp_path: Path) -> None:
    """At any file that one of the processes brings to the disk."""
    settings: dict[str, Any] = {"optimizer": "adamw", "epochs": 3}
    run_group(in_a_group, tmp_path / "whole", settings)
    for rank, call in ((0, 3), (0, 5), (0, 9), (1, 2), (1, 6)):
        processes = start(die_at_fsync, tmp_path / "parts", settings, rank, call)
        assert finish(processes)[rank] == -signal.SIGKILL
        found = CheckpointFolder(tmp_path / "parts").load()
        assert found is not None or (rank, call) == (0, 3)
    run_group(in_a_group, tmp_path / "parts", settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def die_at_fsync(run_dir: Path, settings: dict[str, Any], rank: int, call: int) -> None:
    if rank_and_size()[0] == rank:
        fsync, calls = os.fsync, 0

        def trapped(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = trapped
    train(run_dir, **settings)


def test_a_killed_process_takes_the_other_with_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": WithBatchNorm}
    run_group(in_a_group, tmp_path / "whole", settings)
    processes = start(in_a_group, tmp_path / "parts", settings | {"delay": 0.05})
    last = tmp_path / "parts" / "last.safetensors"
    while not last.exists() and processes[0].is_alive():
        time.sleep(0.005)
    os.kill(processes[1].pid, signal.SIGKILL)
    first, second = finish(processes)
    assert second == -signal.SIGKILL
    assert first not in (0, None)
    run_group(in_a_group, tmp_path / "parts", settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second epoch, at step 5."""
    run_dir = tmp_path_factory.mktemp("stopped")
    run_group(in_a_group, run_dir, {"stop_at": (1, 8)})
    return run_dir


def _copy(run_dir: Path, to: Path) -> CheckpointFolder:
    shutil.copytree(run_dir, to)
    return CheckpointFolder(to)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: os.truncate(path, path.stat().st_size - 3),
        lambda path: path.write_bytes(b"\xff" * 100),
    ],
    ids=["missing", "cut short", "rubbish"],
)
def test_damaged_shards_give_way_to_the_checkpoint_before(
    tmp_path: Path, stopped: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = _copy(stopped, tmp_path / "run")
    damage(sorted(folder.last.parent.glob("shards-5-*/*.safetensors"))[1])
    found = folder.load()
    assert found is not None
    assert found[0] == folder.previous
    assert found[2].step == 4
    assert "shards-5-1" in caplog.text
    assert "falling back to" in caplog.text
    for path in folder.last.parent.glob("shards-4-*/*.safetensors"):
        damage(path)
    with pytest.raises(CheckpointError, match=r"no usable checkpoint: .*shards-5-1.*shards-4-1"):
        folder.load()


def test_a_damaged_checkpoint_does_not_displace_the_one_before(
    tmp_path: Path, stopped: Path
) -> None:
    """Though the next save writes shards of its name, with which it would look good."""
    folder = _copy(stopped, tmp_path / "run")
    next(folder.last.parent.glob("shards-5-*/*.safetensors")).unlink()
    mine = folder.last.parent / "shards-of-my-own"
    mine.mkdir()
    run_group(in_a_group, tmp_path / "run", {"stop_at": (0, 7)})
    assert read_checkpoint(folder.last)[1].step == 5
    assert read_checkpoint(folder.previous)[1].step == 4
    assert {path.name for path in folder.last.parent.glob("shards-*")} == {
        "shards-4-1",
        "shards-5-1",
        mine.name,
    }


def test_processes_that_see_different_checkpoints_do_not_mix_them(
    tmp_path: Path, stopped: Path
) -> None:
    _copy(stopped, tmp_path / "run")
    run_group(see_less, tmp_path / "run")


def see_less(run_dir: Path) -> None:
    """The second process does not see one of the newest shards yet."""
    if rank_and_size()[0] == 1:
        newest = next(run_dir.glob("shards-5-*"))
        own = run_dir.with_name("of_its_own")
        shutil.copytree(run_dir, own)
        next((own / newest.name).glob("*.safetensors")).unlink()
        run_dir = own
    with pytest.raises(CheckpointError, match=r"see different checkpoints .*\(5, 1\), \(4, 1\)"):
        train(run_dir)


def test_another_models_shards_are_refused(tmp_path: Path, stopped: Path) -> None:
    _copy(stopped, tmp_path / "run")

    class Wider(Blocks):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    with pytest.raises(CheckpointError, match=r"'model\.frozen' is torch\.float32 \[2\], this run"):
        train(tmp_path / "run", Wider)


def test_a_disk_that_cannot_be_written_stops_all(tmp_path: Path) -> None:
    run_group(fail_to_save, tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / "last.safetensors")[1].step == 3
    assert {path.name for path in (tmp_path / "run").glob("shards-*")} == {
        "shards-2-0",
        "shards-3-1",
    }


def fail_to_save(run_dir: Path) -> None:
    def break_disk(batch: int) -> None:
        if batch == 6 and rank_and_size()[0] == 1:

            def refuse(descriptor: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            os.fsync = refuse

    built = Blocks()
    trainer = make_trainer(
        run_dir,
        model=built,
        sharding=Sharding(built, UNITS),
        loader=TinyLoader(on_batch=break_disk),
    )
    message = r"shards-4-1: cannot be written: process 1: No space left.*make room.*untouched"
    with pytest.raises(CheckpointError, match=message):
        trainer.run()


def test_the_first_process_tells_where_a_bad_loss_begins(tmp_path: Path) -> None:
    run_group(go_wrong, tmp_path)
    (box,) = (tmp_path / "black_box").glob("step-*")
    weights = load_weights(next(box.glob("*weights*.safetensors")))[0]
    torch.testing.assert_close(weights["scale"], torch.ones(1), rtol=0.2, atol=0)


class GoesWrong(Blocks):
    def forward(self, images: list[Tensor], targets: list[Instances] | None = None) -> Any:
        found = super().forward(images, targets)
        if targets is not None and len(targets) and rank_and_size()[0] == 1:
            found["loss_fit"] = found["loss_fit"] * float("nan")
        return found


def go_wrong(run_dir: Path) -> None:
    built = GoesWrong()
    trainer = make_trainer(run_dir, model=built, sharding=Sharding(built, UNITS))
    with pytest.raises(NonFiniteLossError, match=r"loss_fit is nan.*instseg replay"):
        trainer.run()


class UsesAPart(Blocks):
    """Of two heads the second is used in the first process alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rare = nn.Parameter(torch.ones(3))

    def forward(self, images: list[Tensor], targets: list[Instances] | None = None) -> Any:
        found = super().forward(images, targets)
        if rank_and_size()[0] == 0 and targets is not None:
            found["loss_rare"] = self.rare.square().mean()
        return found


@pytest.mark.skipif(
    not hasattr(FSDPModule, "set_reduce_scatter_unused_params"), reason="torch is older"
)
def test_a_part_that_works_in_one_process_alone(tmp_path: Path) -> None:
    run_group(in_a_group, tmp_path, {"model": UsesAPart, "epochs": 1, "ema_decay": None})
    weights = load_weights(tmp_path / "final.safetensors")[0]
    assert (weights["rare"] < 1).all()


# --- the division itself ------------------------------------------------------------------------


def test_what_is_sharded_and_put_together_again() -> None:
    run_group(shard, size=3)


def shard() -> None:
    plain, model = WithBatchNorm(), WithBatchNorm()
    model.norm.running_mean.fill_(3.0)
    sharding = Sharding(model, UNITS)
    model.eval()
    model.conv[1].train()
    model.head.requires_grad_(False)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert len(parameter.to_local()) <= -(-len(plain.get_parameter(name)) // 3)
    whole = sharding.whole(model)
    assert type(whole) is WithBatchNorm
    for name, tensor in whole.state_dict().items():
        assert not isinstance(tensor, DTensor)
        if name != "norm.running_mean":
            torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=0, atol=0)
    assert torch.equal(whole.norm.running_mean, torch.full((4,), 3.0))
    assert whole.norm.running_mean is not model.norm.running_mean
    assert not whole.training
    assert whole.conv[1].training
    assert [name for name, p in whole.named_parameters() if not p.requires_grad] == [
        "frozen",
        "head.weight",
        "head.bias",
    ]
    same = sum(float(whole_tensor(p).double().sum()) for p in model.parameters())
    assert same == pytest.approx(sum(float(p.double().sum()) for p in plain.parameters()))


def test_passes_in_halves_are_refused() -> None:
    run_group(refuse_halves)


def refuse_halves() -> None:
    built = Blocks()
    options = make_options(on_out_of_memory="split")
    with pytest.raises(ValueError, match="sharded model cannot repeat a pass in halves"):
        make_trainer(Path("unused"), model=built, sharding=Sharding(built, UNITS), options=options)
