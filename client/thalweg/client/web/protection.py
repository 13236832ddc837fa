"""What every request and every answer of the page passes: the check of the host, bounds, and headers for the browser."""

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Nothing comes from elsewhere, nothing is written into the page as text, nobody frames it.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
# Requests of the page have small bodies.
MAX_BODY_BYTES = 16 << 10


class Protection:
    """An ASGI application around another one. `hosts` are the names by which browsers may reach it; None for any.

    A page on this machine's loopback may be reached by a name of loopback alone: else a stranger's page could let its own name
    stand for 127.0.0.1, and read ours as if it were its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, secure: bool) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._headers = _HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal:
            await refusal(scope, receive, send_protected)
        else:
            await self._app(scope, receive, send_protected)

    def _refusal(self, headers: Headers) -> PlainTextResponse | None:
        if not self._knows(headers.get("host", "")):
            problem = (
                "This page is not known by that name. Open it by the address that it was started with, or add --web-host NAME."
            )
            return PlainTextResponse(problem, 421)
        size = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not (size.isascii() and size.isdigit()) or int(size) > MAX_BODY_BYTES:
            return PlainTextResponse(f"A request has at most {MAX_BODY_BYTES} bytes, and says how many.", 413)
        return None

    def _knows(self, host: str) -> bool:
        if self._hosts is None:
            return bool(host)
        name = host_name(host)
        return name in self._hosts or _is_loopback(name)


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host.rpartition(":")[0] if host.rpartition("]")[2].startswith(":") or ("]" not in host and ":" in host) else host
    return name.removeprefix("[").removesuffix("]").lower().rstrip(".")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
