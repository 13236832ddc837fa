"""Parameters as safetensors files, loadable with `safetensors` and with `load_state_dict`."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from safetensors import SafetensorError, safe_open

from thalweg.client.files import check_not_pipe, reading, write_whole
from thalweg.contract import layout as layouts
from thalweg.contract import preparation, tensors
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

_SUFFIX = ".safetensors"


def save_weights(path: Path, job: job_pb2.Job, header: pb.ParametersHeader, slab: Slab) -> None:
    """Writes parameters to a file, completely or not at all; equal ones give equal bytes. Raises ThalwegError if the file cannot
    be written, or its name is not that of a safetensors file.

    The file has all tensors of the model under all of their names, counters as int64, as its `state_dict` does.

    The file's metadata: `job`, `version` (the number of updates), `weights_sha256`, and, as JSON, `spec` and `preprocessing`.
    """
    check_weights_name(path, "path")

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            file.writelines(file_pieces(job, header, slab))

    write_whole(path, write)


def file_pieces(job: job_pb2.Job, header: pb.ParametersHeader, slab: Slab) -> Iterator[bytes | memoryview]:
    """The bytes of the file that `save_weights` writes, in order, in pieces of at most 1 MiB besides the first."""
    metadata = {
        "job": job.id,
        "version": str(header.version),
        "weights_sha256": header.sha256,
        preparation.PREPROCESSING: preparation.to_json(header.preprocessing),
        # Maps have no order of their own.
        "spec": json.dumps(json_format.MessageToDict(job.spec, preserving_proto_field_name=True), sort_keys=True),
    }
    return tensors.pieces(tensors.state(header.layout, slab, header.version), metadata)


def check_weights_name(path: Path, field: str) -> None:
    """Raises ThalwegError, which names the field, if a file's name is that of another format."""
    if path.suffix.lower() not in ("", _SUFFIX):
        problem = f"{path.name}: weights are written in the safetensors format; end the name in {_SUFFIX}"
        raise invalid(Violation(field, problem))


def read_header(path: Path, field: str) -> pb.ParametersHeader:
    """The header of a file that `save_weights` or a server wrote: dtype, version, SHA-256 and preprocessing.

    Raises ThalwegError, which names the field, if it cannot be read, or was not written by Thalweg.
    """
    check_weights(path, field)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    try:
        if layouts.HEADER in metadata:
            return pb.ParametersHeader.FromString(base64.b64decode(metadata[layouts.HEADER]))
        spec, preprocessing = json.loads(metadata["spec"]), json.loads(metadata[preparation.PREPROCESSING])
        return pb.ParametersHeader(
            layout=job_pb2.Layout(dtype=np.dtype(spec["model"]["dtype"]).name),
            version=int(metadata["version"]),
            sha256=metadata["weights_sha256"],
            preprocessing=json_format.ParseDict(preprocessing, job_pb2.Preprocessing(), ignore_unknown_fields=True),
        )
    except (KeyError, TypeError, ValueError, json_format.ParseError, DecodeError) as error:
        raise invalid(Violation(field, f"{path} has no preprocessing metadata: it was not written by Thalweg")) from error


def check_weights(path: Path, field: str) -> None:
    """Raises ThalwegError, which names the field of a job, if a file cannot be read or is not a safetensors file."""
    check_not_pipe(path, field)
    with reading(path, field):
        # The library reports each file that it cannot open as missing.
        path.open("rb").close()
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise invalid(Violation(field, f"{path} is not a safetensors file: {error}")) from error
