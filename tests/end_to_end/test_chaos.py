"""Real processes are killed, stopped and run out of disk while a job runs: the result has the same bits."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import wait_for
from tests.end_to_end.faults import SmallDisk, disk_problem, flip_a_byte, kill, slowed, stopped
from tests.end_to_end.test_cluster import Cluster as Processes
from tests.end_to_end.watching import Watching, undisturbed
from thalweg.client import Client
from thalweg.server.settings import KEPT_CHECKPOINTS

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.nightly]

EPOCHS = 30
STEPS = 23 * EPOCHS
JOB = (f"training.epochs={EPOCHS}",)
# How often something is killed in the course of a job.
KILLS = 5
# How many steps lie between two kills.
STRETCH = STEPS // (KILLS + 3)


class Cluster(Processes):
    """A server and a fleet of three slots, and jobs that are watched from their first event on."""

    def run(self, workers: int, *settings: str) -> Watching:
        """A job, which is `JOB` unless settings are given, with a number of workers."""
        arguments = [part for setting in (*(settings or JOB), f"training.workers={workers}") for part in ("--set", setting)]
        self.job = str(self("submit", "digits", *arguments)["job"])
        watching = Watching(self.home, self.job, self.address)
        self._stack.callback(watching.stop)
        # A command that has not reached the server yet does not survive the server's end.
        wait_for(lambda: watching.events or watching.ended)
        return watching

    def kill_server(self) -> None:
        """Kills the server, which can do nothing about it."""
        self.server.process.kill()
        self.server.process.wait()

    @property
    def steps(self) -> int:
        """How many steps the job has taken. Events tell of the last ones with the next ones, or at the end."""
        with Client(self.address) as client:
            return client.job(self.job).message.progress.step

    def until_held(self, steps: int) -> None:
        """Waits until the job waits at the barrier after a number of steps."""
        wait_for(lambda: self.steps == steps)

    def step_until(self, condition: Callable[[], Any]) -> Any:
        """Waits until a condition holds, and gives its value. Meanwhile the job steps."""
        return self.barrier.step_until(lambda: self.steps, condition)

    def digest(self, watching: Watching) -> str:  # type: ignore[override]
        """The digest of a job's result, which is waited for. The barrier is released."""
        self.barrier.release()
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
    shared.barrier.hold(STRETCH)
    watching = shared.run(3)
    for number in range(1, KILLS + 1):
        # It is killed at this barrier, or on the way to the next one.
        shared.until_held(number * STRETCH)
        shared.barrier.hold((number + 1) * STRETCH)
        kill(generator.choice(wait_for(lambda: watching.workers)))
    assert shared.digest(watching) == undisturbed("digits", *JOB)


def test_a_job_grows_and_shrinks(shared: Cluster) -> None:
    shared.barrier.hold(STRETCH)
    watching = shared.run(1)
    watching.until_workers(1)
    for number, workers in enumerate((3, 1), 2):
        shared("scale", shared.job, str(workers))
        watching.until_workers(workers)
        shared.barrier.hold(number * STRETCH)
        shared.until_held(number * STRETCH)
    assert shared.digest(watching) == undisturbed("digits", *JOB)


def test_one_worker_is_ten_times_slower_than_the_others(shared: Cluster) -> None:
    shared.barrier.hold(STRETCH)
    watching = shared.run(3)
    watching.until_workers(3)
    with slowed(watching.workers[0]):
        assert shared.digest(watching) == undisturbed("digits", *JOB)


def test_another_fleet_joins_and_the_first_is_killed(tmp_path: Path, stack: ExitStack) -> None:
    cluster = Cluster(tmp_path, stack)
    cluster.barrier.hold(STRETCH)
    watching = cluster.run(2)
    watching.until_workers(2)
    first = set(watching.workers)
    cluster.until_held(STRETCH)
    second = cluster.start_fleet()
    cluster.fleet.process.kill()
    wait_for(lambda: (watching.workers and not first & set(watching.workers)) or watching.ended)
    assert cluster.digest(watching) == undisturbed("digits", *JOB)
    assert not first & set(watching.of("workers_changed")[-1]["names"])
    assert second.process.poll() is None


CHECKPOINTS = ("--checkpoint-seconds", "0.2")


def losses_of(watching: Watching) -> list[tuple[int, float]]:
    """Each step that was reported, in order, with its loss."""
    return [(event["first_step"] + i, loss) for event in watching.of("steps_taken") for i, loss in enumerate(event["losses"])]


def restarts(watching: Watching) -> list[str]:
    """The statuses of the job after restarts of the server."""
    return [event["status"] for event in watching.of("state_changed") if "restarted" in event["status"]]


def test_the_server_is_killed_five_times(tmp_path: Path, stack: ExitStack) -> None:
    cluster = Cluster(tmp_path, stack, *CHECKPOINTS)
    cluster.barrier.hold(STRETCH)
    watching = cluster.run(2)
    for number in range(1, KILLS + 1):
        cluster.until_held(number * STRETCH)
        cluster.barrier.hold((number + 1) * STRETCH)
        # It is killed in the middle of a step, unless the job waits at the next barrier already.
        wait_for(lambda: cluster.steps > number * STRETCH)  # noqa: B023 - waited for at once
        cluster.kill_server()
        cluster.server = cluster.start_server()
        # A watch that broke is resumed some seconds later; after a minute without a server it ends.
        wait_for(lambda: len(restarts(watching)) == number or watching.ended)  # noqa: B023
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
    cluster.barrier.hold(0)
    watching = cluster.run(2)
    cluster.step_until(lambda: len(watching.of("checkpoint_written")) >= 2)
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
    again = restarts(watching)
    assert len(again) == 1
    assert again[0].endswith("starts again from the beginning") == (damaged == "all")


@pytest.mark.skipif(disk_problem() is not None, reason=str(disk_problem()))
def test_the_disk_is_full_when_a_checkpoint_is_due(tmp_path: Path, stack: ExitStack) -> None:
    # A checkpoint takes some 9 MB, SQLite's log of events 4 MB at most.
    settings = ("model.layers=[{dense={units=10240}}, {relu={}}, {dense={units=10}}]", "training.epochs=8")
    disk = stack.enter_context(SmallDisk(tmp_path / "disk", mebibytes=256))
    cluster = Cluster(tmp_path, stack, *CHECKPOINTS, data=disk.folder / "server")
    cluster.barrier.hold(0)
    watching = cluster.run(2, *settings)
    size = int(cluster.step_until(lambda: watching.of("checkpoint_written"))[0]["bytes"])
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
    told = cluster.step_until(lambda: watching.of("checkpoint_failed"))[0]
    assert "No space left on device" in told["problem"]
    # The job continues meanwhile.
    reached = cluster.steps
    cluster.step_until(lambda: cluster.steps >= reached + 10)
    disk.clear()
    written = [event["sequence"] for event in watching.of("checkpoint_written")]
    cluster.step_until(lambda: len(watching.of("checkpoint_written")) > len(written))
    assert watching.of("checkpoint_written")[-1]["sequence"] > told["sequence"]
    assert cluster.digest(watching) == undisturbed("digits", *settings)
    with Client(cluster.address) as client:
        assert client.job(cluster.job).message.progress.checkpoints.failed == len(watching.of("checkpoint_failed"))
