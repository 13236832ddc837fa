"""Server and fleet end when Docker, systemd or a terminal tells them to: with exit code 0, and nothing is lost."""

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.command import THALWEG, Running, wait_for
from tests.end_to_end.test_cluster import EPOCHS, MIDST, Cluster
from tests.end_to_end.watching import undisturbed
from thalweg.client import Client
from thalweg.server.driving import jobs
from thalweg.server.services import hosted
from thalweg.server.storage import journal
from thalweg.workers.ray import fleet

# After it, whoever stops a service kills it, as a rule.
_PATIENCE = 10.0


def main_processes(cluster: Cluster) -> None:
    """As Docker does, and systemd with KillMode=mixed: SIGTERM for the main processes."""
    for running in (cluster.fleet, cluster.server):
        running.process.terminate()


def whole_groups(cluster: Cluster) -> None:
    """As systemd does with KillMode=control-group: SIGTERM for all at once, server, fleet, Ray and workers."""
    for process in [process for running in (cluster.server, cluster.fleet) for process in running.processes()]:
        process.terminate()


def terminal(cluster: Cluster) -> None:
    """Ctrl-C in a terminal that runs both."""
    for running in (cluster.server, cluster.fleet):
        running.interrupt()


@pytest.fixture(scope="module")
def expected() -> str:
    """The digest of a plain loop."""
    return undisturbed("digits", EPOCHS)


def begun(cluster: Cluster) -> str:
    """A job that has taken some steps, and whose workers wait at the barrier."""
    cluster.barrier.hold(MIDST)
    with Client(cluster.address) as client:
        job = client.submit("digits", [EPOCHS])
        wait_for(lambda: job.refresh().progress.step == MIDST)
    return job.id


def digest(cluster: Cluster, job: str) -> str:
    """The digest of a job's result, which is waited for."""
    with Client(cluster.address) as client:
        return client.job(job).wait(progress=False).weights_sha256


def ends(running: Running) -> None:
    """The process ends well."""
    ended = running.end()
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    running.assert_nothing_left()


def test_what_is_waited_for_at_the_end_takes_less_than_those_wait_who_stop_a_service() -> None:
    assert fleet._LEAVE_SECONDS + fleet._STOP_SECONDS < _PATIENCE
    # Beyond that, the disk takes nothing.
    assert jobs._STOP_CHECKPOINT_SECONDS + hosted.STOP_GRACE_SECONDS + journal.DISK_SECONDS / 2 < _PATIENCE


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.parametrize("stop", [main_processes, whole_groups, terminal])
def test_a_cluster_that_is_told_to_end_does_and_loses_nothing(
    tmp_path: Path, stop: Callable[[Cluster], None], expected: str
) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        job = begun(cluster)
        cluster.barrier.release()
        stop(cluster)
        ends(cluster.server)
        ends(cluster.fleet)
        cluster.server, cluster.fleet = cluster.start_server(), cluster.start_fleet()
        assert digest(cluster, job) == expected


@pytest.mark.ray
@pytest.mark.nightly
def test_the_workers_of_a_fleet_that_ends_finish_their_tasks(tmp_path: Path, expected: str) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        job = begun(cluster)
        cluster.fleet.process.terminate()
        cluster.barrier.release()
        ends(cluster.fleet)
        cluster.fleet = cluster.start_fleet()
        assert digest(cluster, job) == expected
        assert f"job {job}: worker" in cluster.server.stderr
        assert "was let go: the fleet is stopping" in cluster.server.stderr


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
@pytest.mark.parametrize("command", [("serve", "--address", "127.0.0.1:0", "--data", "data"), ("fleet", "--slots", "1")])
def test_they_end_as_the_first_process_of_a_container(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Without an init, as with `init: false`: signals that are not handled would be ignored."""
    namespace = ("--pid", "--fork", "--mount-proc", "--kill-child", str(THALWEG))
    probe = subprocess.run(["unshare", *namespace[:-1], "true"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip("no process namespaces can be made here")
    program = shutil.which("unshare")
    assert program
    running = Running(tmp_path, *namespace, *command, "--json", program=Path(program), RAY_TMPDIR="/tmp")
    running.line()
    (first,) = wait_for(lambda: psutil.Process(running.process.pid).children())
    first.terminate()
    ends(running)
