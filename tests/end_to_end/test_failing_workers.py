"""Workers, as real processes, that are killed before they contribute anything: the job waits, says why, and succeeds.

Where code of the job's author crashes them, the job fails, and its error names the line.
"""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.command import wait_for
from tests.end_to_end.test_chaos import Cluster
from tests.end_to_end.watching import undisturbed
from thalweg.client import Client
from thalweg.v1 import job_pb2

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

# More often in a row than any number of reports after which a job fails.
KILLS = 7
JOB = ("training.epochs=40",)


CODE = """
import ctypes

class Model:
    def initial(self, rng):
        return {"weight": rng.normal(size=1)}

    def loss(self, parameters, x, y):
        ctypes.string_at(0)
"""
CRASHING = """
[model]
python = { entrypoint = "nets:Model" }
[code]
path = "nets.py"
[data]
builtin = "digits"
[training]
batch_size = 64
[optimizer]
sgd = {}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


def actors(cluster: Cluster) -> set[int]:
    """The processes of the workers that the fleet has started, also of those that have not said a word yet."""
    found = set()
    for process in cluster.fleet.processes():
        with suppress(psutil.Error):
            if process.name().startswith("ray::Worker"):
                found.add(process.pid)
    return found


@pytest.mark.nightly
def test_workers_that_are_killed_at_every_start_do_not_fail_the_job(cluster: Cluster) -> None:
    # No worker contributes, however long it takes until it is found and killed.
    cluster.barrier.hold(0)
    watching = cluster.run(2, *JOB)
    killed: set[int] = set()

    def trouble() -> job_pb2.Job | None:
        for pid in actors(cluster) - killed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        assert not watching.ended
        with Client(cluster.address) as client:
            job = client.job(cluster.job).message
        return job if len(killed) >= KILLS and job.waiting_for == job_pb2.WAITING_FOR_NODE else None

    job = wait_for(trouble)
    assert "killed before contributing" in job.status
    assert "trying again" in job.status
    assert cluster.digest(watching) == undisturbed("digits", *JOB)
    notices = [event["text"] for event in watching.of("notice")]
    assert any("workers keep being killed before contributing" in notice for notice in notices), notices


def test_code_that_crashes_its_workers_fails_its_job_alone_and_the_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(CODE)
    (tmp_path / "job.toml").write_text(CRASHING)
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack, "--allow-code", fleet=("--slots", "2", "--allow-code"))
        crashing = str(cluster("submit", str(tmp_path / "job.toml"))["job"])
        other = cluster.run(1, *JOB)
        with Client(cluster.address) as client:
            error = wait_for(lambda: client.job(crashing).message.error)
        # One of them was started after the death of another.
        assert re.match(r"model\.python\.entrypoint: nets:Model: the processes of [23] workers in a row died, and none ", error)
        assert "died: Segmentation fault (at nets.py:9 in loss: ctypes.string_at(0)); code ends its process" in error
        assert cluster.digest(other) == undisturbed("digits", *JOB)
