"""The course of a job, and which of its versions are kept as its trajectory."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.specs import make_spec
from thalweg.contract.segments import Kind, Segment
from thalweg.server.arrays import trajectory as trajectory_module
from thalweg.server.arrays.trajectory import SNAPSHOTS, Trajectory
from thalweg.server.deciding import plan as plan_module
from thalweg.server.deciding.chunks import runs
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts


def make_plan(elements: int = 10, samples: int = 20, dtype: str = "float32", **training: Any) -> Plan:
    spec = make_spec(**training)
    spec.model.dtype = dtype
    return Plan(spec, Facts(elements, samples, 0, metrics=()))


@pytest.mark.parametrize(
    ("samples", "batch_size", "epochs", "per_epoch", "total"),
    [(20, 10, 3, 2, 6), (21, 10, 3, 3, 9), (20, 32, 2, 1, 2), (1, 1, 1, 1, 1), (20, 10, 0, 2, 0)],
)
def test_steps_are_counted(samples: int, batch_size: int, epochs: int, per_epoch: int, total: int) -> None:
    plan = make_plan(samples=samples, batch_size=batch_size, epochs=epochs)
    assert (plan.steps_per_epoch, plan.total_steps) == (per_epoch, total)


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 4))
def test_an_epoch_uses_each_sample_once(samples: int, batch_size: int, epochs: int) -> None:
    plan = make_plan(samples=samples, batch_size=batch_size, epochs=epochs)
    sizes = [plan.samples_of(step) for step in range(plan.total_steps)]
    assert sum(sizes) == samples * epochs
    assert min(sizes) >= 1
    assert sum(sizes[: plan.steps_per_epoch]) == samples


def test_epochs_end() -> None:
    plan = make_plan(samples=30, batch_size=10, epochs=2)
    assert [version for version in range(7) if plan.ends_epoch(version)] == [3, 6]
    assert [plan.epoch_of(version) for version in range(7)] == [0, 0, 0, 1, 1, 1, 2]


@given(st.integers(1, 3_000_000), st.sampled_from(["float32", "float64"]), st.sampled_from(["backpropagation", "numerical"]))
def test_chunks_tile_the_slab(elements: int, dtype: str, gradient: str) -> None:
    plan = make_plan(elements, dtype=dtype, gradient=gradient)
    ranges = [plan.chunk_range(chunk) for chunk in range(plan.chunks)]
    assert ranges[0].start == 0
    assert ranges[-1].stop == elements
    assert all(left.stop == right.start for left, right in itertools.pairwise(ranges))
    assert all(0 < (where.stop - where.start) * np.dtype(dtype).itemsize <= 1 << 20 for where in ranges)


@pytest.mark.parametrize(
    ("parameters", "constants", "sent"),
    [(6, 0, [0, 1, 2]), (3, 1, [0, 1]), (3, 2, [0, 1, 2]), (4, 6, [0, 1, 4]), (0, 6, [2]), (0, 0, [])],
)
def test_of_chunks_of_constants_only_the_last_is_part_of_a_gradient(
    parameters: int, constants: int, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "CHUNK_BYTES", 8)
    segments = Segment("a", (parameters,)), Segment("b", (constants,), Kind.CONSTANT)
    plan = Plan(make_spec(), Facts(parameters + constants, 20, 0, metrics=(), segments=segments))
    assert [chunk for run in runs(plan.sent) for chunk in run] == sent


def test_numerical_differentiation_has_chunks_for_many_workers() -> None:
    assert make_plan(10, gradient="numerical").chunks == 10
    assert make_plan(100_000, gradient="numerical", workers=3).chunks == 24
    assert make_plan(100_000, gradient="numerical", workers=1000).chunks == 256
    assert make_plan(100_000).chunks == 1
    spec = make_plan(100_000, workers=3).spec
    assert Plan(spec, Facts(100_000, 20, 0, metrics=(), numerical=True)).chunks == 24


def kept(plan: Plan) -> list[int]:
    trajectory = Trajectory(plan)
    for version in range(plan.total_steps + 1):
        if trajectory.wants(version):
            trajectory.add(version, np.full(plan.elements, version, np.float32))
    slabs = trajectory.slabs
    assert bool(slabs) == trajectory.wanted
    assert [int(slab[0]) for slab in slabs] == (trajectory.versions if slabs else [])
    return trajectory.versions


def test_a_short_job_keeps_every_version() -> None:
    assert kept(make_plan(samples=5, batch_size=1, epochs=3)) == list(range(16))


def test_a_long_job_keeps_versions_evenly_spread() -> None:
    assert kept(make_plan(samples=100, batch_size=1, epochs=2)) == [*range(0, 200, 4), 200]


def test_a_job_of_no_steps_keeps_its_start() -> None:
    assert kept(make_plan(epochs=0)) == [0]


@given(st.integers(0, 2000))
def test_a_trajectory_has_a_start_and_an_end_and_not_too_many_versions(steps: int) -> None:
    versions = kept(make_plan(elements=1, samples=1, batch_size=1, epochs=steps))
    assert versions[0] == 0
    assert versions[-1] == steps
    assert len(versions) <= SNAPSHOTS
    assert versions == sorted(set(versions))


@pytest.mark.parametrize(("most_bytes", "versions"), [(200, [0, 5, 10, 15, 20]), (80, [0, 20]), (79, []), (0, [])])
def test_a_great_model_keeps_fewer_versions_or_none(
    monkeypatch: pytest.MonkeyPatch, most_bytes: int, versions: list[int]
) -> None:
    monkeypatch.setattr(trajectory_module, "MAX_BYTES", most_bytes)
    assert kept(make_plan(elements=10, samples=20, batch_size=1, epochs=1)) == versions


def test_a_version_is_kept_once_and_what_is_restored_is_a_copy() -> None:
    trajectory = Trajectory(make_plan(epochs=1))
    for version, value in ((0, 0), (7, 1), (7, 2)):
        trajectory.add(version, np.full(10, value, np.float32))
    assert trajectory.versions == [0, 7]
    assert [slab[0] for slab in trajectory.slabs] == [0, 1]
    again = Trajectory(make_plan(epochs=1))
    again.restore(trajectory.versions, trajectory.slabs)
    trajectory.slabs[0][:] = 5
    again.add(8, np.zeros(10, np.float32))
    assert again.versions == [0, 7, 8]
    assert [slab[0] for slab in again.slabs] == [0, 1, 0]


@given(st.integers(1, 100), st.integers(1, 30), st.integers(1, 4), st.integers(1, 40))
def test_rounds_of_local_steps_use_each_sample_once(samples: int, batch_size: int, epochs: int, steps: int) -> None:
    plan = make_plan(samples=samples, batch_size=batch_size, epochs=epochs, synchrony={"local": {"steps": steps}})
    assert sum(plan.samples_of(version) for version in range(plan.total_steps)) == samples * epochs
    assert plan.minibatch(plan.total_steps) == epochs * plan.steps_per_epoch
    assert all(plan.version_of(plan.minibatch(version)) == version for version in range(plan.total_steps))
    ends = [version for version in range(plan.total_steps + 1) if plan.ends_epoch(version)]
    assert ends[-1] == plan.total_steps
    assert plan.epoch_of(plan.total_steps) == epochs


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(1, 10))
def test_epochs_have_a_start_and_an_end(samples: int, batch_size: int, epochs: int, steps: int) -> None:
    kinds: list[dict[str, Any]] = [{"bulk": {}}, {"local": {"steps": steps}}]
    for synchrony in kinds:
        plan = make_plan(samples=samples, batch_size=batch_size, epochs=epochs, synchrony=synchrony)
        for version in range(plan.total_steps):
            start, end = plan.start_of_epoch(version), plan.end_of_epoch(version)
            assert start <= version < end
            assert plan.ends_epoch(end)
            assert not any(plan.ends_epoch(each) for each in range(version + 1, end))
            assert start == 0 or plan.ends_epoch(start)
