"""A server and a shard in processes of their own, and calls that are sent to them while honest jobs run there."""

import asyncio
import os
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.end_to_end.command import Running, service, wait_for
from tests.end_to_end.refusals import refusal_of
from tests.fuzz.calls import HONEST, METHODS, SPEC, VICTIMS, Call, Calls
from thalweg.client import Client
from thalweg.contract.endpoint import Endpoint, connection_options, parse_address
from thalweg.contract.errors import ThalwegError
from thalweg.contract.states import ENDED
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

# An answer that has not ended after this time is cut: that of a job that is watched goes on. All others end by themselves.
_SECONDS, _MAX_SECONDS = 0.3, 60.0
_AT_A_TIME = 64
# How many calls are known of when something goes wrong.
_REMEMBERED = 200
# After so many calls, the jobs that they made are removed.
_CALLS_BETWEEN_REMOVALS = 2_000
# Services that a server has, and those that a shard has.
_OF_SERVERS = (
    "TrainingService",
    "ClusterService",
    "FleetService",
    "ParameterService",
    "ShardService",
    "Health",
    "ServerReflection",
)
_OF_SHARDS = ("ParameterService", "ShardConfirmationService", "Health", "ServerReflection")
# Honest jobs, and their settings. Nothing that is sent names them.
_HONEST = "honest"
_JOB = {"training.epochs": 3, "training.workers": 2}


class Report(NamedTuple):
    """What was sent, how it ended, and the most memory that the server and the shard had, in MiB."""

    messages: int
    statuses: Counter[str]
    jobs: int
    server_mib: int
    shard_mib: int


class HarmError(AssertionError):
    """Something that no message may cause."""


class _Target:
    """A process that is called, and the services that it has."""

    def __init__(self, running: Running, address: str, services: tuple[str, ...]) -> None:
        self.running = running
        self.endpoint = Endpoint(parse_address(address))
        self.paths = {method.path for method in METHODS if method.path.split("/")[1].rpartition(".")[2] in services}
        self.most_bytes = 0
        self.errors_read = 0

    def check(self) -> None:
        """Raises HarmError if it has ended, or has logged an exception."""
        if self.running.process.poll() is not None:
            raise HarmError(f"it ended: {self.running.stderr[-5000:]}")
        self.most_bytes = max(self.most_bytes, psutil.Process(self.running.process.pid).memory_info().rss)
        log = self.running.stderr
        fresh, self.errors_read = log[self.errors_read :], len(log)
        if "Traceback" in fresh or "Exception" in fresh:
            raise HarmError(f"it logged an exception: {fresh[-5000:]}")


class Campaign:
    """What is sent to a server and a shard, one after another. A loop of its own carries the calls."""

    def __init__(self, server: _Target, shard: _Target) -> None:
        self._targets = (server, shard)
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._under_way: set[asyncio.Task[None]] = set()
        self._last: deque[str] = deque(maxlen=_REMEMBERED)
        self.statuses: Counter[str] = Counter()
        self.calls = self.messages = 0
        self.fault: Exception | None = None

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Has channels to both processes within the context."""
        options = connection_options()
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            self._channels = [runner.run(_channel(str(target.endpoint.address), options)) for target in self._targets]
            try:
                yield
            finally:
                runner.run(self._end())

    async def _end(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    def send(self, calls: list[Call]) -> None:
        """Begins calls, as soon as there is room for them. Raises HarmError if an earlier one did what it may not do."""
        self._loop.run_until_complete(self._send(calls))
        before, self.calls = self.calls, self.calls + len(calls)
        if self.calls // _CALLS_BETWEEN_REMOVALS > before // _CALLS_BETWEEN_REMOVALS:
            self._remove_jobs()

    async def _send(self, calls: list[Call]) -> None:
        for call in calls:
            for target, channel in zip(self._targets, self._channels, strict=True):
                if call.method.path in target.paths:
                    while len(self._under_way) >= _AT_A_TIME:
                        await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
                    task = asyncio.create_task(self._call(target, channel, call))
                    self._under_way.add(task)
                    task.add_done_callback(self._under_way.discard)
                    self.messages += len(call.messages)

    async def _call(self, target: _Target, channel: grpc.aio.Channel, call: Call) -> None:
        streams, seconds = call.method.streams, _SECONDS if call.method.goes_on else _MAX_SECONDS
        method: Any = (channel.stream_stream if streams else channel.unary_stream)(call.method.path)
        self._last.append(f"{call.method.path} {[message[:2000].hex() for message in call.messages]}")
        code, reason, details = "OK", "", ""
        try:
            sent: Any = iter(call.messages) if streams else call.messages[0]
            async for _ in method(sent, timeout=seconds, metadata=target.endpoint.metadata):
                pass
        except grpc.aio.AioRpcError as error:
            refused = refusal_of(error)
            code, reason, details = refused.code.name, refused.reason, refused.message
        self.statuses[code] += 1
        # Without a reason, INTERNAL is what gRPC's client makes of a stream that ended while it was writing.
        if (code == "UNKNOWN" or reason == "INTERNAL") and self.fault is None:
            shown = str([message.hex() for message in call.messages])
            self.fault = HarmError(f"{call.method.path} answers {code}: {details}: {shown[:10_000]}")

    def check(self) -> None:
        """Raises HarmError if a call did what none may do."""
        try:
            if self.fault:
                raise self.fault
            for target in self._targets:
                target.check()
        except HarmError as fault:
            where = Path(tempfile.gettempdir(), f"fuzz-{os.getpid()}.txt")
            where.write_text("\n".join(self._last))
            raise HarmError(f"{fault}\nThe last calls are in {where}.") from fault

    def _remove_jobs(self) -> None:
        """Removes what calls made, so that there is always the same to be found, and makes the victims anew."""
        with self._server.endpoint.open() as channel:
            stub, metadata = TrainingServiceStub(channel), self._server.endpoint.metadata
            jobs = stub.ListJobs(pb.ListJobsRequest(page_size=1000), metadata=metadata).jobs
            for job in jobs:
                if job.id.startswith(_HONEST):
                    continue
                # Calls that are under way may do the same.
                with suppress(grpc.RpcError):
                    if job.state not in ENDED:
                        stub.CancelJob(pb.CancelJobRequest(job_id=job.id), metadata=metadata, timeout=30)
                    stub.DeleteJob(pb.DeleteJobRequest(job_id=job.id), metadata=metadata, timeout=30)
            for victim in VICTIMS[:3]:
                with suppress(grpc.RpcError):
                    stub.CreateJob(pb.CreateJobRequest(spec=SPEC, job_id=victim), metadata=metadata, timeout=30)


async def _channel(address: str, options: Any) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=options)


class _HonestJobs:
    """Jobs that are trained one after another, each to the digest of the first."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._train)
        self.digests: list[str] = []
        self.problem: Exception | None = None

    def __enter__(self) -> "_HonestJobs":
        self.train_one()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _train(self) -> None:
        try:
            while not self._stopping.is_set():
                self.train_one()
        except Exception as error:  # noqa: BLE001 - told by `check`
            self.problem = error

    def train_one(self) -> None:
        """Trains a job, and removes it."""
        with Client(self._address) as client:
            job = client.submit("digits", _JOB, id=f"{_HONEST}-{len(self.digests) + 1}")
            endpoint = Endpoint(client.address)
            threads = [threading.Thread(target=_work, args=(endpoint, job.id, f"worker-{index}")) for index in range(2)]
            for thread in threads:
                thread.start()
            self.digests.append(job.wait().weights_sha256)
            for thread in threads:
                thread.join()
            job.delete()

    def check(self) -> None:
        """Raises HarmError if a job did not end as the first one."""
        if self.problem or len(set(self.digests)) > 1:
            raise HarmError(f"a job that nobody may disturb ended otherwise: {self.problem or self.digests}") from self.problem


def _work(endpoint: Endpoint, job_id: str, name: str) -> None:
    # A worker may come when its job has ended.
    with suppress(ThalwegError):
        work(endpoint, job_id, name)


def run(home: Path, messages: int, seed: int | None = None) -> Report:
    """Sends at least a number of messages, drawn anew or from a seed. Raises HarmError if they do what no message may do."""
    with ExitStack() as stack:
        data, address = str(home / "server"), "127.0.0.1:0"
        serving = stack.enter_context(service(home, "serve", "--address", address, "--data", data, "--allow-code"))
        server = _Target(serving[0], serving[1]["address"], _OF_SERVERS)
        sharding = service(home, "shard", "--address", address, "--server", str(server.endpoint.address))
        running, facts = stack.enter_context(sharding)
        shard = _Target(running, facts["address"], _OF_SHARDS)
        campaign = Campaign(server, shard)
        stack.enter_context(campaign.connected())
        honest = stack.enter_context(_HonestJobs(str(server.endpoint.address)))
        _send(campaign, messages, seed)
        campaign.check()
        honest.check()
        # It answers, and trains as before.
        trained = len(honest.digests)
        wait_for(lambda: len(honest.digests) > trained or honest.problem)
        honest.check()
        campaign.check()
    mib = [target.most_bytes >> 20 for target in (server, shard)]
    return Report(campaign.messages, campaign.statuses, len(honest.digests), *mib)


def _send(campaign: Campaign, messages: int, seed: int | None) -> None:
    """Sends what honest peers send, then draws bundles of calls, and sends them, until there were enough messages."""
    campaign.send([Call(method, tuple(each.SerializeToString() for each in HONEST[method.path])) for method in METHODS])

    def round_of(bundles: int) -> None:
        @settings(
            max_examples=bundles,
            database=None,
            deadline=None,
            derandomize=seed is not None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(Calls().bundles())
        def send(calls: list[Call]) -> None:
            if not campaign.fault and campaign.messages < messages:
                campaign.send(calls)

        (send if seed is None else seeded(seed + campaign.calls)(send))()

    # Hypothesis remembers what it drew, so that what it knows grows with a round.
    while campaign.messages < messages:
        round_of(min(500, 1 + messages // 16))
        campaign.check()
