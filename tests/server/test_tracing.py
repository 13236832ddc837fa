"""Traces of steps, as a collector of OpenTelemetry gets them."""

import queue
from collections.abc import Iterator
from concurrent import futures
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import thalweg, wait_for
from tests.end_to_end.peer import Peer
from tests.server.test_training_service import PREPARED, create, events_of, make_spec
from thalweg.client import composition
from thalweg.client.errors import LocalError
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.server.observing.tracing import Tracing
from thalweg.server.process import Server
from thalweg.workers.worker import work

TRAINING = {"epochs": 3, "batch_size": 4, "microbatches": 2, "workers": 2}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    with running_server(tmp_path_factory.mktemp("data")) as server:
        server.jobs.lives.runs.watched = tracing.watched
        yield server, exporter
    tracing.close()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def finished(exporter: InMemorySpanExporter, name: str, job: str) -> list[ReadableSpan]:
    """The spans of a name in the traces of a job, as they began."""
    spans = exporter.get_finished_spans()
    traces = {span.context.trace_id for span in spans if attributes(span).get("thalweg.job") == job}
    found = [span for span in spans if span.name == name and span.context.trace_id in traces]
    return sorted(found, key=lambda span: span.start_time or 0)


@pytest.mark.parametrize("synchrony", ["bulk", "asynchronous", "local", "stale"])
def test_each_step_is_a_trace_of_its_tasks_and_its_update(traced: tuple[Server, InMemorySpanExporter], synchrony: str) -> None:
    server, exporter = traced
    job = train(server, make_spec(training={**TRAINING, "synchrony": {synchrony: {}}}), workers=2)
    assert job.error == ""
    steps = finished(exporter, "step", job.id)
    with stub_of(server) as stub:
        losses = [loss for event in events_of(stub, job.id) for loss in event.steps_taken.losses]
    assert [attributes(step)["thalweg.step"] for step in steps] == list(range(len(steps)))
    assert [attributes(step)["thalweg.loss"] for step in steps if "thalweg.loss" in attributes(step)] == losses
    tasks, updates = finished(exporter, "task", job.id), finished(exporter, "update", job.id)
    assert len(updates) == len(losses)
    for step in steps:
        beneath = [span for span in (*tasks, *updates) if span.parent and span.parent.span_id == step.context.span_id]
        assert all((step.start_time or 0) <= (span.start_time or 0) for span in beneath)
        assert all((span.end_time or 0) <= (step.end_time or 0) for span in beneath)
        microbatches = [attributes(span)["thalweg.microbatches"] for span in beneath if span.name == "task"]
        assert {index for first, end in microbatches for index in range(first, end)} == {0, 1}
    assert {attributes(task)["thalweg.worker"] for task in tasks} <= {"worker-0", "worker-1"}
    assert all(task.status.status_code is StatusCode.UNSET for task in tasks)


def test_traces_change_no_bit(traced: tuple[Server, InMemorySpanExporter], tmp_path: Path) -> None:
    server, _ = traced
    spec = make_spec(training=TRAINING)
    with running_server(tmp_path) as other:
        untraced = train(other, spec)
    assert train(server, spec, workers=2).result.weights_sha256 == untraced.result.weights_sha256


def test_a_task_of_a_lost_worker_is_an_error(traced: tuple[Server, InMemorySpanExporter]) -> None:
    server, exporter = traced
    with stub_of(server) as stub:
        job = create(stub, training={**TRAINING, "workers": 1, "mixed_machines": True})
    with Peer(server.address) as peer:
        peer.hello(job.id)
        peer.prepare(PREPARED)
        peer.initialize(np.zeros(3, np.float32))
    work(Endpoint(server.address), job.id, "another")
    wait_for(lambda: len(finished(exporter, "step", job.id)) == 3)
    first, *_ = finished(exporter, "step", job.id)
    again = [task for task in finished(exporter, "task", job.id) if task.parent and task.parent.span_id == first.context.span_id]
    ends = {(attributes(task)["thalweg.worker"], task.status.status_code, task.status.description) for task in again}
    assert ends == {("peer", StatusCode.ERROR, "the worker is gone"), ("another", StatusCode.UNSET, None)}
    assert all((one.end_time or 0) <= (next_.end_time or 0) for one, next_ in pairwise(finished(exporter, "step", job.id)))


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes what is sent by OTLP."""

    def __init__(self) -> None:
        self.names: queue.SimpleQueue[str] = queue.SimpleQueue()

    def Export(self, request: Any, context: object) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            assert {"service.name": "thalweg"}.items() <= {
                each.key: each.value.string_value for each in resource.resource.attributes
            }.items()
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.names.put(span.name)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_collector_gets_traces_before_the_server_has_stopped(tmp_path: Path) -> None:
    collector = Collector()
    receiving = grpc.server(futures.ThreadPoolExecutor(1))
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, receiving)
    port = receiving.add_insecure_port("127.0.0.1:0")
    receiving.start()
    try:
        with running_server(tmp_path, traces=f"http://127.0.0.1:{port}") as server:
            train(server, make_spec(training=TRAINING))
        names = [collector.names.get_nowait() for _ in range(collector.names.qsize())]
    finally:
        receiving.stop(None)
    assert names.count("step") == names.count("update") == 3
    assert names.count("task") >= 3


def test_a_url_that_is_none_is_told(tmp_path: Path) -> None:
    ended = thalweg(tmp_path, "serve", "--traces", "127.0.0.1:4317")
    assert ended.code == 2
    assert "--traces: '127.0.0.1:4317' is not a URL; write http://HOST:PORT" in ended.stderr


def test_a_missing_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "find_spec", lambda _: None)
    with pytest.raises(LocalError, match=r"pip install 'thalweg\[tracing\]'"):
        composition.start_server(Address("127.0.0.1", 0), tmp_path, None, traces="http://127.0.0.1:1")
