"""TLS: the files of both ends of a connection, and what is wrong with them. gRPC would only say that a handshake failed."""

import os
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import grpc

from thalweg.contract.encoding import UTF8
from thalweg.contract.errors import ThalwegError, Violation

T = TypeVar("T")
# When files were written, as far as that is known: it changes with their contents.
Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]
# The options that name the files, by which errors name them too.
CA, CERT, KEY, CLIENT_CA = "--tls-ca", "--tls-cert", "--tls-key", "--tls-client-ca"

# OpenSSL's codes of what a verification finds.
_NOT_YET_VALID, _EXPIRED, _WRONG_PURPOSE = 9, 10, 26
_MAKE_ALL = "make an authority and certificates anew with thalweg certs init"


class Tls(NamedTuple):
    """How a client verifies a server, and what it shows the server of itself: paths of PEM files.

    `ca` holds the certificates of the authorities that may have signed the server's certificate; `cert` and `key` are the
    client's own, for servers that require one. The server's certificate must name the host of its address, or `name`, if given.
    """

    ca: str | Path
    cert: str | Path | None = None
    key: str | Path | None = None
    name: str = ""

    @property
    def stamp(self) -> Stamp:
        """Changes when the files do."""
        return stamp_of(self._files)

    @property
    def _files(self) -> list[str | Path]:
        return [path for path in self[:3] if path]

    def mistake(self) -> Violation | None:
        """What is wrong with the files; None if nothing is."""
        return self._read()[0]

    def credentials(self) -> grpc.ChannelCredentials:
        """What the files hold now. Raises ThalwegError (LOCAL) if something is wrong with them."""
        mistake, credentials = self._read()
        if credentials is None:
            raise ThalwegError("LOCAL", {"problem": str(mistake)})
        return credentials

    def _read(self) -> tuple[Violation | None, grpc.ChannelCredentials | None]:
        def read() -> grpc.ChannelCredentials:
            authorities = _authorities(CA, self.ca)
            key, cert, _ = _pair(self.cert, self.key, roles=(False,)) if self.cert and self.key else (None, None, None)
            return grpc.ssl_channel_credentials(authorities, key, cert)

        if bool(self.cert) != bool(self.key):
            return _halves(self.cert), None
        return _checked(self._files, read)


class Shown(NamedTuple):
    """What a server shows its clients, for gRPC, and when that expires, in seconds since the epoch."""

    configuration: grpc.ServerCertificateConfiguration
    until: float


class ServerTls(NamedTuple):
    """What a server shows its clients, and how it verifies them: paths of PEM files.

    With `client_ca`, each client needs a certificate that one of its authorities signed. `ca` holds the authorities of other
    servers, which this one calls: its shards.
    """

    cert: str | Path
    key: str | Path
    client_ca: str | Path | None = None
    ca: str | Path | None = None

    def as_client(self, name: str = "") -> Tls | None:
        """How the server verifies others, whose certificates have a `name`, if it is given; None if it cannot."""
        return Tls(self.ca, self.cert, self.key, name) if self.ca else None

    @property
    def stamp(self) -> Stamp:
        """Changes when the files do."""
        return stamp_of(self._files)

    @property
    def _files(self) -> list[str | Path]:
        return [path for path in self if path]

    def read(self) -> tuple[Violation | None, Shown | None]:
        """What is wrong with the files, or else what they hold now."""

        def read() -> Shown:
            authorities = _authorities(CLIENT_CA, self.client_ca) if self.client_ca else None
            if self.ca:
                _authorities(CA, self.ca)
            key, cert, until = _pair(self.cert, self.key, roles=(True, False) if self.ca else (True,))
            return Shown(grpc.ssl_server_certificate_configuration([(key, cert)], authorities), until)

        return _checked(self._files, read)


def stamp_of(files: Sequence[str | Path]) -> Stamp:
    """When the files were written."""
    return tuple(map(_stamp, files))


def _stamp(path: str | Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a path may be text
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _FileError(Exception):
    """Something is wrong with the file of an option."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(problem)
        self.violation = Violation(option, problem)


def _checked(files: Sequence[str | Path], read: Callable[[], T]) -> tuple[Violation | None, T | None]:
    """What was read, all files as they were at one time; or what is wrong."""
    while True:
        before = stamp_of(files)
        mistake, value = None, None
        try:
            value = read()
        except _FileError as error:
            mistake = error.violation
        if stamp_of(files) == before:
            return mistake, value


def _halves(cert: str | Path | None) -> Violation:
    given, missing = (CERT, KEY) if cert else (KEY, CERT)
    return Violation(given, f"needs {missing}: a certificate and its key go together")


def _content(option: str, path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _FileError(option, f"{path} cannot be read: {error.strerror}; thalweg certs init makes such files") from error


def _certificates(option: str, path: str | Path) -> tuple[bytes, ssl.SSLContext]:
    """A file's content, and a context that trusts the certificates in it."""
    content = _content(option, path)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        trusting.load_verify_locations(cadata=content.decode(UTF8))
    except (ssl.SSLError, ValueError) as error:
        raise _FileError(option, f"{path} does not hold a certificate in the form PEM (-----BEGIN CERTIFICATE-----)") from error
    return content, trusting


def _authorities(option: str, path: str | Path) -> bytes:
    """The certificates of authorities, of which one at least is valid today."""
    content, trusting = _certificates(option, path)
    ends = [str(certificate["notAfter"]) for certificate in trusting.get_ca_certs()]
    if ends and all(ssl.cert_time_to_seconds(end) < time.time() for end in ends):
        raise _FileError(option, f"{path} has expired on {max(ends, key=ssl.cert_time_to_seconds)}; {_MAKE_ALL}")
    return content


def _pair(cert: str | Path, key: str | Path, roles: Sequence[bool]) -> tuple[bytes, bytes, float]:
    """The contents of a key and of its certificate, which is valid today in all `roles`: True is a server, False a client.

    Also when it expires, in seconds since the epoch.
    """
    (certificate, _), secret = _certificates(CERT, cert), _content(KEY, key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, _no_password)
    except _EncryptedError as error:
        problem = f"{key} is encrypted with a password; remove it: openssl pkey -in {key} -out FILE"
        raise _FileError(KEY, problem) from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _FileError(
                KEY, f"{key} is not the key of the certificate {cert}; give the one that was made with it"
            ) from error
        if error.reason in (None, "NO_START_LINE", "UNSUPPORTED") or "PEM" in str(error):
            raise _FileError(KEY, f"{key} does not hold a private key in the form PEM (-----BEGIN PRIVATE KEY-----)") from error
        raise _FileError(CERT, f"{cert} cannot be used: {error.reason.replace('_', ' ').lower()}") from error
    except OSError as error:
        raise _FileError(KEY, f"{key} cannot be read: {error.strerror}") from error
    return secret, certificate, min(_verify(cert, key, serves) for serves in roles)


def _verify(cert: str | Path, key: str | Path, serves: bool) -> float:
    """Makes a connection in memory, where one end verifies only that the certificate may be used today, and in its role.

    Returns when it expires.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    server.load_cert_chain(cert, key)
    client.load_cert_chain(cert, key)
    verifying = client if serves else server
    verifying.verify_mode = ssl.CERT_REQUIRED
    verifying.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    verifying.load_verify_locations(cert)
    one_way, other_way = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(one_way, other_way), server.wrap_bio(other_way, one_way, server_side=True)
    pending = list(ends)
    try:
        while pending:
            for end in list(pending):
                try:
                    end.do_handshake()
                    pending.remove(end)
                except ssl.SSLWantReadError:
                    pass
    except ssl.SSLCertVerificationError as error:
        problem = {
            _EXPIRED: f"{cert} has expired; make another with thalweg certs add",
            _NOT_YET_VALID: f"{cert} is not valid yet; is this machine's clock right?",
            _WRONG_PURPOSE: f"{cert} is not a certificate for {'servers' if serves else 'clients'}; "
            f"make one with thalweg certs add{' --server NAME' if serves else ''}",
        }.get(error.verify_code, f"{cert} cannot be used: {error.verify_message}")
        raise _FileError(CERT, problem) from error
    found = ends[0 if serves else 1].getpeercert()
    return ssl.cert_time_to_seconds(str((found or {})["notAfter"]))


class _EncryptedError(Exception):
    pass


def _no_password() -> str:
    raise _EncryptedError
