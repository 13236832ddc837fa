"""Runs at the same time share one folder, one server and one list of jobs, whichever of them ends first, and however."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.client.conftest import Command
from tests.client.helpers import fleet_of_threads, names_in, start_worker
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.command import wait_for
from thalweg.client import Client, EpochEnded, Job, LocalError, ThalwegError, runs
from thalweg.client import embedded as embedded_module
from thalweg.client.composition import FolderInUseError, start_server
from thalweg.client.embedded import Embedded
from thalweg.client.folders import embedded_folder, folder_token, is_locked
from thalweg.client.runs import Run
from thalweg.contract.endpoint import Address

LOOPBACK = Address("127.0.0.1", 0)
# A run in a process of its own: it submits jobs with the ids given, says so, and waits to be told to end.
PROGRAM = """
import sys
from pathlib import Path
from thalweg.client.embedded import Embedded
embedded = Embedded(Path(sys.argv[1]))
for job_id in sys.argv[2:]:
    embedded.client.submit("xor", id=job_id)
print(embedded.client.address, flush=True)
sys.stdin.read()
embedded.close()
"""


@contextmanager
def another_process(folder: Path, *job_ids: str) -> Iterator[subprocess.Popen[str]]:
    """A run in another process, which has submitted jobs."""
    command = [sys.executable, "-c", PROGRAM, str(folder), *job_ids]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("127.0.0.1:")
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def a_run(folder: Path, notes: list[str] | None = None) -> Iterator[Embedded]:
    """A run in this process."""
    embedded = Embedded(folder, ([] if notes is None else notes).append)
    try:
        yield embedded
    finally:
        embedded.close()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("thalweg")]
    assert left == []


def until_it_has_learnt(job: Job) -> None:
    next(event for event in job.watch() if isinstance(event, EpochEnded))


def test_runs_share_one_list_of_jobs(tmp_path: Path) -> None:
    with a_run(tmp_path) as first, a_run(tmp_path) as second:
        assert first.client.address == second.client.address
        ids = [run.client.submit("xor").id for run in (first, second)]
        assert ids == ["xor-1", "xor-2"]
        assert [job.id for job in first.client.jobs()] == [job.id for job in second.client.jobs()] == ["xor-2", "xor-1"]
    assert names_in(tmp_path / "runs") == []
    assert not is_locked(tmp_path)


def test_leaving_interrupts_a_job_and_keeps_what_it_learnt(tmp_path: Path, command: Command, barrier: Barrier) -> None:
    barrier.hold(3, "mine")
    notes: list[str] = []
    with a_run(tmp_path / "a", notes) as run, fleet_of_threads(run.client, folder_token(tmp_path / "a")):
        done = run.client.submit("xor", {"training.epochs": 2}, id="done")
        done.wait()
        job = run.client.submit("xor", id="mine")
        until_it_has_learnt(job)
    barrier.release()
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "thalweg-heart"])
    (note,) = notes
    assert note.startswith("job mine was interrupted after ")
    assert f"thalweg train --resume mine --data {tmp_path / 'a'}, or client.resume('mine')" in note
    (mine, _) = command("jobs", "--data", "a", "--json").json["jobs"]
    assert (mine["job"], mine["state"]) == ("mine", "CANCELLED")
    assert mine["steps"] > 0
    assert command("weights", "mine", "--data", "a").code == 0
    with a_run(tmp_path / "a") as run:
        assert run.client.resume("mine").progress.step == mine["steps"]


def test_a_job_that_is_resumed_belongs_to_the_run_that_resumed_it(tmp_path: Path) -> None:
    with a_run(tmp_path) as first:
        first.client.submit("xor", id="mine")
    with a_run(tmp_path) as second, a_run(tmp_path) as third:
        third.client.resume("mine")
        third.close()
        assert second.client.job("mine").state == "CANCELLED"


def test_the_jobs_of_the_others_go_on_when_the_first_run_ends(tmp_path: Path) -> None:
    with another_process(tmp_path, "theirs") as first, a_run(tmp_path) as second:
        job = second.client.submit("xor", {"training.epochs": 2}, id="ours")
        first.communicate("")
        assert first.returncode == 0
        # It is at the same address, though another process serves.
        assert job.state == "QUEUED"
        assert second.client.job("theirs").state == "CANCELLED"
        worker = start_worker(second.client.address, "ours", folder_token(tmp_path))
        assert job.wait().state == "SUCCEEDED"
        worker.join()
    assert names_in(tmp_path / "runs") == []


def test_the_jobs_of_the_others_go_on_when_the_first_run_is_killed(tmp_path: Path) -> None:
    with another_process(tmp_path, "theirs") as first, another_process(tmp_path, "second"), a_run(tmp_path) as third:
        job = third.client.submit("xor", id="ours")
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert job.state == "QUEUED"
        assert third.client.job("second").state == "QUEUED"
        theirs = third.client.job("theirs")
        assert theirs.state == "FAILED"
        assert theirs.message.error == "interrupted: the process that ran this job ended before the job did"
        with a_run(tmp_path) as fourth:
            assert fourth.client.address == third.client.address


def test_the_jobs_of_a_run_that_was_killed_end(tmp_path: Path) -> None:
    with a_run(tmp_path) as first, another_process(tmp_path, "theirs") as second:
        job = first.client.job("theirs")
        assert job.state == "QUEUED"
        second.send_signal(signal.SIGKILL)
        second.wait()
        wait_for(lambda: job.state == "CANCELLED")
        assert names_in(tmp_path / "runs")[1:] == []


def test_a_look_at_the_jobs_interrupts_none_that_lives(command: Command) -> None:
    """It may have the folder's lock for a moment, just when a server ended and the next one is to start."""
    folder = embedded_folder()
    with another_process(folder) as first, a_run(folder) as second:
        second._closing.set()  # It starts no server.
        second._guardian.join()
        second.client.submit("xor", id="ours")
        first.communicate("")
        assert command("jobs", "ours", "--json").json["jobs"][0]["state"] == "QUEUED"
        # One that comes now serves where the other looks for it.
        with a_run(folder) as third:
            assert third.client.address == second.client.address
            assert second.client.job("ours").state == "QUEUED"
        second._closing.clear()
    assert command("jobs", "ours", "--json").json["jobs"][0]["state"] == "FAILED"


def test_a_job_of_a_process_that_was_killed_was_interrupted(command: Command) -> None:
    with another_process(embedded_folder(), "mine") as run:
        run.send_signal(signal.SIGKILL)
    (job,) = command("jobs", "--json").json["jobs"]
    assert job["state"] == "FAILED"
    assert job["error"] == "interrupted: the process that ran this job ended before the job did"


def test_the_folder_of_a_running_server_is_left_alone(tmp_path: Path) -> None:
    server = start_server(LOOPBACK, tmp_path, None)
    try:
        with pytest.raises(FolderInUseError, match=f"is in use by another server; use it with --server {server.address}, or"):
            Embedded(tmp_path)
    finally:
        server.stop()
    assert "token" not in names_in(tmp_path)
    folder_token(tmp_path)
    server = start_server(LOOPBACK, tmp_path, "another")
    try:
        with pytest.raises(FolderInUseError, match=f"use it with --server {server.address}"):
            Embedded(tmp_path)
    finally:
        server.stop()
    assert names_in(tmp_path / "runs") == []


def test_a_server_that_does_not_answer_is_waited_for_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "_JOIN_SECONDS", 0.1)
    checks: list[float] = []
    with another_process(tmp_path) as first:
        (tmp_path / "address").unlink()
        with pytest.raises(FolderInUseError, match="is in use by a server that does not answer"):
            Embedded(tmp_path, check=lambda: checks.append(time.monotonic()))
        first.communicate("")
    assert checks
    assert names_in(tmp_path / "runs") == []


def test_a_server_that_is_stopped_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "_JOIN_SECONDS", 0.1)
    monkeypatch.setattr(embedded_module, "_PROBE_SECONDS", 0.1)
    with another_process(tmp_path) as first:
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(FolderInUseError, match="continue or end the process that it runs in, or choose another folder"):
            Embedded(tmp_path)
        first.send_signal(signal.SIGCONT)
        with a_run(tmp_path) as second:
            assert second.client.jobs() == []
        first.communicate("")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_runs_in_threads_and_forked_processes_are_runs_of_their_own(tmp_path: Path) -> None:
    with a_run(tmp_path) as first, ThreadPoolExecutor(1) as threads:
        job = first.client.submit("xor", id="first")
        second = threads.submit(Embedded, tmp_path).result()
        second.client.submit("xor", id="second")
        child = os.fork()
        if child == 0:
            # The run is its parent's.
            first.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert job.state == "QUEUED"
        threads.submit(second.close).result()
        assert first.client.job("second").state == "CANCELLED"
        assert job.state == "QUEUED"


def test_another_release_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another_process(tmp_path):
        monkeypatch.setattr(embedded_module, "version", lambda _: "99.0")
        with pytest.raises(FolderInUseError, match=r"in use by release .* of Thalweg, but this is 99\.0"):
            Embedded(tmp_path)


def test_runs_are_told_apart_by_their_files(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.joined(Address("127.0.0.1", 4000))
    run.add("a")
    run.add("b")
    run.add("a")
    assert runs.told(tmp_path) == [runs.Told(Address("127.0.0.1", 4000), ("a", "b"))]
    assert runs.jobs_of_the_living(tmp_path) == {"a", "b"}
    (tmp_path / "runs" / "dead").write_text("server 127.0.0.1:5000\njob c\njob half-writ")
    assert runs.bury(tmp_path) == ["c"]
    assert len(names_in(tmp_path / "runs")) == 1
    run.leave()
    assert names_in(tmp_path / "runs") == []
    assert runs.told(tmp_path / "nowhere") == []


def test_a_folder_that_takes_no_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(LocalError, match=r"cannot use the data folder .*: (Not a directory|File exists)"):
        Embedded(tmp_path)


def test_a_closed_run_is_closed(tmp_path: Path) -> None:
    with a_run(tmp_path) as run:
        client = run.client
    run.close()
    with pytest.raises((ThalwegError, ValueError)):
        client.jobs()
    assert isinstance(client, Client)
