"""A web server on loopback, whose answers tests choose."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What a server answers, and the requests that it got: path and range."""

    content: bytes = b""
    tag: str = '"1"'
    ranges: bool = True
    # How many bytes each of the next answers has before the connection is closed.
    broken: list[int] = field(default_factory=list)
    # The status of each of the next answers, 200 for a usual one.
    statuses: list[int] = field(default_factory=list)
    location: str = ""
    length: bool = True
    # Is set when a silent answer may end.
    silent: threading.Event | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def served(site: Site) -> Iterator[Site]:
    """Within the context, the site is at its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            site.asked.append((self.path, wanted))
            if (status := site.statuses.pop(0) if site.statuses else 200) != 200:
                self.send_response(status)
                self.send_header("Location", site.location)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
            if start and self.headers.get("If-Range", site.tag) != site.tag:
                start = 0
            body = site.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
            if site.tag:
                self.send_header("ETag", site.tag)
            if site.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: site.broken.pop(0)] if site.broken else body)
            if site.silent:
                self.wfile.flush()
                site.silent.wait()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield site
        finally:
            if site.silent:
                site.silent.set()
            server.shutdown()
            thread.join()
