"""The coordinator's guarantees, on imaginary clusters. The names are those of docs/guarantees.md."""

from typing import Any

import numpy as np
import pytest

from tests.server.simulation import ELEMENTS, Simulation, make_spec
from thalweg.contract.sums import Sums
from thalweg.contract.tree import Node
from thalweg.server import messages, plan
from thalweg.server.messages import Facts
from thalweg.v1 import job_pb2

SPECS: dict[str, dict[str, Any]] = {
    "bulk": {"microbatches": 5, "batch_size": 10, "epochs": 3},
    "one microbatch": {"microbatches": 1, "batch_size": 20, "epochs": 3},
    "numerical": {"microbatches": 3, "batch_size": 10, "epochs": 3, "gradient": "numerical"},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one shorter, from a slab of few elements."""
    monkeypatch.setattr(plan, "CHUNK_BYTES", 8)
    monkeypatch.setattr(plan, "NUMERICAL_CHUNKS", 2)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_bulk_results_depend_on_the_job_alone(name: str, clip: float | None) -> None:
    spec = make_spec(**SPECS[name])
    if clip:
        spec.optimizer.clip_global_norm = clip
    undisturbed = Simulation(spec, seed=0)
    expected = undisturbed.run().tobytes()
    assert undisturbed.finish
    assert undisturbed.finish.state == job_pb2.JOB_STATE_SUCCEEDED
    for seed in range(1, 300):
        disturbed = Simulation(spec, seed)
        assert disturbed.run(faults=0.15).tobytes() == expected, f"seed {seed}"
        assert disturbed.losses == undisturbed.losses, f"seed {seed}"


def test_versions_only_grow_and_each_step_is_taken_once() -> None:
    for seed in range(20):
        simulation = Simulation(make_spec(**SPECS["bulk"]), seed)
        simulation.run(faults=0.2)
        assert simulation.versions == list(range(1, 7)), f"seed {seed}"


def test_a_contribution_is_applied_exactly_once() -> None:
    dropped = set()
    for seed in range(40):
        simulation = Simulation(make_spec(**SPECS["bulk"]), seed)
        simulation.run(faults=0.3)
        dropped |= set(simulation.dropped)
    assert {"duplicate", "late"} <= dropped


def test_epochs_are_evaluated() -> None:
    simulation = Simulation(make_spec(**SPECS["bulk"]), seed=3, validation_samples=3000)
    simulation.run(faults=0.1)
    assert [(report.epoch, report.step) for report in simulation.epochs] == [(1, 2), (2, 4), (3, 6)]
    assert all(report.validation and report.validation.HasField("accuracy") for report in simulation.epochs)
    assert simulation.finish
    assert simulation.finish.validation == simulation.epochs[-1].validation
    assert simulation.finish.train


def test_no_epochs_yield_the_initial_parameters() -> None:
    simulation = Simulation(make_spec(microbatches=2, batch_size=10, epochs=0), seed=1)
    assert simulation.run().tolist() == np.linspace(-1, 1, ELEMENTS, dtype=np.float32).tolist()
    assert simulation.versions == []


def test_a_job_without_workers_waits() -> None:
    simulation = Simulation(make_spec(**SPECS["bulk"]), seed=1)
    worker = simulation.join()
    for _ in range(40):
        simulation.advance()
    simulation.lose(worker)
    before = simulation.coordinator.version
    assert simulation.finish is None
    simulation.run()
    assert simulation.coordinator.version == 6 > before


def start(**training: Any) -> tuple[Simulation, int]:
    """A simulation whose first step has begun, and its only worker."""
    simulation = Simulation(make_spec(**{"microbatches": 1, "batch_size": 20, "epochs": 2, **training}), seed=1)
    worker = simulation.join()
    while simulation.coordinator.policy is None:
        simulation.advance()
    return simulation, worker


def contribution(worker: int, chunk: int, loss: float = 1.0, value: float = 1.0) -> messages.ContributionReceived:
    values = np.full(1 if chunk == 3 else 2, value, np.float32)
    return messages.ContributionReceived(worker, 0, Node(0, 0), chunk, Sums(loss, 0, 1) if chunk == 0 else None, values)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_fails_the_job_and_keeps_the_parameters(loss: float) -> None:
    simulation, worker = start()
    for chunk in (3, 0):
        simulation.handle(contribution(worker, chunk, loss=loss))
    assert simulation.finish
    assert simulation.finish.state == job_pb2.JOB_STATE_FAILED
    assert "step 0" in simulation.finish.error
    assert "learning_rate" in simulation.finish.error
    assert simulation.parameters
    assert simulation.parameters.current.tolist() == np.linspace(-1, 1, ELEMENTS, dtype=np.float32).tolist()


def test_an_update_that_is_not_finite_fails_the_job_and_keeps_the_parameters() -> None:
    simulation, worker = start()
    for chunk in range(3):
        simulation.handle(contribution(worker, chunk))
    simulation.handle(contribution(worker, 3, value=float("inf")))
    assert simulation.finish
    assert simulation.finish.state == job_pb2.JOB_STATE_FAILED
    assert simulation.parameters
    assert simulation.parameters.current.tolist() == np.linspace(-1, 1, ELEMENTS, dtype=np.float32).tolist()


def test_nothing_is_decided_after_the_end() -> None:
    simulation, worker = start()
    simulation.handle(messages.CancelRequested())
    assert simulation.finish == messages.Finish(job_pb2.JOB_STATE_CANCELLED)
    assert simulation.coordinator.handle(contribution(worker, 0)) == []


def test_a_mistake_in_the_model_fails_the_job() -> None:
    simulation, worker = start()
    simulation.handle(messages.WorkerFailed(worker, "model.layers[0]: is wrong"))
    assert simulation.finish == messages.Finish(job_pb2.JOB_STATE_FAILED, "model.layers[0]: is wrong")


def test_workers_that_disagree_fail_the_job() -> None:
    simulation, _ = start()
    other = simulation.join()
    simulation.handle(messages.WorkerPrepared(other, Facts(ELEMENTS + 1, 20, 0, True)))
    assert simulation.finish
    assert "disagree" in simulation.finish.error


def test_contributions_for_nobody_are_dropped() -> None:
    simulation, worker = start()
    event = messages.ContributionReceived(worker, 0, Node(9, 9), 0, Sums(), np.zeros(2, np.float32))
    simulation.handle(event)
    assert simulation.dropped == ["unknown task"]
