"""The page as an ASGI application: its addresses, and the files that the browser gets."""

import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from thalweg.client.web.actions import Actions
from thalweg.client.web.directory import Directories
from thalweg.client.web.downloads import Downloads
from thalweg.client.web.entrance import Entrance, Refusal
from thalweg.client.web.feed import Feeds
from thalweg.client.web.gateway import Gateway
from thalweg.client.web.protection import Protection
from thalweg.client.web.sessions import Sessions
from thalweg.client.web.streams import Streams
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.errors import ThalwegError

_log = logging.getLogger(__name__)
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# gRPC's codes as statuses of HTTP.
_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501,
}


class Page:
    """The page of one server. `key` lets those in who know it, with the credential of this process; `hosts` as of Protection."""

    def __init__(self, endpoint: Endpoint, port: int, *, key: str | None, hosts: Collection[str] | None, secure: bool) -> None:
        self.sessions = Sessions()
        self._gateway = Gateway(endpoint)
        self.feeds = Feeds(self._gateway)
        self._directories = Directories(self._gateway)
        entrance = Entrance(self._gateway, self.sessions, key, secure, port)
        self.streams = Streams(self._gateway, entrance, self.feeds, self._directories)
        self.routes = self._routes(entrance)
        starlette = Starlette(
            routes=self.routes,
            exception_handlers={
                Refusal: _refused,
                ThalwegError: _failed,
                HTTPException: _not_found,
                Exception: _unexpected,
            },
            lifespan=self._lifespan,
        )
        self.app: ASGIApp = Protection(starlette, hosts, secure)

    def _routes(self, entrance: Entrance) -> list[Route]:
        actions, downloads = Actions(self._gateway, entrance), Downloads(self._gateway, entrance)
        files = dict(_files(resources.files("thalweg.client.web") / "static"))
        page = files["page.html"]

        async def shell(_: Request) -> Response:
            return Response(page, media_type=_TYPES["html"])

        async def static(request: Request) -> Response:
            name = request.path_params["name"]
            if name not in files:
                raise HTTPException(404)
            return Response(files[name], media_type=_TYPES[name.rpartition(".")[2]])

        return [
            # The script of the page shows what the address names.
            *(Route(path, shell) for path in ("/", "/login", "/cluster", "/jobs/{job}", "/jobs/{job}/with/{other}")),
            Route("/static/{name:path}", static),
            Route("/api/session", entrance.describe),
            Route("/api/login", entrance.log_in, methods=["POST"]),
            Route("/api/logout", entrance.log_out, methods=["POST"]),
            Route("/api/jobs/{job}/file", actions.file),
            Route("/api/jobs/{job}/story", actions.story),
            Route("/api/jobs/{job}/with/{other}", actions.comparison),
            Route("/api/jobs/{job}/weights", downloads.weights),
            Route("/api/jobs/{job}/cancel", actions.cancel, methods=["POST"]),
            Route("/api/jobs/{job}/resume", actions.resume, methods=["POST"]),
            Route("/api/jobs/{job}/scale", actions.scale, methods=["POST"]),
            Route("/streams/jobs", self.streams.jobs),
            Route("/streams/jobs/{job}", self.streams.job),
            Route("/streams/cluster", self.streams.cluster),
        ]

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._gateway.open()
        try:
            yield
        finally:
            await self.feeds.close()
            await self._directories.close()
            await self._gateway.close()


def _files(folder: Traversable, prefix: str = "") -> list[tuple[str, bytes]]:
    """All files below a folder, by their paths."""
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            found.append((prefix + entry.name, entry.read_bytes()))
    return found


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101 - as it is registered
    return JSONResponse({"problem": error.problem}, error.status)


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, ThalwegError)  # noqa: S101 - as it is registered
    return JSONResponse({"problem": str(error), "reason": error.reason}, _STATUSES.get(error.code.name, 500))


async def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as it is registered
    return JSONResponse({"problem": error.detail}, error.status_code)


async def _unexpected(_: Request, error: Exception) -> Response:
    _log.error("a request of the page failed", exc_info=error)
    return JSONResponse({"problem": "The page's server failed. Its log says why."}, 500)
