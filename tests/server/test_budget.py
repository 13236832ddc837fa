"""The memory that jobs need, by their plans, and who is promised it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.specs import make_spec
from tests.server.test_checkpoints import make as checkpoint_of
from thalweg.contract.resources import Memory
from thalweg.contract.segments import Segment
from thalweg.learning import optimizers
from thalweg.server import validation
from thalweg.server.arrays import budget
from thalweg.server.arrays.budget import Budget, OverBudgetError
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.arrays.trajectory import Trajectory
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts
from thalweg.server.settings import KEPT_CHECKPOINTS
from thalweg.server.storage import checkpoints

GIB = 1 << 30
DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"
OPERATIONS = DOCS.with_name("operations.md")


def plan_of(elements: int, optimizer: str = "sgd", dtype: str = "float32", clip: float | None = None, **training: Any) -> Plan:
    spec = make_spec(**training)
    spec.ClearField("optimizer")
    getattr(spec.optimizer, optimizer).SetInParent()
    if clip is not None:
        spec.optimizer.clip_global_norm = clip
    spec.model.dtype = dtype
    return Plan(validation.complete(spec), Facts(elements, 1000, 0, metrics=(), segments=(Segment("0.weight", (elements,)),)))


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_the_documentation_says_how_many_bytes_a_parameter_takes(optimizer: str) -> None:
    rows = re.findall(r"^\| `(\w+)` +\| (\d+) +\| (\d+) +\|$", DOCS.read_text(), re.MULTILINE)
    (told,) = [(int(two), int(eight)) for name, two, eight in rows if name == optimizer]
    assert told == tuple(4 * budget.slabs(plan_of(10**9, optimizer, workers=workers, microbatches=8)).total for workers in (2, 8))


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_the_documentation_says_how_many_bytes_of_disk_a_parameter_takes(optimizer: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \|$", OPERATIONS.read_text(), re.MULTILINE)
    (told,) = [tuple(map(int, row[1:])) for row in rows if row[0] == optimizer]
    # As many elements that what else is in the file does not count.
    slab = np.zeros(1 << 16, np.float32)
    slots = optimizers.make(plan_of(1000, optimizer).optimizer).slots
    checkpoint = replace(checkpoint_of(1), parameters=slab, state=dict.fromkeys(slots, slab), trajectory=(), versions=())
    size = sum(memoryview(piece).nbytes for piece in checkpoints.encode(checkpoint)) // slab.size
    assert told == (size, size * (KEPT_CHECKPOINTS + 1), slab.itemsize)


def test_slots_are_counted_as_they_are_made() -> None:
    for optimizer in optimizers.OPTIMIZERS:
        plan = plan_of(1000, optimizer)
        arrays = Parameters(plan)
        assert budget.slabs(plan).training == len(arrays.slabs) + 1
    amsgrad = plan_of(1000, "adam")
    amsgrad.optimizer.adam.amsgrad = True
    assert budget.slabs(amsgrad).training == 5


@pytest.mark.parametrize(
    ("waiting", "training"),
    [
        (1, {"workers": 1, "microbatches": 8}),
        (1, {"workers": 2, "microbatches": 8}),
        (4, {"workers": 4, "microbatches": 8}),
        (8, {"workers": 16, "microbatches": 8}),
        (8, {"workers": 4, "microbatches": 8, "synchrony": {"stale": {"bound": 7}}}),
        (5, {"workers": 5, "microbatches": 8, "synchrony": {"asynchronous": {}}}),
        (1, {"workers": 5, "microbatches": 8, "gradient": "numerical"}),
        (12, {"workers": 2, "microbatches": 64, "codec": {"int8": {}}}),
    ],
)
def test_sums_wait_for_each_other(waiting: int, training: dict[str, Any]) -> None:
    assert budget.slabs(plan_of(1000, **training)).exchange == waiting + 1


def test_clipping_takes_the_whole_gradient() -> None:
    assert budget.slabs(plan_of(1000, clip=1.0)).exchange == budget.slabs(plan_of(1000)).exchange + 2


def test_a_shard_takes_its_share_and_the_copies_are_the_servers() -> None:
    plan = plan_of(50 << 20, "adam", dtype="float64")
    need, slab = budget.slabs(plan), 8 * (50 << 20)
    assert budget.of_server(plan) == need.total * slab
    assert plan.chunks == 400
    assert budget.of_server(plan, shards=3) == (need.training + need.exchange) * slab // 4 + need.copies * slab
    assert budget.of_shard(plan, 100) == need.total * slab // 4


@pytest.mark.parametrize(("elements", "epochs"), [(1000, 3), (1000, 100), (1 << 20, 50), (1 << 30, 1)])
def test_the_trajectory_takes_no_more_than_it_says(elements: int, epochs: int) -> None:
    plan = plan_of(elements, epochs=epochs, batch_size=100)
    trajectory = Trajectory(plan)
    wanted = sum(trajectory.wants(version) for version in range(plan.total_steps + 1))
    assert wanted * elements * 4 <= trajectory.max_bytes <= 64 << 20
    assert budget.of_server(plan) == budget.slabs(plan).total * elements * 4 + trajectory.max_bytes


class Machine:
    """Invented memory, of which this process uses some."""

    def __init__(self, total: int = 8 * GIB, others: int = GIB, own: int = GIB) -> None:
        self.total, self.others, self.own = total, others, own

    def memory(self) -> Memory:
        return Memory(self.total, max(0, self.total - self.others - self.own))

    def resident(self) -> int:
        return self.own

    def budget(self) -> Budget:
        return Budget(self.memory, self.resident)


def test_what_is_promised_is_not_promised_again_whether_it_is_in_use_or_not() -> None:
    machine = Machine()
    promised = machine.budget()
    assert promised.reserve("a", 4 * GIB) == ""
    lack = "about 3.00 GiB of memory are needed, but 2.00 GiB are free; 4.00 GiB are reserved for other jobs"
    assert promised.reserve("b", 3 * GIB) == lack
    machine.own += 4 * GIB
    assert promised.reserve("b", 3 * GIB) == lack
    assert promised.reserve("c", 2 * GIB) == ""
    promised.release("a")
    machine.own -= 4 * GIB
    assert promised.reserve("b", 3 * GIB) == ""


def test_what_else_this_process_takes_is_not_taken_for_a_promise_kept() -> None:
    machine = Machine()
    promised = machine.budget()
    assert promised.reserve("a", GIB) == ""
    machine.own += 4 * GIB
    assert promised.reserve("b", 2 * GIB) == ""
    assert "1.00 GiB are free" not in promised.reserve("c", GIB)
    machine.own = machine.total
    assert "0.00 MiB are free" in promised.reserve("c", GIB)


def test_what_can_never_be_had_is_refused_with_both_numbers() -> None:
    promised = Machine(total=512 << 20, others=0, own=100 << 20).budget()
    with pytest.raises(OverBudgetError, match=r"about 5\.20 GiB of memory are needed; this machine has at most 0\.40 GiB"):
        promised.reserve("a", int(5.2 * GIB))
    assert promised.reserve("b", 300 << 20) == ""
    promised.release("nobody")
