"""LAMB, held against its textbook (You et al. 2020, algorithm 2), and its norms, however a slab is cut."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.contract.layout import Slab
from thalweg.contract.segments import Segment
from thalweg.learning import optimizers
from thalweg.learning.optimizers import Spans, norms
from thalweg.learning.optimizers.lamb import trust_ratio
from thalweg.server import validation
from thalweg.v1 import job_pb2

SEGMENTS = (Segment("1.weight", (3, 4)), Segment("1.bias", (3,)), Segment("0.weight", (4, 2)), Segment("0.bias", (4,)))
ELEMENTS = 27
RATE, BETAS, EPS, DECAY = 0.02, (0.8, 0.95), 1e-5, 0.3
LAMB: dict[str, Any] = {"lamb": {"learning_rate": RATE, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}}


def complete(optimizer: dict[str, Any]) -> job_pb2.Optimizer:
    job = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "optimizer": optimizer,
    }
    return validation.complete(json_format.ParseDict(job, job_pb2.JobSpec())).optimizer


def steps(spec: job_pb2.Optimizer, start: Slab, gradients: Slab) -> Slab:
    """The parameters after some steps, each with all of its reductions."""
    optimizer, spans = optimizers.make(spec), optimizers.spans(spec, SEGMENTS, ELEMENTS)
    parameters, state = start.copy(), optimizer.init(ELEMENTS, start.dtype)
    for step, gradient in enumerate(gradients):
        scaled = optimizers.reduced(optimizer, optimizers.reductions(spec), parameters, gradient, state, step, spans)
        whole = scaled.within(slice(0, ELEMENTS))
        assert optimizers.apply(optimizer, parameters, gradient, state, parameters, RATE, step, spans=whole)
    return parameters


def textbook(start: Slab, gradients: Slab, clip: float = math.inf, decays: dict[str, float] | None = None) -> Slab:
    """The same, number by number."""
    w, m, v = start.tolist(), [0.0] * ELEMENTS, [0.0] * ELEMENTS
    for t, gradient in enumerate(gradients.tolist(), 1):
        norm = math.sqrt(sum(g * g for g in gradient))
        g = [each * min(1.0, clip / (norm + 1e-6)) for each in gradient]
        first = 0
        for name, shape, _ in SEGMENTS:
            tensor, decay = range(first, first + math.prod(shape)), (decays or {}).get(name, DECAY)
            first = tensor.stop
            r = {}
            for i in tensor:
                m[i] = BETAS[0] * m[i] + (1 - BETAS[0]) * g[i]
                v[i] = BETAS[1] * v[i] + (1 - BETAS[1]) * g[i] ** 2
                deviation = math.sqrt(v[i] / (1 - BETAS[1] ** t))
                r[i] = m[i] / (1 - BETAS[0] ** t) / (deviation + EPS) + decay * w[i]
            of_w, of_r = math.sqrt(sum(w[i] ** 2 for i in tensor)), math.sqrt(sum(each**2 for each in r.values()))
            ratio = of_w / of_r if of_w and of_r else 1.0
            for i in tensor:
                w[i] -= RATE * ratio * r[i]
    return np.array(w)


@pytest.fixture
def problem() -> tuple[Slab, Slab]:
    """Parameters, of which a bias is 0, and gradients of six steps."""
    generator = np.random.default_rng(2020)
    start = generator.normal(size=ELEMENTS)
    start[12:15] = 0
    return start, generator.normal(size=(6, ELEMENTS))


def test_lamb_is_its_textbook(problem: tuple[Slab, Slab]) -> None:
    start, gradients = problem
    np.testing.assert_allclose(steps(complete(LAMB), start, gradients), textbook(start, gradients), rtol=1e-12)
    single = steps(complete(LAMB), start.astype(np.float32), gradients.astype(np.float32))
    np.testing.assert_allclose(single, textbook(start, gradients), rtol=1e-4, atol=1e-5)


def test_the_norm_is_clipped_before_tensors_are_measured(problem: tuple[Slab, Slab]) -> None:
    start, gradients = problem
    found = steps(complete({**LAMB, "clip_global_norm": 0.01}), start, gradients)
    np.testing.assert_allclose(found, textbook(start, gradients, clip=0.01), rtol=1e-12)
    assert not np.allclose(found, textbook(start, gradients), rtol=1e-6)


def test_groups_take_part(problem: tuple[Slab, Slab]) -> None:
    start, gradients = problem
    groups = [{"pattern": "*.bias", "weight_decay": 0}, {"pattern": "0.*", "frozen": True}]
    found = steps(complete({**LAMB, "groups": groups}), start, gradients)
    expected = textbook(start, gradients, decays={"1.bias": 0})
    np.testing.assert_allclose(found[:15], expected[:15], rtol=1e-12)
    # A bias is matched first by the group that freezes nothing.
    assert found[15:23].tobytes() == start[15:23].tobytes()
    np.testing.assert_allclose(found[23:], textbook(start, gradients, decays={"0.bias": 0})[23:], rtol=1e-12)


def test_the_ratio_is_one_where_a_norm_is_zero_and_not_finite_where_one_is_not() -> None:
    assert trust_ratio([9.0, 4.0]) == 1.5
    assert trust_ratio([0.0, 4.0]) == trust_ratio([4.0, 0.0]) == 1.0
    for wrong in (math.inf, math.nan):
        assert math.isnan(trust_ratio([wrong, 1.0]))
        assert math.isnan(trust_ratio([1.0, wrong]))


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, ELEMENTS // 4), max_size=3), clip=st.booleans())
def test_the_sums_of_parts_are_those_of_the_whole(cuts: list[int], clip: bool) -> None:
    """Parts begin where blocks of 4 elements do; nothing that is measured changes."""
    spec = complete({**LAMB, **({"clip_global_norm": 1.0} if clip else {}), "groups": [{"pattern": "0.bias", "frozen": True}]})
    optimizer, spans = optimizers.make(spec), optimizers.spans(spec, SEGMENTS, ELEMENTS)
    parameters, gradient = np.random.default_rng(7).normal(size=(2, ELEMENTS)).astype(np.float32)
    state = {name: np.full(ELEMENTS, 0.5, np.float32) for name in optimizer.slots}
    before = [parameters.tobytes(), gradient.tobytes(), *(slab.tobytes() for slab in state.values())]
    bounds = sorted({0, ELEMENTS, *(4 * cut for cut in cuts)})

    def measure(spans: Spans, part: slice) -> list[float]:
        of_part = {name: slab[part] for name, slab in state.items()}
        return norms.block_sums(optimizer, reduction, parameters[part], gradient[part], of_part, 3, spans, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "BLOCK", 4)
        for reduction in optimizers.reductions(spec):
            whole = measure(spans, slice(0, ELEMENTS))
            assert [*map(float.hex, whole)] == [
                value.hex() for start, stop in itertools.pairwise(bounds) for value in measure(spans, slice(start, stop))
            ]
            spans = spans.scaled(reduction, norms.factors(reduction, whole, spans))
    # Blocks end with segments: 3, 1, 3 and 2 of them, of two quantities each.
    assert len(whole) == 2 * 9
    assert before == [parameters.tobytes(), gradient.tobytes(), *(slab.tobytes() for slab in state.values())]


def test_an_update_without_its_trust_ratio_is_refused() -> None:
    """Of a whole slab or of some spans, unless nothing in them depends on it."""
    spec = complete({**LAMB, "clip_global_norm": 1.0})
    optimizer, spans = optimizers.make(spec), optimizers.spans(spec, SEGMENTS, ELEMENTS)
    clip, ratio = optimizers.reductions(spec)
    start, gradient = np.random.default_rng(0).normal(size=(2, ELEMENTS))
    clipped = spans.scaled(clip, [0.5])
    whole = clipped.scaled(ratio, [2.0] * clipped.count)

    def apply(of: Spans | None) -> Slab:
        out: Slab = np.empty_like(start)
        state = optimizer.init(ELEMENTS, start.dtype)
        given = of.within(slice(0, ELEMENTS)) if of else None
        assert optimizers.apply(optimizer, start, gradient, state, out, RATE, 0, spans=given)
        return out

    for incomplete in (None, spans, clipped):
        with pytest.raises(ValueError, match="an update by lamb needs its reductions first"):
            apply(incomplete)
    assert (apply(whole) != start).all()
    frozen = optimizers.spans(complete({**LAMB, "groups": [{"pattern": "*", "frozen": True}]}), SEGMENTS, ELEMENTS)
    assert apply(frozen).tobytes() == start.tobytes()
