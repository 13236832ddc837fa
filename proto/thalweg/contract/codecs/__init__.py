"""Codecs: encodings of gradients, and, with some codecs, of parameters. Each is one small file and one line here."""

from typing import TypeAlias

from google.protobuf.message import Message

from thalweg.contract.codecs.base import Bytes, Codec, Received
from thalweg.contract.codecs.bfloat16 import Bfloat16
from thalweg.contract.codecs.float16 import Float16
from thalweg.contract.codecs.float32 import Float32
from thalweg.contract.codecs.int8 import Int8
from thalweg.contract.codecs.slab import SlabCodec
from thalweg.contract.codecs.top_k import TopK
from thalweg.v1 import job_pb2

AnyCodec: TypeAlias = Codec[Message]

CODECS: dict[str, type[AnyCodec]] = {
    "float32": Float32,
    "bfloat16": Bfloat16,
    "float16": Float16,
    "int8": Int8,
    "top_k": TopK,
}

__all__ = ["CODECS", "AnyCodec", "Bytes", "Codec", "Received", "SlabCodec", "exact", "identity", "of_gradients", "of_parameters"]


def exact(spec: job_pb2.JobSpec) -> bool:
    """Whether gradients are sent unchanged."""
    return _kind(spec) == "float32"


def identity(spec: job_pb2.JobSpec, chunk_elements: int) -> AnyCodec:
    """The codec that changes nothing."""
    return Float32(spec.training.codec.float32, chunk_elements, spec.model.dtype)


def of_gradients(spec: job_pb2.JobSpec, chunk_elements: int) -> AnyCodec:
    """The codec of the gradients of a job whose specification is complete."""
    kind = _kind(spec)
    if kind == "float32":
        return identity(spec, chunk_elements)
    return CODECS[kind](getattr(spec.training.codec, kind), chunk_elements)


def of_parameters(spec: job_pb2.JobSpec, chunk_elements: int) -> AnyCodec:
    """The codec of the parameters that a job's server sends to workers."""
    codec = of_gradients(spec, chunk_elements)
    return codec if codec.parameters else identity(spec, chunk_elements)


def _kind(spec: job_pb2.JobSpec) -> str:
    # A job that an earlier release accepted names no codec.
    return spec.training.codec.WhichOneof("kind") or "float32"
