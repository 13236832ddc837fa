"""The files that the options of TLS name, checked before anything is connected or started."""

from contextvars import ContextVar
from pathlib import Path

from thalweg.client.cli.private import warn_if_open
from thalweg.client.folders import expanded
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.tls import CA, CERT, CLIENT_CA, KEY, ServerTls, Tls

# --tls-ca, --tls-cert and --tls-key of the client's command that runs.
given: ContextVar[tuple[Path | None, Path | None, Path | None]] = ContextVar("given", default=(None, None, None))


def given_tls() -> Tls | None:
    """How the command that runs verifies its server; None without TLS. Raises ThalwegError if a file is not right."""
    return read_tls(*given.get())


def read_tls(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """The options of a client. The paths are absolute: other processes use them too."""
    if ca is None:
        for option, path in ((CERT, cert), (KEY, key)):
            if path:
                raise invalid(Violation(option, f"needs {CA}, the certificate of the authority that signed the server's"))
        return None
    tls = Tls(_path(ca), cert and _path(cert), key and _path(key))
    if mistake := tls.mistake():
        raise invalid(mistake)
    if key:
        warn_if_open(_path(key), KEY)
    return tls


def read_server_tls(cert: Path | None, key: Path | None, client_ca: Path | None, ca: Path | None) -> ServerTls | None:
    """The options of a server. `ca` is for its shards, by default that of its clients.

    Raises ThalwegError if they contradict each other, or something is wrong with the files.
    """
    if cert is None or key is None:
        given = {CERT: cert, KEY: key, CLIENT_CA: client_ca}
        missing = next(option for option in (CERT, KEY) if not given[option])
        for option, path in given.items():
            if path:
                raise invalid(Violation(option, f"needs {missing}: a server's certificate and its key go together"))
        return None
    shards = ca or client_ca
    tls = ServerTls(_path(cert), _path(key), client_ca and _path(client_ca), shards and _path(shards))
    if mistake := tls.read()[0]:
        raise invalid(mistake)
    warn_if_open(_path(key), KEY)
    return tls


def read_shard_tls(cert: Path | None, key: Path | None, client_ca: Path | None, ca: Path | None) -> ServerTls | None:
    """The same for a shard, which is a client of its server, too."""
    tls = read_server_tls(cert, key, client_ca, ca)
    if (tls.as_client() is None) if tls else ca:
        raise invalid(Violation(CA, f"goes with {CERT} and {KEY}: a shard uses TLS with its server and with workers"))
    return tls


def _path(path: Path) -> Path:
    return expanded(path).absolute()
