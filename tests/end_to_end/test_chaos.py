"""Real processes are killed, stopped and run out of disk while a job runs: the same bits all the same."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end.command import wait_for
from tests.end_to_end.faults import SmallDisk, disk_problem, flip_a_byte, kill, slowed, stopped
from tests.end_to_end.test_cluster import Cluster as Processes
from tests.end_to_end.watching import Watching, undisturbed
from thalweg.client import Client
from thalweg.server.settings import KEPT_CHECKPOINTS

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

# Some seconds of work for three workers.
EPOCHS = 540
STEPS = 23 * EPOCHS
JOB = (f"training.epochs={EPOCHS}",)
# How often something is killed in the course of a job.
KILLS = 5


class Cluster(Processes):
    """A server and a fleet of three slots, and jobs that are watched from their first event on."""

    def run(self, workers: int, *settings: str) -> Watching:
        """A job, which is `JOB` unless settings are given, with so many workers."""
        arguments = [part for setting in (*(settings or JOB), f"training.workers={workers}") for part in ("--set", setting)]
        self.job = str(self("submit", "digits", *arguments)["job"])
        watching = Watching(self.home, self.job, self.address)
        self._stack.callback(watching.stop)
        return watching

    def kill_server(self) -> None:
        """Kills the server, which can do nothing about it."""
        self.server.process.kill()
        self.server.process.wait()

    def steps_from(self, least: int) -> int | None:
        """How many steps the job has taken, as the server says; None if there are fewer than `least`."""
        steps = int(self("jobs", self.job)["jobs"][0]["steps"])
        return steps if steps >= least else None

    def digest(self, watching: Watching) -> str:  # type: ignore[override]
        """The digest of what comes of a job, which is waited for."""
        assert watching.end() == "SUCCEEDED"
        return str(self("jobs", self.job)["jobs"][0]["weights_sha256"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for the tests that leave server and fleet alone."""
    with ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("shared"), stack)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("seed", [0])
def test_workers_are_killed_at_random_until_the_job_ends(shared: Cluster, seed: int) -> None:
    generator = random.Random(seed)
    watching = shared.run(3)
    for number in range(1, KILLS + 1):
        watching.until_steps(number * STEPS // (KILLS + 3))
        kill(generator.choice(wait_for(lambda: watching.workers)))
    assert shared.digest(watching) == undisturbed("digits", *JOB)


def test_a_job_grows_and_shrinks(shared: Cluster) -> None:
    watching = shared.run(1)
    watching.until_workers(1)
    # It is slowed, so that the job is still there when the others come.
    with slowed(watching.workers[0]):
        for workers in (3, 1):
            shared("scale", shared.job, str(workers))
            watching.until_workers(workers)
    assert shared.digest(watching) == undisturbed("digits", *JOB)


def test_one_worker_is_ten_times_slower_than_the_others(shared: Cluster) -> None:
    short = ("training.epochs=60",)
    expected = undisturbed("digits", *short)
    watching = shared.run(3, *short)
    assert shared.digest(watching) == expected
    alone = shared("jobs", shared.job)["jobs"][0]["seconds"]
    watching = shared.run(3, *short)
    watching.until_workers(3)
    with slowed(watching.workers[0]):
        assert shared.digest(watching) == expected
    beside = shared("jobs", shared.job)["jobs"][0]["seconds"]
    print(f"a worker slowed tenfold made the job take {beside / alone:.2f} times as long")  # noqa: T201


def test_another_fleet_joins_and_the_first_is_killed(tmp_path: Path, stack: ExitStack) -> None:
    cluster = Cluster(tmp_path, stack)
    watching = cluster.run(2)
    watching.until_workers(2)
    first = set(watching.workers)
    # They are slowed, so that the job is still there when the other fleet is.
    for worker in first:
        stack.enter_context(slowed(worker))
    watching.until_steps(STEPS // 20)
    second = cluster.start_fleet()
    cluster.fleet.process.kill()
    wait_for(lambda: (watching.workers and not first & set(watching.workers)) or watching.ended)
    assert cluster.digest(watching) == undisturbed("digits", *JOB)
    assert not first & set(watching.of("workers_changed")[-1]["names"])
    assert second.process.poll() is None


CHECKPOINTS = ("--checkpoint-seconds", "0.2")


def losses_of(watching: Watching) -> list[tuple[int, float]]:
    """Each step that was told, in order, with its loss."""
    return [(event["first_step"] + i, loss) for event in watching.of("steps_taken") for i, loss in enumerate(event["losses"])]


def test_the_server_is_killed_five_times(tmp_path: Path, stack: ExitStack) -> None:
    cluster = Cluster(tmp_path, stack, *CHECKPOINTS)
    watching = cluster.run(2)
    for number in range(1, KILLS + 1):
        # What is watched tells of it late: some seconds pass until a watch that broke goes on.
        steps = wait_for(partial(cluster.steps_from, number * STEPS // (KILLS + 3)))
        assert steps < STEPS
        cluster.kill_server()
        cluster.server = cluster.start_server()
    # It was not started again, and has missed nothing: `digest` looks at the numbers of the events.
    assert cluster.digest(watching) == undisturbed("digits", *JOB)
    assert [step for step, _ in losses_of(watching)] == list(range(STEPS))
    again = Watching(tmp_path, cluster.job, cluster.address)
    again.end()
    assert again.events == watching.events
    assert [job["job"] for job in cluster("jobs")["jobs"]] == [cluster.job]


@pytest.mark.parametrize("damaged", ["the newest", "all"])
def test_a_checkpoint_is_damaged(tmp_path: Path, stack: ExitStack, damaged: str) -> None:
    cluster = Cluster(tmp_path, stack, *CHECKPOINTS)
    watching = cluster.run(2)
    wait_for(lambda: len(watching.of("checkpoint_written")) >= 2 or watching.ended)
    cluster.kill_server()
    folder = cluster.data / "jobs" / cluster.job / "checkpoints"
    checkpoints = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints if damaged == "all" else checkpoints[-1:]:
        flip_a_byte(checkpoint)
    cluster.server = cluster.start_server()
    assert cluster.digest(watching) == undisturbed("digits", *JOB)
    notices = [event["text"] for event in watching.of("notice") if "damaged" in event["text"]]
    assert len(notices) == (len(checkpoints) if damaged == "all" else 1)
    again = [event["status"] for event in watching.of("state_changed") if "restarted" in event["status"]]
    assert len(again) == 1
    assert again[0].endswith("starts again from the beginning") == (damaged == "all")


@pytest.mark.skipif(disk_problem() is not None, reason=str(disk_problem()))
def test_the_disk_is_full_when_a_checkpoint_is_due(tmp_path: Path, stack: ExitStack) -> None:
    # A checkpoint takes some 9 MB, SQLite's log of events 4 MB at most.
    settings = ("model.layers=[{dense={units=10240}}, {relu={}}, {dense={units=10}}]", "training.epochs=20")
    disk = stack.enter_context(SmallDisk(tmp_path / "disk", mebibytes=256))
    cluster = Cluster(tmp_path, stack, *CHECKPOINTS, data=disk.folder / "server")
    watching = cluster.run(2, *settings)
    size = int(wait_for(lambda: watching.of("checkpoint_written"))[0]["bytes"])
    folder = cluster.data / "jobs" / cluster.job / "checkpoints"

    def filled() -> bool:
        """Fills the disk, unless a checkpoint is just being written, or takes the place of an older one."""
        with stopped(cluster.server.process.pid):
            files = list(folder.iterdir())
            idle = len(files) <= KEPT_CHECKPOINTS and all(path.suffix == ".safetensors" for path in files)
            if idle:
                disk.fill(free=size * 2 // 3)
        return idle

    wait_for(filled)
    wait_for(lambda: watching.of("checkpoint_failed") or watching.ended)
    assert not watching.ended
    told = watching.of("checkpoint_failed")[0]
    assert "No space left on device" in told["problem"]
    # The job goes on meanwhile.
    watching.until_steps(watching.steps + 10)
    disk.clear()
    written = [event["sequence"] for event in watching.of("checkpoint_written")]
    wait_for(lambda: len(watching.of("checkpoint_written")) > len(written) or watching.ended)
    assert watching.of("checkpoint_written")[-1]["sequence"] > told["sequence"]
    assert cluster.digest(watching) == undisturbed("digits", *settings)
    with Client(cluster.address) as client:
        assert client.job(cluster.job).message.progress.checkpoints.failed == len(watching.of("checkpoint_failed"))
