"""Calls of every method: what an honest peer sends, then something of it changed, out of order, too often or torn."""

import hashlib
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf import json_format, message_factory
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

from tests.fuzz.messages import Messages, Words
from tests.fuzz.mutations import mutated
from thalweg.contract.release import capacity, hello, shard_offer
from thalweg.v1 import (
    cluster_service_pb2,
    fleet_service_pb2,
    job_pb2,
    parameter_service_pb2,
    shard_service_pb2,
    training_service_pb2,
)

_MODULES: tuple[Any, ...] = (
    training_service_pb2,
    cluster_service_pb2,
    fleet_service_pb2,
    parameter_service_pb2,
    shard_service_pb2,
    health_pb2,
    reflection_pb2,
)
# Jobs that calls are about. There is a job of some of these ids as a rule.
VICTIMS = tuple(f"victim-{number}" for number in range(1, 7))
SPEC = json_format.ParseDict(
    {
        "name": "victim",
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "training": {"epochs": 2, "batch_size": 4, "microbatches": 1},
        "optimizer": {"sgd": {}},
    },
    job_pb2.JobSpec(),
)
_FILE = b"1,2\n" * 100
_SHA256 = hashlib.sha256(_FILE).hexdigest()
# What an administrator ends a server with, which is not there afterwards.
_ENDS = ("DrainServer",)
# How many torn variants are sent of each call that was made, and of a large one.
_VARIANTS, _OF_LARGE = 15, 2
_LARGE_BYTES = 1 << 16


class Method(NamedTuple):
    """A method of a service. `streams` is whether it takes a stream of requests, `goes_on` whether its answer is a stream."""

    path: str
    request: type[Message]
    streams: bool
    goes_on: bool


class Call(NamedTuple):
    """What is sent to a method: one message, or those of a stream."""

    method: Method
    messages: tuple[bytes, ...]


def _methods() -> list[Method]:
    found = []
    for module in _MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if method.name in _ENDS:
                    continue
                request = message_factory.GetMessageClass(method.input_type)
                path = f"/{service.full_name}/{method.name}"
                found.append(Method(path, request, method.client_streaming, method.server_streaming))
    return found


METHODS = _methods()


def _work() -> list[Message]:
    pb = parameter_service_pb2
    tensors = [job_pb2.Tensor(name="0.weight", shape=[1, 2]), job_pb2.Tensor(name="0.bias", shape=[1])]
    prepared = pb.Prepared(layout=job_pb2.Layout(tensors=tensors, dtype="float32"), train_samples=4)
    sums = pb.Sums(loss=1, samples=4)
    return [
        pb.WorkRequest(hello=hello(job_id=VICTIMS[0], worker="peer")),
        pb.WorkRequest(heartbeat=pb.Heartbeat(doing="downloads")),
        pb.WorkRequest(prepared=prepared),
        pb.WorkRequest(initial=pb.ParametersChunk(data=bytes(12))),
        pb.WorkRequest(gradient=pb.GradientChunk(data=bytes(12), sums=sums)),
        pb.WorkRequest(gradient=pb.GradientChunk(version=1, step=1, data=bytes(12), sums=sums)),
        pb.WorkRequest(evaluation=pb.Evaluation(version=2, split=pb.SPLIT_TRAIN, sums=sums)),
    ]


def _hold() -> list[Message]:
    pb = shard_service_pb2
    return [
        # Nobody is there who could confirm it, but a stranger may say what it likes.
        pb.HoldRequest(offer=shard_offer("127.0.0.1:9", b"s" * 32)),
        pb.HoldRequest(heartbeat=parameter_service_pb2.Heartbeat()),
        pb.HoldRequest(share=1, arrival=pb.Arrival(worker=1, kept=1, bytes=12)),
        pb.HoldRequest(share=1, applied=pb.Applied(version=0, finite=True)),
    ]


def _honest() -> dict[str, list[Message]]:
    """What honest peers send, where it is more than an empty message."""
    training, fleets = training_service_pb2, fleet_service_pb2
    offer = capacity("fleet", 4, fleet="f", nodes=["n"], of_nodes=[(4, 1)], allow_code=True)
    exited = fleets.WorkerExited(job_id=VICTIMS[0], problem="gone", died=True)
    header = training.UploadHeader(sha256=_SHA256, size=len(_FILE))
    upload = [training.UploadDataRequest(header=header), training.UploadDataRequest(data=_FILE)]
    by_id = {
        name: getattr(training, f"{name}Request")(job_id=VICTIMS[0])
        for name in (
            *("GetJob", "CancelJob", "ResumeJob", "DeleteJob", "ScaleJob", "WatchJob", "GetStory"),
            *("DownloadParameters", "DownloadTrajectory"),
        )
    }
    calls: dict[str, list[Message]] = {
        **{name: [request] for name, request in by_id.items()},
        "CreateJob": [training.CreateJobRequest(spec=SPEC, job_id=VICTIMS[0])],
        "GetUpload": [training.GetUploadRequest(sha256=_SHA256)],
        "DownloadData": [training.DownloadDataRequest(sha256=_SHA256)],
        "UploadData": [*upload],
        "Attend": [fleets.AttendRequest(capacity=offer), fleets.AttendRequest(worker_exited=exited)],
        "Work": _work(),
        "Hold": _hold(),
        "Confirm": [shard_service_pb2.ConfirmRequest(challenge=b"c" * 32)],
        "Check": [health_pb2.HealthCheckRequest()],
        "ServerReflectionInfo": [reflection_pb2.ServerReflectionRequest(list_services="")],
    }
    return {method.path: calls.get(method.path.rpartition("/")[2], [method.request()]) for method in METHODS}


HONEST = _honest()
WORDS = Words(
    texts=(*VICTIMS, _SHA256, "127.0.0.1:9", ":9", "mean_squared_error", "xor", "float32", "0.weight"),
    bytes=(bytes(12), b"s" * 32),
)


class Calls:
    """Strategies of calls."""

    def __init__(self, methods: Sequence[Method] = METHODS) -> None:
        self._messages = Messages(WORDS)
        # More of those that take more.
        times = {method: 3 if HONEST[method.path][0].ByteSize() > 40 else 1 for method in methods}
        self._methods = st.sampled_from([method for method, count in times.items() for _ in range(count)])

    def bundles(self) -> st.SearchStrategy[list[Call]]:
        """A call with messages of the right types, and the same call with one of them torn, in some ways."""

        @st.composite
        def bundle(draw: st.DrawFn) -> list[Call]:
            method = draw(self._methods)
            script = tuple(self._script(draw, method) if method.streams else [self._request(draw, method, 0)])
            chance = random.Random(draw(st.integers(0, (1 << 64) - 1)))
            torn = []
            for _ in range(_VARIANTS if sum(map(len, script)) < _LARGE_BYTES else _OF_LARGE):
                place = chance.randrange(len(script) or 1)
                one = mutated(script[place] if script else b"", chance)
                torn.append(Call(method, (*script[:place], one, *script[place + 1 :])))
            return [Call(method, script), *torn]

        return bundle()

    def _script(self, draw: st.DrawFn, method: Method) -> list[bytes]:
        """The messages of a stream: those of an honest one, some of them changed, lost, doubled, or in another order."""
        honest = range(len(HONEST[method.path]))
        match draw(_ORDERS):
            case "honest":
                order = list(honest)
            case "begun":
                order = [*honest][: draw(st.integers(0, len(honest)))]
            case "any":
                order = draw(st.lists(st.sampled_from(honest), max_size=8))
            case _:
                order = draw(st.permutations(honest))
        return [self._request(draw, method, place) for place in order]

    def _request(self, draw: st.DrawFn, method: Method, place: int) -> bytes:
        honest = HONEST[method.path][place]
        match draw(_CHANGES):
            case "none":
                return honest.SerializeToString()
            case "merged":
                # Both members of a oneof may be in the bytes, and the last one counts.
                return honest.SerializeToString() + self._wild(draw, method)
            case _:
                return self._wild(draw, method)

    def _wild(self, draw: st.DrawFn, method: Method) -> bytes:
        message: Message = draw(self._messages.of(method.request))
        return message.SerializeToString()


_ORDERS = st.sampled_from(("honest", "honest", "begun", "begun", "any", "permuted"))
_CHANGES = st.sampled_from(("none", "none", "merged", "wild"))
