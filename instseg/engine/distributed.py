"""Several processes under torchrun: who this one is, and what they bring together."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.distributed_c10d import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from instseg.engine.errors import EngineError
from instseg.engine.protocols import Evaluator, ScoresT

_T = TypeVar("_T")


def rank_and_size() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_writer() -> bool:
    """Whether this process writes what the group leaves behind: logs, checkpoints, results."""
    return rank_and_size()[0] == 0


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process where torchrun started several; any other device as it is.

    It becomes the current one, so that nothing is put on another process's by default.
    """
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(own)
    return own


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group that torchrun announces in the environment, if there is one.

    What lies on GPUs goes through NCCL, all else through gloo.

    Raises:
        EngineError: a process did not answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(name_of_start(store, rank, size), store),
        rank=rank,
        world_size=size,
    )
    _patient.append(dist.new_group(backend="gloo", timeout=timedelta(days=7)))
    try:
        yield
    finally:
        _patient.clear()
        dist.destroy_process_group()


def name_of_start(
    store: Store, rank: int, size: int, patience: timedelta = default_pg_timeout
) -> str:
    """A name that the processes started together share, and that no others had in this store.

    torchrun may keep one store for all its restarts, where the addresses of processes that are gone
    would be found; its count of restarts is each node's own. So the first process makes up a name
    and answers the others; one that is gone does not.
    """
    mine = uuid.uuid4().hex
    until = time.monotonic() + patience.total_seconds()

    def wait_for(key: str, other: int, meanwhile: Callable[[], None] = lambda: None) -> str:
        while not store.check([key]):
            if time.monotonic() > until:
                raise EngineError(
                    f"process {rank} of {size} waited {patience} for process {other} to answer at "
                    f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}; where nodes come "
                    "and go, start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its "
                    "environment"
                )
            meanwhile()
            time.sleep(0.1)
        return store.get(key).decode()

    def ask() -> None:
        if store.check(["instseg/first"]):  # which may still be that of one that is gone
            store.set(f"{store.get('instseg/first').decode()}/{rank}", mine)

    if rank > 0:
        return wait_for(mine, 0, ask)
    store.set("instseg/first", mine)
    for other in range(1, size):
        store.set(wait_for(f"{mine}/{other}", other), mine)
    return mine


_patient: list[Any] = []
"""The group through which processes wait for work that may take longer than messages do."""


def wait_for_all() -> None:
    """Return when every process has come here, however long one of them works."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(torch.zeros(1), group=patient_group())


def patient_group() -> Any:
    """The group (gloo) for messages about work that may take long; None stands for the default."""
    return _patient[0] if _patient else None


def first_before_others(make: Callable[[], _T]) -> _T:
    """What ``make`` returns in each process; the first one is done before the others begin.

    For work whose result is kept on the disk, so that the others find it there.
    """
    made = make() if is_writer() else None
    wait_for_all()
    return make() if made is None else made


def sum_over_processes(values: Sequence[int]) -> list[int]:
    """The sums, place by place, of what each process gives; as many values in each."""
    if rank_and_size()[1] == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(total)
    return [int(value) for value in total.tolist()]


def gather(value: _T) -> list[_T]:
    """What each process gives, in the order of their numbers, pickled on the way."""
    _, size = rank_and_size()
    if size == 1:
        return [value]
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, value)
    return everyone


@torch.no_grad()
def broadcast_state(module: nn.Module) -> None:
    """Give a module's parameters and buffers the first process's values."""
    for tensor in module.state_dict().values():
        plain = tensor.contiguous()
        dist.broadcast(plain, src=0)
        tensor.copy_(plain)


def merge_evaluators(evaluator: Evaluator[ScoresT]) -> None:
    """Give every process what all of them have seen; an image that several saw counts once."""
    rank, size = rank_and_size()
    if size == 1:
        return
    for number, other in enumerate(gather(evaluator)):
        if number != rank:
            evaluator.merge(other)
