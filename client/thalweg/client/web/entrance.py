"""Who may see the page: how a session begins and ends, and which one a request belongs to."""

import asyncio
import hmac
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from thalweg.client.web.gateway import Credential, Gateway
from thalweg.client.web.sessions import LIFETIME_SECONDS, Session, Sessions
from thalweg.contract.errors import ThalwegError

# How long the body of a request may take to arrive.
_BODY_SECONDS = 10.0
CSRF_HEADER = "x-csrf-token"


class Refusal(Exception):  # noqa: N818 - no error of the program
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem


class Entrance:
    """The page's door. `key` is a password for the credential of the process that serves the page, None if there is none."""

    def __init__(self, gateway: Gateway, sessions: Sessions, key: str | None, secure: bool, port: int) -> None:
        self.sessions = sessions
        self._gateway = gateway
        self._key = key
        self._secure = secure
        # Browsers do not distinguish ports: each page on a machine has a name of its own.
        self._cookie = "__Host-thalweg" if secure else f"thalweg-{port}"

    def session(self, request: Request) -> Session:
        """The session of a request. Raises Refusal if there is none."""
        session = self.sessions.find(request.cookies.get(self._cookie, ""))
        if session is None:
            raise Refusal(401, "Log in first.")
        return session

    def confirmed(self, request: Request) -> Session:
        """The session of a request that changes something: it must come from this page. Raises Refusal."""
        self.check_origin(request)
        session = self.session(request)
        if not session.confirms(request.headers.get(CSRF_HEADER, "")):
            raise Refusal(403, "The action does not come from this page. Reload it, and try again.")
        return session

    def check_origin(self, request: Request) -> None:
        """Raises Refusal if a request that changes something comes from another site, or from a form."""
        origin = request.headers.get("origin")
        if origin is not None and origin != f"{request.url.scheme}://{request.headers.get('host', '')}":
            raise Refusal(403, "The request comes from another site.")
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Refusal(403, "The request comes from another site.")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refusal(415, "The request must be JSON.")

    async def log_in(self, request: Request) -> Response:
        """Begins a session with a token, or with the page's key."""
        self.check_origin(request)
        given = await body(request)
        token = given.get("token", "")
        if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
            raise Refusal(400, "A token is one line of printable ASCII characters.")
        caller = request.client.host if request.client else ""
        if not self.sessions.may_try(caller):
            raise Refusal(429, "Too many wrong tokens. Wait a minute, then try again.")
        token = token.strip()
        is_key = self._key is not None and hmac.compare_digest(token.encode(), self._key.encode())
        try:
            session = await self._enter(Credential(own=True) if is_key else Credential(token or None))
        except ThalwegError as error:
            if error.code is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            self.sessions.failed(caller)
            raise Refusal(401, "The server does not know this token.") from error
        return self._answer(session)

    async def log_out(self, request: Request) -> Response:
        """Ends a session."""
        self.sessions.close(self.confirmed(request))
        answer = JSONResponse({})
        answer.delete_cookie(self._cookie, secure=self._secure, httponly=True, samesite="strict")
        return answer

    async def describe(self, request: Request) -> Response:
        """Tells the page who its user is, or that it must log in. Begins a session if the server asks for no token."""
        try:
            session = self.session(request)
        except Refusal:
            try:
                return self._answer(await self._enter(Credential()))
            except ThalwegError as error:
                if error.code is not grpc.StatusCode.UNAUTHENTICATED:
                    raise
                return JSONResponse({"session": None})
        return JSONResponse({"session": self._about(session)})

    async def _enter(self, credential: Credential) -> Session:
        caller = await self._gateway.caller(credential)
        return self.sessions.open(credential, caller.name, caller.role, tuple(caller.methods))

    def _answer(self, session: Session) -> Response:
        answer = JSONResponse({"session": self._about(session)})
        answer.set_cookie(
            self._cookie,
            session.id,
            max_age=int(LIFETIME_SECONDS),
            httponly=True,
            samesite="strict",
            secure=self._secure,
        )
        return answer

    def _about(self, session: Session) -> dict[str, Any]:
        return {
            "name": session.name,
            "role": session.role,
            "methods": list(session.methods),
            "csrf": session.csrf,
            "server": str(self._gateway.address),
            "needs_token": session.credential != Credential(),
        }


async def body(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries. Raises Refusal."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            given = await request.json()
    except TimeoutError as error:
        raise Refusal(408, "The request did not arrive in time.") from error
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise Refusal(400, "The request must be a JSON object.")
    return given
