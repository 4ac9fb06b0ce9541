"""Several processes under torchrun: who this one is, and what they bring together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from instseg.engine.protocols import Evaluator, ScoresT


def rank_and_size() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process where torchrun started several; any other device as it is."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group that torchrun announces in the environment, if there is one.

    Only Python objects go through it, so gloo serves processes with GPUs as well.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def merge_evaluators(evaluator: Evaluator[ScoresT]) -> None:
    """Give every process what all of them have seen; an image that several saw counts once."""
    rank, size = rank_and_size()
    if size == 1:
        return
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, evaluator)
    for number, other in enumerate(everyone):
        if number != rank:
            evaluator.merge(other)
