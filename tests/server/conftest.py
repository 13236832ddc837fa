"""A server in this process, and a client of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.cluster import running_server, stub_of
from thalweg.server.process import Server
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path) as server:
        yield server


@pytest.fixture
def stub(server: Server) -> Iterator[TrainingServiceStub]:
    with stub_of(server) as stub:
        yield stub
