"""Seeds of the global random generators: a training's draws are a function of its place alone."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (every device), numpy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def micro_batch_seed(seed: int, step: int, number: int) -> int:
    """The seed, 0 to 2^63 - 1, of what the model draws for one micro-batch of a step.

    A hash by numpy's ``SeedSequence``, whose values numpy promises not to change. So no draw
    depends on what was drawn before it, on a restart, or on the process that works the micro-batch.

    Args:
        seed: of the training.
        step: updates made before.
        number: place of the micro-batch in its step.
    """
    # The last key tells these streams from the samples', whose keys have two numbers.
    sequence = np.random.SeedSequence(seed, spawn_key=(step, number, 1))
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1
