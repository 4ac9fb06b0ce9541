"""Answers of a server that break off."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from instseg.data.shards import remote
from instseg.data.shards.errors import FetchError

WHOLE = bytes(range(250)) * 4


class BreaksOff(http.server.BaseHTTPRequestHandler):
    """Ends each connection after 400 of 1,000 bytes, until it has done so ``failures`` times."""

    failures = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(WHOLE)))
        self.end_headers()
        broken = type(self).failures > 0
        type(self).failures -= 1
        self.wfile.write(WHOLE[:400] if broken else WHOLE)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/file"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_broke_off_is_fetched_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BreaksOff, "failures", 2)
    assert remote.read_whole(url, 10_000) == WHOLE
    monkeypatch.setattr(BreaksOff, "failures", 2)
    assert remote.with_stream(url, lambda file: file.read(600) + file.read(600)) == WHOLE


def test_what_always_breaks_off_is_no_file(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BreaksOff, "failures", 100)
    with pytest.raises(FetchError, match=r"after 3 tries \(the connection ended 600 bytes early"):
        remote.read_whole(url, 10_000)
    with pytest.raises(FetchError, match="the connection ended 600 bytes early"):
        remote.with_stream(url, lambda file: file.read(1000))
