"""Metrics, health and readiness over HTTP, as Prometheus and others find them."""

import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import thalweg, wait_for
from tests.end_to_end.faults import SmallDisk, disk_problem
from tests.end_to_end.peer import Peer
from tests.end_to_end.refusals import refusal
from tests.end_to_end.scrape import metrics, page
from tests.server.test_training_service import PREPARED, create, make_spec
from tests.server.tokens import town
from thalweg.client import Client, composition
from thalweg.client.certificates import LOOPBACK, Authority
from thalweg.client.errors import LocalError
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.tls import ServerTls
from thalweg.server.observing import https, pages
from thalweg.server.observing import server as server_metrics
from thalweg.server.process import Server, ServerConfig
from thalweg.server.services.hosted import ExposedError, ServerStartError
from thalweg.server.sharding.process import ShardConfig, ShardProcess
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

FREE = Address("127.0.0.1", 0)
HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("data"), metrics=FREE, checkpoint_seconds=0) as server:
        yield server


@pytest.fixture
def stub(observed: Server) -> Iterator[TrainingServiceStub]:
    with stub_of(observed) as stub:
        yield stub


def changes(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """By how much each series has grown, of those that have."""
    return {name: value - before.get(name, 0.0) for name, value in after.items() if value != before.get(name, 0.0)}


def test_a_job_is_counted(observed: Server) -> None:
    before = metrics(observed.metrics)
    job = train(observed, make_spec(), workers=1)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    found = changes(before, wait_for(lambda: _at_rest(observed)))
    assert found["thalweg_jobs_accepted_total"] == 1
    assert found["thalweg_jobs_ended_total{state=succeeded}"] == 1
    assert found["thalweg_steps_total"] == found["thalweg_step_duration_seconds_count"] == job.result.steps == 2
    assert found["thalweg_step_duration_seconds_bucket{le=+Inf}"] == 2
    assert found["thalweg_step_duration_seconds_sum"] > 0
    assert found["thalweg_samples_total"] == 8
    assert found["thalweg_contributions_total{result=applied}"] == job.progress.contributions.applied > 0
    assert found["thalweg_calls_total{code=OK,method=TrainingService/CreateJob}"] == 1
    # A worker that has heard goodbye may be gone before the call has ended.
    assert sum(number for name, number in found.items() if "ParameterService/Work" in name) == 1
    assert not [name for name in found if "lost" in name or "reissued" in name or "job_id" in name]


def _at_rest(server: Server) -> dict[str, float]:
    """What is told when all jobs have ended, and all workers have left; nothing before."""
    found = metrics(server.metrics)
    jobs = sum(found[f"thalweg_jobs{{state={state}}}"] for state in ("queued", "running", "paused", "ending"))
    joined = found["thalweg_jobs_ended_total{state=succeeded}"] + found["thalweg_jobs_ended_total{state=cancelled}"]
    left = sum(number for name, number in found.items() if "ParameterService/Work" in name)
    return found if not jobs and left == joined else {}


def test_a_running_job_has_series_of_its_own_until_it_ends(observed: Server, barrier: Barrier) -> None:
    barrier.hold(1)
    with stub_of(observed) as stub:
        job = create(stub, training={"epochs": 3, "batch_size": 4, "microbatches": 1, "workers": 1})
        named = f"{{job_id={job.id}}}"
        worker = threading.Thread(target=work, args=(Endpoint(observed.address), job.id, "a-worker"))
        worker.start()
        wait_for(lambda: metrics(observed.metrics).get(f"thalweg_job_steps_total{named}"))
        found = metrics(observed.metrics)
        assert found[f"thalweg_job_workers{named}"] == found[f"thalweg_job_workers_wanted{named}"] == 1
        assert found[f"thalweg_job_training{named}"] == 1
        assert found[f"thalweg_job_progress_ratio{named}"] == pytest.approx(1 / 3)
        assert found["thalweg_workers"] == found["thalweg_jobs{state=running}"] == 1
        barrier.release()
        worker.join()
    wait_for(lambda: not [name for name in metrics(observed.metrics) if job.id in name])


def test_what_happened_in_earlier_runs_of_a_job_counts(observed: Server, stub: TrainingServiceStub, barrier: Barrier) -> None:
    before = metrics(observed.metrics)
    barrier.hold(1)
    job = create(stub, training={"epochs": 3, "batch_size": 4, "microbatches": 1})
    first = threading.Thread(target=work, args=(Endpoint(observed.address), job.id, "first"))
    first.start()
    wait_for(lambda: stub.GetJob(pb.GetJobRequest(job_id=job.id)).job.progress.checkpoints.written)
    stub.CancelJob(pb.CancelJobRequest(job_id=job.id))
    barrier.release()
    first.join()
    stub.ResumeJob(pb.ResumeJobRequest(job_id=job.id))
    work(Endpoint(observed.address), job.id, "second")
    found = changes(before, wait_for(lambda: _at_rest(observed)))
    assert found["thalweg_steps_total"] == 3
    assert found["thalweg_checkpoints_total{result=written}"] >= 1
    assert found["thalweg_jobs_ended_total{state=cancelled}"] == found["thalweg_jobs_ended_total{state=succeeded}"] == 1
    assert found["thalweg_jobs_accepted_total"] == 1


def test_a_lost_worker_is_counted(observed: Server, stub: TrainingServiceStub) -> None:
    before = metrics(observed.metrics)
    job = create(stub)
    with Peer(observed.address) as peer:
        peer.hello(job.id)
        peer.prepare(PREPARED)
        assert metrics(observed.metrics)["thalweg_workers"] == 1
    found = wait_for(lambda: changes(before, metrics(observed.metrics)).get("thalweg_workers_lost_total"))
    assert found == 1
    stub.CancelJob(pb.CancelJobRequest(job_id=job.id))


def test_what_jobs_wait_for_is_counted_and_series_of_jobs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "MAX_JOBS", 2)
    monkeypatch.setattr(server_metrics, "_JOBS_AT_ONCE", 1)
    with running_server(tmp_path, metrics=FREE, max_running_jobs=2) as server, stub_of(server) as stub:
        paused, *_ = [create(stub) for _ in range(4)]
        stub.ScaleJob(pb.ScaleJobRequest(job_id=paused.id, workers=0))
        found = metrics(server.metrics)
        assert found["thalweg_jobs{state=queued}"] == 3
        assert found["thalweg_jobs{state=paused}"] == 1
        assert found["thalweg_jobs_waiting{reason=fleet}"] == 2
        assert found["thalweg_jobs_waiting{reason=place}"] == 1
        assert found["thalweg_jobs_waiting{reason=scaling}"] == 1
        assert [name for name in found if name.startswith("thalweg_job_workers_wanted")] == [
            "thalweg_job_workers_wanted{job_id=job-1}",
            "thalweg_job_workers_wanted{job_id=job-2}",
        ]
        assert found["thalweg_job_workers_wanted{job_id=job-1}"] == 0
        assert found["thalweg_jobs_without_series"] == 2


def test_calls_are_counted_by_how_they_end(tmp_path: Path) -> None:
    with running_server(tmp_path, metrics=FREE, token="t") as server, grpc.insecure_channel(str(server.address)) as channel:
        stub = TrainingServiceStub(channel)
        assert refusal(lambda: stub.GetJob(pb.GetJobRequest(job_id="a"))).code is grpc.StatusCode.UNAUTHENTICATED
        told = (("authorization", "Bearer t"),)
        assert refusal(lambda: stub.GetJob(pb.GetJobRequest(job_id="a"), metadata=told)).code is grpc.StatusCode.NOT_FOUND
        unknown: Any = channel.unary_unary("/thalweg.v1.TrainingService/Strange")
        assert refusal(lambda: unknown(b"", metadata=told)).code is grpc.StatusCode.UNIMPLEMENTED
        job = stub.CreateJob(pb.CreateJobRequest(spec=make_spec()), metadata=told).job
        watching = stub.WatchJob(pb.WatchJobRequest(job_id=job.id), metadata=told)
        next(iter(watching))
        watching.cancel()

        def calls() -> dict[str, float]:
            return {name: value for name, value in metrics(server.metrics).items() if name.startswith("thalweg_calls_total")}

        assert wait_for(lambda: found if len(found := calls()) == 5 else {}) == {
            "thalweg_calls_total{code=UNAUTHENTICATED,method=TrainingService/GetJob}": 1,
            "thalweg_calls_total{code=NOT_FOUND,method=TrainingService/GetJob}": 1,
            "thalweg_calls_total{code=UNIMPLEMENTED,method=unknown}": 1,
            "thalweg_calls_total{code=OK,method=TrainingService/CreateJob}": 1,
            "thalweg_calls_total{code=CANCELLED,method=TrainingService/WatchJob}": 1,
        }


def test_names_follow_the_conventions_of_prometheus(observed: Server) -> None:
    found = metrics(observed.metrics)
    assert {name.split("_")[0] for name in found} == {"thalweg", "process"}
    assert found["process_resident_memory_bytes"] > 0
    assert found["thalweg_disk_size_bytes"] > found["thalweg_disk_free_bytes"] > 0
    assert [value for name, value in found.items() if name.startswith("thalweg_build_info{")] == [1]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's prometheus")
def test_promtool_finds_nothing_to_be_said(observed: Server) -> None:
    text = page(observed.metrics, "/metrics").text
    subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True, capture_output=True)


def test_it_is_alive_and_ready_and_knows_no_other_pages(observed: Server) -> None:
    assert page(observed.metrics, "/healthz") == (200, "alive\n")
    assert page(observed.metrics, "/readyz") == (200, "ready\n")
    assert page(observed.metrics, "/healthz", method="HEAD") == (200, "")
    assert page(observed.metrics, "/healthz", method="POST").status == 405
    assert page(observed.metrics, "/").status == 404


@pytest.mark.skipif(disk_problem() is not None, reason=str(disk_problem()))
def test_a_server_that_cannot_write_is_alive_and_not_ready(tmp_path: Path) -> None:
    with (
        SmallDisk(tmp_path / "disk", mebibytes=16) as disk,
        running_server(disk.folder / "data", metrics=FREE) as server,
        stub_of(server) as stub,
    ):
        job = create(stub)
        disk.fill(free=0)
        # Its end waits for room.
        cancelled = stub.CancelJob.future(pb.CancelJobRequest(job_id=job.id))
        wait_for(lambda: page(server.metrics, "/readyz") == (503, "the data folder is not writable\n"))
        assert page(server.metrics, "/healthz").status == 200
        found = metrics(server.metrics)
        assert found["thalweg_disk_shortage"] == 1
        assert found["thalweg_events_pending"] >= 1
        assert found["thalweg_disk_size_bytes"] <= 16 << 20
        disk.clear()
        wait_for(lambda: page(server.metrics, "/readyz").status == 200)
        cancelled.exception()


def test_connections_that_say_nothing_end_and_are_bounded(observed: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert observed.metrics
    monkeypatch.setattr(pages, "_SECONDS", 0.2)
    monkeypatch.setattr(pages, "_MAX_CONNECTIONS", 3)
    silent = [socket.create_connection(observed.metrics) for _ in range(5)]
    for each in silent:
        each.settimeout(20)
        assert each.recv(1) == b""
        each.close()
    with socket.create_connection(observed.metrics) as garbage:
        garbage.settimeout(20)
        garbage.sendall(b"x" * 20_000)
        assert ended(garbage)
    assert page(observed.metrics, "/healthz").status == 200


def ended(connection: socket.socket) -> bool:
    """Waits until the other end has closed a connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_beyond_loopback_metrics_need_a_token(tmp_path: Path) -> None:
    anywhere = Address("0.0.0.0", 0)
    with pytest.raises(ExposedError, match=r"0\.0\.0\.0:0 can be reached from other machines") as caught:
        Server(ServerConfig(FREE, tmp_path / "data", metrics=anywhere)).start()
    assert caught.value.option == "--metrics"
    assert not (tmp_path / "data").exists()
    with running_server(tmp_path / "data", metrics=anywhere, token="secret", trust_network=True) as server:
        assert server.metrics
        here = Address("127.0.0.1", server.metrics.port)
        assert page(here, "/metrics").status == 401
        assert page(here, "/metrics", token="secreT").status == 401
        assert "thalweg_jobs" in page(here, "/metrics", token="secret").text
        assert page(here, "/healthz").status == page(here, "/readyz").status == 200


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = Address("127.0.0.1", listening.getsockname()[1])
        with pytest.raises(ServerStartError, match=r"the port is in use\. Choose another with --metrics"):
            Server(ServerConfig(FREE, tmp_path, metrics=where)).start()
    with running_server(tmp_path, metrics=where) as server:
        assert server.metrics == where


def test_a_missing_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "find_spec", lambda _: None)
    with pytest.raises(LocalError, match=r"pip install 'thalweg\[metrics\]'"):
        composition.start_server(FREE, tmp_path, None, metrics=FREE)


@pytest.mark.parametrize("command", ["serve", "shard"])
def test_an_address_without_a_port_is_told(tmp_path: Path, command: str) -> None:
    ended = thalweg(tmp_path, command, "--metrics", "localhost")
    assert ended.code == 2
    assert "--metrics: 'localhost' has no port; write HOST:PORT, as in 127.0.0.1:9707" in ended.stderr


def test_a_shard_tells_of_itself(observed: Server) -> None:
    shard = ShardProcess(ShardConfig(FREE, Endpoint(observed.address), metrics=FREE))
    before = metrics(observed.metrics)
    shard.start()
    try:
        wait_for(lambda: page(shard.metrics, "/readyz").status == 200)
        found = metrics(shard.metrics)
        assert found["thalweg_shard_attached"] == 1
        assert found["thalweg_shard_shares"] == found["thalweg_shard_workers"] == found["thalweg_shard_chunks_kept"] == 0
        assert metrics(observed.metrics)["thalweg_shards"] == 1
    finally:
        shard.stop()
    wait_for(lambda: changes(before, metrics(observed.metrics)).get("thalweg_shards_lost_total") == 1)


def test_the_page_on_operations_names_all_metrics(observed: Server) -> None:
    shard = ShardProcess(ShardConfig(FREE, Endpoint(observed.address), metrics=FREE))
    shard.start()
    try:
        told = page(observed.metrics, "/metrics").text + page(shard.metrics, "/metrics").text
    finally:
        shard.stop()
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", told, re.MULTILINE))
    documented = re.findall(
        r"`((?:thalweg|process)_\w+)`", (HOUSE / "docs" / "operations.md").read_text().split("### What a server tells")[1]
    )
    assert types.keys() == set(documented)


def test_with_tls_pages_are_https_and_the_certificate_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "_LOOK_SECONDS", 0.05)
    authority, ca = Authority.new(tmp_path / "tls"), tmp_path / "tls" / "ca.pem"
    cert, key = tmp_path / "tls" / "server.pem", tmp_path / "tls" / "server-key.pem"
    authority.add("server", LOOPBACK)
    with running_server(tmp_path / "data", metrics=FREE, tls=ServerTls(cert, key)) as server:
        assert page(server.metrics, "/readyz", ca=ca) == (200, "ready\n")
        assert "thalweg_jobs" in page(server.metrics, "/metrics", ca=ca).text
        with pytest.raises(OSError, match=r"closed|reset|disconnected"):
            page(server.metrics, "/readyz")
        before = ssl.get_server_certificate(server.metrics or FREE)
        cert.write_text("broken")
        authority.add("new", LOOPBACK)
        assert ssl.get_server_certificate(server.metrics or FREE) == before
        (tmp_path / "tls" / "new-key.pem").replace(key)
        (tmp_path / "tls" / "new.pem").replace(cert)
        wait_for(lambda: ssl.get_server_certificate(server.metrics or FREE) == cert.read_text())
        assert page(server.metrics, "/healthz", ca=ca).status == 200


def test_beyond_loopback_metrics_are_for_those_who_may_see_all_jobs(tmp_path: Path) -> None:
    with town(tmp_path, metrics=Address("0.0.0.0", 0), trust_network=True) as place:
        assert place.server.metrics
        here = Address("127.0.0.1", place.server.metrics.port)
        viewer = place.make("ann", "viewer")
        tokens = {"admin": place.admin.token, "viewer": viewer.token, "none": ""}
        tokens |= {role: place.make(f"a-{role}", role).token for role in ("submitter", "fleet")}
        assert {role: page(here, "/metrics", token=token).status for role, token in tokens.items()} == {
            "admin": 200,
            "viewer": 200,
            "none": 401,
            "submitter": 401,
            "fleet": 401,
        }
        place.revoke("ann")
        assert page(here, "/metrics", token=viewer.token).status == 401


def test_a_server_that_drains_is_not_ready(tmp_path: Path) -> None:
    with running_server(tmp_path, metrics=FREE) as server, Client(server.address) as client:
        client.cluster.end_server(60)
        assert page(server.metrics, "/readyz") == (503, "draining\n")
        assert page(server.metrics, "/healthz").status == 200
