"""Feeds inputs to a reader in a process of its own, and tells what was wrong with which."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch

from .guard import Guard
from .targets import Read, Target

_ADDRESSES = 4 << 30
"""Bytes of address space beyond the process's own, so that no input takes all of the machine's."""


@dataclass
class Report:
    """What became of the inputs of one target.

    Args:
        inputs: how many were read.
        refused: of them with one of the documented errors.
        seconds: processor time of the slowest.
        megabytes: memory beyond what the process had before the first.
        failures: each input (its number, -1 for the corpus's own, its bytes in hex), what it did.
    """

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0
    failures: list[tuple[int, str, str]] = field(default_factory=list)


def make_inputs(name: str, target: Target, count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """The corpus as it is, then inputs made of it; number i is the same for every ``count``."""
    seeds = target.corpus()
    yield from ((-1, data) for data in seeds)
    for number in range(count):
        rng = Random(f"{seed} {name} {number}")
        yield number, target.change(rng, rng.choice(seeds), seeds)


def examine(target: Target, inputs: Iterable[tuple[int, bytes]]) -> Report:
    """Read every input in a child process, which may crash or hang without harm."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _work(target, inputs, folder)
        _, status = os.waitpid(child, 0)
        report = folder / "report.json"
        if status == 0:
            return Report(**json.loads(report.read_text()))
        said, current = (folder / "stderr.txt").read_text(), folder / "current.json"
        if not current.exists():
            raise RuntimeError(f"the reader could not be set up: {said}")
        number, data = json.loads(current.read_text())
        code = os.waitstatus_to_exitcode(status)
        what = f"ended the process with {code}: {said[-500:]}"
        if code == -signal.SIGPROF:
            what = f"took more than {target.seconds:g} s"
        return Report(failures=[(number, data, what)])
    finally:
        shutil.rmtree(folder)


def _work(target: Target, inputs: Iterable[tuple[int, bytes]], folder: Path) -> None:
    """The child's whole life."""
    status = 1
    try:
        faulthandler.disable()  # a crash is reported by the parent
        os.dup2(os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT), 2)
        report = _read_all(target, inputs, folder)
        (folder / "report.json").write_text(json.dumps(asdict(report)))
        status = 0
    except BaseException:  # noqa: BLE001 (this process ends here, and its parent reads stderr)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _read_all(target: Target, inputs: Iterable[tuple[int, bytes]], folder: Path) -> Report:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    work = folder / "work"
    work.mkdir()
    os.chdir(work)
    read = target.prepare(work)
    data = b""
    guard = Guard(work, lambda path: target.names_files and path.name.encode() in data)
    for data in target.corpus():  # what is loaded and built once is no input's doing
        _outcome(read, data, target, guard)
    guard.found.clear()
    _limit_addresses()
    report, before = Report(), _peak()
    with (folder / "current.json").open("w") as current:
        for number, data in inputs:
            current.seek(0)
            current.truncate()
            json.dump((number, data.hex()), current)
            current.flush()
            start = time.process_time()
            signal.setitimer(
                signal.ITIMER_PROF, target.seconds
            )  # SIGPROF ends the process, C code too
            problem = _outcome(read, data, target, guard)
            signal.setitimer(signal.ITIMER_PROF, 0)
            report.seconds = max(report.seconds, time.process_time() - start)
            report.inputs += 1
            report.refused += problem == ""
            taken = _peak() - before
            if taken > max(target.megabytes, report.megabytes):
                problem = f"took {taken:.0f} MB of memory"
            report.megabytes = max(report.megabytes, taken)
            if guard.found:
                problem = "did " + ", ".join(guard.found[:3])
                guard.found.clear()
            if problem:
                report.failures.append((number, data.hex(), problem))
    return report


def _outcome(read: Read, data: bytes, target: Target, guard: Guard) -> str | None:
    """None: read, an empty text: refused as documented, otherwise what went wrong."""
    try:
        with guard.watching():
            read(data)
    except target.errors as error:
        return "" if str(error) else f"an empty message: {error!r}"
    except Exception:  # noqa: BLE001 (any other error is the finding)
        return traceback.format_exc()[-1500:]
    return None


def _peak() -> float:
    """The most memory the process had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _limit_addresses() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
