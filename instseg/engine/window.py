"""Means of training figures over the steps since the last logged row."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Window:
    """Sums of losses, which a checkpoint stores, and of times, which belong to this process."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}
        self._images = 0
        self._seconds = 0.0
        self._waited = 0.0

    def add(self, figures: Mapping[str, float]) -> None:
        """Count one step's figures; a norm that overflowed fp16 has no place in a mean."""
        for name, value in figures.items():
            if math.isfinite(value):
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value, count + 1)

    def add_time(self, images: int, seconds: float, waited: float) -> None:
        """Count one step of ``seconds``, of which ``waited`` went by waiting for data."""
        self._images += images
        self._seconds += seconds
        self._waited += waited

    def means(self) -> dict[str, float]:
        """Each figure's mean, ``images_per_second``, and ``data_wait``, a fraction of the time."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        if self._seconds > 0:
            means["images_per_second"] = self._images / self._seconds
            means["data_wait"] = self._waited / self._seconds
        return means
