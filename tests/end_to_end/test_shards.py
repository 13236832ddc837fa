"""Jobs whose slab is split over several servers end with the same bits."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from threadpoolctl import threadpool_limits

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import ThreadFleet, running_server, stub_of, train
from tests.end_to_end.command import service, wait_for
from tests.end_to_end.peer import CutError, HoldAfter, proxy
from tests.end_to_end.reference import reference
from thalweg.contract import layout as layouts
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.server import validation
from thalweg.server.process import Server, ServerConfig
from thalweg.server.sharding import host as shard_module
from thalweg.server.sharding.process import ShardConfig, ShardProcess
from thalweg.server.storage.folder import DataFolder
from thalweg.v1 import job_pb2, training_service_pb2
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

# Four chunks, and a bit of a fifth.
BASE: dict[str, dict[str, Any]] = {
    "model": {
        "layers": [{"dense": {"units": 4000}}, {"tanh": {}}, {"dense": {"units": 200}}],
        "loss": "softmax_cross_entropy",
    },
    "data": {"builtin": "digits", "validation_fraction": 0.2},
    "training": {"epochs": 2, "batch_size": 400, "microbatches": 3},
    "optimizer": {"sgd": {"learning_rate": 0.1}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": {"adam": {}}},
    "clipped": {"optimizer": {"momentum": {"learning_rate": 0.1}, "clip_global_norm": 0.3}},
    "lamb, clipped": {"optimizer": {"lamb": {"learning_rate": 0.01}, "clip_global_norm": 0.3}},
    "groups, clipped": {
        "optimizer": {
            "adamw": {"weight_decay": 0.3},
            "clip_global_norm": 0.3,
            "groups": [
                {"pattern": "0.bias", "frozen": True},
                {"pattern": "0.*", "learning_rate_factor": 0.3},
                {"pattern": "*.bias", "weight_decay": 0},
            ],
        }
    },
    "local steps, clipped": {
        "training": {**BASE["training"], "synchrony": {"local": {"steps": 2, "outer": {"adam": {}, "clip_global_norm": 0.1}}}}
    },
    "bfloat16": {"training": {**BASE["training"], "codec": {"bfloat16": {}}}},
    "float64": {"model": {**BASE["model"], "dtype": "float64"}},
}


def spec_of(**changes: Any) -> job_pb2.JobSpec:
    return json_format.ParseDict({**BASE, **changes}, job_pb2.JobSpec())


def expected(spec: job_pb2.JobSpec) -> str:
    """The SHA-256 of the parameters that a plain loop ends with."""
    with threadpool_limits(1, "blas"):
        return layouts.digest(reference(validation.complete(spec))[0])


def start_shard(server: Server, **settings: Any) -> ShardProcess:
    """A shard that attends on a server."""
    others = len(server.jobs.shards.attending)
    shard = ShardProcess(ShardConfig(Address("127.0.0.1", 0), Endpoint(server.address), **settings))
    shard.start()
    wait_for(lambda: len(server.jobs.shards.attending) > others)
    return shard


@contextmanager
def sharded(data: Path, shards: int = 1, **settings: object) -> Iterator[tuple[Server, list[ShardProcess]]]:
    """A server, and shards of it."""
    with running_server(data, **settings) as server, ExitStack() as stack:
        started: list[ShardProcess] = []
        for _ in range(shards):
            started.append(start_shard(server))
            stack.callback(started[-1].stop)
        yield server, started


def events(server: Server, job_id: str) -> list[training_service_pb2.Event]:
    """The events of a job so far."""
    return DataFolder(server.config.data).events(job_id, 0, 1 << 20)


def notices(server: Server, job_id: str) -> list[str]:
    return [event.notice.text for event in events(server, job_id) if event.HasField("notice")]


def statuses(server: Server, job_id: str) -> str:
    return "\n".join(event.state_changed.job.status for event in events(server, job_id))


def current(stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    job: job_pb2.Job = stub.GetJob(training_service_pb2.GetJobRequest(job_id=job_id)).job
    return job


def ended(stub: TrainingServiceStub, job_id: str) -> job_pb2.Job:
    """A job when it has ended."""
    for _ in stub.WatchJob(training_service_pb2.WatchJobRequest(job_id=job_id)):
        pass
    return current(stub, job_id)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_over_shards_equals_a_plain_loop(variant: str, shards: int, tmp_path: Path) -> None:
    spec = spec_of(**VARIANTS[variant])
    digest = expected(spec)
    with sharded(tmp_path, shards) as (server, _):
        for workers in (1, 3):
            job = train(server, spec, workers)
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
            assert job.result.weights_sha256 == digest


def test_a_job_is_split_as_far_as_it_has_chunks(tmp_path: Path) -> None:
    small = {"layers": [{"dense": {"units": 16}}, {"tanh": {}}, {"dense": {"units": 10}}], "loss": "softmax_cross_entropy"}
    with sharded(tmp_path, 2) as (server, (first, second)):
        split = train(server, spec_of())
        assert notices(server, split.id) == [f"the parameters are split over this server and {first.address}, {second.address}"]
        assert notices(server, train(server, spec_of(model=small)).id) == []
        numerical = {"epochs": 1, "batch_size": 1500, "microbatches": 1, "gradient": "numerical"}
        job = train(server, spec_of(model=small, training=numerical))
        assert not [text for text in notices(server, job.id) if "split" in text]


def test_what_travels_is_counted_as_without_shards(tmp_path: Path) -> None:
    with running_server(tmp_path, shared_memory=False) as server:
        alone = train(server, spec_of()).progress.exchange
        shard = start_shard(server)
        assert train(server, spec_of()).progress.exchange == alone
        shard.stop()


def test_a_lost_worker_changes_nothing(tmp_path: Path) -> None:
    spec = spec_of(training={**BASE["training"], "epochs": 4})
    digest = expected(spec)
    for gradients in (0, 1, 3):
        left = [gradients]

        def cut_later(request: pb.WorkRequest, left: list[int] = left) -> Iterator[pb.WorkRequest]:
            if request.HasField("gradient"):
                if not left[0]:
                    raise CutError
                left[0] -= 1
            yield request

        with (
            sharded(tmp_path / str(gradients), 2) as (server, _),
            proxy(server.address, cut_later) as cut,
            stub_of(server) as stub,
        ):
            job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job
            with suppress(ThalwegError):
                work(Endpoint(cut), job.id, "lost")
            work(Endpoint(server.address), job.id, "steady")
            job = stub.GetJob(training_service_pb2.GetJobRequest(job_id=job.id)).job
            assert job.result.weights_sha256 == digest
            assert job.progress.contributions.lost_workers >= 1


@pytest.mark.parametrize("gradients", [0, 3, 8])
def test_a_straggler_changes_nothing_and_ends_with_the_others(gradients: int, tmp_path: Path) -> None:
    spec = spec_of(training={**BASE["training"], "epochs": 6}, optimizer={"adam": {}})
    digest = expected(spec)
    hold = HoldAfter(gradients)
    with sharded(tmp_path, 2) as (server, _), proxy(server.address, hold) as slow, stub_of(server) as stub:
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job
        straggler = threading.Thread(target=work, args=(Endpoint(slow), job.id, "straggler"))
        straggler.start()
        assert hold.holding.wait(60) or not gradients
        steady = threading.Thread(target=work, args=(Endpoint(server.address), job.id, "steady"))
        steady.start()
        wait_for(lambda: current(stub, job.id).progress.step > 10)
        hold.released.set()
        straggler.join(60)
        steady.join(60)
        assert not straggler.is_alive()
        assert not steady.is_alive()
        job = current(stub, job.id)
        assert job.result.weights_sha256 == digest
        assert job.progress.contributions.reissued_tasks


def test_a_worker_that_cannot_reach_a_shard_says_which(tmp_path: Path) -> None:
    with sharded(tmp_path) as (server, _), stub_of(server) as stub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.jobs.shards.attending[0], "address", "127.0.0.1:1")
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec_of())).job
        with pytest.raises(ThalwegError, match=r"cannot reach a Thalweg server at 127\.0\.0\.1:1: "):
            work(Endpoint(server.address), job.id, "far away")


def test_a_lost_shard_takes_the_job_back_to_its_last_checkpoint(tmp_path: Path, barrier: Barrier) -> None:
    spec = spec_of(training={**BASE["training"], "workers": 2}, optimizer={"adam": {}})
    digest = expected(spec)
    barrier.hold(0)
    with running_server(tmp_path, checkpoint_seconds=0) as server, stub_of(server) as stub, ThreadFleet(server.address, 2):
        shards = [start_shard(server), start_shard(server)]
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job
        for step, shard in enumerate(shards, 1):
            # Each run writes a checkpoint after its first step. Workers wait before the next one, and hear of the loss later.
            barrier.hold(step)
            wait_for(lambda: current(stub, job.id).progress.checkpoints.step == step)  # noqa: B023 - waited for at once
            shard.stop()
            wait_for(lambda: f"shard {shard.address} was lost" in statuses(server, job.id))  # noqa: B023
        barrier.release()
        job = ended(stub, job.id)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        assert job.result.weights_sha256 == digest
        split = [text.partition("split over this server and ")[2] for text in notices(server, job.id)]
        assert [len(addresses.split(", ")) for addresses in split if addresses] == [2, 1]


def test_a_job_goes_on_with_another_number_of_shards(tmp_path: Path, barrier: Barrier) -> None:
    spec = spec_of(training={**BASE["training"], "workers": 2}, optimizer={"adam": {}})
    digest = expected(spec)
    for step, shards in enumerate((2, 0, 1), 1):
        barrier.hold(step)
        with running_server(tmp_path, checkpoint_seconds=0) as server, stub_of(server) as stub:
            started = [start_shard(server) for _ in range(shards)]
            if shards == 2:
                job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job
            with ThreadFleet(server.address, 2):
                if shards == 1:
                    barrier.release()
                    job = ended(stub, job.id)
                else:
                    wait_for(lambda: current(stub, job.id).progress.checkpoints.step == step)  # noqa: B023 - waited for at once
        for shard in started:
            shard.stop()
    assert job.result.weights_sha256 == digest


def test_parameters_can_be_had_while_they_are_on_shards(tmp_path: Path, barrier: Barrier) -> None:
    spec = spec_of()
    barrier.hold(3)
    with sharded(tmp_path, 2) as (server, _), stub_of(server) as stub, ThreadFleet(server.address, 1):
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job
        wait_for(lambda: current(stub, job.id).progress.step > 2)
        first, *parts = stub.DownloadParameters(training_service_pb2.DownloadParametersRequest(job_id=job.id))
        slab = np.frombuffer(b"".join(part.data for part in parts), np.float32)
        assert first.header.version > 2
        assert layouts.digest(slab) == first.header.sha256
        assert layouts.elements(first.header.layout) == slab.size
        job = stub.CancelJob(training_service_pb2.CancelJobRequest(job_id=job.id)).job
        assert job.state == job_pb2.JOB_STATE_CANCELLED
        assert job.result.steps > 2


@pytest.mark.parametrize("clipped", [False, True])
def test_parameters_that_are_not_finite_are_not_kept(clipped: bool, tmp_path: Path) -> None:
    optimizer = {"sgd": {"learning_rate": 1e39}} | ({"clip_global_norm": 1e10} if clipped else {})
    with running_server(tmp_path, shared_memory=False) as server:
        alone = train(server, spec_of(optimizer=optimizer), 2)
        shard = start_shard(server)
        split = train(server, spec_of(optimizer=optimizer), 2)
        shard.stop()
    assert alone.state == split.state == job_pb2.JOB_STATE_FAILED
    assert "The last finite parameters were kept" in split.error
    assert split.error == alone.error
    assert split.result.weights_sha256 == alone.result.weights_sha256


def test_a_shard_without_room_fails_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sharded(tmp_path) as (server, _):
        with monkeypatch.context() as patch:
            patch.setattr(shard_module, "Plan", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
            job = train(server, spec_of())
        assert job.state == job_pb2.JOB_STATE_FAILED
        assert "MemoryError: no room" in job.error
        assert train(server, spec_of()).state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_killed_shard_process_changes_nothing(tmp_path: Path, barrier: Barrier) -> None:
    spec = spec_of(training={**BASE["training"], "workers": 2}, optimizer={"adam": {}})
    barrier.hold(1)
    digest = expected(spec)
    with (
        running_server(tmp_path / "server", checkpoint_seconds=0) as server,
        stub_of(server) as stub,
        ThreadFleet(server.address, 2),
        service(tmp_path / "home", "shard", "--server", str(server.address)) as (shard, announced),
    ):
        assert announced["shard_of"] == str(server.address)
        wait_for(lambda: [each.address for each in server.jobs.shards.attending] == [announced["address"]])
        job = stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec)).job
        wait_for(lambda: current(stub, job.id).progress.checkpoints.written)
        shard.process.kill()
        wait_for(lambda: f"shard {announced['address']} was lost" in statuses(server, job.id))
        barrier.release()
        job = ended(stub, job.id)
        assert job.result.weights_sha256 == digest
        assert f"shard {announced['address']} was lost" in statuses(server, job.id)


def test_a_shard_may_be_started_by_its_former_name(tmp_path: Path) -> None:
    former = ("serve", "--shard-of", "127.0.0.1:1", "--address", "127.0.0.1:0")
    with service(tmp_path / "home", *former) as (shard, announced):
        assert announced["shard_of"] == "127.0.0.1:1"
        assert "thalweg serve --shard-of is now thalweg shard --server" in shard.stderr


def test_a_shard_waits_for_its_server(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        shard = start_shard(server)
    again = Server(ServerConfig(address=server.address, data=tmp_path))
    again.start()
    try:
        wait_for(lambda: again.jobs.shards.attending)
        assert train(again, spec_of()).state == job_pb2.JOB_STATE_SUCCEEDED
    finally:
        again.stop()
        shard.stop()


@pytest.mark.parametrize("synchrony", [{"stale": {"bound": 2}}, {"asynchronous": {}}], ids=["stale", "asynchronous"])
@pytest.mark.parametrize("codec", [{"float32": {}}, {"top_k": {}}], ids=["float32", "top_k"])
def test_other_kinds_of_synchrony_and_codecs_go_with_shards(
    synchrony: dict[str, Any], codec: dict[str, Any], tmp_path: Path
) -> None:
    training = {**BASE["training"], "epochs": 8, "synchrony": synchrony, "codec": codec}
    spec = spec_of(training=training, optimizer={"sgd": {"learning_rate": 0.01}})
    with sharded(tmp_path, 2) as (server, shards):
        job = train(server, spec, 3)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        assert job.result.steps == job.progress.total_steps
        assert job.result.train.accuracy > 0.7
        assert [shard.kept for shard in shards] == [0, 0]
