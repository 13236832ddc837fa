"""A worker sends heartbeats from Welcome to the end, whatever it is doing."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from tests.end_to_end.peer import DEADLINE
from tests.server.test_training_service import make_spec
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.learning import data
from thalweg.server import validation
from thalweg.v1 import job_pb2, parameter_service_pb2_grpc
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers import worker
from thalweg.workers.differentiator import Differentiator


class Script(parameter_service_pb2_grpc.ParameterServiceServicer):
    """A server that hands out one task, and counts heartbeats."""

    def __init__(self, spec: job_pb2.JobSpec, heartbeat_seconds: float) -> None:
        self._welcome = pb.Welcome(spec=spec, heartbeat_seconds=heartbeat_seconds)
        self._more = threading.Condition()
        self.heartbeats = 0
        self.gradients: list[pb.GradientChunk] = []

    def await_heartbeats(self) -> None:
        """Waits until some more have come."""
        with self._more:
            wanted = self.heartbeats + 3
            assert self._more.wait_for(lambda: self.heartbeats >= wanted, DEADLINE)

    def Work(self, request_iterator: Iterator[pb.WorkRequest], context: Any) -> Iterator[pb.WorkResponse]:  # noqa: N802
        yield pb.WorkResponse(welcome=self._welcome)
        for request in request_iterator:
            match request.WhichOneof("message"):
                case "heartbeat":
                    with self._more:
                        self.heartbeats += 1
                        self._more.notify_all()
                case "prepared":
                    yield pb.WorkResponse(accepted=pb.Accepted(chunk_elements=1000))
                    yield pb.WorkResponse(parameters=pb.ParametersChunk(version=5, data=np.zeros(3, np.float32).tobytes()))
                    yield pb.WorkResponse(differentiate=pb.DifferentiateTask(version=5, step=7, steps=1, end_chunk=1))
                case "gradient":
                    self.gradients.append(request.gradient)
                    yield pb.WorkResponse(goodbye=pb.Goodbye(reason="done"))
                case "failure":
                    yield pb.WorkResponse(goodbye=pb.Goodbye(reason=request.failure.problem))


@contextmanager
def serving(script: Script) -> Iterator[Address]:
    service = grpc.server(ThreadPoolExecutor(2))
    parameter_service_pb2_grpc.add_ParameterServiceServicer_to_server(script, service)
    port = service.add_insecure_port("127.0.0.1:0")
    service.start()
    try:
        yield Address("127.0.0.1", port)
    finally:
        service.stop(0).wait()


def threads_of_heartbeats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "thalweg-heart"]


@pytest.mark.parametrize("gradient", ["backpropagation", "numerical"])
def test_heartbeats_come_while_data_load_and_while_gradients_are_computed(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = validation.complete(make_spec(training={"batch_size": 4, "microbatches": 1, "gradient": gradient}))
    script = Script(spec, heartbeat_seconds=0.01)
    load, differentiate = data.load, Differentiator.gradient

    def slow_load(*arguments: Any) -> Any:
        script.await_heartbeats()
        return load(*arguments)

    def slow_gradient(*arguments: Any) -> Any:
        script.await_heartbeats()
        return differentiate(*arguments)

    monkeypatch.setattr(data, "load", slow_load)
    monkeypatch.setattr(Differentiator, "gradient", slow_gradient)
    answered: list[int] = []
    with serving(script) as address:
        assert worker.work(Endpoint(address), "job", "worker", lambda: answered.append(len(script.gradients))) == "done"
    assert script.heartbeats >= 6
    assert [(part.version, part.step) for part in script.gradients] == [(5, 7)]
    assert len(answered) == 1
    assert not threads_of_heartbeats()


def test_the_thread_ends_with_a_worker_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(validation.complete(make_spec()), heartbeat_seconds=0.01)

    def broken_load(*arguments: Any) -> Any:
        script.await_heartbeats()
        raise RuntimeError("no luck")

    monkeypatch.setattr(data, "load", broken_load)
    with serving(script) as address:
        assert worker.work(Endpoint(address), "job", "worker") == "RuntimeError: no luck"
    assert not threads_of_heartbeats()


def test_none_come_where_none_are_wanted() -> None:
    script = Script(validation.complete(make_spec()), heartbeat_seconds=0)
    with serving(script) as address:
        assert worker.work(Endpoint(address), "job", "worker") == "done"
    assert script.heartbeats == 0
