"""What workers say, as events; what is decided for them, as messages. What no honest worker says is refused here."""

import math
import re
from typing import NamedTuple

from google.protobuf.message import DecodeError

from thalweg.contract import codecs, frames
from thalweg.contract.errors import protocol_violation
from thalweg.contract.frames import Parcel, serialize
from thalweg.contract.layout import FIXED_DTYPES, Slab, fixed_of, names_of, ordered_names, segments_of
from thalweg.contract.segments import Kind, elements, end_of
from thalweg.contract.shared_memory import SharingError
from thalweg.contract.sums import Sums
from thalweg.contract.text import MAX_PROBLEM, MAX_WORKER_NAME, visible
from thalweg.contract.tree import Node
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.deciding.decisions import AssignDifferentiate
from thalweg.server.deciding.events import (
    ContributionReceived,
    EvaluationReceived,
    Event,
    HeartbeatReceived,
    InitialReceived,
    WorkerFailed,
)
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import EvaluationTask, Place, WorkerId
from thalweg.server.deciding.workers.machines import Premises
from thalweg.server.streams.job_sharing import JobSharing
from thalweg.v1 import job_pb2, parameter_service_pb2

# What no honest worker comes near, and a broken one may not fill the server's memory with.
_MAX_SAMPLES = 1 << 28
_MAX_TENSORS = 4096
_MAX_AXES = 8
# Of all counters: a model has one for each layer at most.
_MAX_COUNTED = 1 << 16
_MAX_METRICS = 32
_METRIC = re.compile(r"[a-z0-9_]{1,40}")
# NumPy's own limit.
_MAX_SAMPLE_AXES = 64
_MAX_FINGERPRINT, _MAX_FILES, _MAX_URL = 64, 1 << 12, 1 << 12
# Releases up to 0.1.0, and jobs whose samples have several inputs, have none.
_SAMPLE_DTYPES = {"", "float32", "float64", *FIXED_DTYPES}
# As the contract says.
_MAX_PREMISES, _MAX_PREMISE_NAME, _MAX_PREMISE_VALUE = 16, 40, 200


def request_of(data: bytes) -> Parcel[parameter_service_pb2.WorkRequest]:
    """The message that bytes are. Raises ThalwegError if they are none."""
    try:
        return frames.request_of(data)
    except DecodeError as error:
        raise protocol_violation("bytes that are not a message") from error


class Received(NamedTuple):
    """Chunks as they came: values end to end, and which chunk the first ones are.

    With error feedback, what encoding left of the node's gradients since a step is in them.
    """

    values: Slab
    first_chunk: int
    residual_since: int = 0

    def chunk(self, plan: Plan, chunk: int) -> Slab:
        """The values of one of the chunks."""
        start = plan.chunk_range(self.first_chunk).start
        where = plan.chunk_range(chunk)
        return self.values[where.start - start : where.stop - start]


def event_of(
    worker: WorkerId, request: Parcel[parameter_service_pb2.WorkRequest], parameters: Parameters | None, shared: JobSharing
) -> Event:
    """The event that a worker's message is, unless it says `prepared`. Raises ThalwegError if it makes no sense."""
    message, data = request
    match message.WhichOneof("message"):
        case "gradient":
            gradient, chunk = message.gradient, message.gradient.chunk
            if parameters is not None and chunk in parameters.plan.constant[:-1]:
                raise protocol_violation(f"chunk {chunk} holds constants alone, and no gradient")
            values = Received(_values(parameters, chunk, data, encoded=True), chunk, gradient.residual_since)
            return _contribution(worker, gradient, range(chunk, chunk + 1), parameters, values)
        case "shared_gradient":
            return _shared(worker, message.shared_gradient, parameters, shared)
        case "evaluation":
            answer = message.evaluation
            if parameters is not None and len(answer.sums.metrics) != len(parameters.plan.metrics):
                raise protocol_violation(f"an evaluation of {len(answer.sums.metrics)} metrics")
            return EvaluationReceived(worker, answer.version, answer.split, answer.first, _sums(answer.sums))
        case "initial":
            chunk = message.initial.chunk
            return InitialReceived(worker, chunk, Received(_values(parameters, chunk, data, encoded=False), chunk))
        case "heartbeat":
            return HeartbeatReceived(worker)
        case "failure":
            failure = message.failure
            return WorkerFailed(worker, visible(failure.problem, MAX_PROBLEM), failure.scope)
        case kind:
            raise protocol_violation(f"{kind or 'an empty message'} was not expected")


def _shared(
    worker: WorkerId, gradient: parameter_service_pb2.SharedGradient, parameters: Parameters | None, shared: JobSharing
) -> ContributionReceived:
    chunks = range(gradient.first_chunk, gradient.end_chunk)
    if parameters is None or not chunks or chunks.stop > parameters.chunks.stop:
        raise protocol_violation(f"there are no chunks from {chunks.start} up to {chunks.stop}")
    try:
        slab = shared.slab(worker, gradient.slab, parameters.plan.elements, parameters.dtype)
    except SharingError as error:
        raise protocol_violation(str(error)) from error
    return _contribution(worker, gradient, chunks, parameters, Received(slab, 0))


def _contribution(
    worker: WorkerId,
    gradient: parameter_service_pb2.GradientChunk | parameter_service_pb2.SharedGradient,
    chunks: range,
    parameters: Parameters | None,
    payload: Received,
) -> ContributionReceived:
    last = parameters is not None and chunks.stop == parameters.plan.chunks
    if gradient.HasField("sums") != last:
        raise protocol_violation("sums come with the last chunk of the slab and only with it")
    sums = _sums(gradient.sums) if last else None
    node = Node(gradient.level, gradient.index)
    return ContributionReceived(worker, gradient.version, gradient.step, node, chunks, sums, payload)


def _sums(sums: parameter_service_pb2.Sums) -> Sums:
    return Sums(sums.loss, sums.samples, tuple(sums.metrics))


def _values(parameters: Parameters | None, chunk: int, data: memoryview, encoded: bool) -> Slab:
    """The numbers of a chunk, not copied if they come as they are; without those for constants, if it is `encoded`: a gradient's.

    Raises ThalwegError if the bytes make no sense.
    """
    if parameters is None or chunk not in parameters.chunks:
        raise protocol_violation(f"there is no chunk {chunk}")
    where = parameters.plan.chunk_range(chunk)
    try:
        if encoded:
            return parameters.incoming.decoded(where.start, data, parameters.plan.changing_elements(chunk))
        return parameters.identity.decoded(data, where.stop - where.start)
    except ValueError as error:
        raise protocol_violation(f"chunk {chunk} {error}") from error


def check_prepared(prepared: parameter_service_pb2.Prepared, spec: job_pb2.JobSpec) -> None:
    """Raises ThalwegError if what a worker says of a job's model and data makes no sense."""
    others = max(prepared.validation_samples, prepared.test_samples)
    if not 0 < prepared.train_samples <= _MAX_SAMPLES or others > _MAX_SAMPLES:
        raise protocol_violation("no training samples, or too many samples")
    layout = prepared.layout
    counters, slab = layout.counters, layout.tensors
    names = names_of(layout)
    shapes = [tensor.shape for tensor in (*slab, *counters)] + [fixed.shape for fixed in layout.fixed]
    if len(names) > _MAX_TENSORS or any(len(shape) > _MAX_AXES for shape in shapes):
        raise protocol_violation("a layout of too many tensors or axes")
    if layout.dtype != spec.model.dtype or len(set(names)) < len(names):
        raise protocol_violation("a layout of another dtype, or with two tensors of one name")
    if len(prepared.metrics) > _MAX_METRICS or any(not _METRIC.fullmatch(name) for name in prepared.metrics):
        raise protocol_violation("too many metrics, or one with an invalid name")
    if any(visible(name) != name for name in names):
        raise protocol_violation("a tensor's name with invisible characters")
    try:
        end_of(Kind.CONSTANT, segments_of(slab))
        fixed_of(layout)
        ordered_names(layout)
    except ValueError as error:
        raise protocol_violation(str(error)) from error
    if any(counter.kind for counter in counters) or elements(segments_of(counters)) > _MAX_COUNTED:
        raise protocol_violation("too many counters, or one of a kind")
    if prepared.numerical and (spec.training.synchrony.HasField("local") or not codecs.exact(spec)):
        raise protocol_violation("differences of the loss, with local steps or a codec that rounds")
    known = set(names).difference(alias.name for alias in layout.aliases)
    if any(alias.tensor not in known for alias in layout.aliases):
        raise protocol_violation("a further name of a tensor that does not exist")
    _check_preprocessing(prepared.preprocessing)


def _check_preprocessing(preprocessing: job_pb2.Preprocessing) -> None:
    if len(preprocessing.fingerprint) > _MAX_FINGERPRINT:
        raise protocol_violation(f"a fingerprint of more than {_MAX_FINGERPRINT} characters")
    if len(preprocessing.files) > _MAX_FILES or any(len(file.url) > _MAX_URL for file in preprocessing.files):
        raise protocol_violation("too many data files, or too long URLs")
    if len(preprocessing.shape) > _MAX_SAMPLE_AXES:
        raise protocol_violation("samples of too many axes")
    if preprocessing.dtype not in _SAMPLE_DTYPES:
        raise protocol_violation("samples of an unknown type")
    if preprocessing.table and (preprocessing.mean or preprocessing.columns):
        raise protocol_violation("columns of a table that are prepared in two ways")
    numbers = [(each.shift, each.scale) for each in preprocessing.table]
    numbers += [(each.shift, each.scale) for each in preprocessing.targets]
    numbers += [(preprocessing.divisor, 0.0)]
    if not all(math.isfinite(number) for pair in numbers for number in pair):
        raise protocol_violation("shifts or scales of a table that are not finite")
    # A worker of release 0.1.0 says no shape, and no names.
    features = math.prod(preprocessing.shape) if preprocessing.shape else len(preprocessing.mean)
    counts = {len(preprocessing.mean), len(preprocessing.scale), len(preprocessing.columns)} - {0}
    if counts - {features} or len(preprocessing.mean) != len(preprocessing.scale):
        raise protocol_violation(f"means, deviations or names whose number is not that of the features, {features}")


def premises_of(prepared: parameter_service_pb2.Prepared) -> Premises:
    """What a worker's results depend on, by its own report. Raises ThalwegError if it makes no sense."""
    premises = prepared.premises
    if len(premises) > _MAX_PREMISES or len({premise.name for premise in premises}) < len(premises):
        raise protocol_violation("too many premises, or two of one name")
    if any(len(premise.name) > _MAX_PREMISE_NAME or len(premise.value) > _MAX_PREMISE_VALUE for premise in premises):
        raise protocol_violation("a premise of too many characters")
    return tuple(sorted((visible(premise.name), visible(premise.value)) for premise in premises))


def place_of(place: parameter_service_pb2.Place, worker: str) -> Place:
    """Where a worker with a name runs, as a message says. Where no node is named, people know it by the worker's name."""
    fleet, node = visible(place.fleet, MAX_WORKER_NAME), visible(place.node, MAX_WORKER_NAME)
    return Place(fleet, node, visible(place.name or worker, MAX_WORKER_NAME))


def parameters_chunk(parameters: Parameters, version: int, chunk: int) -> tuple[bytes, int]:
    """The message, serialized, that brings workers a chunk of the parameters, and the number of bytes of its encoding."""
    part = parameter_service_pb2.ParametersChunk(version=version, chunk=chunk)
    data = parameters.outgoing.encode(parameters.plan.chunk_range(chunk).start, parameters.chunk(version, chunk))
    return serialize(Parcel(parameter_service_pb2.WorkResponse(parameters=part), data)), data.size


def differentiate(decision: AssignDifferentiate) -> parameter_service_pb2.WorkResponse:
    """The message that gives a worker a gradient to compute."""
    task = decision.task
    message = parameter_service_pb2.DifferentiateTask(
        version=decision.version,
        step=task.step,
        steps=task.steps,
        level=task.node.level,
        index=task.node.index,
        first_chunk=task.first_chunk,
        end_chunk=task.end_chunk,
    )
    return parameter_service_pb2.WorkResponse(differentiate=message)


def evaluate(task: EvaluationTask) -> parameter_service_pb2.WorkResponse:
    """The message that gives a worker metrics to compute."""
    message = parameter_service_pb2.EvaluateTask(version=task.version, split=task.split, first=task.first, end=task.end)
    return parameter_service_pb2.WorkResponse(evaluate=message)
