"""http and https, with the standard library: proxies come from the environment."""

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit
from urllib.request import Request

from thalweg.contract import addresses
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.remote.found import Found
from thalweg.learning.data.remote.limits import Limits, check_peer
from thalweg.learning.data.remote.retries import BrokenOffError, download, pause_or_raise

# How long nothing may arrive.
SILENCE_SECONDS = 30.0
_BLOCK = 1 << 20
# Of those that are errors: may pass.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def find(field: str, url: str, _: Sequence[str], limits: Limits) -> list[Found]:
    """The file at a URL, with its size and its ETag, or time of modification. Raises DataError and NodeError."""
    source = _Source(field, url, limits)
    shown = addresses.public(url)
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not name or "*" in name:
        raise DataError(f"{field}: {shown} names no file; http has no lists of files, so give the URL of one")
    failed = 0
    while True:
        try:
            with source.open({}) as answer:
                size, tag = _size(answer), _tag(answer)
                break
        except BrokenOffError as error:
            failed += 1
            pause_or_raise(source.subject, failed, str(error))
    if size is None:
        raise DataError(f"{source.subject} has no Content-Length, so that its end is unknown; download it, and give its path")
    if not tag:
        problem = "has neither an ETag nor a Last-Modified, so that a change would not be noticed; download it, and give its path"
        raise DataError(f"{source.subject} {problem}")
    return [Found(name, url, size, tag, fill=partial(source.fill, size, tag))]


class _Source:
    """A file at a URL."""

    def __init__(self, field: str, url: str, limits: Limits) -> None:
        self.subject = f"{field}: {addresses.public(url)}"
        self._field = field
        self._url = url
        self._opener = urllib.request.build_opener(_Http(field), _Https(field), _Redirects(field, limits))
        limits.check_url(field, url)

    def fill(self, size: int, tag: str, path: Path) -> None:
        """Downloads it. Raises DataError if it has changed since it was found, and NodeError if it cannot be read."""
        download(self.subject, path, size, partial(self._continue, size, tag))

    def _continue(self, size: int, tag: str, file: IO[bytes]) -> None:
        have = file.seek(0, 2)
        headers = {"Range": f"bytes={have}-"} if have else {}
        # A part of a file that has changed meanwhile would be of no use. A weak ETag says nothing of bytes.
        if have and not tag.startswith("W/"):
            headers["If-Range"] = tag
        with self.open(headers) as answer:
            if answer.status == 206:
                start, total = _range(answer)
                if start != have or total != size:
                    raise self._changed()
            else:
                # The whole file: the server has no ranges, or it is another one.
                file.truncate(0)
                file.seek(0)
                if _size(answer) != size:
                    raise self._changed()
            if _tag(answer) != tag:
                raise self._changed()
            try:
                while block := answer.read(_BLOCK):
                    file.write(block)
            except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
                raise BrokenOffError(_reason(error)) from error

    def open(self, headers: Mapping[str, str]) -> HTTPResponse:
        """The answer to a request. Raises BrokenOffError if it may be another one later, DataError, and NodeError."""
        request = Request(self._url, headers={"Accept-Encoding": "identity", **headers})  # noqa: S310 - http, https
        try:
            answer: HTTPResponse = self._opener.open(request, timeout=SILENCE_SECONDS)
            return answer
        except urllib.error.HTTPError as error:
            with suppress(OSError):
                error.close()
            if error.code in _PASSING:
                raise BrokenOffError(f"the server answers {error.code} {error.reason}") from None
            raise DataError(f"{self.subject} cannot be read: the server answers {error.code} {error.reason}") from None
        except urllib.error.URLError as error:
            reason = error.reason if isinstance(error.reason, Exception) else error
            raise BrokenOffError(_reason(reason)) from error
        except (http.client.HTTPException, OSError) as error:
            raise BrokenOffError(_reason(error)) from error

    def _changed(self) -> DataError:
        return DataError(f"{self.subject} has changed while it was read; submit the job again")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to other places that are allowed. A redirect to another scheme than http and https is an error."""

    def __init__(self, field: str, limits: Limits) -> None:
        self._field = field
        self._limits = limits

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """The request that follows, if it is allowed."""
        if wrong := addresses.mistake(newurl):
            raise DataError(f"{self._field}: {addresses.public(req.full_url)} leads to a URL that {wrong}")
        self._limits.check_url(self._field, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Plain(http.client.HTTPConnection):
    """A connection that looks at whom it leads to before anything is asked: a name may stand for any address."""

    def __init__(self, host: str, *, field: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._field = field

    def connect(self) -> None:
        """Connects. Raises NodeError if the address is not allowed."""
        super().connect()
        check_peer(self._field, f"http://{self.host}", self.sock.getpeername()[0])


class _Secure(http.client.HTTPSConnection):
    """The same with TLS."""

    def __init__(self, host: str, *, field: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout, context=ssl.create_default_context())
        self._field = field

    def connect(self) -> None:
        """Connects. Raises NodeError if the address is not allowed."""
        super().connect()
        check_peer(self._field, f"https://{self.host}", self.sock.getpeername()[0])


class _Http(urllib.request.HTTPHandler):
    def __init__(self, field: str) -> None:
        super().__init__()
        self._field = field

    def http_open(self, req: Request) -> HTTPResponse:
        """The answer over a connection that is checked."""
        return self.do_open(_Plain, req, field=self._field)  # type: ignore[arg-type]


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, field: str) -> None:
        super().__init__()
        self._field = field

    def https_open(self, req: Request) -> HTTPResponse:
        """The answer over a connection that is checked."""
        return self.do_open(_Secure, req, field=self._field)  # type: ignore[arg-type]


def _size(answer: HTTPResponse) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _tag(answer: HTTPResponse) -> str:
    return str(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


def _range(answer: HTTPResponse) -> tuple[int, int]:
    """The first byte of a part, and the bytes of the whole."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    if not found:
        raise BrokenOffError("the server says not which part of the file it sends")
    return int(found[1]), int(found[2])


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing arrived for {SILENCE_SECONDS:g} s"
    return str(error) or type(error).__name__
