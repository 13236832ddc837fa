"""A server's certificate, which is read again when its files change."""

import logging
import threading
from typing import Any

import grpc

from thalweg.contract.tls import ServerTls

_log = logging.getLogger(__name__)


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
        self._first = current

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC, which asks before each handshake whether there is another certificate."""
        # Its types do not know that None means no change.
        changed: Any = self._changed
        required = self._files.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._first, changed, require_client_authentication=required)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the files hold, if they have changed since they were read; None if not, or if something is wrong with them."""
        with self._lock:
            stamp = self._files.stamp
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            mistake, current = self._files.read()
        if current is None:
            _log.warning("the certificate stays as it is: %s", mistake)
        else:
            _log.info("read the certificate again, from %s", self._files.cert)
        return current
