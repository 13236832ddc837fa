"""What a driver does about workers that end: on a Ray that is imagined, with a clock of its own."""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise, repeat
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.end_to_end.command import wait_for
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.v1 import fleet_service_pb2 as pb
from thalweg.v1.parameter_service_pb2 import Place
from thalweg.workers.crashes import LastWords
from thalweg.workers.ray import cluster
from thalweg.workers.ray.actor import WorkerActor
from thalweg.workers.ray.cluster import RayLostError, connect
from thalweg.workers.ray.driver import MAX_BACKOFF, RayDriver
from thalweg.workers.ray.messages import Alive, Hold, Orders

NONE = pb.WorkerExited.CAUSE_UNSPECIFIED
KILLED = pb.WorkerExited.CAUSE_KILLED
NODE = pb.WorkerExited.CAUSE_NODE
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


class RuntimeEnvSetupError(RayError):
    """What a job's code needs could not be installed."""


class Call:
    """A method of a worker that was called: the reference to what it will give."""

    def __init__(self, actor: "Actor", method: str) -> None:
        self.actor = actor
        self.method = method

    def remote(self, *arguments: Any) -> "Call":
        self.actor.called[self.method] = arguments
        return self

    def is_done(self, now: float) -> bool:
        actor = self.actor
        return {"work": now >= actor.started + actor.seconds, "answered": actor.answers, "place": True}[self.method]


class Reading(Call):
    """Of a log, on some node: the reference to its last words."""

    def __init__(self, ray: "Ray", node: str) -> None:
        self.ray = ray
        self.node = node
        self.method = "last_words"

    def remote(self, *arguments: Any) -> "Reading":
        self.ray.read.append((self.node, *arguments))
        self.done = self.ray.now + self.ray.reading_seconds
        return self

    def is_done(self, now: float) -> bool:
        return now >= self.done


class Reader:
    """The function that reads logs."""

    def __init__(self, ray: "Ray") -> None:
        self._ray = ray

    def options(self, *, scheduling_strategy: str, **_: Any) -> Reading:
        return Reading(self._ray, scheduling_strategy)


class Actor:
    """A worker with the next fate."""

    def __init__(self, ray: "Ray", node: str) -> None:
        self.started = ray.now
        self.called: dict[str, tuple[Any, ...]] = {}
        ray.actors.append(self)
        self.node = node
        self.seconds, self.error, self.answers = next(ray.fates)
        self.work, self.answered, self.place = Call(self, "work"), Call(self, "answered"), Call(self, "place")


class Ray:
    """What a driver uses of Ray."""

    class exceptions:  # noqa: N801
        RayError = RayError
        RayTaskError = RayTaskError
        RuntimeEnvSetupError = RuntimeEnvSetupError

    def __init__(self) -> None:
        self.now = 0.0
        self.fates: Iterator[Fate] = repeat(LONG_LIFE)
        self.starts: list[float] = []
        self.nodes_of_starts: list[str] = []
        self.resources: list[dict[str, float]] = []
        self.environments: list[Any] = []
        self.gpus: list[float] = []
        self.actors: list[Actor] = []
        self.alive = True
        # The CPU slots and GPUs of a node.
        self.far = 3.0, 4.0
        self.killed: list[Actor] = []
        self.util = self.scheduling_strategies = self
        self.log = "/log"
        self.words = LastWords()
        self.read: list[tuple[Any, ...]] = []
        self.reading_seconds = 1.0
        self._node = ""

    def get_runtime_context(self) -> Any:
        return self

    def get_node_id(self) -> str:
        return "here"

    def nodes(self) -> list[dict[str, Any]]:
        far, gpus_of_far = self.far
        nodes = [("here", "10.0.0.1", 2.0, self.alive), ("far", "10.0.0.2", far, True), ("gone", "10.0.0.3", 4.0, False)]
        return [
            {"NodeID": node, "NodeManagerAddress": address, "NodeManagerHostname": f"{node}.lab", "Alive": alive}
            | {"Resources": {"CPU": cpus, **gpus}}
            for (node, address, cpus, alive), gpus in zip(nodes, ({}, {"GPU": gpus_of_far}, {}), strict=True)
        ]

    def remote(self, *arguments: Any) -> Any:
        if arguments:
            return self if arguments[0] is WorkerActor else Reader(self)
        self.starts.append(self.now)
        self.nodes_of_starts.append(self._node)
        return Actor(self, self._node)

    def options(self, *, scheduling_strategy: Any, resources: dict[str, float], **more: Any) -> "Ray":
        self.environments.append(more.get("runtime_env"))
        self.gpus.append(more.get("num_gpus", 0))
        self._node = "here" if scheduling_strategy == "SPREAD" else scheduling_strategy
        self.resources.append(resources)
        return self

    def NodeAffinitySchedulingStrategy(self, node: str, soft: bool) -> str:  # noqa: N802 - Ray's name
        assert not soft
        return node

    def wait(self, references: list[Call], **_: Any) -> tuple[list[Any], list[Any]]:
        return [reference for reference in references if reference.is_done(self.now)], []

    def get(self, reference: Call) -> Any:
        if reference.method == "last_words":
            return self.words
        error = reference.actor.error
        if error and (reference.method == "work" or isinstance(error, RuntimeEnvSetupError)):
            raise error
        return (reference.actor.node, f"{reference.actor.node}.lab", self.log) if reference.method == "place" else True

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)


class Line:
    """The connection to a fleet that tells its allotment and hangs up at some time. Time passes while a driver listens."""

    def __init__(self, ray: Ray, until: float, workers: int, avoid: tuple[str, ...], then: list[Any]) -> None:
        self._ray = ray
        self._until = until
        allotment = pb.Allotment(job_id="job", workers=workers, slots_per_worker=1, avoid=avoid, token="job's")
        self._inbox = [*reversed(then), pb.AttendResponse(allotments=[allotment])]
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def poll(self, seconds: float) -> bool:
        self._ray.now += seconds
        return bool(self._inbox) or self._ray.now >= self._until

    def recv(self) -> Any:
        if not self._inbox:
            raise EOFError
        return self._inbox.pop()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    ray = Ray()
    for module in ("driver", "deaths"):
        monkeypatch.setattr(f"thalweg.workers.ray.{module}.monotonic", lambda: ray.now)
    return ray


def run(
    ray: Ray,
    until: float,
    workers: int = 1,
    avoid: tuple[str, ...] = (),
    then: tuple[Any, ...] = (),
    server: str = "host",
    allow_code: bool = False,
    allow_requirements: bool = False,
) -> list[Any]:
    """What a driver says until the fleet hangs up. `then` is what it is told after its allotment."""
    line: Any = Line(ray, until, workers, avoid, list(then))
    orders = Orders("fleet", "id", Endpoint(Address(server, 1), "fleet's"), "auto", 1, 1)
    RayDriver(ray, replace(orders, allow_code=allow_code, allow_requirements=allow_requirements), line).run()
    said: list[Any] = line.sent
    return said


def gaps(ray: Ray) -> list[float]:
    """The times between two starts."""
    return [after - before for before, after in pairwise(ray.starts)]


def exits(said: list[Any]) -> list[pb.WorkerExited]:
    return [message for message in said if isinstance(message, pb.WorkerExited)]


def test_it_tells_the_capacity_of_all_nodes(ray: Ray) -> None:
    said = run(ray, 1, workers=0)
    assert said == [Alive(5, ("here", "far"), of_nodes=((2, 0), (3, 4)), names=("here.lab", "far.lab"))] * len(said)


def test_it_tells_how_many_workers_it_runs(ray: Ray) -> None:
    assert run(ray, 1, workers=2)[-1] == Alive(
        5, ("here", "far"), {"job": (2, 1)}, of_nodes=((2, 0), (3, 4)), names=("here.lab", "far.lab")
    )


def test_where_a_node_is_to_be_avoided_workers_are_started_on_others_that_have_room(ray: Ray) -> None:
    run(ray, 5, workers=5, avoid=("here",))
    assert ray.nodes_of_starts == ["far"] * 3


def test_workers_get_gpus_of_nodes_that_have_them(ray: Ray) -> None:
    asked = [
        pb.Allotment(job_id="large", workers=2, slots_per_worker=1, gpus_per_worker=3, avoid=["gone"]),
        pb.Allotment(job_id="small", workers=3, slots_per_worker=1, gpus_per_worker=0.5, avoid=["gone"]),
    ]
    run(ray, 5, workers=0, then=(pb.AttendResponse(allotments=asked),))
    assert ray.gpus == [3, 0.5, 0.5]
    assert ray.nodes_of_starts == ["far"] * 3


def test_a_worker_gets_no_gpu_that_is_made_of_parts_of_several(ray: Ray) -> None:
    """Ray would wait for one."""
    ray.far = 4.0, 3.0
    asked = [
        pb.Allotment(job_id="shared", workers=3, slots_per_worker=1, gpus_per_worker=0.6, avoid=["gone"]),
        pb.Allotment(job_id="whole", workers=1, slots_per_worker=1, gpus_per_worker=1, avoid=["gone"]),
    ]
    run(ray, 5, workers=0, then=(pb.AttendResponse(allotments=asked),))
    assert ray.gpus == [0.6] * 3


def test_where_all_nodes_are_to_be_avoided_nothing_is_started(ray: Ray) -> None:
    run(ray, 5, avoid=("here", "far"))
    assert not ray.starts


def test_where_fewer_are_wanted_those_that_work_stay(ray: Ray) -> None:
    ray.fates = chain([(1e9, None, True), (1e9, None, False), (1e9, None, True)], repeat(LONG_LIFE))
    fewer = pb.AttendResponse(allotments=[pb.Allotment(job_id="job", workers=2, slots_per_worker=1)])
    run(ray, 5, workers=3, then=(fewer,))
    assert [actor.answers for actor in ray.killed[:1]] == [False]


def test_where_fewer_are_wanted_those_on_nodes_to_avoid_go_first(ray: Ray) -> None:
    fewer = pb.AttendResponse(allotments=[pb.Allotment(job_id="job", workers=2, slots_per_worker=1, avoid=["here"])])
    run(ray, 5, workers=3, then=(fewer,))
    assert ray.killed[0].node == "here"


def test_while_the_server_lets_workers_go_the_fleet_ends_none(ray: Ray) -> None:
    going = pb.Allotment(job_id="job", workers=1, slots_per_worker=1, avoid=["here", "far"], letting_go=True)
    said = run(ray, 5, workers=3, then=(pb.AttendResponse(allotments=[going]),))
    assert said[-1].running == {"job": (3, 1)}


def test_while_the_server_cannot_be_reached_what_runs_goes_on_and_nothing_is_started(ray: Ray) -> None:
    ray.fates = chain([(2.0, RayTaskError(ThalwegError("UNREACHABLE")), True)], repeat(LONG_LIFE))
    said = run(ray, 60, workers=2, then=(Hold(),))
    assert len(ray.starts) == 2
    assert said[-1].running == {"job": (1, 1)}


def test_where_only_this_machine_reaches_the_server_others_get_no_workers_and_are_named(ray: Ray) -> None:
    said = run(ray, 1, server="127.0.0.1")
    assert (said[-1].slots, said[-1].nodes, said[-1].unreachable) == (2, ("here",), ("10.0.0.2",))
    assert [list(resources) for resources in ray.resources] == [["node:10.0.0.1"]]


def test_workers_may_start_on_any_machine_that_reaches_the_server(ray: Ray) -> None:
    run(ray, 1)
    assert ray.resources == [{}]


def test_it_gives_up_when_its_own_node_has_died(ray: Ray) -> None:
    ray.alive = False
    with pytest.raises(RayLostError):
        run(ray, 1)


def test_a_worker_that_dies_at_its_start_again_and_again_is_started_less_and_less_often(ray: Ray) -> None:
    ray.fates = repeat((1.0, RayError("gone"), False))
    said = run(ray, 60)
    assert {exited.cause for exited in exits(said)} == {KILLED}
    assert exits(said)[0].place == Place(fleet="id", node="here", name="here.lab")
    assert gaps(ray) == sorted(gaps(ray))
    assert gaps(ray)[0] < 2
    assert gaps(ray)[-1] > MAX_BACKOFF


def test_a_worker_that_worked_is_replaced_at_once_however_young_it_died(ray: Ray) -> None:
    ray.fates = repeat((1.0, RayError("gone"), True))
    said = run(ray, 60)
    assert {exited.cause for exited in exits(said)} == {NONE}
    assert max(gaps(ray)) < 2


def test_one_that_dies_at_its_start_while_another_works_is_replaced_at_once(ray: Ray) -> None:
    ray.fates = chain([LONG_LIFE], repeat((1.0, RayError("gone"), False)))
    run(ray, 60, workers=2)
    assert max(gaps(ray)) < 2


def test_no_more_workers_are_started_than_are_wanted(ray: Ray) -> None:
    run(ray, 60, workers=3)
    assert len(ray.starts) == 3


@pytest.mark.parametrize(
    ("error", "answers", "cause"),
    [
        (RayTaskError(ImportError("no package")), False, NODE),
        (RayTaskError(ImportError("no package")), True, NONE),
        (RayTaskError(ThalwegError("UNREACHABLE")), False, NONE),
        (RayTaskError(ThalwegError("DISAGREES")), False, NONE),
        (RayTaskError(ThalwegError("PROTOCOL_VIOLATION")), False, NONE),
        # The node lacks the certificates, or has others.
        (RayTaskError(ThalwegError("LOCAL", {"problem": "--tls-ca: /etc/ca.pem cannot be read"})), False, NODE),
        (RayError("gone"), False, KILLED),
        (RayError("gone"), True, NONE),
        (RayError("The actor died because its node has died. Node Id: 1"), False, NONE),
    ],
)
def test_why_a_worker_ended(ray: Ray, error: Exception, answers: bool, cause: pb.WorkerExited.Cause.ValueType) -> None:
    ray.fates = repeat((1.0, error, answers))
    exited = exits(run(ray, 2))[0]
    assert exited.cause == cause
    # Its process alone, whether it had answered or not.
    assert exited.died == (str(error) == "gone")


DIED = "The actor died unexpectedly.\n\tpid: 1\nThe actor is dead because its worker process has died. "
LOST = f"{DIED}Worker unexpectedly exits with a connection error code 2. End of file."
TERM = "The process receives a SIGTERM."
EXITED = f"{DIED}Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits unexpectedly. Worker exits with an exit code "


@pytest.mark.parametrize(
    ("error", "problem", "number"),
    [
        (RayTaskError(ValueError("no luck")), "ValueError: no luck", 0),
        (RayTaskError(ThalwegError("PROTOCOL_VIOLATION", {"problem": "no"})), "no", 0),
        (RayError(LOST), "killed, perhaps", 0),
        (RayError(f"{EXITED}3."), "it ended with exit code 3", 0),
        (RayError(f"{EXITED}1. {TERM}"), "ended by SIGTERM", 15),
        (RayError("Task was killed: low on memory.\nMemory ..."), "its process died: Task was killed: low on memory.", 0),
    ],
)
def test_how_a_worker_ended_is_said(ray: Ray, error: Exception, problem: str, number: int) -> None:
    ray.fates = repeat((1.0, error, False))
    exited = exits(run(ray, 2))[0]
    assert (exited.job_id, exited.place) == ("job", Place(fleet="id", node="here", name="here.lab"))
    assert problem in exited.problem
    assert len(exited.problem) < 120
    assert exited.signal == number
    assert exited.died == (isinstance(error, RayError) and not isinstance(error, RayTaskError) and not number)


CRASHED = LastWords("Segmentation fault", "nets.py:3")


@pytest.mark.parametrize(
    ("words", "seconds", "problem"),
    [
        (CRASHED, 1.0, "Segmentation fault (at nets.py:3)"),
        (LastWords(), 1.0, "it was killed, perhaps for lack of memory, or crashed without a message"),
        # No process can be started there that reads the log.
        (CRASHED, 1e9, "it was killed, perhaps for lack of memory, or crashed without a message"),
    ],
)
def test_last_words_are_read_where_the_process_died(ray: Ray, words: LastWords, seconds: float, problem: str) -> None:
    ray.fates = chain([(1.0, RayError(LOST), False)], repeat(LONG_LIFE))
    ray.words, ray.reading_seconds = words, seconds
    (exited,) = exits(run(ray, 60, avoid=("here",), allow_code=True))
    assert exited.problem == f"its process died: {problem}"
    assert exited.line == (words.line if words.line in problem else "")
    assert ray.read == [("far", "/log")]


@pytest.mark.parametrize(
    ("error", "log", "allow_code"), [(LOST, "/log", False), (LOST, "", True), (f"{EXITED}1. {TERM}", "/log", True)]
)
def test_last_words_are_read_only_of_code_of_which_there_is_a_log(ray: Ray, error: str, log: str, allow_code: bool) -> None:
    ray.fates = chain([(1.0, RayError(error), False)], repeat(LONG_LIFE))
    ray.log = log
    assert len(exits(run(ray, 10, allow_code=allow_code))) == 1
    assert not ray.read


def test_a_worker_that_the_server_let_go_is_not_told_of(ray: Ray) -> None:
    ray.fates = repeat((1.0, None, True))
    assert not exits(run(ray, 10))


def test_a_fleet_that_has_not_hung_up_but_is_gone_is_noticed(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(line: Line, message: Any) -> None:
        if ray.now >= 1:
            raise BrokenPipeError

    monkeypatch.setattr(Line, "send", gone)
    with pytest.raises(BrokenPipeError):
        run(ray, 1)


DRIVER = """
import sys, types
for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
    sys.modules[name] = types.ModuleType(name)
from thalweg.workers.ray import driver
def lost(*_):
    raise driver.RayLostError("its head has died")
driver.connect = lost
driver.main(int(sys.argv[1]))
"""


def test_a_driver_whose_fleet_is_gone_has_rays_folder_removed(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    folder = tmp_path / "ray"
    folder.mkdir()
    # This process, which takes the fleet's part, lives on: only the closed connection tells that the fleet is gone.
    orders = Orders("fleet", "id", Endpoint(Address("host", 1)), None, 1, os.getpid(), folder=folder)
    command = [sys.executable, "-c", DRIVER, str(theirs.fileno())]
    with theirs, Connection(ours.detach()) as connection:
        connection.send(orders)
        connection.close()
        driver = subprocess.run(command, pass_fds=[theirs.fileno()], start_new_session=True, check=False)
    assert driver.returncode == -signal.SIGKILL
    wait_for(lambda: not folder.exists())


def test_a_machine_without_the_address_that_ray_needs_is_said_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_LOOPBACK", "192.0.2.1")
    with pytest.raises(RayLostError, match=r"has no 192\.0\.2\.1, where it listens; add it: ip address add"):
        connect(None, Orders("fleet", "id", Endpoint(Address("host", 1)), None, 1, 1))


def test_a_limit_of_files_sizes_that_ray_cannot_do_with_is_said_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: {resource.RLIMIT_FSIZE: (1 << 20, 1 << 20)}[which])
    with pytest.raises(RayLostError, match=r"files of at most 1\.00 MiB, and Ray needs 81\.00 MiB"):
        connect(None, Orders("fleet", "id", Endpoint(Address("host", 1)), None, 1, 1))


def test_a_ray_of_its_own_finds_the_gpus_of_its_machine() -> None:
    given: dict[str, Any] = {}
    connect(
        SimpleNamespace(init=given.update), Orders("fleet", "id", Endpoint(Address("host", 1)), None, 3, 1, trust_network=True)
    )
    assert given["num_cpus"] == 3
    # Ray looks for them only where it is not told how many there are.
    assert "num_gpus" not in given


REQUIRES = pb.AttendResponse(
    allotments=[pb.Allotment(job_id="other", workers=1, slots_per_worker=1, requirements=["einops==0.8.1", "six"])]
)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_worker_is_told_whether_it_may_run_code(ray: Ray, allowed: bool) -> None:
    run(ray, 1, allow_code=allowed)
    (actor,) = ray.actors
    assert actor.called["work"][-2] is allowed


def test_a_worker_gets_the_token_of_its_job_and_not_that_of_the_fleet(ray: Ray) -> None:
    run(ray, 1)
    (actor,) = ray.actors
    assert actor.called["work"][0].token == "job's"
    assert "fleet's" not in repr(actor.called)


@pytest.mark.parametrize("allowed", [False, True])
def test_packages_are_installed_only_where_that_is_allowed(ray: Ray, allowed: bool) -> None:
    run(ray, 2, then=(REQUIRES,), allow_code=True, allow_requirements=allowed)
    assert ray.environments == [None, {"pip": ["einops==0.8.1", "six"]} if allowed else None]


def test_packages_that_cannot_be_installed_are_told_as_the_nodes_problem(ray: Ray) -> None:
    text = "Failed to set up runtime environment.\nTraceback\n    ERROR: No matching distribution found for einops==99\n\n"
    ray.fates = chain([(0.1, RuntimeEnvSetupError(text), False)], repeat(LONG_LIFE))
    (exited,) = exits(run(ray, 2, workers=0, then=(REQUIRES,), allow_code=True, allow_requirements=True))
    assert exited.cause == NODE
    # Which Ray does not say.
    assert exited.place == Place(fleet="id", node="far", name="far.lab")
    assert exited.problem == "code.requirements cannot be installed: ERROR: No matching distribution found for einops==99"
