"""Optimizers, held against PyTorch 2.13's (`tests/data/make_torch_reference.py` made the numbers)."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.end_to_end.reference import squared_norm, unscaled
from thalweg.contract import rules
from thalweg.contract.layout import Slab, ranges
from thalweg.learning import clipping, optimizers, schedules
from thalweg.server import validation
from thalweg.v1 import job_pb2

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "torch_optimizers.npz")
SPECS: dict[str, dict[str, Any]] = json.loads(str(REFERENCE["specs"]))


def complete(optimizer: dict[str, Any]) -> job_pb2.Optimizer:
    """An optimizer's specification with its defaults filled in."""
    job = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "optimizer": optimizer,
    }
    return validation.complete(json_format.ParseDict(job, job_pb2.JobSpec())).optimizer


@pytest.mark.parametrize("case", SPECS)
def test_follows_pytorch(case: str) -> None:
    spec = complete(SPECS[case])
    optimizer = optimizers.make(spec)
    curvature, parameters, noise = REFERENCE["curvature"], REFERENCE["start"].copy(), REFERENCE["noise"]
    state = optimizer.init(parameters.size, parameters.dtype)
    expected = dict(zip(REFERENCE["kept"].tolist(), REFERENCE[f"case {case}"], strict=True))
    steps_per_epoch = int(REFERENCE["steps_per_epoch"])
    assert max(expected) == len(noise) == 200
    for step in range(len(noise)):
        gradient = curvature * parameters + noise[step]
        if spec.HasField("clip_global_norm"):
            gradient *= np.float32(clipping.scale(squared_norm(gradient) ** 0.5, spec.clip_global_norm))
        rate = optimizer.learning_rate * schedules.factor(spec.schedule, step, steps_per_epoch, len(noise))
        out = np.empty_like(parameters)
        optimizers.apply(optimizer, parameters, gradient, state, out, rate, step)
        parameters = out
        if step + 1 in expected:
            np.testing.assert_allclose(parameters, expected[step + 1], rtol=1e-5, atol=1e-5, err_msg=f"step {step + 1}")


def test_every_optimizer_is_held_against_pytorch() -> None:
    """PyTorch has no LAMB: see `test_lamb.py`."""
    assert {kind for spec in SPECS.values() for kind in spec} >= set(optimizers.OPTIMIZERS) - {"lamb"}


def test_the_registry_is_the_contracts() -> None:
    assert list(optimizers.OPTIMIZERS) == rules.alternatives(job_pb2.Optimizer, "kind")


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=10)
@given(cuts=st.lists(st.integers(0, 200_000), max_size=4), in_place=st.booleans())
def test_ranges_do_not_change_a_bit(case: str, dtype: type[np.floating], cuts: list[int], in_place: bool) -> None:
    spec = complete(SPECS[case])
    size = 200_000  # more than a block
    start = np.random.default_rng(1).normal(size=size).astype(dtype)
    gradients = np.random.default_rng(2).normal(size=(3, size)).astype(dtype)

    def run(bounds: list[int], reuse: bool) -> bytes:
        optimizer = optimizers.make(spec)
        state = optimizer.init(size, np.dtype(dtype))
        parameters = start.copy()
        for step, gradient in enumerate(gradients.copy()):
            out = parameters if reuse else np.full_like(parameters, np.nan)
            for first, end in itertools.pairwise(bounds):
                where = slice(first, end)
                states = {name: slab[where] for name, slab in state.items()}
                optimizers.apply(optimizer, parameters[where], gradient[where], states, out[where], 0.01, step)
            parameters = out
        assert parameters.dtype == dtype
        assert all(slab.dtype == dtype for slab in state.values())
        return parameters.tobytes()

    assert run(sorted({0, size, *(min(cut, size) for cut in cuts)}), in_place) == run([0, size], False)


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sum_is_added_and_scaled_on_the_way(case: str, dtype: type[np.floating]) -> None:
    """The same bits as those of a gradient that was added and scaled before. The arrays are not changed."""
    optimizer = optimizers.make(complete(SPECS[case]))
    size = 150_000
    generator = np.random.default_rng(3)
    start = generator.normal(size=size).astype(dtype)
    left, right = generator.normal(size=(2, 3, size)).astype(dtype)
    left.flags.writeable = right.flags.writeable = False
    plain, fused = start.copy(), start.copy()
    states = [optimizer.init(size, np.dtype(dtype)) for _ in range(2)]
    for step in range(3):
        added = left[step] + right[step]
        added *= dtype(0.3)
        added.flags.writeable = False
        assert optimizers.apply(optimizer, plain, added, states[0], plain, 0.01, step)
        assert optimizers.apply(optimizer, fused, (left[step], right[step]), states[1], fused, 0.01, step, 0.3)
    assert plain.tobytes() == fused.tobytes() != start.tobytes()
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in optimizer.slots)


@pytest.mark.parametrize("case", SPECS)
def test_threads_do_not_change_a_bit(case: str) -> None:
    optimizer = optimizers.make(complete(SPECS[case]))
    size = 1_100_000
    start, *gradients = np.random.default_rng(4).normal(size=(3, size)).astype(np.float32)
    results = []
    with ThreadPoolExecutor(3) as executor:
        for across in (map, executor.map):
            parameters, state = start.copy(), optimizer.init(size, start.dtype)
            for step, gradient in enumerate(gradients):

                def update(part: slice, gradient: Slab = gradient, step: int = step) -> bool:
                    states = {name: slab[part] for name, slab in state.items()}  # noqa: B023 - done with before the next one
                    into = parameters[part]  # noqa: B023
                    return optimizers.apply(optimizer, into, gradient[part], states, into, 0.01, step)

                assert all(across(update, ranges(size, 100_000)))
            results.append([parameters.tobytes(), *(slab.tobytes() for slab in state.values())])
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS)
@pytest.mark.parametrize(("wrong", "at"), [(np.nan, 0), (np.inf, 140_000), (-np.inf, 1_099_999)])
def test_what_is_not_finite_is_told(kind: str, wrong: float, at: int) -> None:
    """Wherever it is, and all else is updated as it would have been."""
    optimizer = optimizers.make(complete({kind: {}}))
    size = 1_100_000
    parameters = np.zeros(size, np.float32)
    gradient = np.ones(size, np.float32)
    expected, found = np.empty_like(parameters), np.empty_like(parameters)
    state, spans = optimizer.init(size, gradient.dtype), unscaled(optimizer, size)
    assert optimizers.apply(optimizer, parameters, gradient, state, expected, 0.01, 0, spans=spans)
    gradient[at] = wrong
    state = optimizer.init(size, gradient.dtype)
    assert not optimizers.apply(optimizer, parameters, gradient, state, found, 0.01, 0, spans=spans)
    assert not np.isfinite(found[at])
    found[at] = expected[at]
    assert found.tobytes() == expected.tobytes()


def test_a_clipped_gradient_has_the_norm_asked_for() -> None:
    gradient = np.random.default_rng(0).normal(size=100_000)
    norm = squared_norm(gradient) ** 0.5
    assert norm == pytest.approx(float(np.linalg.norm(gradient)))
    assert np.linalg.norm(gradient * clipping.scale(norm, 2.0)) == pytest.approx(2.0, rel=1e-6)
    assert clipping.scale(1.0, 2.0) == 1.0
