"""How processes that were started together find each other in a store that knows older ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from instseg.engine.distributed import name_of_start
from instseg.engine.errors import EngineError


def start(store: dist.Store, order: tuple[int, ...]) -> list[str]:
    """The names that processes find, started in this order of their ranks."""
    with ThreadPoolExecutor(len(order)) as pool:
        names = [pool.submit(name_of_start, store, rank, len(order)) for rank in order]
        return [name.result(timeout=60) for name in names]


def test_each_start_has_a_name_of_its_own() -> None:
    """Though the others of a start come first, and find the first process of the one before."""
    store = dist.HashStore()
    starts = [start(store, order) for order in [(0, 1, 2), (2, 1, 0), (1, 0), (3, 1, 2, 0)]]
    assert [len(set(names)) for names in starts] == [1, 1, 1, 1]
    assert len({names[0] for names in starts}) == 4


def test_a_start_that_was_cut_short_is_not_joined() -> None:
    store = dist.HashStore()
    gone = "0" * 32
    store.set("instseg/first", gone)
    store.set(f"{gone}/1", "1" * 32)
    assert len({*start(store, (1, 0)), gone}) == 2


@pytest.mark.parametrize("known", [True, False], ids=["it is gone", "it never was there"])
def test_a_first_process_that_does_not_answer_is_named(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    store = dist.HashStore()
    if known:
        store.set("instseg/first", "0" * 32)
    with pytest.raises(EngineError, match=r"process 1 of 2 waited 0:00:00\.2.* at node7:29500"):
        name_of_start(store, 1, 2, patience=timedelta(seconds=0.2))


def test_a_process_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    store = dist.HashStore()
    with pytest.raises(EngineError, match=r"process 0 of 3 waited 0:00:00\.2.* for process 1 to"):
        name_of_start(store, 0, 3, patience=timedelta(seconds=0.2))
