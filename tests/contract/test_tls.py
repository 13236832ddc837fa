"""The files of TLS: what is wrong with them is an error that names the option, and says what to do."""

import subprocess
import time
from pathlib import Path

import pytest

from thalweg.client import certificates
from thalweg.client.certificates import LOOPBACK, Authority
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.contract.tls import ServerTls, Tls


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, certificates of servers and clients that are valid or expired, and files that are neither."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority.new(folder)
    authority.add("server", LOOPBACK)
    authority.add("client")
    authority.add("late-server", LOOPBACK, days=-0.01)
    authority.add("late-client", days=-0.01)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(certificates, "AUTHORITY_DAYS", -0.01)
        Authority.new(folder / "late")
    (folder / "text").write_text("nothing")
    (folder / "bytes").write_bytes(b"\xff\xfe\x00")
    encrypt = ("openssl", "pkey", "-in", folder / "client-key.pem", "-aes256", "-passout", "pass:x", "-out", folder / "locked")
    subprocess.run(encrypt, check=True)
    return folder


def test_files_that_are_right_are_no_mistake(folder: Path) -> None:
    assert Tls(folder / "ca.pem").mistake() is None
    assert Tls(str(folder / "ca.pem"), folder / "client.pem", folder / "client-key.pem").mistake() is None
    # A shard is a server and a client.
    assert Tls(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem").mistake() is None
    pair = folder / "server.pem", folder / "server-key.pem"
    for files in (ServerTls(*pair), ServerTls(*pair, folder / "ca.pem"), ServerTls(*pair, None, folder / "ca.pem")):
        mistake, shown = files.read()
        assert mistake is None
        assert shown is not None
        assert 364 < (shown.until - time.time()) / 86_400 <= 365


@pytest.mark.parametrize(
    ("files", "option", "words"),
    [
        (("missing",), "--tls-ca", "missing cannot be read: No such file or directory; thalweg certs init"),
        (("",), "--tls-ca", "cannot be read: Is a directory"),
        (("text",), "--tls-ca", "text does not hold a certificate in the form PEM"),
        (("bytes",), "--tls-ca", "bytes does not hold a certificate"),
        (("client-key.pem",), "--tls-ca", "does not hold a certificate"),
        (("late/ca.pem",), "--tls-ca", "ca.pem has expired on "),
        (("ca.pem", "client.pem", None), "--tls-cert", "needs --tls-key"),
        (("ca.pem", None, "client-key.pem"), "--tls-key", "needs --tls-cert"),
        (("ca.pem", "missing", "client-key.pem"), "--tls-cert", "missing cannot be read"),
        (("ca.pem", "client.pem", "missing"), "--tls-key", "missing cannot be read"),
        (("ca.pem", "text", "client-key.pem"), "--tls-cert", "does not hold a certificate"),
        (("ca.pem", "client.pem", "text"), "--tls-key", "text does not hold a private key in the form PEM"),
        (("ca.pem", "client.pem", "client.pem"), "--tls-key", "client.pem does not hold a private key"),
        (("ca.pem", "client.pem", "server-key.pem"), "--tls-key", "server-key.pem is not the key of the certificate"),
        (("ca.pem", "client.pem", "locked"), "--tls-key", "locked is encrypted with a password; remove it: openssl pkey"),
        (("ca.pem", "late-client.pem", "late-client-key.pem"), "--tls-cert", "has expired; make another with thalweg certs add"),
    ],
)
def test_the_mistakes_of_clients(folder: Path, files: tuple[str | None, ...], option: str, words: str) -> None:
    tls = Tls(*(name if name is None else folder / name for name in files))  # type: ignore[arg-type]
    mistake = tls.mistake()
    assert mistake is not None
    assert mistake.field == option
    assert words in mistake.problem
    with pytest.raises(ThalwegError) as caught:
        Endpoint(Address("127.0.0.1", 1), tls=tls).open()
    # Of the machine that has the files, which the job does not suffer for.
    assert caught.value.reason == "LOCAL"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("files", "option", "words"),
    [
        (("missing", "server-key.pem"), "--tls-cert", "missing cannot be read"),
        (("server.pem", "client-key.pem"), "--tls-key", "is not the key of the certificate"),
        (
            ("client.pem", "client-key.pem"),
            "--tls-cert",
            "is not a certificate for servers; make one with thalweg certs add --server",
        ),
        (("late-server.pem", "late-server-key.pem"), "--tls-cert", "has expired"),
        (("server.pem", "server-key.pem", "missing"), "--tls-client-ca", "missing cannot be read"),
        (("server.pem", "server-key.pem", "text"), "--tls-client-ca", "does not hold a certificate"),
        (("server.pem", "server-key.pem", "ca.pem", "text"), "--tls-ca", "does not hold a certificate"),
    ],
)
def test_the_mistakes_of_servers(folder: Path, files: tuple[str, ...], option: str, words: str) -> None:
    mistake, shown = ServerTls(*(folder / name for name in files)).read()
    assert shown is None
    assert mistake is not None
    assert mistake.field == option
    assert words in mistake.problem
