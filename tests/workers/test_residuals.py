"""Error feedback: what encoding leaves of a gradient is in the next one of the same microbatch, once."""

import itertools
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from thalweg.contract import codecs
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind, Segment
from thalweg.contract.tree import Node
from thalweg.v1 import job_pb2
from thalweg.workers.transport.error_feedback import GradientEncoder

SIZE, CHUNK = 20, 8
SEGMENTS = (Segment("0.weight", (SIZE,)),)
INT8 = {"int8": {"block": 8}}
TOP_K = {"top_k": {"fraction": 0.1}}


def spec_of(codec: dict[str, Any], **training: Any) -> job_pb2.JobSpec:
    return json_format.ParseDict({"model": {"dtype": "float32"}, "training": {"codec": codec, **training}}, job_pb2.JobSpec())


def gradient(step: int, microbatch: int = 0) -> Slab:
    return np.random.default_rng([step, microbatch]).normal(size=SIZE).astype(np.float32)


def send(outgoing: GradientEncoder, step: int, microbatch: int = 0, parts: tuple[int, ...] = (0, 8, 16, 20)) -> tuple[int, bytes]:
    outgoing.begin(Node(0, microbatch), step)
    values = gradient(step, microbatch)
    return outgoing.since, b"".join(outgoing.encode(values[a:b], a).tobytes() for a, b in itertools.pairwise(parts))


def expected(codec: dict[str, Any], steps: range, microbatch: int = 0) -> bytes:
    """What the last of some steps sends of a microbatch, if nothing was left before the first."""
    coder, data = codecs.of_gradients(spec_of(codec), CHUNK), b""
    left: Slab = np.zeros(SIZE, np.float32)
    for step in steps:
        values = gradient(step, microbatch) + left
        data = coder.encode(values).tobytes()
        left = values - coder.decoded(data, SIZE)
    return data


@pytest.mark.parametrize("codec", [INT8, TOP_K], ids=str)
def test_what_is_left_goes_into_the_next_step(codec: dict[str, Any]) -> None:
    outgoing = GradientEncoder(spec_of(codec), SEGMENTS, CHUNK)
    for step in range(5):
        for microbatch in (0, 1):
            assert send(outgoing, step, microbatch) == (0, expected(codec, range(step + 1), microbatch))


def test_chunks_may_be_sent_at_once() -> None:
    one, other = GradientEncoder(spec_of(TOP_K), SEGMENTS, CHUNK), GradientEncoder(spec_of(TOP_K), SEGMENTS, CHUNK)
    for step in range(3):
        assert send(one, step) == send(other, step, parts=(0, 16, 20))


@pytest.mark.parametrize("codec", [INT8, TOP_K], ids=str)
@pytest.mark.parametrize("steps", [[0, 1, 2, 4], [1], [3, 4, 4], [0, 1, 1], [5, 6, 3]], ids=str)
def test_a_microbatch_that_was_elsewhere_begins_anew(codec: dict[str, Any], steps: list[int]) -> None:
    outgoing = GradientEncoder(spec_of(codec), SEGMENTS, CHUNK)
    since = -1
    for number, step in enumerate(steps):
        if not number or step != steps[number - 1] + 1:
            since = step
        assert send(outgoing, step) == (since, expected(codec, range(since, step + 1)))


def test_rounds_of_local_steps_follow_each_other() -> None:
    outgoing = GradientEncoder(spec_of(INT8, synchrony={"local": {"steps": 4}}), SEGMENTS, CHUNK)
    assert [send(outgoing, step)[0] for step in (0, 4, 8, 9, 13, 16)] == [0, 0, 0, 9, 9, 16]


def test_an_asynchronous_workers_gradients_follow_each_other() -> None:
    outgoing = GradientEncoder(spec_of(TOP_K, synchrony={"asynchronous": {}}), SEGMENTS, CHUNK)
    send(outgoing, 3)
    found = send(outgoing, 7)
    coder = codecs.of_gradients(spec_of(TOP_K), CHUNK)
    left = gradient(3) - coder.decoded(coder.encode(gradient(3)), SIZE)
    assert found == (0, coder.encode(gradient(7) + left).tobytes())


@pytest.mark.parametrize("codec", [{"float32": {}}, {"bfloat16": {}}, {"float16": {}}], ids=str)
def test_other_codecs_keep_nothing(codec: dict[str, Any]) -> None:
    outgoing = GradientEncoder(spec_of(codec), SEGMENTS, CHUNK)
    for step in (0, 1, 5, 5):
        assert send(outgoing, step) == (0, codecs.of_gradients(spec_of(codec), CHUNK).encode(gradient(step)).tobytes())


@pytest.mark.parametrize("codec", [INT8, TOP_K], ids=str)
@pytest.mark.parametrize("parameters", [0, 5, 8, 13])
@pytest.mark.parametrize("constants", [0, 3, 7])
def test_nothing_is_left_of_statistics_and_sent_of_constants(codec: dict[str, Any], parameters: int, constants: int) -> None:
    """Statistics come after the parameters, and are sent as they are."""
    sent_end = SIZE - constants
    segments = (
        Segment("0.weight", (parameters,)),
        Segment("0.mean", (sent_end - parameters,), Kind.STATISTIC),
        Segment("mask", (constants,), Kind.CONSTANT),
    )
    outgoing, coder = GradientEncoder(spec_of(codec), segments, CHUNK), codecs.of_gradients(spec_of(codec), CHUNK)
    left: Slab = np.zeros(parameters, np.float32)
    for step in range(4):
        sent, exact, values = b"", gradient(step)[:sent_end], gradient(step)[:parameters] + left
        for start in range(0, SIZE, CHUNK):
            chunk = values[start : start + CHUNK]
            sent += coder.encode(chunk).tobytes() + exact[max(start, parameters) : start + CHUNK].tobytes()
        left = values - coder.decoded(coder.encode(values), parameters)
        assert send(outgoing, step) == (0, sent)
