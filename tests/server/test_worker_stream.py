"""What waits for a worker that takes nothing: a bounded number of messages, and all that it needs."""

import asyncio
from typing import Any

from thalweg.server.services.parameter import WorkerStream
from thalweg.v1 import parameter_service_pb2 as pb

CHUNKS = 3


class Listener:
    """The call's other end: takes each message at once, and keeps what it was."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def write(self, message: pb.WorkResponse | bytes) -> None:
        message = pb.WorkResponse.FromString(message) if isinstance(message, bytes) else message
        kind = message.WhichOneof("message") or "nothing"
        for part in (message.differentiate.parameters, message.parameters):
            if part.data:
                self.heard.append(f"{part.version}.{part.chunk}")
        if kind != "parameters":
            self.heard.append(f"{kind} {getattr(message, kind).version}" if kind in ("differentiate", "evaluate") else kind)


def parameters(stream: WorkerStream, version: int, chunks: int = CHUNKS, *, constant: bool = False) -> list[str]:
    """Sends chunks of the parameters at a version, and gives what the worker would hear of it."""
    for chunk in range(chunks):
        part = pb.ParametersChunk(version=version, chunk=chunk, data=b"some")
        stream.send_parameters(version, pb.WorkResponse(parameters=part).SerializeToString(), constant=constant)
    return [f"{version}.{chunk}" for chunk in range(chunks)]


def heard(stream: WorkerStream) -> list[str]:
    """What a worker hears that begins to take messages now."""
    listener: Any = Listener()
    stream.send(pb.WorkResponse(goodbye=pb.Goodbye()))
    asyncio.run(stream.write(listener))
    assert listener.heard.pop() == "goodbye"
    messages: list[str] = listener.heard
    return messages


def differentiate(version: int) -> pb.WorkResponse:
    return pb.WorkResponse(differentiate=pb.DifferentiateTask(version=version))


def evaluate(version: int) -> pb.WorkResponse:
    return pb.WorkResponse(evaluate=pb.EvaluateTask(version=version))


def test_a_worker_that_takes_nothing_is_sent_the_last_two_versions() -> None:
    stream = WorkerStream(1, "w")
    for version in range(1000):
        sent = parameters(stream, version)
    assert heard(stream) == [f"998.{chunk}" for chunk in range(CHUNKS)] + sent


def test_a_version_stays_until_the_next_but_one_begins() -> None:
    stream = WorkerStream(1, "w")
    first, second = parameters(stream, 1), parameters(stream, 2)
    stream.send(differentiate(1))
    assert heard(stream) == [*first, *second, "differentiate 1"]


def test_what_a_gradient_is_computed_with_stays() -> None:
    stream = WorkerStream(1, "w")
    first = parameters(stream, 1)
    stream.send(differentiate(1))
    for version in range(2, 100):
        parameters(stream, version)
    assert heard(stream) == [*first, "differentiate 1", *(f"{v}.{chunk}" for v in (98, 99) for chunk in range(CHUNKS))]


def test_an_evaluation_that_is_over_is_not_asked_for() -> None:
    stream = WorkerStream(1, "w")
    for version in range(100):
        sent = parameters(stream, version)
        stream.send(evaluate(version))
    assert heard(stream) == [*(f"98.{chunk}" for chunk in range(CHUNKS)), *sent, "evaluate 99"]


def test_parameters_that_are_sent_again_all_arrive() -> None:
    stream = WorkerStream(1, "w")
    begun, again = parameters(stream, 5, chunks=1), parameters(stream, 5)
    older = parameters(stream, 4)
    assert heard(stream) == [*begun, *again, *older]


def test_constants_stay_however_many_versions_follow() -> None:
    stream = WorkerStream(1, "w")
    constants = parameters(stream, 0, constant=True)
    for version in range(1000):
        sent = parameters(stream, version)
    assert heard(stream) == [*constants, *(f"998.{chunk}" for chunk in range(CHUNKS)), *sent]


def test_an_evaluation_that_is_over_is_not_asked_for_where_there_are_constants_alone() -> None:
    stream = WorkerStream(1, "w")
    constants = parameters(stream, 0, constant=True)
    for version in range(100):
        stream.send(evaluate(version))
    assert heard(stream) == [*constants, "evaluate 99"]
