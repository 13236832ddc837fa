"""Nothing that takes long with large files and arrays happens in the event loop's thread."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.server.specs import make_spec
from thalweg.contract import layout as layouts
from thalweg.server.storage.checkpoints import Checkpoints
from thalweg.server.storage.database import Storage
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

# These make a path, and use none.
_QUICK = {"job_folder", "checkpoints", "upload"}


@pytest.fixture
def on_the_loop(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that were called in the event loop's thread, of those that read, write or hash."""
    called: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name == "thalweg-server":
                called.append(name)
            return function(*args, **kwargs)

        return call

    for owner in (Storage, Checkpoints):
        for name, function in list(vars(owner).items()):
            if callable(function) and not name.startswith("_") and name not in _QUICK:
                monkeypatch.setattr(owner, name, watched(name, function))
    monkeypatch.setattr(layouts, "digest", watched("digest", layouts.digest))
    monkeypatch.setattr(hashlib, "file_digest", watched("file_digest", hashlib.file_digest))
    return called


def upload(stub: TrainingServiceStub, content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    header = pb.UploadHeader(sha256=sha256, size=len(content))
    stub.UploadData(iter([pb.UploadDataRequest(header=header), pb.UploadDataRequest(data=content)]))
    return sha256


def downloaded(stub: TrainingServiceStub, job: str) -> bytes:
    return b"".join(part.data for part in stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job)))


def test_files_are_read_written_and_hashed_beside_the_event_loop(tmp_path: Path, on_the_loop: list[str]) -> None:
    with running_server(tmp_path, checkpoint_seconds=0.0) as server, stub_of(server) as stub:
        # Nobody waits for a server that starts.
        on_the_loop.clear()
        tensors = {"0.weight": np.ones((1, 2), np.float32), "0.bias": np.zeros(1, np.float32)}
        spec = make_spec(epochs=3)
        spec.model.initial.file = "given.safetensors"
        spec.model.initial.sha256 = upload(stub, save(tensors))
        job = train(server, spec, workers=2)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        content = downloaded(stub, job.id)
        assert hashlib.sha256(content).hexdigest() == job.result.weights_sha256
        assert list(stub.DownloadTrajectory(pb.DownloadTrajectoryRequest(job_id=job.id)))
        given = pb.DownloadDataRequest(sha256=spec.model.initial.sha256)
        assert b"".join(part.data for part in stub.DownloadData(given)) == save(tensors)
        spec.model.initial.job = job.id
        spec.model.initial.sha256 = ""
        second = train(server, spec)
        assert second.state == job_pb2.JOB_STATE_SUCCEEDED, second.error
        stub.DeleteJob(pb.DeleteJobRequest(job_id=job.id))
    assert set(on_the_loop) == set()
