"""Average precision of bootstrap replicates, in numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int32]


def bootstrap_precision(
    found: Bools,
    ignored: Bools,
    rank: Ints,
    image: Ints,
    weights: Weights,
    objects: Ints,
    recalls: Floats,
    limits: Ints,
) -> tuple[Floats, Ints]:
    """See `instseg.ops.bootstrap`."""
    hits = found & ~ignored
    drawn = weights[image]
    precision = np.stack(list(_average_precisions(hits, ignored, drawn, objects, recalls)), axis=1)
    counts = np.zeros((len(objects), hits.shape[1], len(limits)), np.int64)
    for t in range(hits.shape[1]):
        places = np.flatnonzero(hits[:, t])
        for m, limit in enumerate(limits):
            counts[:, t, m] = drawn[places[rank[places] < limit]].sum(axis=0)
    return precision, counts


def _average_precisions(
    hits: Bools, ignored: Bools, drawn: Weights, objects: Ints, recalls: Floats
) -> Iterator[Floats]:
    """``[B]`` average precisions at each threshold; ``drawn``: ``[N, B]``."""
    passed = _recalls_passed(objects, recalls)
    replicates = np.arange(len(objects))
    always = ignored.all(axis=1, keepdims=True)
    some = ignored & ~always
    counted = np.cumsum(np.where(always, 0, drawn), axis=0, dtype=np.int32)
    for t in range(hits.shape[1]):
        places = np.flatnonzero(hits[:, t])
        if len(places) == 0:
            yield np.zeros(len(objects))
            continue
        true = np.cumsum(drawn[places], axis=0, dtype=np.int32)
        all_counted = counted[places]
        left_out = np.flatnonzero(some[:, t])
        if len(left_out):
            before = np.cumsum(drawn[left_out], axis=0, dtype=np.int32)
            index = np.searchsorted(left_out, places)
            all_counted -= np.concatenate([np.zeros_like(before[:1]), before])[index]
        precision = true / np.maximum(all_counted, 1)
        precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        steps = np.diff(passed[replicates, true], axis=0, prepend=0)
        yield np.einsum("nb,nb->b", precision, steps) / len(recalls)


def _recalls_passed(objects: Ints, recalls: Floats) -> npt.NDArray[np.int64]:
    """``[B, max + 1]``: how many of the recalls n true positives reach, for each replicate."""
    found = np.arange(objects.max(initial=0) + 1)
    reached = found / np.maximum(objects, 1)[:, None]
    table = np.searchsorted(recalls, reached, side="right")
    table[:, 0] = 0  # recall 0 is read off at the first hit
    return table
