"""Groups of processes as torchrun makes them, without the seconds that importing torch takes."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from instseg.engine.distributed import process_group


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _join(rank: int, size: int, port: int, work: Callable[..., None], arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with process_group():
        work(*arguments)


def start(work: Callable[..., None], *arguments: Any, size: int = 2) -> list[Any]:
    """``work(*arguments)`` in each process of a group; it must be a function of a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.tiny", "torch._dynamo"])
    port = free_port()
    processes = [
        context.Process(target=_join, args=(rank, size, port, work, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[Any]) -> list[int]:
    """The exit codes; None for a process that waited for ever."""
    for process in processes:
        process.join(timeout=300)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def run_group(work: Callable[..., None], *arguments: Any, size: int = 2) -> None:
    assert finish(start(work, *arguments, size=size)) == [0] * size
