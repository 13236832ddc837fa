"""Traces of steps for OpenTelemetry: each step is a trace, with a span for each task of a worker, and one for the update."""

from collections.abc import Callable
from itertools import islice

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, Status, StatusCode, Tracer

from thalweg.server.deciding.decision_queue import Executor
from thalweg.server.deciding.decisions import (
    ApplyRange,
    AssignDifferentiate,
    Decision,
    Dismiss,
    Evict,
    Finish,
    Promote,
    ReportStep,
)
from thalweg.server.deciding.events import ContributionReceived, Event, WorkerLost
from thalweg.server.deciding.values import WorkerId

# More steps are never open at a time; a policy may leave some that never end by themselves.
_MAX_OPEN = 64


class Tracing:
    """Makes traces of all jobs of a server. `processor` is where spans go; the sampler is chosen by OTEL_TRACES_SAMPLER."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "thalweg"}), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("thalweg")

    def watched(self, job_id: str, executor: Executor, name_of: Callable[[WorkerId], str]) -> Executor:
        """What decides about a job and carries the decisions out as `executor` does, and leaves traces."""
        return _Traced(job_id, executor, name_of, self._tracer)

    def close(self) -> None:
        """Sends what is left, and waits for that for a moment."""
        self._provider.shutdown()


def tracing_to(endpoint: str) -> Tracing:
    """Sends traces to a collector by OTLP over gRPC: `http://HOST:PORT` in clear text, `https://` with TLS."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - it takes a moment

    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


class _Step:
    """The open spans of a step: its own, those of its tasks by worker and node, and that of its update."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.tasks: dict[tuple[WorkerId, int, int], Span] = {}
        self.update: Span | None = None

    def end(self, *, done: bool) -> None:
        """Ends all of them."""
        for task in self.tasks.values():
            task.set_attribute("thalweg.superfluous", done)
            task.end()
        for span in (self.update, self.span):
            if span:
                span.end()


class _Traced:
    """An executor whose steps leave traces."""

    def __init__(self, job_id: str, executor: Executor, name_of: Callable[[WorkerId], str], tracer: Tracer) -> None:
        self._job_id = job_id
        self._executor = executor
        self._name_of = name_of
        self._tracer = tracer
        self._steps: dict[int, _Step] = {}

    def decide(self, event: Event) -> list[Decision]:
        """The decisions that follow from an event."""
        if isinstance(event, ContributionReceived) and event.sums is not None:
            self._end_task(event)
        elif isinstance(event, WorkerLost):
            self._lose(event.worker)
        decisions = self._executor.decide(event)
        for decision in decisions:
            if isinstance(decision, AssignDifferentiate):
                self._begin_task(decision)
            elif isinstance(decision, Evict | Dismiss):
                self._lose(decision.worker)
        return decisions

    def ready(self, decision: Decision) -> bool:
        """Whether a decision may be carried out now."""
        return self._executor.ready(decision)

    def carry_out(self, decision: Decision) -> Event | None:
        """Carries a decision out."""
        if isinstance(decision, ApplyRange) and (step := self._steps.get(decision.step)) and step.update is None:
            step.update = self._child(step, "update")
        event = self._executor.carry_out(decision)
        if isinstance(decision, Promote):
            self._end_update(decision.step)
        elif isinstance(decision, ReportStep):
            self._end_step(decision)
        elif isinstance(decision, Finish):
            self._end_all()
        return event

    def failed(self, error: Exception) -> Event:
        """The event that an exception is."""
        return self._executor.failed(error)

    def _begin_task(self, assigned: AssignDifferentiate) -> None:
        number, node = assigned.task.step, assigned.task.node
        step = self._steps.get(number)
        if step is None:
            for oldest in list(islice(self._steps, max(0, len(self._steps) - _MAX_OPEN + 1))):
                self._steps.pop(oldest).end(done=False)
            step = self._steps[number] = _Step(self._tracer.start_span("step"))
            step.span.set_attribute("thalweg.job", self._job_id)
            step.span.set_attribute("thalweg.step", number)
        key = (assigned.worker, node.level, node.index)
        if key not in step.tasks:
            task = step.tasks[key] = self._child(step, "task")
            task.set_attribute("thalweg.worker", self._name_of(assigned.worker))
            task.set_attribute("thalweg.microbatches", [node.index << node.level, (node.index + 1) << node.level])
            task.set_attribute("thalweg.version", assigned.version)
            task.set_attribute("thalweg.reissued", assigned.again)

    def _end_task(self, event: ContributionReceived) -> None:
        step = self._steps.get(event.step)
        task = step.tasks.pop((event.worker, event.node.level, event.node.index), None) if step else None
        if task:
            task.end()

    def _end_update(self, number: int) -> None:
        if (step := self._steps.get(number)) and step.update:
            step.update.end()
            step.update = None

    def _end_step(self, report: ReportStep) -> None:
        if step := self._steps.pop(report.step, None):
            step.span.set_attribute("thalweg.loss", report.loss)
            step.span.set_attribute("thalweg.samples", report.samples)
            step.span.set_attribute("thalweg.staleness", report.staleness)
            step.end(done=True)

    def _lose(self, worker: WorkerId) -> None:
        for step in self._steps.values():
            for key in [key for key in step.tasks if key[0] == worker]:
                task = step.tasks.pop(key)
                task.set_status(Status(StatusCode.ERROR, "the worker is gone"))
                task.end()

    def _end_all(self) -> None:
        for step in self._steps.values():
            step.end(done=False)
        self._steps.clear()

    def _child(self, step: _Step, name: str) -> Span:
        return self._tracer.start_span(name, context=trace.set_span_in_context(step.span))
