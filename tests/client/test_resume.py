"""Jobs that are resumed: `thalweg train --resume`, and clients that watch them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import Command
from tests.client.helpers import NOWHERE, Cluster, fleet_of_threads, start_worker
from tests.client.test_commands import interrupt
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, EpochEnded, Job, StateChanged, StepsTaken, ThalwegError
from thalweg.client.cli.display import JobView, Log
from thalweg.client.embedded import Embedded
from thalweg.client.folders import embedded_folder
from thalweg.client.records import Event
from thalweg.server.process import Server

# Long enough to be interrupted.
EPOCHS = 400
SETTINGS: dict[str, Any] = {"training.epochs": EPOCHS}


def interrupt_at_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C as soon as a step is shown."""
    monkeypatch.setattr(Log, "show", lambda _, event: interrupt() if isinstance(event, StepsTaken) else None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "JOB: must be given: a packaged job or the path of a job file; or --resume and a job's id"),
        (["xor", "--resume", "a"], "--resume: resumes job a, which has its own job file; leave out xor"),
        (
            ["--resume", "a", "--set", "seed=1"],
            "--set: cannot be used with --resume: a resumed job keeps its settings",
        ),
        (["--resume", "a", "--set", "training.max_seconds=long"], "training.max_seconds: 'long' is not a number of seconds"),
        (["--resume", "a", "--data", "nowhere"], "--data: there is no folder nowhere"),
    ],
)
def test_what_is_no_one_job_is_told(arguments: list[str], message: str, command: Command) -> None:
    assert command("train", *arguments) == (2, "", f"thalweg: {message}\n")
    assert not Path("nowhere").exists()


def test_a_job_that_is_not_there_is_told(cluster: Cluster, command: Command) -> None:
    for options in (["--server", cluster.address], []):
        printed = command("train", "--resume", "nope", *options)
        assert printed == (1, "", "thalweg: there is no job nope on this server\n")
    assert command("train", "--resume", "nope", "--server", NOWHERE).err.startswith("thalweg: cannot reach a Thalweg server")


def test_a_job_that_another_run_trains_is_told(command: Command) -> None:
    embedded = Embedded(embedded_folder())
    try:
        embedded.client.submit("xor", id="mine")
        printed = command("train", "--resume", "mine")
        assert printed == (1, "", "thalweg: job mine is already running; thalweg watch mine shows it\n")
        assert embedded.client.job("mine").state == "QUEUED"
    finally:
        embedded.close()


def test_what_a_job_told_before_is_not_shown_again_but_known(
    server: Server, client: Client, command: Command, monkeypatch: pytest.MonkeyPatch, barrier: Barrier
) -> None:
    barrier.hold(3)
    job = client.submit("xor", id="mine")
    worker = start_worker(server.address, "mine")
    next(event for event in job.watch() if isinstance(event, EpochEnded))
    job.cancel()
    barrier.release()
    worker.join()
    taken: list[Event] = []
    shown: list[Event] = []
    monkeypatch.setattr(Job, "resume", lambda *_: None)
    monkeypatch.setattr(JobView, "take", lambda _, event: taken.append(event))
    monkeypatch.setattr(Log, "show", lambda _, event: shown.append(event))
    printed = command("train", "--resume", "mine", "--server", server.address)
    assert printed.code == 1
    assert "thalweg: job mine was cancelled after " in printed.err
    assert taken == list(job.watch())
    assert shown == []


def test_a_job_that_was_interrupted_goes_on_to_the_same_end(
    server: Server, client: Client, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet_of_threads(server):
        undisturbed = client.submit("xor", SETTINGS).wait()
        with monkeypatch.context() as patch:
            interrupt_at_first_step(patch)
            options = ["--set", f"training.epochs={EPOCHS}", "--server", server.address]
            assert command("train", "xor", *options).code == 130
        before = client.job("xor-2").history()
        printed = command("train", "--resume", "xor-2", "--server", server.address, "--json")
    assert printed.code == 0, printed.err
    answer = printed.json
    assert (answer["job"], answer["state"], answer["steps"]) == ("xor-2", "SUCCEEDED", EPOCHS)
    assert answer["weights"] == f"{tmp_path}/xor-2.safetensors"
    assert answer["weights_sha256"] == undisturbed.weights_sha256
    events = client.job("xor-2").history()
    assert events[: len(before)] == before
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [event.state for event in events if isinstance(event, StateChanged)]
    assert states.count("CANCELLED") == 1
    assert states[-1] == "SUCCEEDED"
    losses: dict[int, float] = {}
    for event in events:
        if isinstance(event, StepsTaken):
            losses |= dict(enumerate(event.losses, event.first_step))
    assert sorted(losses) == list(range(EPOCHS))


def test_a_watch_and_a_wait_go_on_through_an_end_in_the_midst(server: Server, client: Client, command: Command) -> None:
    job = client.submit("xor", SETTINGS, id="mine")
    job.cancel()
    early = client.job("mine")
    assert early.state == "CANCELLED"
    job.resume()
    assert job.message.state == client.job("mine").message.state
    watching = early.watch()
    first = [next(watching) for _ in range(3)]
    assert [event.state for event in first if isinstance(event, StateChanged)] == ["QUEUED", "CANCELLED", "QUEUED"]
    worker = start_worker(server.address, "mine")
    result = early.wait()
    worker.join()
    assert result.state == "SUCCEEDED"
    events = first + list(watching)
    assert events == job.history()
    printed = command("watch", "mine", "--server", server.address, "--json")
    assert printed.code == 0
    assert json.loads(printed.out.splitlines()[-1])["state"] == "SUCCEEDED"


def test_a_job_that_has_not_ended_is_watched_as_it_is(
    server: Server, client: Client, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.submit("xor", SETTINGS, id="mine")
    resume = Job.resume

    def resume_and_work(job: Job, max_seconds: float | None = None) -> None:
        resume(job, max_seconds)
        start_worker(server.address, job.id)

    monkeypatch.setattr(Job, "resume", resume_and_work)
    printed = command("train", "--resume", "mine", "--server", server.address, "--json")
    assert printed.code == 0, printed.err
    assert printed.json["state"] == "SUCCEEDED"


def test_a_job_that_has_succeeded_cannot_be_taken_up(cluster: Cluster, command: Command) -> None:
    printed = command("train", "--resume", "gate", "--server", cluster.address)
    assert printed.code == 1
    assert printed.out == ""
    assert printed.err.startswith("thalweg: job gate cannot be resumed: ")
    with pytest.raises(ThalwegError) as caught:
        cluster.gate.resume()
    assert caught.value.reason == "NOT_RESUMABLE"


@pytest.mark.parametrize("folder", [None, "kept"])
def test_a_job_whose_process_was_killed_goes_on_where_it_is_kept(
    folder: str | None, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(tmp_path / "server") as server, fleet_of_threads(server), Client(server.address) as client:
        undisturbed = client.submit("xor", SETTINGS).wait()
    embedded = Embedded(Path(folder) if folder else embedded_folder())
    embedded.client.submit("xor", SETTINGS, id="mine")
    embedded.abandon("mine")
    embedded.close()

    def start_threads(embedded: Embedded, slots: int, *_: object) -> None:
        fleet = fleet_of_threads(embedded.client, embedded._token, slots)
        fleet.__enter__()
        embedded._stack.push(fleet)

    monkeypatch.setattr(Embedded, "start_fleet", start_threads)
    options = ["--data", folder] if folder else []
    printed = command("train", "--resume", "mine", *options, "--json")
    assert printed.code == 0, printed.err
    assert printed.json["weights_sha256"] == undisturbed.weights_sha256
    assert Path(printed.json["weights"]).is_file()
    (job,) = command("jobs", *options, "--json").json["jobs"]
    assert (job["state"], job.get("error")) == ("SUCCEEDED", None)
