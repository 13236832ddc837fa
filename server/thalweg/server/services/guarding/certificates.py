"""A server's certificate, which is read again when its files change."""

import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any

import grpc

from thalweg.contract.tls import ServerTls, Shown

_log = logging.getLogger(__name__)
_DAY_SECONDS = 86_400.0
# Certificates that live shorter are usually renewed by machines.
_SOON_SECONDS = 14 * _DAY_SECONDS


class Certificates:
    """The certificate of a server. Connections that are there keep the one with which they were made.

    Raises ValueError if something is wrong with the files at first; later, the server keeps the certificate that it has.
    """

    def __init__(self, files: ServerTls) -> None:
        self._files = files
        # gRPC asks in threads of its own.
        self._lock = threading.Lock()
        self._stamp = files.stamp
        mistake, current = files.read()
        if current is None:
            raise ValueError(str(mistake))
        self._current, self._warned = current, 0.0

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC, which asks before each handshake whether there is another certificate."""
        # Its types do not know that None means no change.
        changed: Any = self._changed
        required = self._files.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._current.configuration, changed, require_client_authentication=required)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the files hold, if they have changed since they were read; None if not, or if something is wrong with them."""
        with self._lock:
            current = self._read_again()
            self._warn(time.time())
        return current and current.configuration

    def _read_again(self) -> Shown | None:
        stamp = self._files.stamp
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        mistake, current = self._files.read()
        if current is None:
            _log.warning("the certificate stays as it is: %s", mistake)
        else:
            _log.info("read the certificate again, from %s", self._files.cert)
            self._current = current
        return current

    def _warn(self, now: float) -> None:
        """Says once a day that the certificate expires soon, so that it is renewed before nobody can connect."""
        if self._current.until - now < _SOON_SECONDS and now - self._warned > _DAY_SECONDS:
            self._warned = now
            date = f"{datetime.fromtimestamp(self._current.until, UTC):%Y-%m-%d}"
            _log.warning("the certificate %s expires on %s; renew it, as with thalweg certs add", self._files.cert, date)
