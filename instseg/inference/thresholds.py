"""From probabilities to labels by thresholds that follow from the map itself.

For maps of one foreground: two exclusive classes, of which 0 is the background, or classes that may
overlap, each by itself. The best threshold for a whole data set is `model.threshold`, which
`instseg.evaluation.threshold` finds. `SemanticMap.resized` finds labels by that one: label anew
after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from skimage.filters import threshold_local, threshold_otsu

from instseg.structures import SemanticMap

Method = Literal["local", "otsu"]


@dataclass(frozen=True)
class AdaptiveThreshold:
    """Labels anew a map by thresholds that follow from its own scores.

    Args:
        method: "local": each pixel's threshold is the Gaussian-weighted mean of the scores around
            it, less ``offset``; "otsu": one threshold for each class (Otsu, 1979).
        window: side of the neighbourhood of "local" in pixels, odd.
        offset: of "local".
        bounds: thresholds are held in this range. For where an image has no object, or a
            neighbourhood lies within one, a threshold between the scores there parts only noise.
    """

    method: Method = "local"
    window: int = 51
    offset: float = 0.0
    bounds: tuple[float, float] = (0.25, 0.75)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise ValueError(f"method must be one of {known}, got {self.method!r}")
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3 pixels, got {self.window}")
        low, high = self.bounds
        if not 0 < low <= high < 1:
            raise ValueError(f"bounds must be ascending between 0 and 1, got {self.bounds}")

    def __call__(self, semantic: SemanticMap) -> SemanticMap:
        """The map with its labels found anew.

        Raises:
            ValueError: it has no scores, or more than two exclusive classes.
        """
        scores = _foregrounds(semantic)
        return _relabelled(semantic, np.stack([score > self._threshold(score) for score in scores]))

    def _threshold(self, score: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.method == "otsu":
            threshold = threshold_otsu(score)
        else:
            threshold = threshold_local(score, self.window, method="gaussian", offset=self.offset)
        clipped: npt.NDArray[np.float32] = np.clip(threshold, *self.bounds)
        return clipped


def _foregrounds(semantic: SemanticMap) -> npt.NDArray[np.float32]:
    """``[F, H, W]``: the probabilities of what is not background."""
    if semantic.scores is None:
        raise ValueError("the map has no scores: a threshold needs a prediction")
    scores: npt.NDArray[np.float32] = semantic.scores.detach().float().cpu().numpy()
    if semantic.is_multi_label:
        return scores
    if len(scores) != 2:
        raise ValueError(
            f"the map has {len(scores)} exclusive classes: thresholds are for 2, background and "
            "foreground, or for classes that may overlap"
        )
    return scores[1:]


def _relabelled(semantic: SemanticMap, present: npt.NDArray[np.bool_]) -> SemanticMap:
    labels = torch.from_numpy(present.astype(np.uint8)).to(semantic.labels.device)
    return replace(semantic, labels=labels if semantic.is_multi_label else labels[0])
