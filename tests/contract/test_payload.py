"""The messages with `data` beside them: on the wire they are what protobuf makes of them, and reads in them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from thalweg.contract import frames
from thalweg.contract.frames import Parcel
from thalweg.v1 import parameter_service_pb2 as pb

U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
SUMS = st.builds(pb.Sums, loss=st.floats(), samples=U64, metrics=st.lists(st.floats(), max_size=3))
GRADIENTS = st.builds(
    pb.GradientChunk, version=U64, level=U32, index=U32, chunk=U32, step=U64, sums=st.none() | SUMS, data=st.binary()
)
PARAMETERS = st.builds(pb.ParametersChunk, version=U64, chunk=U32, data=st.binary())
REQUESTS = st.one_of(
    st.builds(pb.WorkRequest, gradient=GRADIENTS),
    st.builds(pb.WorkRequest, initial=PARAMETERS),
    st.builds(pb.WorkRequest, evaluation=st.builds(pb.Evaluation, version=U64, sums=SUMS)),
    st.builds(pb.WorkRequest, hello=st.builds(pb.Hello, job_id=st.text())),
    st.just(pb.WorkRequest()),
)
TASKS = st.builds(pb.DifferentiateTask, version=U64, level=U32, index=U32, step=U64, end_chunk=U32)
RESPONSES = st.one_of(
    st.builds(pb.WorkResponse, parameters=PARAMETERS),
    st.builds(pb.WorkResponse, differentiate=TASKS),
    st.builds(pb.WorkResponse, goodbye=st.builds(pb.Goodbye, reason=st.text())),
    st.just(pb.WorkResponse(initialize=pb.InitializeTask())),
)


def varint(number: int, padding: int = 0) -> bytes:
    """A number as protobuf writes it, or longer than need be."""
    encoded = bytearray()
    while number > 127 or padding:
        padding -= number <= 127
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


PADDING = st.sampled_from([0, 0, 0, 0, 1, 3, 6])
VARINTS = st.builds(varint, U64, PADDING)


@st.composite
def records(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """A field as it might stand in any message, right or wrong."""
    number = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 5, 6, 7, 15, 16, 1000]))
    kind = draw(st.sampled_from([0, 1, 2, 2, 2, 3, 4, 5, 6, 7]))
    tag = varint(number << 3 | kind, draw(PADDING))
    if kind == 0:
        return tag + draw(VARINTS)
    if kind == 2:
        content = draw(contents)
        return tag + varint(max(0, len(content) + draw(st.sampled_from([0] * 9 + [1, -1]))), draw(PADDING)) + content
    return tag + draw(st.binary(min_size=8, max_size=8) if kind == 1 else st.binary(min_size=4, max_size=4))


BODIES = st.lists(records(st.binary(max_size=20)), max_size=6).map(b"".join)
# One message inside, sometimes none or two, and sometimes cut short.
RAW = st.builds(
    lambda fields, cut: b"".join(fields)[: -cut or None],
    st.lists(
        records(
            BODIES
            | GRADIENTS.map(pb.GradientChunk.SerializeToString)
            | st.builds(lambda task, part: pb.DifferentiateTask(version=task.version, parameters=part), TASKS, PARAMETERS).map(
                pb.DifferentiateTask.SerializeToString
            )
        ),
        min_size=1,
        max_size=2,
    ),
    st.sampled_from([0, 0, 0, 0, 1, 5]),
)
BIG = np.random.default_rng(0).normal(size=1 << 17)


@pytest.fixture(autouse=True, scope="module")
def nothing_is_small() -> Iterator[None]:
    """Every message, however short, is read as long ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "_SMALL_BYTES", 0)
        yield


def whole(parcel: Parcel[Any]) -> bytes:
    """What protobuf writes for the message of a parcel, with `data` back in its place."""
    message = parcel.message
    kind = message.WhichOneof("message")
    if len(parcel.data):
        place = message.differentiate.parameters if kind == "differentiate" else getattr(message, kind)
        place.data = bytes(parcel.data)
    written: bytes = parcel.message.SerializeToString(deterministic=True)
    return written


def outcome(read: Any, raw: bytes) -> bytes | None:
    """What is read, as protobuf writes it; None if it is no message."""
    try:
        read_ = read(raw)
    except DecodeError:
        return None
    return whole(read_ if isinstance(read_, Parcel) else Parcel(read_))


@given(REQUESTS)
def test_requests_are_read_as_protobuf_reads_them(message: pb.WorkRequest) -> None:
    raw = message.SerializeToString()
    parcel = frames.request_of(raw)
    assert not parcel.message.gradient.data
    assert not parcel.message.initial.data
    assert whole(parcel) == raw


@given(RESPONSES)
def test_responses_are_read_as_protobuf_reads_them(message: pb.WorkResponse) -> None:
    raw = message.SerializeToString()
    parcel = frames.response_of(raw)
    assert not parcel.message.parameters.data
    assert whole(parcel) == raw


@given(REQUESTS)
def test_protobuf_reads_the_requests_that_are_written(message: pb.WorkRequest) -> None:
    raw = message.SerializeToString()
    assert frames.serialize(message) == raw
    written = frames.serialize(frames.unpacked(message))
    assert pb.WorkRequest.FromString(written).SerializeToString() == raw
    assert whole(frames.request_of(written)) == raw


@given(RESPONSES)
def test_protobuf_reads_the_responses_that_are_written(message: pb.WorkResponse) -> None:
    raw = message.SerializeToString()
    written = frames.serialize(frames.unpacked(message))
    assert pb.WorkResponse.FromString(written).SerializeToString() == raw
    assert frames.serialize(written) is written


@given(TASKS, PARAMETERS)
def test_a_task_with_parameters_is_read_as_protobuf_reads_it(task: pb.DifferentiateTask, part: pb.ParametersChunk) -> None:
    parameters = frames.serialize(frames.unpacked(pb.WorkResponse(parameters=part)))
    raw = frames.with_parameters(pb.WorkResponse(differentiate=task), parameters)
    together = pb.DifferentiateTask(parameters=part)
    together.MergeFrom(task)
    assert pb.WorkResponse.FromString(raw) == pb.WorkResponse(differentiate=together)
    message, data = frames.response_of(raw)
    assert not message.differentiate.parameters.data
    assert data == part.data
    assert message.differentiate.parameters.version == part.version
    assert message.differentiate.step == task.step


@given(RAW)
def test_whatever_bytes_come_are_read_or_refused_as_protobuf_does(raw: bytes) -> None:
    assert outcome(frames.request_of, raw) == outcome(pb.WorkRequest.FromString, raw)
    assert outcome(frames.response_of, raw) == outcome(pb.WorkResponse.FromString, raw)


@given(GRADIENTS, st.data())
def test_a_message_with_wrong_bytes_is_read_or_refused_as_protobuf_does(gradient: pb.GradientChunk, data: st.DataObject) -> None:
    raw = bytearray(pb.WorkRequest(gradient=gradient).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(frames.request_of, bytes(raw)) == outcome(pb.WorkRequest.FromString, bytes(raw))


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<u2"])
def test_data_is_not_copied_and_lies_where_numbers_are_aligned(dtype: str) -> None:
    values = BIG.astype(dtype)
    gradient = pb.GradientChunk(version=1 << 60, level=300, index=7, chunk=0, step=12, sums=pb.Sums(loss=1, samples=3))
    raw = frames.serialize(Parcel(pb.WorkRequest(gradient=gradient), values))
    message, data = frames.request_of(raw)
    assert data.obj is raw
    assert message.gradient == gradient
    read = np.frombuffer(data, dtype)
    assert read.flags.aligned
    np.testing.assert_array_equal(read, values)


def test_what_a_task_takes_along_is_not_copied() -> None:
    parameters = frames.serialize(Parcel(pb.WorkResponse(parameters=pb.ParametersChunk(version=3, chunk=1)), BIG))
    raw = frames.with_parameters(pb.WorkResponse(differentiate=pb.DifferentiateTask(version=3, index=1)), parameters)
    message, data = frames.response_of(raw)
    assert data.obj is raw
    assert data == BIG.tobytes()
    assert message.differentiate == pb.DifferentiateTask(version=3, index=1, parameters=pb.ParametersChunk(version=3, chunk=1))


def test_a_task_is_not_written_with_parameters_beside_it() -> None:
    with pytest.raises(ValueError, match="serialized"):
        frames.serialize(Parcel(pb.WorkResponse(differentiate=pb.DifferentiateTask()), b"some"))


def test_what_protobuf_wrote_is_not_copied_either() -> None:
    gradient = pb.GradientChunk(version=3, data=BIG.tobytes(), sums=pb.Sums(loss=1), step=9)
    raw = pb.WorkRequest(gradient=gradient).SerializeToString()
    message, data = frames.request_of(raw)
    assert data.obj is raw
    assert data == gradient.data
    assert (message.gradient.step, message.gradient.sums) == (9, gradient.sums)


def test_a_million_fields_are_left_to_protobuf() -> None:
    body = b"\x0a\x00" + b"\x08\x01" * 1_000_000
    raw = b"\x22" + varint(len(body)) + body
    assert outcome(frames.request_of, raw) == outcome(pb.WorkRequest.FromString, raw)


def test_messages_that_are_small_are_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    message = pb.WorkRequest(initial=pb.ParametersChunk(version=1, chunk=2, data=b"abc"))
    parcel = frames.request_of(message.SerializeToString())
    assert (parcel.message, bytes(parcel.data)) == (pb.WorkRequest(initial=pb.ParametersChunk(version=1, chunk=2)), b"abc")


def test_an_array_that_is_not_contiguous_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        frames.serialize(Parcel(pb.WorkResponse(parameters=pb.ParametersChunk()), BIG[::2]))
