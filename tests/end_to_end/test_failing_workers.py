"""Workers that are killed before they contribute anything, as real processes: the job waits, says why, and succeeds."""

import os
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
