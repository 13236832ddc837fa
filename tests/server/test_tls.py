"""Servers and shards with TLS: who is let in, what each mistake is told as, and certificates that change while a job runs."""

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.test_shards import BASE, expected, notices, spec_of
from tests.server.specs import make_spec
from thalweg.client import Client, ThalwegError
from thalweg.client.certificates import LOOPBACK, Authority
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.tls import ServerTls, Tls
from thalweg.server.process import Server
from thalweg.server.services.hosted import ServerStartError
from thalweg.server.sharding.process import ShardConfig, ShardProcess
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work


class Files(NamedTuple):
    """A folder of certificates."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.pem"

    def tls(self, name: str = "") -> Tls:
        """How a client verifies the server, with a certificate of its own if it is named."""
        return Tls(self.ca, *self.pair(name)) if name else Tls(self.ca)

    def server(self, name: str = "server", *, mutual: bool = False, shards: bool = False) -> ServerTls:
        """What a server shows, and whether it requires certificates of its clients and can verify shards."""
        return ServerTls(*self.pair(name), self.ca if mutual else None, self.ca if shards else None)

    def pair(self, name: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        return self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"


def made(folder: Path) -> Files:
    authority = Authority.new(folder)
    authority.add("server", LOOPBACK)
    authority.add("client")
    authority.add("shard", ["shard"])
    authority.add("elsewhere", ["elsewhere"])
    authority.add("late", LOOPBACK, days=-0.01)
    return Files(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return made(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Another authority's."""
    return made(tmp_path_factory.mktemp("strange"))


@pytest.fixture(scope="module")
def encrypted(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("encrypted"), tls=files.server()) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("mutual"), tls=files.server(mutual=True)) as server:
        yield server


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("clear")) as server:
        yield server


def answers(server: Server, tls: Tls | None) -> bool:
    with Client(server.address, tls=tls) as client:
        return bool(client.server_info().version)


def refusal(server: Server, tls: Tls | None) -> str:
    with pytest.raises(ThalwegError) as caught:
        answers(server, tls)
    assert caught.value.reason == "UNREACHABLE"
    return caught.value.metadata["problem"]


def test_those_who_trust_the_authority_are_let_in(encrypted: Server, files: Files) -> None:
    assert answers(encrypted, files.tls())
    assert answers(encrypted, files.tls("client"))


def test_a_server_may_require_certificates(mutual: Server, files: Files, strange: Files) -> None:
    assert answers(mutual, files.tls("client"))
    advice = "if it requires certificates of its clients, give one that its authority signed, with --tls-cert and --tls-key"
    assert advice in refusal(mutual, files.tls())
    assert advice in refusal(mutual, Tls(files.ca, *strange.pair("client")))


def test_a_server_of_another_authority_is_told(encrypted: Server, strange: Files) -> None:
    assert "is not signed by an authority in the file of --tls-ca" in refusal(encrypted, strange.tls())


def test_a_client_without_tls_is_told(encrypted: Server, mutual: Server) -> None:
    for server in (encrypted, mutual):
        assert "if it uses TLS, give the certificate of its authority with --tls-ca (THALWEG_TLS_CA)" in refusal(server, None)


def test_a_server_without_tls_is_told(clear: Server, files: Files) -> None:
    assert "it does not use TLS; start it with --tls-cert and --tls-key, or connect without --tls-ca" in refusal(
        clear, files.tls()
    )


def test_a_certificate_for_other_hosts_is_told(files: Files, tmp_path: Path) -> None:
    with running_server(tmp_path, tls=files.server("elsewhere")) as server:
        assert "its certificate names other hosts; use an address whose host it names" in refusal(server, files.tls())
        assert answers(server, files.tls()._replace(name="elsewhere"))


def test_a_certificate_that_expires_while_the_server_runs_is_told(tmp_path: Path) -> None:
    files = made(tmp_path / "tls")
    with running_server(tmp_path / "data", tls=files.server()) as server:
        assert answers(server, files.tls())
        # What it would show next year.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("thalweg.contract.tls._verify", lambda *_: 0.0)
            Authority(files.folder).add("server", LOOPBACK, days=-0.01)
            told = refusal(server, files.tls())
    assert "its certificate, or that of its authority, has expired; make another with thalweg certs add" in told


@pytest.mark.parametrize(("name", "words"), [("late", "has expired"), ("client", "is not a certificate for servers")])
def test_a_server_refuses_to_start_with_a_certificate_that_nobody_would_take(
    name: str, words: str, files: Files, tmp_path: Path
) -> None:
    with pytest.raises(ServerStartError, match=words), running_server(tmp_path, tls=files.server(name)):
        pass


def test_the_log_says_that_a_certificate_expires_soon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = made(tmp_path / "tls")
    with running_server(tmp_path / "data", tls=files.server()) as server:
        assert answers(server, files.tls())
        assert "expires on" not in caplog.text
        Authority(files.folder).add("server", LOOPBACK, days=3)
        assert answers(server, files.tls())
        assert answers(server, files.tls())
        assert caplog.text.count("server.pem expires on") == 1


def shown(server: Server, files: Files) -> bytes:
    """The certificate that a server shows a client who connects now."""
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(*files.pair("client"))
    with (
        socket.create_connection((server.address.host, server.address.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        found = secure.getpeercert(binary_form=True)
    assert found
    return found


class Working:
    """A job that ends when it is cancelled, and workers that are threads."""

    def __init__(self, stub: TrainingServiceStub, server: Server, tls: Tls) -> None:
        self._stub = stub
        self._endpoint = Endpoint(server.address, tls=tls)
        self._threads: list[threading.Thread] = []
        self._job = stub.CreateJob(pb.CreateJobRequest(spec=make_spec(epochs=1_000_000))).job.id

    def _progress(self) -> job_pb2.Progress:
        progress: job_pb2.Progress = self._stub.GetJob(pb.GetJobRequest(job_id=self._job)).job.progress
        return progress

    def add_worker(self) -> None:
        """Starts a worker, and waits until it is there."""
        self._threads.append(threading.Thread(target=self._work))
        self._threads[-1].start()
        wait_for(lambda: self._progress().workers == len(self._threads))

    def _work(self) -> None:
        with suppress(ThalwegError):
            work(self._endpoint, self._job, "worker")

    def go_on(self) -> None:
        """Waits until the job has taken some more steps."""
        now = self._progress().step
        wait_for(lambda: self._progress().step > now + 10)

    def end(self) -> None:
        """Cancels the job, and waits for the workers."""
        self._stub.CancelJob(pb.CancelJobRequest(job_id=self._job))
        for thread in self._threads:
            thread.join()


def test_a_certificate_is_read_again_while_a_job_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = made(tmp_path / "tls")
    caplog.set_level(logging.INFO, "thalweg")
    tls = files.tls("client")
    with running_server(tmp_path / "data", tls=files.server(mutual=True)) as server, stub_of(server, tls) as stub:
        working = Working(stub, server, tls)
        working.add_worker()
        before = shown(server, files)

        # Half of a change: the server keeps what it has.
        key = files.folder / "server-key.pem"
        kept = key.read_bytes()
        key.write_bytes((files.folder / "client-key.pem").read_bytes())
        assert shown(server, files) == before
        assert "the certificate stays as it is: --tls-key:" in caplog.text
        key.write_bytes(kept)
        assert shown(server, files) == before

        Authority(files.folder).add("server", LOOPBACK)
        assert shown(server, files) != before
        assert "read the certificate again" in caplog.text
        # Those who are there stay, and others can come.
        working.go_on()
        working.add_worker()
        working.go_on()
        working.end()


def test_the_authority_of_clients_is_read_again(tmp_path: Path, files: Files, strange: Files) -> None:
    authority = tmp_path / "clients.pem"
    authority.write_bytes(files.ca.read_bytes())
    with running_server(tmp_path / "data", tls=files.server()._replace(client_ca=authority)) as server:
        ours, theirs = files.tls("client"), Tls(files.ca, *strange.pair("client"))
        assert answers(server, ours)
        assert "requires certificates of its clients" in refusal(server, theirs)
        authority.write_bytes(strange.ca.read_bytes())
        assert answers(server, theirs)
        assert "requires certificates of its clients" in refusal(server, ours)


def test_a_client_reads_its_files_again(tmp_path: Path, files: Files, strange: Files) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_bytes(files.ca.read_bytes())
    with running_server(tmp_path / "data", tls=files.server()) as server, Client(server.address, tls=Tls(authority)) as client:
        assert client.jobs() == []
        address = server.address
        server.stop()
        again = Server(replace(server.config, address=address, tls=strange.server()))
        again.start()
        try:
            with pytest.raises(ThalwegError, match="is not signed by an authority"):
                client.jobs()
            authority.write_bytes(strange.ca.read_bytes())
            assert client.jobs() == []
        finally:
            again.stop()


@contextmanager
def shard_of(server: Server, files: Files, tls: ServerTls | None, name: str = "") -> Iterator[ShardProcess]:
    endpoint = Endpoint(server.address, tls=files.tls("client"))
    shard = ShardProcess(ShardConfig(Address("127.0.0.1", 0), endpoint, tls=tls, tls_name=name))
    shard.start()
    try:
        yield shard
    finally:
        shard.stop()


def test_shards_have_certificates_and_the_bits_are_the_same(tmp_path: Path, files: Files) -> None:
    spec, tls = spec_of(training={**BASE["training"], "epochs": 1}), files.tls("client")
    with running_server(tmp_path, tls=files.server(mutual=True, shards=True)) as server, ExitStack() as stack:
        # One is verified by the host of its address, one by its name.
        stack.enter_context(shard_of(server, files, files.server(mutual=True)))
        stack.enter_context(shard_of(server, files, files.server("shard", mutual=True), "shard"))
        wait_for(lambda: len(server.jobs.shards.attending) == 2)
        job = train(server, spec, 2, tls)
        assert any("are split over" in text for text in notices(server, job.id))
    assert job.result.weights_sha256 == expected(spec)


@pytest.mark.parametrize(
    ("name", "tls_name", "ca", "words"),
    [
        ("shard", "", True, "its certificate names other hosts"),
        ("", "", True, "it does not use TLS; start it with --tls-cert and --tls-key"),
        ("server", "", False, "the server has no authority to verify it by; start the server with --tls-ca"),
    ],
)
def test_a_shard_that_cannot_be_verified_is_refused(
    name: str, tls_name: str, ca: bool, words: str, tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    shows = files.server(name) if name else None
    with running_server(tmp_path, tls=files.server(shards=ca)) as server, shard_of(server, files, shows, tls_name):
        wait_for(lambda: words in caplog.text)
        assert server.jobs.shards.attending == []
