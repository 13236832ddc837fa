"""Jobs whose slab is split over several servers end with the same bits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from threadpoolctl import threadpool_limits

from tests.end_to_end.cluster import running_server, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.reference import reference
from thalweg.contract import layout as layouts
from thalweg.contract.channel import Address
from thalweg.server import validation
from thalweg.server.service import Server
from thalweg.server.shard_server import ShardConfig, ShardServer
from thalweg.v1 import job_pb2

# Four chunks, and a bit of a fifth.
BASE: dict[str, dict[str, Any]] = {
    "model": {
        "layers": [{"dense": {"units": 4000}}, {"tanh": {}}, {"dense": {"units": 200}}],
        "loss": "softmax_cross_entropy",
    },
    "data": {"builtin": "digits", "validation_fraction": 0.2},
    "training": {"epochs": 2, "batch_size": 400, "microbatches": 3},
    "optimizer": {"sgd": {"learning_rate": 0.1}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": {"adam": {}}},
    "clipped": {"optimizer": {"momentum": {"learning_rate": 0.1}, "clip_global_norm": 0.3}},
    "local steps, clipped": {
        "training": {**BASE["training"], "synchrony": {"local": {"steps": 2, "outer": {"adam": {}, "clip_global_norm": 0.1}}}}
    },
    "bfloat16": {"training": {**BASE["training"], "codec": {"bfloat16": {}}}},
    "float64": {"model": {**BASE["model"], "dtype": "float64"}},
}


def spec_of(**changes: Any) -> job_pb2.JobSpec:
    return json_format.ParseDict({**BASE, **changes}, job_pb2.JobSpec())


def expected(spec: job_pb2.JobSpec) -> str:
    """The SHA-256 of the parameters that a plain loop ends with."""
    with threadpool_limits(1, "blas"):
        return layouts.digest(reference(validation.complete(spec))[0])


def start_shard(server: Server, **settings: Any) -> ShardServer:
    """A shard that attends on a server."""
    others = len(server.jobs.shards.attending)
    shard = ShardServer(ShardConfig(address=Address("127.0.0.1", 0), server=server.address, **settings))
    shard.start()
    wait_for(lambda: len(server.jobs.shards.attending) > others)
    return shard


@contextmanager
def sharded(data: Path, shards: int = 1) -> Iterator[tuple[Server, list[ShardServer]]]:
    """A server, and shards of it."""
    with running_server(data) as server, ExitStack() as stack:
        started: list[ShardServer] = []
        for _ in range(shards):
            started.append(start_shard(server))
            stack.callback(started[-1].stop)
        yield server, started


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_over_shards_equals_a_plain_loop(variant: str, shards: int, tmp_path: Path) -> None:
    spec = spec_of(**VARIANTS[variant])
    digest = expected(spec)
    with sharded(tmp_path, shards) as (server, _):
        for workers in (1, 3):
            job = train(server, spec, workers)
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
            assert job.result.weights_sha256 == digest
