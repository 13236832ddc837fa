"""Downloads share copies, and those that no client reads are ended."""

import asyncio
import gc
import itertools
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import ThreadFleet, running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.refusals import refusal
from tests.server.specs import make_spec
from thalweg.contract.endpoint import CHUNK_BYTES
from thalweg.contract.errors import ThalwegError
from thalweg.server.arrays.downloads import Download, Downloads
from thalweg.server.arrays.local import LocalArrays
from thalweg.server.services import training
from thalweg.server.services.guarding import stalling
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

Parameters = Download[pb.ParametersHeader]


def download(version: int) -> Parameters:
    return Download(pb.ParametersHeader(version=version), [np.zeros(3, np.float32)])


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (CHUNK_BYTES // 4,), (CHUNK_BYTES // 4 + 1, 5, 0, CHUNK_BYTES)])
def test_pieces_are_views_of_at_most_a_chunk(sizes: tuple[int, ...]) -> None:
    arrays = [np.random.default_rng(0).normal(size=size).astype(np.float32) for size in sizes]
    pieces = list(Download(pb.ParametersHeader(), arrays).pieces())
    assert b"".join(pieces) == b"".join(array.tobytes() for array in arrays)
    assert all(0 < len(piece) <= CHUNK_BYTES for piece in pieces)
    assert all(any(np.shares_memory(np.asarray(piece), array) for array in arrays) for piece in pieces)


def test_whoever_asks_for_the_same_gets_the_same() -> None:
    async def test() -> None:
        downloads: Downloads[int, pb.ParametersHeader] = Downloads(2)
        made: list[int] = []

        async def make() -> Parameters:
            await asyncio.sleep(0)
            made.append(len(made))
            return download(made[-1])

        first, second = await asyncio.gather(downloads.get(1, make), downloads.get(1, make))
        assert first is second is await downloads.get(1, make)
        assert made == [0]
        other = await downloads.get(2, make)
        assert other is not first
        # There are as many as there may be.
        assert await downloads.get(3, make) is other
        del first, second
        assert await downloads.get(3, make) not in (None, other)
        assert made == [0, 1, 2]

    asyncio.run(test())


def test_one_caller_that_leaves_takes_nothing_from_the_others() -> None:
    async def test() -> None:
        downloads: Downloads[int, pb.ParametersHeader] = Downloads(1)
        go_on = asyncio.Event()

        async def make() -> Parameters:
            await go_on.wait()
            return download(1)

        first = asyncio.create_task(downloads.get(1, make))
        second = asyncio.create_task(downloads.get(2, make))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        go_on.set()
        assert await second

    asyncio.run(test())


def test_what_cannot_be_made_is_tried_again() -> None:
    async def test() -> None:
        downloads: Downloads[int, pb.ParametersHeader] = Downloads(1)

        async def fail() -> Parameters:
            raise MemoryError

        async def make() -> Parameters:
            return download(1)

        with pytest.raises(MemoryError):
            await downloads.get(1, fail)
        assert await downloads.get(1, make)

    asyncio.run(test())


def test_downloads_of_a_running_job_share_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, barrier: Barrier) -> None:
    barrier.hold(1)
    copies: list[int] = []
    copy = LocalArrays.copy

    def counted(self: LocalArrays, then: object, *, state: bool) -> None:
        copies.append(self.version)
        copy(self, then, state=state)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalArrays, "copy", counted)
    monkeypatch.setattr(LocalArrays, "offer", lambda _: None)
    # As if they were so large that they do not fit the buffers between a server and a client that reads nothing.
    monkeypatch.setattr(Download, "pieces", lambda _: itertools.repeat(memoryview(bytes(CHUNK_BYTES)), 1000))
    spec = make_spec(epochs=3)
    with running_server(tmp_path, checkpoint_seconds=1e6) as server, stub_of(server) as stub, ThreadFleet(server.address, 1):
        job = stub.CreateJob(pb.CreateJobRequest(spec=spec)).job.id

        def state() -> job_pb2.Job:
            return stub.GetJob(pb.GetJobRequest(job_id=job)).job

        def fresh() -> bool:
            """Whether a download is of a version that is as new as it can be."""
            before = state().progress.step
            return next(stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job))).header.version >= before

        wait_for(lambda: state().progress.step == 1)
        calls = [stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job)) for _ in range(20)]
        for call in calls:
            assert next(call).header.sha256
        assert len(copies) <= 2
        for call in calls:
            call.cancel()
        for call in calls:
            with suppress(grpc.RpcError):
                list(call)
        barrier.hold(2)
        wait_for(lambda: state().progress.step == 2)
        wait_for(lambda: gc.collect() >= 0 and fresh())
        stub.CancelJob(pb.CancelJobRequest(job_id=job))


def test_a_download_that_nobody_takes_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalling, "STALLED_SECONDS", 0.2)
    given_up: list[Exception] = []
    write = stalling.write

    async def watched(context: training.Context, message: object) -> None:
        try:
            await write(context, message)
        except ThalwegError as error:
            given_up.append(error)
            raise

    monkeypatch.setattr(training, "write", watched)
    monkeypatch.setattr(Download, "pieces", lambda _: (memoryview(bytes(CHUNK_BYTES)) for _ in range(1000)))
    with running_server(tmp_path) as server, stub_of(server) as stub, ThreadFleet(server.address, 1):
        job = stub.CreateJob(pb.CreateJobRequest(spec=make_spec(epochs=1))).job.id
        list(stub.WatchJob(pb.WatchJobRequest(job_id=job)))
        call = stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job))
        assert next(call).header.sha256
        wait_for(lambda: bool(given_up))
        # What was on its way still comes, and then the error.
        refused = refusal(lambda: call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "TOO_SLOW")
