"""An authority of one's own, and the certificates that it signs for the processes of a cluster."""

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from thalweg.client.errors import LocalError
from thalweg.client.extras import needs
from thalweg.client.files import write_whole
from thalweg.contract.errors import Violation, invalid

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY_DAYS, DAYS = 3650, 365
# A server's certificate serves connections from its own machine, too.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_AUTHORITY = "ca"
# Clocks differ.
_BEFORE = timedelta(hours=1)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,62}", re.ASCII)
_HOST = re.compile(r"(\*\.)?[\w-]{1,63}(\.[\w-]{1,63})*", re.ASCII)


class Made(NamedTuple):
    """A certificate that was made: its files, the hosts that it names, if it is a server's, and the end of its validity."""

    cert: Path
    key: Path
    hosts: tuple[str, ...]
    until: datetime


class Authority:
    """The authority whose certificate and key are in a folder. Raises ThalwegError if there is none, or it cannot be used."""

    def __init__(self, folder: Path) -> None:
        _load_library()
        from cryptography import x509  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        self._folder = folder
        self.cert, key = _paths(folder, _AUTHORITY)
        try:
            self._certificate = x509.load_pem_x509_certificate(self.cert.read_bytes())
            secret = load_pem_private_key(key.read_bytes(), None)
        except OSError as error:
            problem = f"cannot read {error.filename}: {error.strerror}"
            raise LocalError(f"{problem}; thalweg certs init makes an authority in a folder") from error
        except (ValueError, TypeError) as error:
            raise LocalError(f"{self.cert} and {key} are not a certificate and its key without a password") from error
        if not isinstance(secret, EllipticCurvePrivateKey):
            raise LocalError(f"{key} is not a key that thalweg certs init has made")
        self._key = secret

    @classmethod
    def new(cls, folder: Path) -> "Authority":
        """Makes an authority in a folder. Raises ThalwegError if there is one already, or the folder cannot be written."""
        _load_library()
        for path in _paths(folder, _AUTHORITY):
            if path.exists():
                raise LocalError(f"there is an authority in {folder}: add to it with thalweg certs add, or choose another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise LocalError(f"cannot make the folder {folder}: {error.strerror}") from error
        secret = _new_key()
        name = _named(f"Thalweg authority {os.urandom(4).hex()}")
        until = datetime.now(UTC) + timedelta(days=AUTHORITY_DAYS)
        _write(folder, _AUTHORITY, secret, _signed(secret, name, name, secret, until))
        return cls(folder)

    @property
    def until(self) -> datetime:
        """The end of its validity."""
        return self._certificate.not_valid_after_utc

    def hosts(self, name: str) -> tuple[str, ...]:
        """The hosts that a certificate in the folder names; none, if it is a client's, or there is none."""
        from cryptography import x509  # noqa: PLC0415 - an extra

        try:
            certificate = x509.load_pem_x509_certificate(_paths(self._folder, name)[0].read_bytes())
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, x509.ExtensionNotFound):
            return ()
        return tuple(str(each.value) for each in names)

    def add(self, name: str, hosts: Sequence[str] = (), days: float = DAYS) -> Made:
        """Makes a key and a certificate, for a server or a shard if it names hosts, else for a client.

        They replace earlier ones of that name. The certificate is not valid for longer than that of the authority. Raises
        ThalwegError if a name is not right, or the folder cannot be written.
        """
        if name == _AUTHORITY or not _NAME.fullmatch(name):
            raise invalid(
                Violation("NAME", f"{name!r} cannot name a certificate; use letters, digits, '.', '-' and '_', not 'ca'")
            )
        check_hosts(hosts)
        secret = _new_key()
        until = min(datetime.now(UTC) + timedelta(days=days), self.until)
        signed = _signed(secret, _named(name), self._certificate.subject, self._key, until, hosts)
        return Made(*_write(self._folder, name, secret, signed), tuple(hosts), until)


def check_hosts(hosts: Sequence[str]) -> None:
    """Raises ThalwegError if one of some hosts is neither an IP address nor a name, which may begin with `*.`."""
    for host in hosts:
        if not _HOST.fullmatch(host):
            try:
                ipaddress.ip_address(host)
            except ValueError:
                problem = f"{host!r} is neither the name of a host nor an IP address; leave out its port"
                raise invalid(Violation("--server", problem)) from None


def _load_library() -> None:
    with needs("tls", "what makes certificates is"):
        import cryptography.x509  # noqa: F401, PLC0415 - an extra


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a certificate and of its key."""
    return folder / f"{name}.pem", folder / f"{name}-key.pem"


def _new_key() -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - an extra

    return ec.generate_private_key(ec.SECP256R1())


def _named(name: str) -> "x509.Name":
    from cryptography import x509  # noqa: PLC0415 - an extra
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> "x509.GeneralName":
    from cryptography import x509  # noqa: PLC0415 - an extra

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _signed(
    key: "EllipticCurvePrivateKey",
    subject: "x509.Name",
    issuer: "x509.Name",
    by: "EllipticCurvePrivateKey",
    until: datetime,
    hosts: Sequence[str] = (),
) -> "x509.Certificate":
    """A certificate (RFC 5280) of a key, signed `by` another; an authority's, if both are one, else a server's or a client's."""
    from cryptography import x509  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    authority = key is by
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )
    signs = {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _BEFORE)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(x509.KeyUsage(**usage, **signs), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if not authority:
        # A server calls its shards, and a shard its server.
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
    return builder.sign(by, hashes.SHA256())


def _write(folder: Path, name: str, key: "EllipticCurvePrivateKey", certificate: "x509.Certificate") -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - an extra

    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    cert, private = _paths(folder, name)
    write_whole(private, partial(_fill, content=secret, mode=0o600))
    write_whole(cert, partial(_fill, content=certificate.public_bytes(pem), mode=0o644))
    return cert, private


def _fill(path: Path, content: bytes, mode: int) -> None:
    path.chmod(mode)
    path.write_bytes(content)
