"""Optimizers, held against PyTorch 2.13's (`tests/data/make_torch_reference.py` made the numbers)."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.contract import rules
from thalweg.server import clipping, optimizers, schedules, validation
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
            gradient *= np.float32(clipping.scale(clipping.squared_norm(gradient) ** 0.5, spec.clip_global_norm))
        rate = optimizer.learning_rate * schedules.factor(spec.schedule, step, steps_per_epoch, len(noise))
        out = np.empty_like(parameters)
        optimizers.apply(optimizer, parameters, gradient, state, out, rate, step)
        parameters = out
        if step + 1 in expected:
            np.testing.assert_allclose(parameters, expected[step + 1], rtol=1e-5, atol=1e-5, err_msg=f"step {step + 1}")


def test_every_optimizer_is_held_against_pytorch() -> None:
    assert {kind for spec in SPECS.values() for kind in spec} >= set(optimizers.OPTIMIZERS)


def test_the_registry_is_the_contracts() -> None:
    assert list(optimizers.OPTIMIZERS) == rules.alternatives(job_pb2.Optimizer, "kind")


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=10)
@given(cuts=st.lists(st.integers(0, 200_000), max_size=4), in_place=st.booleans())
def test_ranges_do_not_change_a_bit(case: str, dtype: type[np.floating], cuts: list[int], in_place: bool) -> None:
    spec = complete(SPECS[case])
    size = 70_000  # more than a block
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


def test_a_clipped_gradient_has_the_norm_asked_for() -> None:
    gradient = np.random.default_rng(0).normal(size=100_000)
    norm = clipping.squared_norm(gradient) ** 0.5
    assert norm == pytest.approx(float(np.linalg.norm(gradient)))
    assert np.linalg.norm(gradient * clipping.scale(norm, 2.0)) == pytest.approx(2.0, rel=1e-6)
    assert clipping.scale(1.0, 2.0) == 1.0
