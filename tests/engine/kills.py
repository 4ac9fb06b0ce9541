"""Trainings killed with ``kill -9`` at random moments, again and again, until they have finished.

    python -m tests.engine.kills --kills 200

Half of the kills hit a training in one process, half one of the two processes of a group (the other
has to end by itself). After each kill the newest checkpoint must load and be no older than the
interval of saves; in the end weights, optimiser and metrics must equal, to the last bit, those of
a training that was left alone. Prints what was hit, and ends with status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instseg.engine.checkpoint import CheckpointFolder

from .group import finish, start
from .tiny import TinyLoader, assert_same_run, make_options, make_trainer, noisy_score

SAVE_EVERY = 2
STEPS_PER_EPOCH = 3
STEPS_PER_KILL = 6


def train(run_dir: Path, epochs: int) -> None:
    """The training of `tests.engine.tiny`, slow enough to be hit in every part of it."""

    def evaluate(model: nn.Module) -> dict[str, dict[str, float]]:
        (run_dir / f"evaluating{os.getpid()}").touch()
        time.sleep(0.01)
        (run_dir / f"evaluating{os.getpid()}").unlink()
        return noisy_score(model)

    options = make_options(
        epochs=epochs, checkpoint_every=SAVE_EVERY, log_every=1, eval_every=1, ema_decay=0.9
    )
    loader = TinyLoader(delay=0.002)
    trainer = make_trainer(run_dir, options=options, loader=loader, evaluate=evaluate)
    trainer.run(resume=True)
    (run_dir / "finished").touch()


def kill_until_finished(run_dir: Path, size: int, kills: int, seed: int) -> Counter[str]:
    """Kill at random moments until the training ends; counts what was going on at each kill."""
    moments = random.Random(seed)
    hit: Counter[str] = Counter()
    while not (run_dir / "finished").exists():
        processes = start(train, run_dir, epochs_for(kills), size=size)
        wait_for_progress(processes[0], run_dir, moments.randint(1, 4))
        time.sleep(moments.uniform(0, 0.06))
        victim = moments.choice(processes)
        if victim.is_alive():
            os.kill(victim.pid, signal.SIGKILL)
            codes = finish(processes)
            if None in codes:
                raise AssertionError(f"a process outlived the kill of another: {codes}")
            if not (run_dir / "finished").exists():
                hit[what_was_hit(run_dir)] += 1
                check(run_dir)
        else:
            codes = finish(processes)
            if codes != [0] * size:
                raise AssertionError(f"the training failed without a kill: {codes}")
    return hit


def epochs_for(kills: int) -> int:
    return max(2, kills * STEPS_PER_KILL // STEPS_PER_EPOCH)


def wait_for_progress(process: Any, run_dir: Path, checkpoints: int) -> None:
    """Until the newest checkpoint has changed so many times, or the process has ended."""
    last = run_dir / "last.safetensors"
    for _ in range(checkpoints):
        before = stamp(last)
        while process.is_alive() and stamp(last) in (before, None):
            time.sleep(0.001)


def stamp(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:  # before the first one, and between two renames
        return None


def what_was_hit(run_dir: Path) -> str:
    evaluating = list(run_dir.glob("evaluating*"))
    for path in evaluating:
        path.unlink()
    if evaluating:
        return "evaluation"
    unfinished = [path for path in run_dir.iterdir() if path.suffix == ".tmp"]
    return "writing" if unfinished else "step"


def check(run_dir: Path) -> None:
    """A checkpoint loads, and is no older than the interval of saves."""
    found = CheckpointFolder(run_dir).load()
    assert found is not None, "the kill came after the first checkpoint, and there is none"
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    lost = max(steps, default=0) - found[2].step
    assert lost <= SAVE_EVERY, f"{lost} steps are lost, with a checkpoint every {SAVE_EVERY}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2):
            kills, seed, done = args.kills // 2, args.seed, 0
            while done < kills:
                wanted = min(kills - done, 40)
                root = Path(folder) / f"{size}-{seed}"
                whole = start(train, root / "whole", epochs_for(wanted), size=size)
                assert finish(whole) == [0] * size
                hit = kill_until_finished(root / "killed", size, wanted, seed)
                assert_same_run(root / "whole", root / "killed")
                done += sum(hit.values())
                total += hit
                seed += 1
                print(f"{size} process(es): {dict(hit)}; the end is bit-equal", flush=True)
    print(f"{sum(total.values())} kills: {dict(total)}; no checkpoint damaged, all ends bit-equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
