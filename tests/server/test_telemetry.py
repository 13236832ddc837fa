"""What a running job reports."""

from typing import Any

import pytest

from tests.server.specs import make_spec
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts
from thalweg.server.tally import BOUNDS, Durations
from thalweg.server.telemetry import NOTHING_RECORDED, Recorded, Telemetry, duration, told
from thalweg.v1 import job_pb2, training_service_pb2


class Recorder:
    """Stands in for the journal."""

    def __init__(self) -> None:
        self.events: list[training_service_pb2.Event] = []

    def record(self, job_id: str, event: training_service_pb2.Event) -> None:
        copy = training_service_pb2.Event()
        copy.CopyFrom(event)
        self.events.append(copy)


class Clock:
    """Stands in for the machine's."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture
def clock() -> Clock:
    CLOCK.now = 1000.0
    return CLOCK


def make(recorded: Recorded = NOTHING_RECORDED, **training: Any) -> tuple[Telemetry, Recorder, Plan]:
    spec = make_spec(**{"epochs": 2, "batch_size": 10, **training})
    recorder = Recorder()
    telemetry = Telemetry(job_pb2.Job(id="a", spec=spec, state=job_pb2.JOB_STATE_QUEUED), recorder, CLOCK, recorded)
    return telemetry, recorder, Plan(spec, Facts(1000, 20, 0, metrics=()))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 ms"),
        (0.0000123, "0.0123 ms"),
        (0.5, "500 ms"),
        (1, "1 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (3600 * 5000, "5,000 h"),
    ],
)
def test_time_spans_are_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_numerical_differentiation_tells_its_cost() -> None:
    for gradient, evaluations in (("numerical", 2), ("numerical_forward", 1)):
        telemetry, recorder, plan = make(gradient=gradient, workers=4)
        telemetry.planned(plan, loss_seconds=0.01, notice="")
        (event,) = recorder.events
        assert event.notice.text == (
            f"numerical differentiation: 1,000 parameters × {evaluations} evaluations of the loss = {evaluations},000 a step, "
            f"about {2.5 * evaluations:.3g} s with 4 workers; 4 steps, about {10 * evaluations} s"
        )


@pytest.mark.parametrize("training", [{}, {"gradient": "numerical", "epochs": 0}])
def test_what_costs_nothing_tells_no_cost(training: dict[str, Any]) -> None:
    telemetry, recorder, plan = make(**training)
    telemetry.planned(plan, loss_seconds=0.01, notice="")
    assert recorder.events == []
    assert telemetry.job.progress.total_epochs == plan.epochs


def test_the_first_worker_starts_the_job_once(clock: Clock) -> None:
    telemetry, recorder, _ = make()
    telemetry.workers_changed(["one"])
    started = telemetry.job.start_time.ToNanoseconds()
    telemetry.workers_changed([])
    assert telemetry.job.status == "waiting for workers"
    telemetry.workers_changed(["one", "two"])
    assert [event.WhichOneof("kind") for event in recorder.events] == ["state_changed", *["workers_changed"] * 3]
    assert recorder.events[0].state_changed.job.state == job_pb2.JOB_STATE_RUNNING
    assert [list(event.workers_changed.names) for event in recorder.events[1:]] == [["one"], [], ["one", "two"]]
    assert telemetry.job.start_time.ToNanoseconds() == started
    assert telemetry.job.progress.workers == 2


def test_steps_are_told_together_and_without_a_gap(clock: Clock) -> None:
    telemetry, recorder, _ = make()
    telemetry.ready()
    for step in range(10):
        clock.now += 0.06
        telemetry.step(step, float(step), 10, 0.5, 0)
    telemetry.flush()
    telemetry.flush()
    told = [event.steps_taken for event in recorder.events]
    assert 1 < len(told) < 10
    assert [loss for steps in told for loss in steps.losses] == list(range(10))
    assert [steps.first_step for steps in told] == [int(steps.losses[0]) for steps in told]
    assert told[-1].progress.step == 10
    assert told[-1].progress.learning_rate == pytest.approx(0.05)
    assert told[-1].progress.samples_per_second == pytest.approx(10 / 0.06)


def test_steps_of_a_job_that_runs_for_long_are_told_more_seldom(clock: Clock) -> None:
    telemetry, recorder, _ = make()
    telemetry.workers_changed(["one"])
    telemetry.ready()
    events = []
    for _ in range(3):
        before = len(recorder.events)
        for _ in range(1000):
            clock.now += 0.1
            telemetry.step(telemetry.job.progress.step, 1.0, 10, 1.0, 0)
        events.append(len(recorder.events) - before)
        clock.now += 2000.0
    assert events[0] > 300
    assert events[1] < 60
    assert events[2] < 60
    telemetry.flush()
    told_of = [event.steps_taken for event in recorder.events if event.HasField("steps_taken")]
    assert sum(len(steps.losses) for steps in told_of) == 3000


def test_the_rate_of_samples_is_that_of_the_last_seconds(clock: Clock) -> None:
    telemetry, recorder, _ = make()
    telemetry.ready()
    for step in range(200):
        clock.now += 1.0 if step < 100 else 0.5
        telemetry.step(step, 1.0, 10, 1.0, 0)
    assert recorder.events[50].steps_taken.progress.samples_per_second == pytest.approx(10)
    assert recorder.events[-1].steps_taken.progress.samples_per_second == pytest.approx(20)


def test_epochs_are_told_with_their_metrics() -> None:
    telemetry, recorder, _ = make()
    telemetry.epoch(1, 2, 0.5, job_pb2.Metrics(loss=0.25, accuracy=0.75))
    telemetry.epoch(2, 4, 0.4, None)
    first, second = (event.epoch_ended for event in recorder.events)
    assert (first.epoch, first.step, first.train_loss, first.validation.accuracy) == (1, 2, 0.5, 0.75)
    assert not second.HasField("validation")
    assert telemetry.job.progress.epoch == 2


def test_a_result_counts_from_the_first_worker(clock: Clock) -> None:
    telemetry, _, _ = make()
    clock.now = 2000.0
    telemetry.workers_changed(["one"])
    clock.now = 2003.0
    telemetry.ready()
    for step in range(4):
        clock.now += 0.5
        telemetry.step(step, 1.0, 10, 1.0, 0)
    result = telemetry.result(4, 2)
    assert (result.steps, result.epochs) == (4, 2)
    assert result.seconds == 5.0
    assert result.samples_per_second == 20.0


def test_what_an_earlier_run_told_is_not_told_again(clock: Clock) -> None:
    telemetry, recorder, _ = make(Recorded(steps=2, epochs=1, samples=10, seconds=7.0))
    telemetry.workers_changed(["one"])
    telemetry.ready()
    for step in range(1, 4):
        telemetry.step(step, float(step), 10, 1.0, staleness=step)
        telemetry.epoch(step // 2 + 1, step, 0.5, None)
    telemetry.flush()
    steps = [event.steps_taken for event in recorder.events if event.HasField("steps_taken")]
    assert [(each.first_step, list(each.losses)) for each in steps] == [(2, [2.0]), (3, [3.0])]
    assert [event.epoch_ended.epoch for event in recorder.events if event.HasField("epoch_ended")] == [2, 2]
    assert telemetry.samples == 40
    assert telemetry.seconds == 7.0
    assert telemetry.contributions.greatest_staleness == 3
    assert told(reversed(recorder.events)) == (4, 2)


def test_checkpoints_are_counted_and_told() -> None:
    telemetry, recorder, _ = make()
    telemetry.checkpoint_written(3, 1000, 0.5)
    telemetry.checkpoint_failed(4, "no space left on device")
    written, failed = recorder.events
    assert (written.checkpoint_written.version, written.checkpoint_written.bytes) == (3, 1000)
    assert failed.checkpoint_failed.problem == "no space left on device"
    checkpoints = telemetry.job.progress.checkpoints
    assert (checkpoints.written, checkpoints.failed, checkpoints.step) == (1, 1, 3)


def test_workers_are_told_by_who_comes_and_goes(clock: Clock) -> None:
    telemetry, recorder, _ = make()
    names: list[str] = []
    for number in range(1200):
        names.append(f"worker-{number}")
        telemetry.workers_changed(names, joined=[names[-1]])
    while names:
        gone = names.pop(len(names) // 2)
        telemetry.workers_changed(names, left=[gone])
    changes = [event.workers_changed for event in recorder.events if event.HasField("workers_changed")]
    here: list[str] = []
    for change in changes:
        here = [name for name in here if name not in change.left] + list(change.joined)
        assert change.workers == len(here)
        assert not change.names or sorted(change.names) == sorted(here)
        assert change.names or not here or len(here) > 16
        assert change.ByteSize() < 1 << 20
    assert len(changes) == 2400
    # A list with each of them would be 1,440,000 names.
    assert sum(len(change.names) for change in changes) < 8_000


def test_the_status_says_what_workers_download_until_steps_begin() -> None:
    telemetry, *_ = make()
    telemetry.prepares("a", "downloading x: 1 of 2")
    assert telemetry.job.status == ""
    telemetry.workers_changed(["a", "b"], joined=["a", "b"])
    preparing = telemetry.job.status
    telemetry.prepares("a", "downloading x: 1 of 2")
    assert telemetry.job.status == f"{preparing}: worker a is downloading x: 1 of 2"
    telemetry.prepares("b", "")
    assert telemetry.job.status == f"{preparing}: worker a is downloading x: 1 of 2"
    telemetry.prepares("a", "")
    assert telemetry.job.status == preparing
    telemetry.ready()
    telemetry.prepares("b", "downloading x: 1 of 2")
    assert telemetry.job.status == "training"


def test_the_time_of_a_step_is_that_of_training_alone(clock: Clock) -> None:
    telemetry, _, _ = make()
    telemetry.workers_changed(["a"], joined=["a"])
    clock.now += 100
    telemetry.ready()
    for step in range(2):
        clock.now += 0.2
        telemetry.step(step, 1.0, 10, 1.0, 0)
    clock.now += 50  # an evaluation
    telemetry.epoch(1, 2, 1.0, None)
    clock.now += 0.2
    telemetry.step(2, 1.0, 10, 1.0, 0)
    telemetry.workers_changed([], left=["a"])
    clock.now += 1000
    telemetry.workers_changed(["b"], joined=["b"])
    clock.now += 20
    telemetry.step(3, 1.0, 10, 1.0, 0)
    durations = telemetry.tally.steps
    assert durations.seconds == pytest.approx(20.6)
    assert {bound: number for bound, number in zip(BOUNDS, durations.counts, strict=False) if number} == {0.25: 3, 30.0: 1}
    assert telemetry.steps == 4
    assert telemetry.tally.counts["samples"] == 40


def test_a_duration_counts_up_to_its_bound() -> None:
    durations = Durations()
    for seconds in (0.0, BOUNDS[0], BOUNDS[-1], BOUNDS[-1] + 1):
        durations.observe(seconds)
    assert durations.counts[0] == 2
    assert durations.counts[-2:] == [1, 1]
