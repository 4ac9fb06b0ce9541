"""Bytes from a place that is not a folder: http(s) by the standard library, others by fsspec."""

from __future__ import annotations

import http.client
import io
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import IO, TypeVar

from instseg.data.shards.errors import FetchError

_logger = logging.getLogger(__name__)

_TIMEOUT = 60.0  # seconds without a byte
_WAITS = (0.5, 2.0, 8.0)  # seconds before another try
_GONE = (FileNotFoundError, PermissionError)  # which another try does not mend

_T = TypeVar("_T")


def is_url(location: str) -> bool:
    """Whether a location is an address (``s3://bucket/folder``) and not a local path."""
    return "://" in location


def read_range(url: str, offset: int, size: int) -> bytes:
    """``size`` bytes of a file from ``offset`` on.

    Raises:
        FetchError: after some tries; the message has the address and the reason.
    """

    def read() -> bytes:
        with closing(_open(url, offset, size)) as file:
            data = file.read(size)
        if len(data) != size:
            raise ConnectionError(f"{len(data)} bytes came instead of {size}")
        return data

    return with_tries(read, f"{url}, {size} bytes from {offset} on")


def read_whole(url: str, limit: int) -> bytes:
    """A whole file of at most ``limit`` bytes.

    Raises:
        FetchError: it cannot be read, or is longer.
        FileNotFoundError: there is none.
    """

    def read() -> bytes:
        with closing(_open(url)) as file:
            return file.read(limit + 1)

    data = with_tries(read, url)
    if len(data) > limit:
        raise FetchError(f"{url}: longer than {limit} bytes")
    return data


def with_stream(url: str, use: Callable[[IO[bytes]], _T]) -> _T:
    """What ``use`` makes of a file that is read from its beginning; it may be called again.

    Raises:
        FetchError: after some tries.
        FileNotFoundError: there is no such file.
    """

    def read() -> _T:
        with closing(_open(url)) as file:
            return use(file)

    return with_tries(read, url)


def with_tries(read: Callable[[], _T], what: str) -> _T:
    """``read()``, again after a pause where the connection fails.

    Raises:
        FetchError: the last try failed; names ``what``.
        FileNotFoundError, PermissionError: at once.
    """
    for wait in (*_WAITS, None):
        try:
            return read()
        except _GONE:
            raise
        except (OSError, http.client.HTTPException) as error:
            if wait is None:
                text = f"cannot be fetched after {len(_WAITS) + 1} tries"
                raise FetchError(f"{what}: {text} ({error})") from error
            _logger.warning("%s: %s; trying again in %g s", what, error, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _open(url: str, offset: int = 0, size: int | None = None) -> IO[bytes]:
    """A file, or ``size`` bytes of it, to read from the beginning."""
    if url.startswith(("http://", "https://")):
        return _open_http(url, offset, size)
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a protocol that needs another package
        raise FetchError(f"{url}: {error}") from error
    if size is None:
        file: IO[bytes] = system.open(path, "rb")
        return file
    return io.BytesIO(system.cat_file(path, start=offset, end=offset + size))


def _open_http(url: str, offset: int, size: int | None) -> IO[bytes]:
    request = urllib.request.Request(url)  # noqa: S310 - the caller has checked the protocol
    if size is not None:
        if not size:  # no HTTP range is empty
            return io.BytesIO()
        request.add_header("Range", f"bytes={offset}-{offset + size - 1}")
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            text = f"{url}: HTTP status {error.code} {error.reason}"
        if error.code in (404, 410):
            raise FileNotFoundError(text) from None
        if error.code in (401, 403):
            raise PermissionError(text) from None
        raise ConnectionError(text) from None
    if size is not None and answer.status != http.client.PARTIAL_CONTENT:
        answer.close()
        raise FetchError(
            f"{url}: the server gives no parts of files; set download: true for this data set"
        )
    return _Checked(answer)  # type: ignore[return-value]


class _Checked:
    """An answer whose early end is an error: `HTTPResponse.read` gives what there is."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer

    def read(self, size: int = -1) -> bytes:
        data = self._answer.read(None if size < 0 else size)
        missing = self._answer.length
        if missing and (size < 0 or len(data) < size):
            raise ConnectionError(f"the connection ended {missing} bytes early")
        return data

    def __enter__(self) -> _Checked:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._answer.close()
