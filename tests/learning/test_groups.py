"""Groups of tensors with hyperparameters of their own, held against PyTorch's parameter groups."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from thalweg.contract.layout import Slab, layout_of, views
from thalweg.contract.segments import Kind, Segment
from thalweg.learning import optimizers, registry
from thalweg.learning.batch import INPUT, TARGET, Field
from thalweg.learning.optimizers.groups import Span, unmatched
from thalweg.server import validation
from thalweg.v1 import job_pb2

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "torch_groups.npz")
SPECS: dict[str, dict[str, Any]] = json.loads(str(REFERENCE["specs"]))
SEGMENTS = (Segment("1.weight", (2, 3)), Segment("1.bias", (2,)), Segment("0.weight", (3, 1)), Segment("0.bias", (3,)))


def complete(optimizer: dict[str, Any], **training: Any) -> job_pb2.JobSpec:
    """A job with an optimizer, and a model of three layers."""
    layers = [{"dense": {"units": 6}}, {"tanh": {}}, {"dense": {"units": 5}}, {"tanh": {}}, {"dense": {"units": 3}}]
    job = {
        "model": {"layers": layers, "loss": "softmax_cross_entropy", "dtype": "float64"},
        "data": {"builtin": "digits"},
        "training": training,
        "optimizer": optimizer,
    }
    return validation.complete(json_format.ParseDict(job, job_pb2.JobSpec()))


def spans_of(groups: list[dict[str, Any]], inner: list[dict[str, Any]] | None = None) -> list[Span]:
    """The spans of a slab of SEGMENTS."""
    spec = complete({"sgd": {"weight_decay": 0.5}, "groups": groups}).optimizer
    also = complete({"sgd": {}, "groups": inner or []}).optimizer.groups
    return optimizers.spans(spec, SEGMENTS, 14, also).within(slice(0, 14))


@pytest.mark.parametrize("case", SPECS)
def test_groups_follow_pytorch(case: str) -> None:
    spec = complete(SPECS[case])
    x, y = REFERENCE["x"], REFERENCE["y"]
    objective = registry.objective(spec, {INPUT: Field(x.dtype, (5,)), TARGET: Field(y.dtype, ())})
    layout, whole = layout_of(objective.segments, objective.dtype), slice(0, objective.size)
    parameters, gradient = np.empty((2, objective.size))
    for name, view in views(layout, parameters).items():
        view[...] = REFERENCE[f"{case}/start {name}"]
    spans = optimizers.spans(spec.optimizer, objective.segments, objective.size)
    optimizer = optimizers.make(spec.optimizer)
    state = optimizer.init(objective.size, objective.dtype)
    clipped = []
    for step in range(int(REFERENCE["steps"])):
        objective.gradient(parameters, {INPUT: x, TARGET: y}, len(x), (step, 0), gradient)
        reductions = optimizers.reductions(spec.optimizer)
        scaled = optimizers.reduced(optimizer, reductions, parameters, gradient, state, step, spans).within(whole)
        clipped.append(scaled[-1].gradient_factor < 1)
        optimizers.apply(optimizer, parameters, gradient, state, parameters, optimizer.learning_rate, step, spans=scaled)
    assert any(clipped) == spec.optimizer.HasField("clip_global_norm")
    for name, view in views(layout, parameters).items():
        np.testing.assert_allclose(view, REFERENCE[f"{case}/end {name}"], rtol=1e-9, atol=1e-12, err_msg=name)
        frozen = np.array_equal(view, REFERENCE[f"{case}/start {name}"])
        assert frozen == name.startswith("0.")


def test_without_groups_a_slab_is_one_range() -> None:
    assert spans_of([]) == [Span(0, 14, 1.0, 0.5, frozen=False)]


def test_the_first_group_that_matches_is_a_tensors_group() -> None:
    groups = [{"pattern": "*.bias", "weight_decay": 0}, {"pattern": "0.*", "learning_rate_factor": 0.1, "weight_decay": 0.7}]
    assert spans_of(groups) == [
        Span(0, 6, 1.0, 0.5, frozen=False),
        Span(6, 8, 1.0, 0.0, frozen=False),
        Span(8, 11, 0.1, 0.7, frozen=False),
        Span(11, 14, 1.0, 0.0, frozen=False),
    ]


def test_tensors_beside_each_other_that_are_updated_alike_are_one_range() -> None:
    assert spans_of([{"pattern": "1.*", "learning_rate_factor": 2}]) == [
        Span(0, 8, 2.0, 0.5, frozen=False),
        Span(8, 14, 1.0, 0.5, frozen=False),
    ]
    assert spans_of([{"pattern": "*.weight", "weight_decay": 0.5}]) == [Span(0, 14, 1.0, 0.5, frozen=False)]


def test_what_other_groups_freeze_is_frozen_too() -> None:
    found = spans_of([{"pattern": "1.*", "learning_rate_factor": 2}], [{"pattern": "0.*", "frozen": True}])
    assert found == [Span(0, 8, 2.0, 0.5, frozen=False), Span(8, 14, 1.0, 0.5, frozen=True)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["1.weight", "1.bias", "0.weight", "0.bias"]),
        ("0.*", ["0.weight", "0.bias"]),
        ("?.bias", ["1.bias", "0.bias"]),
        ("[1-9].bias", ["1.bias"]),
        ("[!1].bias", ["0.bias"]),
        ("1.weight", ["1.weight"]),
        ("bias", []),
        ("*.Bias", []),
    ],
)
def test_a_pattern_is_a_glob_of_the_whole_name(pattern: str, names: list[str]) -> None:
    group = job_pb2.Group(pattern=pattern)
    assert [segment.name for segment in SEGMENTS if not unmatched([group], [segment.name], "")] == names


@given(pattern=st.text("*?[]!-\\.&|~ab0", min_size=1))
def test_every_text_is_a_pattern(pattern: str) -> None:
    unmatched([job_pb2.Group(pattern=pattern)], ["0.ab"], "")


def test_a_pattern_that_matches_nothing_is_told_with_the_tensors() -> None:
    spec = complete({"sgd": {}, "groups": [{"pattern": "0.*"}, {"pattern": "*.gamma"}]})
    assert optimizers.mistake(spec, SEGMENTS) == (
        "optimizer.groups[1].pattern: '*.gamma' matches none of the model's tensors, which are 1.weight, 1.bias, 0.weight, 0.bias"
    )
    many = [Segment(f"{index}.weight", (1,)) for index in range(12)]
    outer = {"sgd": {}, "groups": [{"pattern": "*.bias"}]}
    spec = complete({"sgd": {}}, synchrony={"local": {"outer": outer}})
    problem = optimizers.mistake(spec, many)
    assert problem.startswith("training.synchrony.local.outer.groups[0].pattern: '*.bias' matches none of")
    assert problem.endswith("6.weight, 7.weight and 4 more")
    assert not optimizers.mistake(complete({"sgd": {}}), SEGMENTS)


def test_groups_need_the_slabs_own_segments() -> None:
    spec = complete({"sgd": {}, "groups": [{"pattern": "0.*"}]}).optimizer
    with pytest.raises(ValueError, match="a slab of 15 elements, not of 14"):
        optimizers.spans(spec, SEGMENTS, 15)


@given(cuts=st.lists(st.integers(0, 14)))
def test_the_spans_of_parts_are_those_of_the_whole(cuts: list[int]) -> None:
    spec = complete({"sgd": {}, "groups": [{"pattern": "*.bias", "frozen": True}]}).optimizer
    spans = optimizers.spans(spec, SEGMENTS, 14)
    bounds = sorted({0, 14, *cuts})
    frozen = np.zeros(14, np.bool_)
    for start, stop in itertools.pairwise(bounds):
        part = spans.within(slice(start, stop))
        assert [span.start for span in part] == [0, *(span.stop for span in part[:-1])]
        assert part[-1].stop == stop - start
        for span in part:
            frozen[start + span.start : start + span.stop] = span.frozen
    assert frozen.tolist() == [False] * 6 + [True] * 2 + [False] * 3 + [True] * 3


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS)
def test_what_is_frozen_stays_as_it_is(kind: str) -> None:
    """Parameters and state, whatever the gradient, in place or not."""
    spec = complete({kind: {"weight_decay": 0.1}, "groups": [{"pattern": "1.*", "frozen": True}]}).optimizer
    optimizer = optimizers.make(spec)
    scaled = optimizers.spans(spec, SEGMENTS, 14)
    for reduction in optimizer.reductions:
        scaled = scaled.scaled(reduction, [1.0] * scaled.count)
    spans = scaled.within(slice(0, 14))
    start = np.random.default_rng(1).normal(size=14)
    gradient: Slab = np.ones(14)
    gradient[3] = np.nan
    for in_place in (True, False):
        parameters, state = start.copy(), optimizer.init(14, start.dtype)
        before = {name: slab.copy() for name, slab in state.items()}
        out = parameters if in_place else np.empty_like(parameters)
        assert optimizers.apply(optimizer, parameters, gradient, state, out, 0.1, 0, spans=spans)
        assert out[:8].tobytes() == start[:8].tobytes()
        assert (out[8:] != start[8:]).all()
        for name, slab in state.items():
            assert slab[:8].tobytes() == before[name][:8].tobytes()


KINDS = (
    *SEGMENTS,
    Segment("2.mean", (3,), Kind.STATISTIC),
    Segment("2.variance", (2,), Kind.STATISTIC),
    Segment("mask", (2,), Kind.CONSTANT),
)
ALL_OF_IT = [{"pattern": "2.*", "frozen": True}, {"pattern": "mask", "learning_rate_factor": 3.0}]


def test_groups_are_of_parameters_alone() -> None:
    """A pattern that matches nothing else is no mistake, and has no effect."""
    spec = complete({"sgd": {"weight_decay": 0.5}, "groups": ALL_OF_IT})
    assert not optimizers.mistake(spec, KINDS)
    assert optimizers.spans(spec.optimizer, KINDS, 21).within(slice(0, 21)) == [
        Span(0, 14, 1.0, 0.5, frozen=False),
        Span(14, 19, 1.0, 0.0, frozen=False, plain=True),
        Span(19, 21, 1.0, 0.0, frozen=True),
    ]


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("clip", [{}, {"clip_global_norm": 0.5}], ids=["", "clipped"])
@pytest.mark.parametrize("groups", [[], ALL_OF_IT], ids=["", "groups"])
@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS)
def test_statistics_are_subtracted_and_constants_stay(
    kind: str, groups: list[dict[str, Any]], clip: dict[str, Any], in_place: bool, terms: int
) -> None:
    """And parameters are updated as if there were neither."""
    spec = complete({kind: {"weight_decay": 0.1}, "groups": groups, **clip}).optimizer
    optimizer, reductions = optimizers.make(spec), optimizers.reductions(spec)
    random = np.random.default_rng(2)
    start, parts = random.normal(size=21), random.normal(size=(terms, 21)) * 100
    start[19:], parts[:, 16], parts[:, 19:] = [-np.inf, np.nan], 0, 0
    added = parts.sum(0)

    def updated(segments: tuple[Segment, ...], size: int) -> tuple[Slab, dict[str, Slab]]:
        parameters, state = start[:size].copy(), optimizer.init(size, start.dtype)
        spans = optimizers.spans(
            complete({kind: {"weight_decay": 0.1}, **clip}).optimizer if size == 14 else spec, segments, size
        )
        scaled = optimizers.reduced(optimizer, reductions, parameters, added[:size], state, 0, spans)
        out = parameters if in_place else np.empty_like(parameters)
        gradient = (parts[0, :size], parts[1, :size]) if terms == 2 else parts[0, :size]
        assert optimizers.apply(optimizer, parameters, gradient, state, out, 0.1, 0, spans=scaled.within(slice(0, size)))
        return out, state

    out, state = updated(KINDS, 21)
    expected, plain_state = updated(SEGMENTS, 14)
    assert out[:14].tobytes() == expected.tobytes()
    assert out[14:19].tobytes() == (start[14:19] - added[14:19]).tobytes()
    assert out[16].tobytes() == start[16].tobytes()
    assert out[19:].tobytes() == start[19:].tobytes()
    for name, slab in state.items():
        assert slab[:14].tobytes() == plain_state[name].tobytes()
        assert slab[14:].tobytes() == optimizer.init(7, start.dtype)[name].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_statistic_that_is_not_finite_is_found(value: float) -> None:
    spec = complete({"sgd": {}}).optimizer
    optimizer, spans = optimizers.make(spec), optimizers.spans(spec, KINDS, 21).within(slice(0, 21))
    gradient: Slab = np.zeros(21)
    assert optimizers.apply(optimizer, np.zeros(21), gradient, {}, np.empty(21), 0.1, 0, spans=spans)
    gradient[14] = value
    assert not optimizers.apply(optimizer, np.zeros(21), gradient, {}, np.empty(21), 0.1, 0, spans=spans)
