"""HTTPS with the certificate of the server, which is read again when its files change."""

import asyncio
import ssl
from contextlib import suppress

from thalweg.contract.tls import ServerTls

# How soon a change of the files is noticed.
_LOOK_SECONDS = 5.0


class Https:
    """The TLS of pages. Connections that are there keep the certificate with which they were made. Belongs to an event loop.

    No client needs a certificate of its own: what is not for everyone takes a token.
    """

    def __init__(self, files: ServerTls) -> None:
        self._files = files
        self._stamp = files.stamp
        self._current: ssl.SSLContext | None = None
        # OpenSSL asks at each handshake which context is to be used.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.sni_callback = self._choose
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads the files, and again whenever they change. Raises OSError if something is wrong with them now."""
        self._current = await asyncio.to_thread(self._read)
        self._looking = asyncio.create_task(self._look())

    def close(self) -> None:
        """Looks no more."""
        if self._looking:
            self._looking.cancel()

    def _choose(self, handshake: ssl.SSLSocket | ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        if self._current:
            handshake.context = self._current

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files.cert, self._files.key)
        return context

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            stamp = await asyncio.to_thread(lambda: self._files.stamp)
            if stamp != self._stamp:
                self._stamp = stamp
                # What is wrong with them is in the log when a gRPC call comes.
                with suppress(OSError):
                    self._current = await asyncio.to_thread(self._read)
