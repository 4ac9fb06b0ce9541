"""Label images: the pixel value says which object is there, 0 that none is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from instseg.ops import rle
from instseg.structures.masks import RLE


def label_rles(labels: npt.NDArray[np.integer]) -> Iterator[tuple[int, RLE]]:
    """The compressed RLE of every id but 0 in ``[H, W]``, by ascending id.

    One pass over the image finds the runs of all objects, so that a thousand objects cost hardly
    more than one.
    """
    flat = labels.ravel(order="F")  # COCO's runs go down the columns
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    runs_by_id = np.argsort(flat[starts], kind="stable")
    ids, first = np.unique(flat[starts][runs_by_id], return_index=True)
    for label, runs in zip(ids.tolist(), np.split(runs_by_id, first[1:]), strict=True):
        if label == 0:
            continue
        edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        edges = np.append(edges, flat.size) if edges[-1] < flat.size else edges
        size = (labels.shape[0], labels.shape[1])
        yield label, rle.from_uncompressed(np.diff(edges, prepend=0).tolist(), size)
