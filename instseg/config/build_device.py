"""The device of a run."""

from __future__ import annotations

import torch

from instseg.config.loader import ConfigError
from instseg.config.schema import Config


def build_device(config: Config) -> torch.device:
    """``train.device``, or a GPU where there is one.

    Raises:
        ConfigError: see `find_device`.
    """
    return find_device(config.train.device, "train.device")


def find_device(name: str | None, source: str) -> torch.device:
    """The device of that name; None takes a GPU where there is one.

    Raises:
        ConfigError: the device is not known, or not there; the message begins with ``source``.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{source}: {error}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{source} is {name!r}: torch sees {torch.cuda.device_count()} GPUs")
    return device
