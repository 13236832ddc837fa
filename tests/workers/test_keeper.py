"""What a keeper does about workers that end: on a Ray that is imagined, with a clock of its own."""

from collections.abc import Iterator
from itertools import chain, pairwise, repeat
from typing import Any, NamedTuple

import pytest

from thalweg.contract.channel import Address
from thalweg.contract.errors import ThalwegError
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.workers.keeper import LONGEST_BACKOFF, Alive, Keeper, Orders, RayLostError

# How long a worker lives, with what error it ends, and whether it has done a task.
Fate = tuple[float, Exception | None, bool]
LONG_LIFE: Fate = (1e9, None, True)


class RayError(Exception):
    """Any error of Ray's."""


class RayTaskError(RayError):
    """An exception in a worker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"Traceback ...\n{type(cause).__name__}: {cause}")
        self.cause = cause


class Actor:
    """A worker with the next fate."""

    def __init__(self, ray: "Ray") -> None:
        self._ray = ray
        self.started = ray.now
        self.seconds, self.error, self.answers = next(ray.fates)
        self.work = Method(self, "work")
        self.answered = Method(self, "answered")
        self.node = Method(self, "node")

    def is_done(self, method: str) -> bool:
        return {"work": self._ray.now >= self.started + self.seconds, "answered": self.answers, "node": True}[method]


class Method(NamedTuple):
    """A method of an actor; as a reference, what it returns."""

    actor: Actor
    name: str

    def remote(self, *_: Any) -> "Method":
        return self


class Ray:
    """What a keeper uses of Ray."""

    class exceptions:  # noqa: N801
        RayError = RayError
        RayTaskError = RayTaskError

    def __init__(self) -> None:
        self.now = 0.0
        self.fates: Iterator[Fate] = repeat(LONG_LIFE)
        self.starts: list[float] = []
        self.alive = True

    def get_runtime_context(self) -> Any:
        return self

    def get_node_id(self) -> str:
        return "here"

    def nodes(self) -> list[dict[str, Any]]:
        far = {"NodeID": "far", "Alive": True, "Resources": {"CPU": 3.0}}
        return [{"NodeID": "here", "Alive": self.alive, "Resources": {"CPU": 2.0}}, far]

    def remote(self, *arguments: Any) -> Any:
        if arguments:
            return self
        self.starts.append(self.now)
        return Actor(self)

    def options(self, **_: Any) -> "Ray":
        return self

    def wait(self, references: list[Method], **_: Any) -> tuple[list[Any], list[Any]]:
        return [reference for reference in references if reference.actor.is_done(reference.name)], []

    def get(self, reference: Method) -> Any:
        if reference.name == "node":
            return "far"
        if reference.name == "work" and reference.actor.error:
            raise reference.actor.error
        return True

    def kill(self, _: Actor) -> None:
        return


class Line:
    """The connection to a fleet that tells its allotment and hangs up at some time. Time passes while a keeper listens."""

    def __init__(self, ray: Ray, until: float, workers: int) -> None:
        self._ray = ray
        self._until = until
        allotment = pb.Allotment(job_id="job", workers=workers, slots_per_worker=1)
        self._inbox = [pb.AttendResponse(allotments=[allotment])]
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def poll(self, seconds: float) -> bool:
        self._ray.now += seconds
        return bool(self._inbox) or self._ray.now >= self._until

    def recv(self) -> pb.AttendResponse:
        if not self._inbox:
            raise EOFError
        return self._inbox.pop()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    ray = Ray()
    monkeypatch.setattr("thalweg.workers.keeper.monotonic", lambda: ray.now)
    return ray


def run(ray: Ray, until: float, workers: int = 1) -> list[Any]:
    """What a keeper says until the fleet hangs up."""
    line: Any = Line(ray, until, workers)
    Keeper(ray, Orders("fleet", Address("host", 1), None, "auto", 1, 1), line).run()
    said: list[Any] = line.sent
    return said


def gaps(ray: Ray) -> list[float]:
    """The times between two starts."""
    return [after - before for before, after in pairwise(ray.starts)]


def exits(said: list[Any]) -> list[pb.WorkerExited]:
    return [message for message in said if isinstance(message, pb.WorkerExited)]


def test_it_tells_the_capacity_of_all_nodes(ray: Ray) -> None:
    said = run(ray, 1)
    assert said == [Alive(5)] * len(said)


def test_it_gives_up_when_its_own_node_has_died(ray: Ray) -> None:
    ray.alive = False
    with pytest.raises(RayLostError):
        run(ray, 1)


def test_a_worker_that_dies_at_its_start_again_and_again_is_started_less_and_less_often(ray: Ray) -> None:
    ray.fates = repeat((1.0, RayError("gone"), False))
    said = run(ray, 60)
    assert all(exited.crashed for exited in exits(said))
    assert gaps(ray) == sorted(gaps(ray))
    assert gaps(ray)[0] < 2
    assert gaps(ray)[-1] > LONGEST_BACKOFF


def test_a_worker_that_worked_is_replaced_at_once_however_young_it_died(ray: Ray) -> None:
    ray.fates = repeat((1.0, RayError("gone"), True))
    said = run(ray, 60)
    assert not any(exited.crashed for exited in exits(said))
    assert max(gaps(ray)) < 2


def test_one_that_dies_at_its_start_while_another_works_is_replaced_at_once(ray: Ray) -> None:
    ray.fates = chain([LONG_LIFE], repeat((1.0, RayError("gone"), False)))
    run(ray, 60, workers=2)
    assert max(gaps(ray)) < 2


def test_no_more_workers_are_started_than_are_wanted(ray: Ray) -> None:
    run(ray, 60, workers=3)
    assert len(ray.starts) == 3


@pytest.mark.parametrize(
    ("error", "answers", "crashed"),
    [
        (RayTaskError(ValueError("no luck")), False, True),
        (RayTaskError(ValueError("no luck")), True, True),
        (RayTaskError(ThalwegError("UNREACHABLE")), False, False),
        (RayTaskError(ThalwegError("INTERNAL")), False, False),
        (RayTaskError(ThalwegError("PROTOCOL_VIOLATION")), False, True),
        (RayError("gone"), False, True),
        (RayError("gone"), True, False),
        (RayError("The actor died because its node has died. Node Id: 1"), False, False),
    ],
)
def test_what_is_a_crash(ray: Ray, error: Exception, answers: bool, crashed: bool) -> None:
    ray.fates = repeat((1.0, error, answers))
    assert exits(run(ray, 2))[0].crashed is crashed


DIED = "The actor died unexpectedly.\n\tpid: 1\nThe actor is dead because its worker process has died. "
LOST = f"{DIED}Worker unexpectedly exits with a connection error code 2. End of file."
EXITED = f"{DIED}Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits unexpectedly. Worker exits with an exit code "


@pytest.mark.parametrize(
    ("error", "problem", "reported", "number"),
    [
        (RayTaskError(ValueError("no luck")), "ValueError: no luck", True, 0),
        (RayTaskError(ThalwegError("PROTOCOL_VIOLATION", {"problem": "no"})), "no", True, 0),
        (RayError(LOST), "killed, perhaps", False, 0),
        (RayError(f"{EXITED}3."), "it ended with exit code 3", False, 0),
        (RayError(f"{EXITED}1. The process receives a SIGTERM."), "ended by SIGTERM", False, 15),
        (RayError("Task was killed: low on memory.\nMemory ..."), "its process died: Task was killed: low on memory.", False, 0),
    ],
)
def test_how_a_worker_ended_is_said(ray: Ray, error: Exception, problem: str, reported: bool, number: int) -> None:
    ray.fates = repeat((1.0, error, False))
    exited = exits(run(ray, 2))[0]
    assert (exited.job_id, exited.node, exited.crashed) == ("job", "far", True)
    assert problem in exited.problem
    assert len(exited.problem) < 120
    assert (exited.reported, exited.signal) == (reported, number)


def test_a_worker_that_the_server_let_go_is_not_told_of(ray: Ray) -> None:
    ray.fates = repeat((1.0, None, True))
    assert not exits(run(ray, 10))
