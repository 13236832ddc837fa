"""A copy for which there is no memory costs a checkpoint or a snapshot, and no job."""

import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server, stub_of
from tests.server.test_training_service import events_of, make_spec
from thalweg.contract import resources
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.errors import from_rpc_error
from thalweg.contract.resources import Memory
from thalweg.learning.optimizers import OptimizerState
from thalweg.server import validation
from thalweg.server.arrays import local
from thalweg.server.arrays.budget import Budget
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.arrays.pieces import Piece
from thalweg.server.sharding import host as shard
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.shard_service_pb2 import HoldRequest, MakeShare, ShareCommand
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work


def without_memory(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    copy = LocalArrays.copy

    def failing(self: LocalArrays, then: Callable[[OptimizerState], object], *, state: bool) -> None:
        if state is wanted:
            raise MemoryError("Unable to allocate 5.2 GiB")
        copy(self, then, state=state)

    monkeypatch.setattr(LocalArrays, "copy", failing)


def step(stub: TrainingServiceStub, job_id: str) -> int:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job.progress.step


def checkpoints(stub: TrainingServiceStub, job_id: str) -> job_pb2.Checkpoints:
    return stub.GetJob(pb.GetJobRequest(job_id=job_id)).job.progress.checkpoints


def test_a_checkpoint_without_memory_is_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, barrier: Barrier
) -> None:
    barrier.hold(1)
    without_memory(monkeypatch, wanted=True)
    with running_server(tmp_path, checkpoint_seconds=0.01) as server, stub_of(server) as stub:
        spec = make_spec(training={"epochs": 500, "batch_size": 4, "microbatches": 1}, optimizer={"adam": {}})
        job = stub.CreateJob(pb.CreateJobRequest(spec=spec)).job
        worker = threading.Thread(target=work, args=(Endpoint(server.address), job.id, "w"))
        worker.start()
        barrier.step_until(lambda: step(stub, job.id), lambda: checkpoints(stub, job.id).failed > 2)
        assert stub.GetJob(pb.GetJobRequest(job_id=job.id)).job.state == job_pb2.JOB_STATE_RUNNING
        job = stub.CancelJob(pb.CancelJobRequest(job_id=job.id)).job
        barrier.release()
        worker.join()
        failed = [event.checkpoint_failed for event in events_of(stub, job.id) if event.HasField("checkpoint_failed")]
        assert failed[0].problem == "there is too little memory for a copy (Unable to allocate 5.2 GiB)"
        # The last one needs no copy.
        assert job.state == job_pb2.JOB_STATE_CANCELLED
        assert list((tmp_path / "jobs" / job.id / "checkpoints").iterdir())


def test_a_snapshot_without_memory_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_memory(monkeypatch, wanted=False)
    with running_server(tmp_path) as server, stub_of(server) as stub:
        job = stub.CreateJob(pb.CreateJobRequest(spec=make_spec())).job
        work(Endpoint(server.address), job.id, "w")
        notices = [event.notice.text for event in events_of(stub, job.id) if event.HasField("notice")]
        assert stub.GetJob(pb.GetJobRequest(job_id=job.id)).job.state == job_pb2.JOB_STATE_SUCCEEDED
        assert any(notice.startswith("the trajectory has no step 1:") for notice in notices), notices
        first = next(iter(stub.DownloadTrajectory(pb.DownloadTrajectoryRequest(job_id=job.id))))
        assert list(first.header.versions) == [2], "the last one needs no copy"


def test_a_copy_that_is_larger_than_what_is_available_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, barrier: Barrier
) -> None:
    barrier.hold(1)
    monkeypatch.setattr(local, "_MIN_CHECKED", 0)
    with running_server(tmp_path, checkpoint_seconds=0.01) as server, stub_of(server) as stub:
        spec = make_spec(training={"epochs": 500, "batch_size": 4, "microbatches": 1}, optimizer={"adam": {}})
        job = stub.CreateJob(pb.CreateJobRequest(spec=spec)).job
        worker = threading.Thread(target=work, args=(Endpoint(server.address), job.id, "w"), daemon=True)
        worker.start()
        barrier.step_until(lambda: step(stub, job.id), lambda: checkpoints(stub, job.id).written)
        with monkeypatch.context() as scarce:
            # Enough for the three parameters, and not for the optimizer's state.
            scarce.setattr(resources, "memory", lambda: Memory(1 << 30, 20))
            before = checkpoints(stub, job.id).failed
            barrier.step_until(lambda: step(stub, job.id), lambda: checkpoints(stub, job.id).failed > before)
            assert list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job.id)))
            scarce.setattr(resources, "memory", lambda: Memory(1 << 30, 0))
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job.id)))
            assert from_rpc_error(caught.value, "").reason == "OUT_OF_MEMORY"
            assert "0.00 MiB are needed, but 0.00 MiB are available" in str(from_rpc_error(caught.value, ""))
        stub.CancelJob(pb.CancelJobRequest(job_id=job.id))
        barrier.release()
        worker.join()


def test_a_shard_refuses_a_share_for_which_it_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[HoldRequest | Piece] = []
    monkeypatch.setattr(shard, "Budget", lambda: Budget(lambda: Memory(1 << 30, 1 << 20), lambda: 0))
    holder = shard.ShardHost(said.append)
    spec = validation.complete(make_spec())
    make = MakeShare(spec=spec, elements=1 << 20, train_samples=4, first_chunk=0, end_chunk=2)
    holder.do(ShareCommand(share=7, make=make))
    (refusal,) = said
    assert isinstance(refusal, HoldRequest)
    assert refusal.share == 7
    assert "about 14.00 MiB of memory are needed, but 1.00 MiB are free" in refusal.failure.problem
    said.clear()
    make.elements = 1000
    holder.do(ShareCommand(share=8, make=make))
    assert not said
