"""Encoded numbers, as they come from workers."""

from typing import Any

import numpy as np
import pytest

from tests.server.specs import make_spec
from thalweg.contract import codecs, frames
from thalweg.contract.errors import ThalwegError
from thalweg.contract.segments import Kind, Segment
from thalweg.contract.sums import Sums
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.deciding import plan as plan_module
from thalweg.server.deciding.events import ContributionReceived, Event, InitialReceived
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts
from thalweg.server.streams import wire
from thalweg.server.streams.job_sharing import JobSharing, suits
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as pb

GRADIENT = np.array([1, -2, 3, 4], np.float32)


def parameters_of(kind: str) -> Parameters:
    return Parameters(Plan(make_spec(codec={kind: {}}), Facts(GRADIENT.size, 20, 0, metrics=())))


def event_of(parameters: Parameters, **message: pb.GradientChunk | pb.ParametersChunk) -> Event:
    request = frames.unpacked(pb.WorkRequest(**message))  # type: ignore[arg-type]
    return wire.event_of(1, request, parameters, JobSharing(None, parameters.plan.spec))


@pytest.mark.parametrize("kind", codecs.CODECS)
def test_a_gradient_is_decoded(kind: str) -> None:
    parameters = parameters_of(kind)
    data = parameters.incoming.encode(0, GRADIENT).tobytes()
    chunk = pb.GradientChunk(step=3, data=data, sums=pb.Sums(samples=4), residual_since=2)
    event = event_of(parameters, gradient=chunk)
    assert isinstance(event, ContributionReceived)
    values = event.payload.chunk(parameters.plan, 0)
    assert values.dtype == np.float32
    assert values.tolist() == ([0, 0, 0, 4] if kind == "top_k" else pytest.approx(GRADIENT.tolist(), abs=0.02))
    assert event.payload.residual_since == 2


@pytest.mark.parametrize("kind", codecs.CODECS)
def test_initial_parameters_come_as_they_are(kind: str) -> None:
    parameters = parameters_of(kind)
    event = event_of(parameters, initial=pb.ParametersChunk(data=GRADIENT.tobytes()))
    assert isinstance(event, InitialReceived)
    assert event.payload.chunk(parameters.plan, 0).tolist() == GRADIENT.tolist()


@pytest.mark.parametrize("kind", codecs.CODECS)
def test_bytes_that_no_codec_makes_break_the_protocol(kind: str) -> None:
    parameters = parameters_of(kind)
    good = parameters.incoming.encode(0, GRADIENT).tobytes()
    bad = [good[:-1], good + b"\0", b""]
    if kind == "top_k":
        bad.append(np.array([4], "<u4").tobytes() + good[4:])
    elif kind == "int8":
        bad.append(np.array([-1], "<f4").tobytes() + good[4:])
    for data in bad:
        with pytest.raises(ThalwegError, match="chunk 0 has"):
            event_of(parameters, gradient=pb.GradientChunk(data=data, sums=pb.Sums()))


def test_a_gradient_has_no_chunks_of_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "CHUNK_BYTES", 8)
    segments = Segment("a", (3,)), Segment("b", (5,), Kind.CONSTANT)
    parameters = Parameters(Plan(make_spec(), Facts(8, 20, 0, metrics=(), segments=segments)))
    with pytest.raises(ThalwegError, match="chunk 2 holds constants alone, and no gradient"):
        event_of(parameters, gradient=pb.GradientChunk(chunk=2))
    last = event_of(parameters, gradient=pb.GradientChunk(chunk=3, sums=pb.Sums(samples=4)))
    assert isinstance(last, ContributionReceived)
    assert last.sums == Sums(0, 4)


def test_workers_that_get_rounded_parameters_read_none_in_shared_memory() -> None:
    assert suits(make_spec()) == suits(make_spec(codec={"float32": {}}))
    assert not any(suits(make_spec(codec={kind: {}})) for kind in codecs.CODECS if kind != "float32")


def test_columns_are_prepared_in_one_way_and_with_finite_numbers() -> None:
    tensor = job_pb2.Tensor(name="a", shape=[3])
    prepared = pb.Prepared(layout=job_pb2.Layout(tensors=[tensor], dtype="float32"), train_samples=4)
    prepared.preprocessing.table.add(name="a", prepare="none", scale=1)
    prepared.preprocessing.targets.add(name="y", classes=["no", "yes"])
    wire.check_prepared(prepared, make_spec())
    prepared.preprocessing.table[0].shift = float("nan")
    with pytest.raises(ThalwegError, match="shifts or scales of a table that are not finite"):
        wire.check_prepared(prepared, make_spec())
    prepared.preprocessing.table[0].shift = 0
    prepared.preprocessing.mean.append(1)
    with pytest.raises(ThalwegError, match="columns of a table that are prepared in two ways"):
        wire.check_prepared(prepared, make_spec())


@pytest.mark.parametrize("training", [{"synchrony": {"local": {}}}, {"codec": {"bfloat16": {}}}])
def test_differences_of_the_loss_are_not_for_every_job(training: dict[str, Any]) -> None:
    tensor = job_pb2.Tensor(name="a", shape=[3])
    prepared = pb.Prepared(layout=job_pb2.Layout(tensors=[tensor], dtype="float32"), train_samples=4, numerical=True)
    wire.check_prepared(prepared, make_spec())
    with pytest.raises(ThalwegError, match="differences of the loss, with local steps or a codec that rounds"):
        wire.check_prepared(prepared, make_spec(**training))
    prepared.numerical = False
    wire.check_prepared(prepared, make_spec(**training))
