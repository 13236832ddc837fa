"""What the coordinator decides, event by event. That no order of events breaks a guarantee is shown in tests/simulation."""

from typing import Any

import pytest

from tests.server.specs import PAYLOAD, make_spec
from thalweg.contract.segments import Kind, Segment
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server.deciding import plan
from thalweg.server.deciding.coordinator import Coordinator, Phase
from thalweg.server.deciding.data_files import difference
from thalweg.server.deciding.decisions import (
    AdmitWorker,
    ApplyRange,
    AssignDifferentiate,
    AssignEvaluate,
    AssignInitialize,
    Avoid,
    Decision,
    Dismiss,
    Dropped,
    Evict,
    Finish,
    KeepInitial,
    Promote,
    Refuse,
    ReportEpoch,
    ReportStep,
    SendRange,
    Tell,
    WriteCheckpoint,
)
from thalweg.server.deciding.events import (
    CancelRequested,
    CheckpointDone,
    CheckpointRequested,
    ContributionReceived,
    DataChanged,
    DriverFailed,
    EvaluationReceived,
    Event,
    HeartbeatReceived,
    InitialReceived,
    PauseRequested,
    RangeNotFinite,
    Tick,
    WorkerDied,
    WorkerExited,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerPrepared,
)
from thalweg.server.deciding.impossible import ImpossibleError
from thalweg.server.deciding.values import NOWHERE, Drop, Facts, Place, Position, Scope, Task
from thalweg.server.deciding.workers.failures import MAX_DEATHS, MAX_REPORTS
from thalweg.server.deciding.workers.machines import MAX_KINDS, Machines, Premises
from thalweg.server.settings import RunSettings
from thalweg.v1 import job_pb2, parameter_service_pb2
from thalweg.v1.parameter_service_pb2 import Failure

ELEMENTS = 7
CHUNKS = 4
SETTINGS = RunSettings(silence_seconds=10.0, checkpoint_seconds=5.0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 8)


class Desk:
    """A coordinator, the time, and what it has decided so far."""

    def __init__(self, spec: job_pb2.JobSpec | None = None, validation_samples: int = 0, **training: Any) -> None:
        given = {"microbatches": 4, "batch_size": 10, "epochs": 2, **training}
        self.spec = spec or make_spec(**given)
        self.facts = Facts(ELEMENTS, 20, validation_samples, metrics=("accuracy",))
        self.coordinator = Coordinator(self.spec, SETTINGS)
        self.now = 100.0
        self.decisions: list[Decision] = []

    def handle(self, event: Event) -> list[Decision]:
        """The decisions about an event now."""
        decisions = self.coordinator.handle(event, self.now)
        self.decisions += decisions
        return decisions

    def join(self, *workers: int, place: Place = NOWHERE) -> None:
        """Workers come, prepared; the first of all makes the initial parameters."""
        for worker in workers:
            self.handle(WorkerJoined(worker, place))
            self.handle(WorkerPrepared(worker, self.facts))
        if self.coordinator.phase is Phase.PREPARING:
            for chunk in range(CHUNKS):
                self.handle(InitialReceived(workers[0], chunk, PAYLOAD))

    def tasks(self, decisions: list[Decision] | None = None) -> list[tuple[int, int, Node]]:
        """Who was given which step and node."""
        given = self.decisions if decisions is None else decisions
        return [(each.worker, each.task.step, each.task.node) for each in given if isinstance(each, AssignDifferentiate)]

    def answer(
        self, worker: int, step: int, node: Node, version: int | None = None, chunks: Any = range(CHUNKS), loss: float = 1.0
    ) -> list[Decision]:
        """A worker's answer to a task arrives."""
        decisions: list[Decision] = []
        at = step if version is None else version
        for chunk in chunks:
            sums = Sums(loss, 1, (0,)) if chunk == CHUNKS - 1 else None
            decisions += self.handle(ContributionReceived(worker, at, step, node, range(chunk, chunk + 1), sums, PAYLOAD))
        return decisions


def of(kind: type, decisions: list[Decision]) -> list[Any]:
    return [decision for decision in decisions if isinstance(decision, kind)]


LEFT, RIGHT, ROOT = Node(1, 0), Node(1, 1), Node(2, 0)


def test_work_is_shared_out_in_as_few_nodes_as_cover_it() -> None:
    desk = Desk()
    desk.join(1)
    assert desk.tasks() == [(1, 0, ROOT)]
    desk.join(2)
    assert desk.tasks(desk.answer(1, 0, ROOT)) == [(1, 1, LEFT), (2, 1, RIGHT)]


def test_a_lost_workers_tasks_go_to_another() -> None:
    desk = Desk()
    desk.join(1)
    desk.join(2)
    desk.answer(1, 0, ROOT)
    desk.answer(1, 1, LEFT)
    assert desk.tasks(desk.handle(WorkerLost(2))) == [(1, 1, RIGHT)]
    desk.answer(1, 1, RIGHT)
    assert desk.coordinator.version == 2


def test_without_workers_a_step_waits_for_the_next_one() -> None:
    desk = Desk()
    desk.join(1)
    desk.answer(1, 0, ROOT, chunks=[0, 1])
    assert desk.handle(WorkerLost(1)) == []
    desk.handle(WorkerJoined(2))
    decisions = desk.handle(WorkerPrepared(2, desk.facts))
    assert desk.tasks(decisions) == [(2, 0, ROOT)]
    # Chunks of the next version that are there already come after the whole of this one.
    sent = [(each.version, each.chunks) for each in of(SendRange, decisions)]
    assert sent == [(0, range(CHUNKS)), (1, range(2))]
    desk.answer(2, 0, ROOT, chunks=[2, 3])
    assert desk.coordinator.version == 1


def test_a_stragglers_task_is_also_given_to_an_idle_worker_and_the_first_answer_wins() -> None:
    desk = Desk()
    desk.join(1)
    desk.join(2)
    desk.now += 0.1
    desk.answer(1, 0, ROOT)
    desk.now += 0.1
    desk.answer(1, 1, LEFT)
    assert desk.handle(Tick()) == []
    desk.now += 10.0 * 0.05
    desk.handle(HeartbeatReceived(2))
    (again,) = of(AssignDifferentiate, desk.handle(Tick()))
    assert (again.worker, again.task.node, again.again) == (1, RIGHT, True)
    assert desk.handle(Tick()) == [], "given twice"
    desk.answer(2, 1, RIGHT, chunks=[0, 1])
    decisions = desk.answer(1, 1, RIGHT)
    assert [each.reason for each in of(Dropped, decisions)] == [Drop.DUPLICATE] * 2
    assert desk.coordinator.version == 2

    # Until it is through with what is done already, the straggler gets nothing that would only wait.
    assert {worker for worker, _, _ in desk.tasks(decisions)} == {1}
    decisions = desk.answer(1, 2, ROOT)
    assert all(2 not in each.workers for each in of(SendRange, decisions))
    late = desk.answer(2, 1, RIGHT, chunks=[2, 3])
    assert [each.reason for each in of(Dropped, late)] == [Drop.LATE] * 2
    assert [(each.workers, each.version) for each in of(SendRange, late)] == [((2,), 3)]


# Of the four chunks, the second has a parameter and a constant, and the last two constants alone.
CONSTANTS = (Segment("0.weight", (3,)), Segment("mask", (4,), Kind.CONSTANT))


@pytest.mark.parametrize("policy", [{"bulk": {}}, {"local": {"steps": 2}}, {"stale": {"bound": 1}}, {"asynchronous": {}}])
def test_a_worker_is_sent_constants_once_and_before_all_else(policy: dict[str, Any]) -> None:
    desk = Desk(synchrony=policy, microbatches=1, batch_size=2)
    desk.facts = desk.facts._replace(segments=CONSTANTS)
    desk.join(1)
    for _ in range(2):
        (given,) = of(AssignDifferentiate, desk.decisions)[-1:]
        desk.answer(1, given.task.step, given.task.node, given.version)
    desk.join(2)
    for worker in (1, 2, 1, 2):
        given = next(each for each in reversed(of(AssignDifferentiate, desk.decisions)) if each.worker == worker)
        desk.answer(worker, given.task.step, given.task.node, given.version)
    for worker in (1, 2):
        first, *others = [each.chunks for each in of(SendRange, desk.decisions) if worker in each.workers]
        assert first == range(2, 4)
        assert others[0] == range(2)
        assert len(others) > 2
        assert {chunk for chunks in others for chunk in chunks} == {0, 1}


def test_a_worker_that_comes_during_an_update_is_sent_what_has_changed() -> None:
    desk = Desk()
    desk.facts = desk.facts._replace(segments=CONSTANTS)
    desk.join(1)
    desk.answer(1, 0, ROOT, chunks=[1, 2])
    desk.handle(WorkerJoined(2))
    decisions = desk.handle(WorkerPrepared(2, desk.facts))
    sent = [(each.version, each.chunks) for each in of(SendRange, decisions)]
    assert sent == [(0, range(2, 4)), (0, range(2)), (1, range(1, 2))]


def test_a_worker_that_was_behind_has_the_constants() -> None:
    desk = Desk()
    desk.facts = desk.facts._replace(segments=CONSTANTS)
    desk.join(1)
    desk.join(2)
    desk.now += 0.1
    desk.answer(1, 0, ROOT)
    desk.now += 0.1
    desk.answer(1, 1, LEFT)
    desk.now += 10.0 * 0.05
    desk.handle(HeartbeatReceived(2))
    assert desk.tasks(desk.handle(Tick())) == [(1, 1, RIGHT)]
    desk.answer(1, 1, RIGHT)
    late = desk.answer(2, 1, RIGHT)
    assert [(each.workers, each.version, each.chunks) for each in of(SendRange, late)] == [((2,), 2, range(2))]


def test_where_there_are_constants_alone_they_are_sent_once() -> None:
    desk = Desk()
    desk.facts = desk.facts._replace(segments=(Segment("mask", (ELEMENTS,), Kind.CONSTANT),))
    desk.join(1)
    desk.answer(1, 0, ROOT)
    assert desk.coordinator.version == 1
    assert [each.chunks for each in of(SendRange, desk.decisions)] == [range(CHUNKS)]


def test_faster_workers_get_more_microbatches() -> None:
    desk = Desk(microbatches=8, epochs=10)
    desk.join(1, 2)
    assert desk.tasks() == [(1, 0, Node(2, 0)), (2, 0, Node(2, 1))]

    def shares(step: int) -> dict[int, list[Node]]:
        return {worker: [node for who, at, node in desk.tasks() if (who, at) == (worker, step)] for worker in (1, 2)}

    for step in range(6):
        begun = desk.now
        for worker, seconds in ((1, 0.001), (2, 0.004)):
            share = shares(step)[worker]
            desk.now = max(desk.now, begun + seconds * sum(len(node.leaves(8)) for node in share))
            for node in share:
                desk.answer(worker, step, node)
    assert {worker: sum(len(node.leaves(8)) for node in share) for worker, share in shares(6).items()} == {1: 7, 2: 1}


def test_a_silent_worker_is_taken_for_lost() -> None:
    desk = Desk()
    desk.join(1)
    desk.join(2)
    desk.answer(1, 0, ROOT)
    desk.answer(1, 1, LEFT)
    for _ in range(4):
        desk.now += 3.0
        desk.handle(HeartbeatReceived(1))
    decisions = desk.handle(Tick())
    assert of(Evict, decisions) == [Evict(2)]
    assert (1, 1, RIGHT) in desk.tasks()
    late = desk.answer(2, 1, RIGHT)
    assert [each.reason for each in of(Dropped, late)] == [Drop.STALE_INCARNATION] * CHUNKS
    assert desk.handle(WorkerLost(2)) == []
    desk.answer(1, 1, RIGHT)
    assert desk.coordinator.version == 2


def test_an_initializer_that_falls_silent_is_replaced() -> None:
    desk = Desk()
    desk.handle(WorkerJoined(1))
    assert of(AssignInitialize, desk.handle(WorkerPrepared(1, desk.facts)))
    desk.now += 4.0
    desk.handle(WorkerJoined(2))
    assert not of(AssignInitialize, desk.handle(WorkerPrepared(2, desk.facts)))
    desk.now += 7.0
    assert desk.handle(Tick()) == [Evict(1), AssignInitialize(2)]


A, B, C, D = (Place("fleet", node, f"{node}.lab") for node in "abcd")


def test_a_job_whose_workers_report_a_cause_at_every_start_fails() -> None:
    desk = Desk()
    desk.join(1)
    problem = "IndexError: index 7 is out of bounds"

    def fail(worker: int) -> list[Decision]:
        desk.join(worker, place=A)
        return desk.handle(WorkerFailed(worker, problem, Failure.SCOPE_UNSPECIFIED))

    for worker in range(10, 10 + MAX_REPORTS - 1):
        assert not of(Finish, fail(worker))
    desk.answer(1, 0, ROOT)
    desk.handle(WorkerLost(1))
    for worker in range(20, 20 + MAX_REPORTS - 1):
        assert not of(Finish, fail(worker))
    (finish,) = of(Finish, fail(30))
    assert finish.state == job_pb2.JOB_STATE_FAILED
    assert finish.error == f"{MAX_REPORTS} workers in a row failed before contributing; last error: {problem}"


def test_workers_that_are_killed_never_fail_a_job() -> None:
    desk = Desk()
    told: list[Decision] = []
    for _ in range(50):
        told += desk.handle(WorkerExited(A, "its process died", killed=True))
    assert not of(Finish, told)
    trouble = desk.coordinator.trouble(desk.now)
    assert trouble == (
        "workers keep being killed before contributing (on a.lab, 50 times: its process died); trying again in 8 s"
    )
    # The first few times are told, then fewer and fewer.
    assert len(of(Tell, told)) == 7
    assert of(Avoid, told)[-1].places == (A,)
    desk.now += 9
    assert desk.handle(Tick()) == [Avoid(())]
    desk.join(1, place=A)
    desk.answer(1, 0, ROOT)
    assert desk.coordinator.trouble(desk.now) == ""
    desk.handle(WorkerExited(A, "its process died", killed=True))
    assert desk.coordinator.trouble(desk.now).startswith("a worker was killed")


def code_of_its_own() -> job_pb2.JobSpec:
    spec = make_spec(microbatches=1, epochs=20)
    spec.model.loss = "nets:loss"
    return spec


def test_workers_that_die_fail_a_job_with_code_of_its_own() -> None:
    desk = Desk(code_of_its_own())
    desk.join(1, place=A)
    for _ in range(MAX_DEATHS - 1):
        assert desk.handle(WorkerDied(A, "its process died", "")) == []
    # One contributes, so the code is not what kills.
    desk.answer(1, 0, ROOT)
    for _ in range(MAX_DEATHS - 1):
        assert desk.handle(WorkerDied(A, "its process died", "")) == []
    # On another node it may live.
    desk.handle(WorkerLost(1))
    desk.join(2, place=B)
    assert desk.handle(WorkerDied(A, "its process died", "")) == []
    (finish,) = of(Finish, desk.handle(WorkerDied(B, "it crashed", "")))
    assert finish.state == job_pb2.JOB_STATE_FAILED
    started = f"model.loss: nets:loss: the processes of {MAX_DEATHS + 1} workers in a row died, and none contributed; "
    assert finish.error.startswith(f"{started}the last one: it crashed; code ends its process by a crash")


@pytest.mark.parametrize("crowd", [1, 2, 3])
def test_workers_that_die_at_one_line_fail_a_job_when_one_was_started_after_another_had_died(crowd: int) -> None:
    desk = Desk(code_of_its_own())
    died = WorkerDied(A, "it crashed", "nets.py:9 in loss")
    for worker in range(9):
        desk.join(worker, place=A)
    desk.answer(0, 0, ROOT)
    for worker in range(crowd, 9):
        desk.handle(WorkerLost(worker))
    # What was there before one contributed does not count.
    desk.answer(0, 1, ROOT)
    for worker in range(crowd):
        desk.handle(WorkerLost(worker))
        assert desk.handle(died) == []
        # Other lines are no evidence.
        if crowd < 3:
            assert desk.handle(WorkerDied(A, "it crashed", f"nets.py:{worker} in loss")) == []
    desk.join(9, place=B)
    # On another node it may live.
    assert desk.handle(died) == []
    desk.handle(WorkerLost(9))
    (finish,) = of(Finish, desk.handle(died))
    assert "workers in a row died, and none contributed; the last one: it crashed" in finish.error


def test_workers_that_die_never_fail_a_job_without_code() -> None:
    desk = Desk()
    for _ in range(50):
        assert desk.handle(WorkerDied(A, "its process died", "nets.py:9 in loss")) == []


def test_checkpoints_are_due_after_some_time_and_one_at_a_time() -> None:
    desk = Desk(epochs=100)
    desk.join(1)

    def step() -> list[Position]:
        version = desk.coordinator.version
        return [each.position for each in of(WriteCheckpoint, desk.answer(1, version, ROOT, loss=float(version)))]

    assert step() == []
    desk.now += 5.0
    assert step() == [Position(2, 10.0 * (0 / 10 + 1 / 10), 20)]
    desk.now += 5.0
    assert step() == []
    desk.handle(CheckpointDone(seconds=0.1))
    assert step() == []
    desk.now += 5.0
    assert step() == [Position(5, 4.0, 10)]
    desk.handle(CheckpointDone(seconds=2.0))
    desk.now += 6.0
    assert step() == [], "writing takes at most a tenth of the time"
    desk.now += 14.1
    assert [position.version for position in step()] == [7]


def test_training_goes_on_where_a_checkpoint_is() -> None:
    desk = Desk(epochs=2)
    desk.coordinator = Coordinator(desk.spec, SETTINGS, Position(3, 10.0, 10))
    desk.handle(WorkerJoined(1))
    decisions = desk.handle(WorkerPrepared(1, desk.facts))
    assert [type(each).__name__ for each in decisions[:4]] == ["Allocate", "AdmitWorker", "LoadGiven", "ReportReady"]
    assert desk.tasks(decisions) == [(1, 3, ROOT)]
    (epoch,) = of(ReportEpoch, desk.answer(1, 3, ROOT, loss=30.0))
    assert (epoch.epoch, epoch.train_loss) == (2, (10.0 + 30.0) / 20)


def test_a_checkpoint_at_the_end_of_an_epoch_evaluates_again() -> None:
    desk = Desk(validation_samples=30)
    desk.coordinator = Coordinator(desk.spec, SETTINGS, Position(2, 10.0, 20))
    desk.handle(WorkerJoined(1))
    decisions = desk.handle(WorkerPrepared(1, desk.facts))
    (evaluate,) = of(AssignEvaluate, decisions)
    task = evaluate.task
    decisions = desk.handle(EvaluationReceived(1, task.version, task.split, task.first, Sums(3.0, 30, (15,))))
    (epoch,) = of(ReportEpoch, decisions)
    assert (epoch.epoch, epoch.train_loss, epoch.validation.loss) == (1, 0.5, 0.1)
    assert desk.tasks(decisions) == [(1, 2, ROOT)]


def test_a_cancelled_job_can_be_taken_up_unless_it_is_in_the_midst_of_an_update() -> None:
    desk = Desk()
    desk.join(1)
    desk.answer(1, 0, ROOT)
    (finish,) = desk.handle(CancelRequested())
    assert finish == Finish(job_pb2.JOB_STATE_CANCELLED, position=Position(1, 1.0, 10))

    desk = Desk()
    desk.join(1)
    desk.answer(1, 0, ROOT, chunks=[0])
    assert desk.handle(CancelRequested()) == [Finish(job_pb2.JOB_STATE_CANCELLED)]
    assert desk.coordinator.phase is Phase.ENDING
    assert desk.answer(1, 0, ROOT, chunks=[1]) == [Dropped(1, Drop.LATE)]


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_stale_workers_are_ahead_by_no_more_than_the_bound(bound: int) -> None:
    desk = Desk(epochs=10, batch_size=2, synchrony={"stale": {"bound": bound}})
    desk.join(1, 2)
    assert desk.tasks() == [(1, 0, LEFT), (2, 0, RIGHT)]
    for step in range(bound):
        assert desk.tasks(desk.answer(1, step, LEFT, version=0)) == [(1, step + 1, LEFT)]
    # It is ahead as far as it may be: what is left for it is the slower one's share.
    stolen = desk.tasks(desk.answer(1, bound, LEFT, version=0))
    assert stolen == ([(1, 1, RIGHT)] if bound else [])
    (report,) = of(ReportStep, desk.answer(2, 0, RIGHT))
    assert (report.step, report.staleness) == (0, 0)
    if bound:
        assert max(step for _, step, _ in desk.tasks()) <= 1 + bound
        (report,) = of(ReportStep, desk.answer(1, 1, RIGHT, version=0))
        assert (report.step, report.staleness) == (1, 1)
        old = desk.answer(2, bound + 1, RIGHT, version=0)
        assert {each.reason for each in of(Dropped, old)} == {Drop.UNKNOWN}


def test_no_step_of_the_next_epoch_begins_before_an_epoch_is_whole() -> None:
    desk = Desk(epochs=2, batch_size=10, synchrony={"stale": {"bound": 5}})
    desk.join(1, 2)
    desk.answer(1, 0, LEFT)
    assert desk.tasks(desk.answer(1, 1, LEFT, version=0)) == [(1, 1, RIGHT)]
    desk.answer(1, 1, RIGHT, version=0)
    assert {step for _, step, _ in desk.tasks()} == {0, 1}
    assert {step for _, step, _ in desk.tasks(desk.answer(2, 0, RIGHT))} == {2}


def test_asynchronous_gradients_are_applied_as_they_come() -> None:
    desk = Desk(epochs=1, batch_size=4, synchrony={"asynchronous": {"scale_by_staleness": True}})
    desk.join(1, 2, 3)
    assert desk.tasks() == [(1, 0, ROOT), (2, 1, ROOT), (3, 2, ROOT)]
    reports = []
    for worker, step in ((2, 1), (3, 2), (1, 0)):
        decisions = desk.answer(worker, step, ROOT, version=0)
        (report,) = of(ReportStep, decisions)
        reports.append((report.step, report.staleness, report.schedule_factor))
        assert {each.step for each in of(ApplyRange, decisions)} == {step}
    assert reports == [(0, 0, 1.0), (1, 1, 1.0), (2, 2, 0.5)]
    assert [task[:2] for task in desk.tasks()[3:]] == [(2, 3), (3, 4)]
    again = desk.answer(1, 0, ROOT, version=0)
    assert {each.reason for each in of(Dropped, again)} == {Drop.LATE}
    assert not of(AssignEvaluate, desk.answer(3, 4, ROOT, version=2))
    decisions = desk.answer(2, 3, ROOT, version=1)
    assert of(AssignEvaluate, decisions), "the epoch is whole"


# Earlier releases wrote all steps of the epoch that were done, and not only those before which one was not.
@pytest.mark.parametrize(
    ("position", "left"),
    [
        (Position(7, 1.0, 8, (6, 8)), [5, 7, 9]),
        (Position(8, 1.0, 8, (5, 6, 8)), [7, 9]),
        (Position(8, 1.0, 8, (8,)), [7, 9]),
        (Position(7, 1.0, 8, (5, 6)), [7, 8, 9]),
        (Position(7, 1.0, 8), [7, 8, 9]),
        (Position(5, 1.0, 20), [5, 6, 7, 8, 9]),
        (Position(5, 1.0, 20, (0, 1, 2, 3, 4)), [5, 6, 7, 8, 9]),
    ],
)
def test_asynchronous_training_goes_on_with_the_steps_that_are_left(position: Position, left: list[int]) -> None:
    desk = Desk(epochs=2, batch_size=4, synchrony={"asynchronous": {}})
    desk.coordinator = Coordinator(desk.spec, SETTINGS, position)
    for worker in range(6):
        desk.handle(WorkerJoined(worker))
        desk.handle(WorkerPrepared(worker, desk.facts))
    assert sorted(step for _, step, _ in desk.tasks()) == left


def test_a_step_that_an_earlier_run_did_is_not_handed_out_again_when_those_before_it_are_done() -> None:
    desk = Desk(epochs=2, batch_size=4, synchrony={"asynchronous": {}})
    desk.coordinator = Coordinator(desk.spec, SETTINGS, Position(6, 1.0, 4, (6,)))
    desk.handle(WorkerJoined(1))
    desk.handle(WorkerPrepared(1, desk.facts))
    steps = []
    for version in range(6, 10):
        steps.append(desk.tasks()[-1][1])
        desk.answer(1, steps[-1], ROOT, version=version)
    assert steps == [5, 7, 8, 9]


def test_a_round_of_local_steps_is_one_update() -> None:
    desk = Desk(epochs=2, batch_size=4, synchrony={"local": {"steps": 4}})
    desk.join(1)
    tasks = []
    for version in range(3):
        (given,) = of(AssignDifferentiate, desk.decisions)[-1:]
        tasks.append((given.version, given.task.step, given.task.steps))
        desk.answer(1, given.task.step, ROOT, version=version)
    assert tasks == [(0, 0, 4), (1, 4, 4), (2, 8, 2)]
    assert [each.samples for each in of(ReportStep, desk.decisions)] == [16, 16, 8]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_fails_the_job(loss: float) -> None:
    kinds: list[dict[str, Any]] = [{"bulk": {}}, {"asynchronous": {}}]
    for synchrony in kinds:
        desk = Desk(synchrony=synchrony)
        desk.join(1)
        (finish,) = of(Finish, desk.answer(1, 0, ROOT, loss=loss))
        assert finish.state == job_pb2.JOB_STATE_FAILED
        assert "step 0" in finish.error
        assert "learning_rate" in finish.error
        assert not of(Promote, desk.decisions)


def test_an_update_that_is_not_finite_fails_the_job() -> None:
    desk = Desk()
    desk.join(1)
    (finish,) = desk.handle(RangeNotFinite(0))
    assert isinstance(finish, Finish)
    assert finish.position is None


def failed(worker: int, scope: Scope) -> WorkerFailed:
    return WorkerFailed(worker, "model.layers[0]: is wrong", scope)


@pytest.mark.parametrize("worked", [False, True])
def test_a_mistake_in_the_job_that_no_other_worker_escaped_fails_it(worked: bool) -> None:
    desk = Desk()
    if worked:
        desk.join(1)
        desk.answer(1, 0, ROOT)
    else:
        desk.handle(WorkerJoined(1, A))
    decisions = desk.handle(failed(1, Failure.SCOPE_JOB))
    assert decisions == [Finish(job_pb2.JOB_STATE_FAILED, "model.layers[0]: is wrong")]


@pytest.mark.parametrize("scope", [Failure.SCOPE_JOB, Failure.SCOPE_NODE, Failure.SCOPE_UNSPECIFIED])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_late_worker_that_fails_is_let_go_and_the_job_goes_on(scope: Scope, prepared: bool) -> None:
    desk = Desk()
    desk.join(1)
    desk.answer(1, 0, ROOT)
    desk.handle(WorkerJoined(2, B))
    if prepared:
        desk.handle(WorkerPrepared(2, desk.facts))
    decisions = desk.handle(failed(2, scope))
    assert decisions[0] == Dismiss(2, "model.layers[0]: is wrong")
    assert of(Avoid, decisions) == [Avoid((B,))]
    (told,) = of(Tell, decisions)
    assert told.text.startswith("a worker failed on b.lab: model.layers[0]: is wrong; the job gets no more workers there for")
    desk.answer(1, 1, ROOT)
    assert desk.coordinator.version == 2
    assert desk.handle(failed(2, scope)) == [], "it is gone"


def test_a_worker_that_fails_while_others_are_prepared_does_not_fail_the_job() -> None:
    desk = Desk()
    desk.handle(WorkerJoined(1, A))
    desk.handle(WorkerJoined(2, B))
    desk.handle(WorkerPrepared(1, desk.facts))
    assert not of(Finish, desk.handle(failed(2, Failure.SCOPE_JOB)))


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("version", [0, 3])
def test_a_mistake_in_the_job_does_not_fail_a_run_that_began_from_a_trained_version(version: int, prepared: bool) -> None:
    desk = Desk()
    desk.coordinator = Coordinator(desk.spec, SETTINGS, Position(version, 10.0, 10))
    desk.handle(WorkerJoined(1, A))
    if prepared:
        desk.handle(WorkerPrepared(1, desk.facts))
    decisions = desk.handle(failed(1, Failure.SCOPE_JOB))
    if not version:
        assert decisions == [Finish(job_pb2.JOB_STATE_FAILED, "model.layers[0]: is wrong")]
        return
    assert decisions[0] == Dismiss(1, "model.layers[0]: is wrong"), "others got further in an earlier run"
    assert of(Avoid, decisions) == [Avoid((A,))]
    desk.handle(WorkerJoined(2, B))
    assert desk.tasks(desk.handle(WorkerPrepared(2, desk.facts))), "training goes on"


def test_a_job_whose_workers_lack_something_on_all_nodes_waits() -> None:
    desk = Desk()
    for worker, place in enumerate([A, B] * 20):
        desk.handle(WorkerJoined(worker, place))
        lacking = WorkerFailed(worker, "it has too little memory", Failure.SCOPE_NODE)
        assert not of(Finish, desk.handle(lacking))
    assert desk.coordinator.trouble(desk.now) == (
        "workers failed on b.lab (20 times): it has too little memory, and on 1 more node; trying again in 60 s"
    )


def test_a_few_odd_nodes_do_not_fail_a_job_that_has_workers_elsewhere() -> None:
    desk = Desk()
    desk.handle(WorkerJoined(100, D))
    desk.handle(WorkerPrepared(100, desk.facts))

    def fail(worker: int, place: Place) -> list[Decision]:
        desk.handle(WorkerJoined(worker, place))
        return of(Finish, desk.handle(failed(worker, Failure.SCOPE_UNSPECIFIED)))

    assert not any(fail(worker, place) for worker, place in enumerate([A, B, C] * MAX_REPORTS))


def test_other_data_files_fail_a_job_if_no_node_has_those_that_it_has_learned_from() -> None:
    desk = Desk()
    desk.join(1)

    def find(worker: int, place: Place) -> list[Decision]:
        desk.handle(WorkerJoined(worker, place))
        return desk.handle(DataChanged(worker, "a.csv is gone"))

    assert find(2, B)[0] == Refuse(2, "a.csv is gone", "DATA_CHANGED")
    assert desk.coordinator.trouble(desk.now) == "a worker failed on b.lab: a.csv is gone; trying again in 5 s"
    # Worker 1 has the files.
    assert not any(of(Finish, find(worker, B)) for worker in range(3, 3 + MAX_REPORTS))
    desk.handle(WorkerLost(1))
    assert not any(of(Finish, find(worker, B)) for worker in range(20, 19 + MAX_REPORTS))
    finished = of(Finish, find(30, B))
    assert [(each.state, each.error.endswith("last error: a.csv is gone")) for each in finished] == [
        (job_pb2.JOB_STATE_FAILED, True)
    ]


def test_what_has_changed_in_files_is_told() -> None:
    def found(fingerprint: str, **files: tuple[int, str]) -> job_pb2.Preprocessing:
        known = [job_pb2.DataFile(url=f"s3://b/{name}", size=size, state=state) for name, (size, state) in files.items()]
        return job_pb2.Preprocessing(fingerprint=fingerprint, files=known)

    then = found("1", a=(5, "x"), b=(6, "y"), c=(7, "z"))
    assert not difference(then, then)
    said = difference(then, found("2", a=(5, "w"), b=(1006, "v"), d=(1, "u")))
    assert said == (
        "the data's files are not those that the job has learned from: s3://b/a has another ETag or time of modification; "
        "s3://b/b has 1,006 bytes, and had 6; s3://b/c is gone; and 1 more. Restore them and resume the job, or submit it again"
    )
    # Too many to be known one by one.
    assert "from: other sizes, ETags or times of modification. Restore" in difference(found("1"), found("2"))


def test_a_worker_that_disagrees_is_refused_and_the_job_goes_on() -> None:
    desk = Desk()
    desk.join(1)
    desk.handle(WorkerJoined(2, B))
    refuse, told, avoid = desk.handle(WorkerPrepared(2, Facts(ELEMENTS + 1, 20, 0, ("accuracy",))))
    assert isinstance(refuse, Refuse)
    assert refuse.problem == (
        "it found 8 parameters, 20 and 0 samples for training and validation, the metrics accuracy, "
        "but the others found 7 parameters, 20 and 0 samples for training and validation, the metrics accuracy"
    )
    assert isinstance(told, Tell)
    assert avoid == Avoid((B,))
    desk.answer(1, 0, ROOT)
    assert desk.coordinator.version == 1


OLD: Premises = (("NumPy", "1.26.4"), ("processor", "x86_64"))
NEW: Premises = (("NumPy", "2.4.6"), ("processor", "x86_64"))


def come(desk: Desk, worker: int, premises: Premises, place: Place = NOWHERE) -> list[Decision]:
    desk.handle(WorkerJoined(worker, place))
    return desk.handle(WorkerPrepared(worker, desk.facts, premises))


def initialize(desk: Desk, worker: int) -> None:
    for chunk in range(CHUNKS):
        desk.handle(InitialReceived(worker, chunk, PAYLOAD))


def test_a_worker_on_another_kind_of_machine_is_refused_and_the_job_goes_on() -> None:
    desk = Desk()
    come(desk, 1, OLD)
    refuse, told, avoid = come(desk, 2, NEW, B)
    assert refuse == Refuse(2, "NumPy: 2.4.6, the first worker's 1.26.4", "OTHER_MACHINE")
    assert isinstance(told, Tell)
    assert "NumPy: 2.4.6, the first worker's 1.26.4; run workers on machines with" in told.text
    assert "training.mixed_machines = true" in told.text
    assert avoid == Avoid((B,))
    assert of(AdmitWorker, come(desk, 3, OLD)) == [AdmitWorker(3)]
    assert desk.coordinator.machines.kinds == (OLD,)
    initialize(desk, 1)
    assert desk.tasks(), "training begins"


def test_a_worker_that_reports_no_premises_is_of_another_kind() -> None:
    desk = Desk()
    come(desk, 1, OLD)
    refuse, *_ = come(desk, 2, ())
    assert refuse == Refuse(
        2, "NumPy: not reported, the first worker's 1.26.4; processor: not reported, the first worker's x86_64", "OTHER_MACHINE"
    )


def test_mixed_machines_are_admitted_and_counted() -> None:
    desk = Desk(mixed_machines=True)
    assert not of(Tell, come(desk, 1, OLD))
    (tell,) = of(Tell, come(desk, 2, NEW))
    assert tell.text == ("from here on bits may differ from those of a run on machines of one kind: NumPy: 2.4.6, before 1.26.4")
    assert not of(Tell, come(desk, 3, OLD)), "it is told once"
    assert desk.coordinator.machines.kinds == (OLD, NEW)


def test_a_resumed_job_goes_on_with_other_machines_and_says_so() -> None:
    desk = Desk()
    desk.coordinator = Coordinator(desk.spec, SETTINGS, Position(3, 10.0, 10), machines=[OLD])
    decisions = come(desk, 1, NEW)
    assert "NumPy: 2.4.6, before 1.26.4" in of(Tell, decisions)[0].text
    assert desk.tasks(decisions), "training goes on"
    assert desk.coordinator.machines.kinds == (OLD, NEW)
    assert of(Refuse, come(desk, 2, OLD)), "within the run all are of the kind of its first"


@pytest.mark.parametrize("machines", [[], [OLD], [NEW, OLD]])
def test_a_resumed_job_says_nothing_of_machines_that_it_ran_on_or_that_are_not_known(machines: list[Premises]) -> None:
    desk = Desk()
    desk.coordinator = Coordinator(desk.spec, SETTINGS, Position(3, 10.0, 10), machines=machines)
    assert not of(Tell, come(desk, 1, OLD))
    assert set(desk.coordinator.machines.kinds) == {OLD, *machines}


def test_an_odd_machine_that_comes_first_and_leaves_does_not_keep_the_others_out() -> None:
    desk = Desk()
    come(desk, 1, NEW)
    assert of(Refuse, come(desk, 2, OLD))
    desk.handle(WorkerLost(1))
    assert of(AdmitWorker, come(desk, 3, OLD))
    assert desk.coordinator.machines.kinds == (OLD,), "the one that did nothing does not count"


def test_what_a_machine_computed_holds_the_job_to_its_kind_until_it_is_paused() -> None:
    desk = Desk()
    come(desk, 1, OLD)
    initialize(desk, 1)
    desk.answer(1, 0, ROOT)
    desk.handle(WorkerLost(1))
    assert of(Refuse, come(desk, 2, NEW))
    desk.handle(PauseRequested())
    decisions = come(desk, 3, NEW)
    assert of(Tell, decisions)
    assert of(AdmitWorker, decisions)
    assert desk.coordinator.machines.kinds == (OLD, NEW)


def test_kinds_of_machines_are_counted_up_to_a_bound() -> None:
    machines = Machines(mixed=True)
    for number in range(2 * MAX_KINDS):
        machines.admit((("NumPy", str(number)),))
    assert len(machines.kinds) == MAX_KINDS


def test_a_worker_that_takes_long_to_make_the_initial_parameters_is_not_waited_for() -> None:
    desk = Desk()
    for worker in (1, 2, 3):
        desk.handle(WorkerJoined(worker))
        assigned = of(AssignInitialize, desk.handle(WorkerPrepared(worker, desk.facts)))
        assert assigned == ([AssignInitialize(1)] if worker == 1 else [])

    def tick(seconds: float) -> list[Decision]:
        desk.now += seconds
        for worker in (1, 2, 3):
            desk.handle(HeartbeatReceived(worker))
        return desk.handle(Tick())

    assert tick(4.9) == []
    assert tick(0.2) == [AssignInitialize(2)]
    assert tick(9.0) == []
    assert tick(1.1) == [AssignInitialize(3)]
    assert tick(9.0) == []
    # Of what the first had sent, nothing has to be made again; whose the chunks are makes no difference.
    for worker, chunk in ((1, 0), (3, 0), (3, 1), (2, 1), (2, 2), (3, 3)):
        desk.handle(InitialReceived(worker, chunk, PAYLOAD))
    assert [each.chunk for each in of(KeepInitial, desk.decisions)] == [0, 1, 2, 3]
    assert desk.coordinator.phase is Phase.TRAINING
    assert desk.handle(InitialReceived(1, 1, PAYLOAD)) == []


def test_contributions_for_no_task_and_from_nobody_are_dropped() -> None:
    desk = Desk()
    desk.join(1)
    desk.handle(WorkerJoined(2))
    for worker, step, node, reason in (
        (1, 0, Node(9, 9), Drop.UNKNOWN),
        (1, 1, ROOT, Drop.UNKNOWN),
        (2, 0, ROOT, Drop.UNKNOWN),
        (3, 0, ROOT, Drop.STALE_INCARNATION),
    ):
        assert desk.answer(worker, step, node, chunks=[0]) == [Dropped(worker, reason)]


def test_evaluation_is_shared_out_in_blocks_and_stragglers_are_not_waited_for() -> None:
    desk = Desk(epochs=1, batch_size=20, validation_samples=2000)
    desk.join(1)
    desk.join(2)
    first = of(AssignEvaluate, desk.answer(1, 0, ROOT))
    assert [(each.worker, each.task.first, each.task.end) for each in first] == [(1, 0, 1024), (2, 1024, 2000)]
    desk.now += 0.01
    desk.handle(EvaluationReceived(1, 1, first[0].task.split, 0, Sums(1.0, 1024, (1,))))
    desk.now += 1.0
    (again,) = of(AssignEvaluate, desk.handle(Tick()))
    assert (again.worker, again.task) == (1, first[1].task)
    decisions = desk.handle(EvaluationReceived(1, 1, again.task.split, 1024, Sums(1.0, 976, (1,))))
    (epoch,) = of(ReportEpoch, decisions)
    assert epoch.validation.loss == 2.0 / 2000
    assert desk.handle(EvaluationReceived(2, 1, again.task.split, 1024, Sums(1.0, 976, (1,)))) == []


def test_test_samples_are_evaluated_once_after_the_last_step() -> None:
    desk = Desk(epochs=1, batch_size=20, validation_samples=30)
    desk.facts = desk.facts._replace(test_samples=5)
    desk.join(1)
    decisions, order = desk.answer(1, 0, ROOT), []
    while tasks := of(AssignEvaluate, decisions):
        (task,) = (each.task for each in tasks)
        order.append((task.split, task.end))
        decisions = desk.handle(EvaluationReceived(1, 1, task.split, 0, Sums(float(task.split), task.end, (1,))))
    assert order == [
        (parameter_service_pb2.SPLIT_VALIDATION, 30),
        (parameter_service_pb2.SPLIT_TRAIN, 20),
        (parameter_service_pb2.SPLIT_TEST, 5),
    ]
    (finish,) = decisions
    assert isinstance(finish, Finish)
    assert {split: metrics.loss for split, metrics in finish.metrics.items()} == {
        parameter_service_pb2.SPLIT_VALIDATION: parameter_service_pb2.SPLIT_VALIDATION / 30,
        parameter_service_pb2.SPLIT_TRAIN: parameter_service_pb2.SPLIT_TRAIN / 20,
        parameter_service_pb2.SPLIT_TEST: parameter_service_pb2.SPLIT_TEST / 5,
    }


@pytest.mark.parametrize("said_by", ["the job", "the workers"])
def test_a_task_says_which_chunks_it_is_about(said_by: str) -> None:
    desk = Desk(gradient="numerical" if said_by == "the job" else "backpropagation", workers=2)
    desk.facts = desk.facts._replace(numerical=True)
    desk.handle(WorkerJoined(1))
    desk.handle(WorkerPrepared(1, desk.facts))
    for chunk in range(ELEMENTS):
        desk.handle(InitialReceived(1, chunk, PAYLOAD))
    chunks = [each.task for each in of(AssignDifferentiate, desk.decisions)]
    assert chunks == [Task(0, 1, ROOT, chunk, chunk + 1) for chunk in range(ELEMENTS)]


def test_a_decided_end_fails_only_if_it_cannot_be_carried_out() -> None:
    desk = Desk()
    desk.join(1)
    (finish,) = desk.handle(CancelRequested())
    assert isinstance(finish, Finish)
    for event in (CancelRequested(), WorkerLost(1), Tick(), RangeNotFinite(1)):
        assert desk.handle(event) == []
    assert desk.handle(DriverFailed("no copy")) == [Finish(job_pb2.JOB_STATE_FAILED, "no copy")]
    desk.coordinator.finished()
    assert desk.handle(DriverFailed("late")) == []


def test_a_group_without_tensors_fails_the_job_when_the_tensors_are_known() -> None:
    spec = make_spec()
    spec.optimizer.groups.add(pattern="*.gamma")
    desk = Desk(spec)
    desk.facts = desk.facts._replace(segments=(Segment("0.weight", (1, ELEMENTS)),))
    desk.handle(WorkerJoined(1))
    problem = "optimizer.groups[0].pattern: '*.gamma' matches none of the model's tensors, which are 0.weight"
    assert desk.handle(WorkerPrepared(1, desk.facts)) == [Finish(job_pb2.JOB_STATE_FAILED, problem)]


def test_a_model_without_parameters_fails_its_job() -> None:
    for entrypoint, problem in (
        ("", "model.layers: the model has no parameters to train; give it a dense layer"),
        (
            "net:Net",
            "model.torch: the model has no parameters to train; "
            "PyTorch finds no modules in lists and dicts: use ModuleList or ModuleDict",
        ),
    ):
        spec = make_spec()
        if entrypoint:
            del spec.model.layers[:]
            spec.model.torch.entrypoint = entrypoint
        desk = Desk(spec)
        desk.handle(WorkerJoined(1))
        assert desk.handle(WorkerPrepared(1, Facts(0, 20, 0, ()))) == [Finish(job_pb2.JOB_STATE_FAILED, problem)]


CONTRIBUTION = ContributionReceived(1, 0, 0, ROOT, range(1), None, PAYLOAD)


@pytest.mark.parametrize("event", [InitialReceived(1, 0, PAYLOAD), CONTRIBUTION, RangeNotFinite(0), CheckpointDone(0.1)])
def test_what_cannot_come_before_a_worker_is_prepared_raises(event: Event) -> None:
    desk = Desk()
    desk.handle(WorkerJoined(1))
    with pytest.raises(ImpossibleError):
        desk.handle(event)


@pytest.mark.parametrize("event", [RangeNotFinite(0), CheckpointDone(0.1)])
def test_what_cannot_come_before_there_are_parameters_raises(event: Event) -> None:
    desk = Desk()
    desk.handle(WorkerJoined(1))
    desk.handle(WorkerPrepared(1, desk.facts))
    # A worker may say anything.
    assert desk.handle(CONTRIBUTION) == [Dropped(1, Drop.UNKNOWN)]
    assert desk.handle(EvaluationReceived(1, 0, parameter_service_pb2.SPLIT_TRAIN, 0, Sums(1.0, 1))) == []
    with pytest.raises(ImpossibleError):
        desk.handle(event)


def test_before_there_are_parameters_nothing_is_kept() -> None:
    desk = Desk()
    assert desk.handle(CheckpointRequested()) == []
    desk.handle(WorkerJoined(1))
    desk.handle(WorkerPrepared(1, desk.facts))
    assert desk.handle(CheckpointRequested()) == []
    assert desk.handle(CancelRequested()) == [Finish(job_pb2.JOB_STATE_CANCELLED)]


def limited(used: float = 0.0) -> Desk:
    desk = Desk(max_seconds=60.0)
    desk.coordinator = Coordinator(desk.spec, SETTINGS, used=used)
    return desk


def later(desk: Desk, seconds: float, worker: int = 1) -> Finish | None:
    """Time passes, in which a worker was heard. Gives the end, if that is it."""
    desk.now += seconds
    desk.handle(HeartbeatReceived(worker))
    return ending(desk.handle(Tick()))


def ending(decisions: list[Decision]) -> Finish | None:
    return next((decision for decision in decisions if isinstance(decision, Finish)), None)


def test_a_job_ends_at_its_time_limit_and_can_be_resumed() -> None:
    desk = limited()
    desk.join(1)
    assert not later(desk, 59.0)
    end = later(desk, 1.0)
    assert end
    assert (end.state, end.error, end.position) == (job_pb2.JOB_STATE_CANCELLED, "", Position(0, 0.0, 0))
    assert end.status == (
        "its time limit is reached: training.max_seconds is 60, and it has run for 60.0 s; resume it with a higher limit"
    )
    assert desk.coordinator.phase is Phase.ENDING


def test_the_time_of_earlier_runs_counts() -> None:
    desk = limited(used=50.0)
    desk.join(1)
    assert not later(desk, 9.5)
    assert desk.coordinator.limit.used == 59.5
    assert later(desk, 0.5)


def test_time_without_workers_does_not_count() -> None:
    desk = limited()
    desk.now += 1000.0
    desk.join(1)
    desk.now += 30.0
    desk.handle(PauseRequested())
    desk.now += 1000.0
    assert not ending(desk.handle(Tick()))
    desk.join(2)
    desk.now += 29.0
    desk.handle(WorkerLost(2))
    desk.now += 1000.0
    desk.handle(WorkerJoined(3, NOWHERE))
    assert desk.coordinator.limit.used == 59.0
    desk.now += 1.0
    # A worker that is not prepared counts as well.
    assert ending(desk.handle(Tick()))


def test_a_job_without_a_limit_runs_for_ever() -> None:
    desk = Desk()
    desk.join(1)
    assert not any(later(desk, 1e6) for _ in range(100))
