"""The bar of a long indexing."""

import io

import pytest
from rich.console import Console

from instseg.config import index_progress
from instseg.config.index_progress import indexing_bar


def shown(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, int]], *, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=80)
    monkeypatch.setattr(index_progress, "Console", lambda stderr: console)
    with indexing_bar("/data/instances.json") as on_record:
        for call in calls:
            on_record(*call)
    return text.getvalue()


def test_a_bar_where_there_is_something_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, [(1000, 3000), (2000, 3000)], terminal=True)
    assert "indexing instances.json" in text
    assert "2000/3000" in text
    assert shown(monkeypatch, [(900, 900)], terminal=True) == ""
    assert shown(monkeypatch, [], terminal=True) == ""


def test_no_bar_in_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, [(1000, 3000), (3000, 3000)], terminal=False) == ""
