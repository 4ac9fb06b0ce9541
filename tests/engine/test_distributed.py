"""Two processes share the steps of one training, and end where one process does."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instseg.engine.checkpoint import read_checkpoint
from instseg.engine.distributed import gather, rank_and_size, sum_over_processes
from instseg.engine.gradient_exchange import GradientExchange
from instseg.engine.rng import micro_batch_seed
from instseg.structures import Instances

from .group import finish, run_group, start
from .tiny import (
    TinyLoader,
    TinyModel,
    assert_close_rows,
    assert_same_run,
    make_options,
    make_trainer,
)


class GroupNormModel(TinyModel):
    """Without running statistics, which differ with the process that sees a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)  # type: ignore[assignment]


def train(
    run_dir: Path,
    accumulate: int = 2,
    model: Callable[[], nn.Module] = GroupNormModel,
    empty: frozenset[tuple[int, int]] = frozenset(),
    stop_at: tuple[int, int] | None = None,
    **changes: Any,
) -> None:
    """A training, resumed where it was begun; ``stop_at``: the process and batch of a SIGTERM."""

    def interrupt(batch: int) -> None:
        if (rank_and_size()[0], batch) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    options = make_options(accumulate=accumulate, **changes)
    loader = TinyLoader(empty=empty, on_batch=interrupt)
    make_trainer(run_dir, options=options, loader=loader, model=model()).run(resume=True)


def assert_close_runs(one: Path, other: Path) -> None:
    """Equal but for the order in which sums were taken."""
    assert_close_rows(one, other)
    tensors, header = read_checkpoint(one / "last.safetensors")
    others, other_header = read_checkpoint(other / "last.safetensors")
    assert header.model_dump(exclude={"window", "best"}) == other_header.model_dump(
        exclude={"window", "best"}
    )
    assert tensors.keys() == others.keys()
    for key, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 3},  # shared unevenly; the last step of an epoch has two batches
        {"accumulate": 2, "empty": frozenset({(0, 1), (1, 4), (2, 2), (2, 3), (3, 0)})},
        {"amp": "bf16", "clip_norm": None},
        {"amp": "fp16"},
    ],
    ids=["plain", "three batches", "unreadable images", "bf16", "fp16"],
)
def test_two_processes_train_as_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Five batches an epoch: the last step leaves the second process without one."""
    torch.set_num_threads(1)
    train(tmp_path / "one", **settings)
    run_group(_train_with, tmp_path / "two", settings)
    assert_close_runs(tmp_path / "one", tmp_path / "two")


def _train_with(run_dir: Path, settings: dict[str, Any]) -> None:
    train(run_dir, **settings)


def test_two_processes_repeat_to_the_bit_after_a_stop(tmp_path: Path) -> None:
    """With batch norm, whose figures are averaged; the second process gets the signal."""
    settings: dict[str, Any] = {"model": TinyModel}
    run_group(_train_with, tmp_path / "whole", settings)
    run_group(_train_with, tmp_path / "parts", settings | {"stop_at": (1, 8)})
    _, header = read_checkpoint(tmp_path / "parts" / "last.safetensors")
    assert header.step == 5  # the step that batches 7 and 8 belong to was finished
    run_group(_train_with, tmp_path / "parts", settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    train(tmp_path / "one")
    run_group(_train_with, tmp_path / "both", {"stop_at": (0, 11)})
    train(tmp_path / "both", stop_at=(0, 25))
    run_group(_train_with, tmp_path / "both", {})
    assert_close_runs(tmp_path / "one", tmp_path / "both")


def test_a_killed_process_takes_the_other_with_it(tmp_path: Path) -> None:
    """Nobody waits for ever, and the run goes on from its checkpoint."""
    run_group(_train_with, tmp_path / "whole", {"model": TinyModel})
    processes = start(_train_slowly, tmp_path / "parts")
    last = tmp_path / "parts" / "last.safetensors"
    while not last.exists() and processes[0].is_alive():
        time.sleep(0.005)
    os.kill(processes[1].pid, signal.SIGKILL)
    first, second = finish(processes)
    assert second == -signal.SIGKILL
    assert first not in (0, None)
    run_group(_train_with, tmp_path / "parts", {"model": TinyModel})
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def _train_slowly(run_dir: Path) -> None:
    make_trainer(run_dir, loader=TinyLoader(delay=0.05)).run(resume=True)


def test_more_processes_than_batches_a_step_are_refused(tmp_path: Path) -> None:
    run_group(_refuse, tmp_path)


def _refuse(run_dir: Path) -> None:
    with pytest.raises(ValueError, match="a step has 1 batches, which 2 processes cannot share"):
        make_trainer(run_dir, options=make_options(accumulate=1))


def test_a_bad_loss_of_one_process_stops_all_with_the_same_words(tmp_path: Path) -> None:
    run_group(_fail, tmp_path)
    said = {(tmp_path / f"error{rank}").read_text() for rank in range(2)}
    assert len(said) == 1
    assert "loss is nan, loss_fit is nan" in said.pop()


class FailsInTheSecondProcess(TinyModel):
    def forward(self, images: list[Tensor], targets: list[Instances] | None = None) -> Any:
        losses = super().forward(images, targets)
        if rank_and_size()[0] == 1:
            losses["loss_fit"] = losses["loss_fit"] * float("nan")
        return losses


def _fail(run_dir: Path) -> None:
    from instseg.engine.errors import NonFiniteLossError

    with pytest.raises(NonFiniteLossError) as caught:
        make_trainer(run_dir, model=FailsInTheSecondProcess()).run()
    rank, _ = rank_and_size()
    (run_dir / f"error{rank}").write_text(str(caught.value))


# --- what processes bring together --------------------------------------------------------------


def test_sums_and_gathered_objects() -> None:
    assert sum_over_processes([3, 4]) == [3, 4]
    assert gather("alone") == ["alone"]
    run_group(_bring_together, size=3)


def _bring_together() -> None:
    rank, size = rank_and_size()
    assert size == 3
    assert sum_over_processes([rank, 1, 2**40]) == [3, 3, 3 * 2**40]
    assert gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]


@pytest.mark.parametrize("overlap", [True, False])
def test_sums_of_gradients_and_means_of_statistics(tmp_path: Path, overlap: bool) -> None:
    run_group(_exchange, overlap, tmp_path, size=3)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert found[0] == found[1] == found[2]
    # Inputs 1, 2 and 3 to a weight of 5 that is the first process's: loss w * x, d/dw = x.
    assert found[0]["weight"] == 5.0
    assert found[0]["grad"] == pytest.approx(6.0)
    # 0.5, 1.0 and 1.5, the first not moved in this step; tracked once, twice and three times.
    assert found[0]["mean"] == pytest.approx((1.0 + 1.5) / 2)
    assert found[0]["tracked"] == 3


class Scaled(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.norm = nn.BatchNorm1d(1, momentum=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + 0 * self.norm.weight.sum() + 0 * self.norm.bias.sum()


def _exchange(overlap: bool, folder: Path) -> None:
    rank, _ = rank_and_size()
    model = Scaled(5.0 + rank)
    exchange = GradientExchange(model, overlap=overlap)
    model.norm.running_mean.fill_(0.5 * (rank + 1))
    model.norm.num_batches_tracked.fill_(rank + 1)
    exchange.module(adds_up=overlap)(torch.tensor(rank + 1.0)).backward()
    if not overlap:
        exchange.add_gradients()
    exchange.average_buffers(moved=rank > 0, processes=2)
    assert model.weight.grad is not None
    (folder / f"{rank}.json").write_text(
        json.dumps(
            {
                "weight": model.weight.item(),
                "grad": model.weight.grad.item(),
                "mean": model.norm.running_mean.item(),
                "tracked": model.norm.num_batches_tracked.item(),
            }
        )
    )


def test_seeds_of_micro_batches_differ_and_repeat() -> None:
    seeds = {
        micro_batch_seed(seed, step, number)
        for seed in range(3)
        for step in range(20)
        for number in range(5)
    }
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert micro_batch_seed(1, 2, 3) == micro_batch_seed(1, 2, 3)
