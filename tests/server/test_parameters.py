"""The arrays of a running job: sums along the tree, clipping, updates that are checked, two versions at once."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.end_to_end.reference import squared_norm
from tests.server.specs import make_spec
from thalweg.contract import tree
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind, Segment
from thalweg.contract.tree import Node
from thalweg.learning import clipping, optimizers
from thalweg.learning.optimizers import OptimizerState, norms
from thalweg.server import validation
from thalweg.server.arrays.parameters import PARAMETERS, Parameters
from thalweg.server.arrays.pool import ArithmeticPool
from thalweg.server.deciding import plan
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts
from thalweg.v1 import job_pb2

ELEMENTS = 5


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 8)


SGD: dict[str, Any] = {"sgd": {"learning_rate": 1}}


SEGMENTS = (Segment("1.weight", (2,)), Segment("1.bias", (1,)), Segment("0.weight", (1, 2)))


def make(optimizer: dict[str, Any] | None = None, microbatches: int = 1, dtype: str = "float32") -> Parameters:
    spec = make_spec(microbatches=microbatches)
    spec.model.dtype = dtype
    spec.optimizer.CopyFrom(json_format.ParseDict(optimizer or SGD, job_pb2.Optimizer()))
    return Parameters(Plan(validation.complete(spec), Facts(ELEMENTS, 20, 0, (), SEGMENTS)))


def keep(parameters: Parameters, node: Node, gradient: Slab) -> None:
    for chunk in range(parameters.plan.chunks):
        parameters.keep(parameters.version, node, chunk, gradient[parameters.plan.chunk_range(chunk)])


def copy_of(parameters: Parameters) -> tuple[Slab, OptimizerState]:
    """The parameters, and the optimizer's state."""
    state = {name: slab.copy() for name, slab in parameters.slabs.items()}
    return state.pop(PARAMETERS), state


def apply(parameters: Parameters) -> bool:
    """Reduces, if that is needed, and applies."""
    for reduction in range(len(parameters.plan.reductions)):
        parameters.reduce(parameters.version, parameters.version, reduction)
    return parameters.apply(parameters.version, parameters.version, range(parameters.plan.chunks), 1.0)


def test_gradients_are_added_along_the_tree() -> None:
    microbatches = 5
    parameters = make(microbatches=microbatches)
    gradients = np.random.default_rng(0).normal(size=(microbatches, ELEMENTS)).astype(np.float32)
    for leaf in reversed(range(microbatches)):
        keep(parameters, Node(0, leaf), gradients[leaf])
    for level in (1, 2, 3):
        for index in range(microbatches):
            parent = Node(level, index)
            if parent.exists(microbatches) and parent.children[1].exists(microbatches):
                for chunk in range(parameters.plan.chunks):
                    parameters.merge(0, parent, chunk)
    assert apply(parameters)
    parameters.promote(1, 0)
    expected = tree.fold(tree.root(microbatches), microbatches, lambda leaf: gradients[leaf], np.add)
    assert parameters.current.tobytes() == (-expected).tobytes()


def test_a_version_stays_whole_while_the_next_is_made() -> None:
    parameters = make()
    before = np.arange(ELEMENTS, dtype=np.float32)
    for chunk in range(parameters.plan.chunks):
        parameters.keep_initial(chunk, before[parameters.plan.chunk_range(chunk)])
    keep(parameters, Node(0, 0), np.ones(ELEMENTS, np.float32))
    assert apply(parameters)
    assert parameters.current.tolist() == before.tolist()
    assert parameters.chunk(0, 1).tolist() == [2, 3]
    assert parameters.chunk(1, 1).tolist() == [1, 2]
    parameters.promote(1, 0)
    assert parameters.current.tolist() == (before - 1).tolist()


@pytest.mark.parametrize(("norm", "most", "factor"), [(10, 1, 0.1), (1, 10, 1), (0, 1, 1)])
def test_a_gradient_is_scaled_down_to_the_norm(norm: float, most: float, factor: float) -> None:
    assert clipping.scale(norm, most) == pytest.approx(factor, rel=1e-5)


def test_a_norm_does_not_overflow_in_single_precision() -> None:
    assert squared_norm(np.full(4, 1e30, np.float32)) ** 0.5 == pytest.approx(2e30)


def test_a_gradient_is_clipped_and_the_next_one_is_measured_anew() -> None:
    parameters = make({**SGD, "clip_global_norm": 1.0})
    keep(parameters, Node(0, 0), np.array([3, 0, 0, 0, 4], np.float32))
    assert apply(parameters)
    parameters.promote(1, 0)
    assert parameters.current == pytest.approx([-0.6, 0, 0, 0, -0.8])
    keep(parameters, Node(0, 0), np.array([0.1, 0, 0, 0, 0], np.float32))
    assert apply(parameters)
    parameters.promote(2, 1)
    assert parameters.current == pytest.approx([-0.7, 0, 0, 0, -0.8])


KINDS = list(optimizers.OPTIMIZERS)
GROUPS = [
    {"pattern": "1.bias", "frozen": True},
    {"pattern": "1.*", "learning_rate_factor": 0.5},
    {"pattern": "*", "weight_decay": 0.1},
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_never_becomes_a_version(kind: str, clip: float | None, value: float) -> None:
    parameters = make({kind: {}, **({"clip_global_norm": clip} if clip else {})})
    keep(parameters, Node(0, 0), np.array([1, 1, value, 1, 1], np.float32))
    assert not apply(parameters)
    assert parameters.current.tolist() == [0] * ELEMENTS


def test_a_norm_that_is_too_great_for_double_precision_is_not_taken_for_a_small_step() -> None:
    parameters = make({**SGD, "clip_global_norm": 1.0}, dtype="float64")
    keep(parameters, Node(0, 0), np.full(ELEMENTS, 1e200))
    assert not apply(parameters)


@pytest.mark.filterwarnings("error")
def test_great_values_are_finite_though_their_sum_is_not() -> None:
    parameters = make(microbatches=2)
    great = np.full(ELEMENTS, 2e38, np.float32)
    keep(parameters, Node(0, 0), great)
    keep(parameters, Node(0, 1), np.zeros(ELEMENTS, np.float32))
    for chunk in range(parameters.plan.chunks):
        parameters.merge(0, Node(1, 0), chunk)
    assert apply(parameters)
    parameters.promote(1, 0)
    assert parameters.current.tolist() == (-great).tolist()


@pytest.mark.filterwarnings("error")
def test_a_sum_of_gradients_that_overflows_is_found() -> None:
    parameters = make({**SGD, "clip_global_norm": 1.0}, microbatches=2)
    for leaf in (0, 1):
        keep(parameters, Node(0, leaf), np.full(ELEMENTS, 3e38, np.float32))
    for chunk in range(parameters.plan.chunks):
        parameters.merge(0, Node(1, 0), chunk)
    assert not apply(parameters)


@pytest.mark.parametrize("groups", [[], GROUPS], ids=["no groups", "groups"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_is_a_copy_from_which_training_goes_on_alike(kind: str, groups: list[dict[str, Any]]) -> None:
    gradients = np.random.default_rng(0).normal(size=(4, ELEMENTS)).astype(np.float32)
    whole, first, second = (make({kind: {}, "groups": groups}) for _ in range(3))

    def step(parameters: Parameters) -> None:
        keep(parameters, Node(0, 0), gradients[parameters.version])
        assert apply(parameters)
        parameters.promote(parameters.version + 1, parameters.version)

    for parameters in (whole, whole, whole, whole, first, first):
        step(parameters)
    snapshot = copy_of(first)
    step(first)
    second.restore(2, *snapshot)
    step(second)
    assert second.current.tobytes() == first.current.tobytes()
    step(second)
    assert second.current.tobytes() == whole.current.tobytes()


def test_a_snapshot_of_another_model_or_optimizer_is_refused() -> None:
    parameters = make({"adam": {}})
    for other in (make(SGD), make({"adam": {}}, dtype="float64")):
        with pytest.raises(ValueError, match="another model or optimizer"):
            parameters.restore(1, *copy_of(other))


def test_steps_that_are_open_at_once_are_kept_apart() -> None:
    parameters = make(microbatches=1)
    for step, value in ((1, 5.0), (0, 3.0)):
        for chunk in range(parameters.plan.chunks):
            values = np.full(ELEMENTS, value, np.float32)[parameters.plan.chunk_range(chunk)]
            parameters.keep(step, Node(0, 0), chunk, values)
    assert apply(parameters)
    parameters.promote(1, 0)
    assert parameters.current.tolist() == [-3.0] * ELEMENTS
    assert apply(parameters)
    parameters.promote(2, 1)
    assert parameters.current.tolist() == [-8.0] * ELEMENTS


def test_slabs_for_sums_are_as_few_as_are_needed_at_once() -> None:
    microbatches = 16
    parameters = make(microbatches=microbatches)
    empty, made = np.empty, list[int]()

    def counted(size: int, dtype: np.dtype[np.floating]) -> Slab:
        made.append(size)
        return empty(size, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", counted)
        for step in range(3):
            _add_in_order(parameters, microbatches)
            assert apply(parameters)
            parameters.promote(step + 1, step)
    # As in a binary counter: one sum waits for each level of the tree but the leaves and the root, and one is being made.
    assert made.count(ELEMENTS) == 4, "and none is made anew at the second step"
    assert parameters.current.tolist() == [-3 * sum(range(microbatches))] * ELEMENTS


def _add_in_order(parameters: Parameters, microbatches: int) -> None:
    for leaf in range(microbatches):
        keep(parameters, Node(0, leaf), np.full(ELEMENTS, leaf, np.float32))
        node = Node(0, leaf)
        while node.index % 2 and node != tree.root(microbatches):
            node = node.parent
            for chunk in range(parameters.plan.chunks):
                parameters.merge(parameters.version, node, chunk)


def test_dropped_arrays_are_freed_but_for_those_that_somebody_has() -> None:
    parameters = make({"adam": {}})
    kept = parameters.current
    kept[:] = 1
    parameters.drop()
    assert kept.tolist() == [1] * ELEMENTS
    assert [slab.size for slab in parameters.slabs.values()] == [0]


def test_each_group_has_its_own_hyperparameters() -> None:
    parameters = make({"sgd": {"learning_rate": 1, "weight_decay": 0.5}, "groups": GROUPS})
    parameters.current[:] = 2
    keep(parameters, Node(0, 0), np.ones(ELEMENTS, np.float32))
    assert apply(parameters)
    parameters.promote(1, 0)
    # 2 - 0.5 (1 + 0.5 · 2); as it was; 2 - (1 + 0.1 · 2).
    assert parameters.current == pytest.approx([1, 1, 2, 0.8, 0.8])


def test_the_norm_is_that_of_what_is_not_frozen() -> None:
    parameters = make({**SGD, "clip_global_norm": 1.0, "groups": [{"pattern": "1.bias", "frozen": True}]})
    keep(parameters, Node(0, 0), np.array([3, 0, np.inf, 0, 4], np.float32))
    assert apply(parameters)
    parameters.promote(1, 0)
    assert parameters.current == pytest.approx([-0.6, 0, 0, 0, -0.8])


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_chunks_nor_shares_change_a_bit_of_groups(kind: str, clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk, chunks that cut tensors, and chunks of which three hold shares of their own."""
    spec = {kind: {"weight_decay": 0.2}, "groups": GROUPS, **({"clip_global_norm": clip} if clip else {})}
    start, *gradients = np.random.default_rng(5).normal(size=(4, ELEMENTS)).astype(np.float32)
    monkeypatch.setattr(norms, "BLOCK", 2)
    found = []
    for chunk_bytes, ranges in ((64, None), (8, None), (8, [range(1), range(1, 2), range(2, 3)])):
        monkeypatch.setattr(plan, "CHUNK_BYTES", chunk_bytes)
        whole = make(spec)
        shares = [Parameters(whole.plan, chunks=part) for part in ranges] if ranges else [whole]
        for share in shares:
            for chunk in share.chunks:
                share.keep_initial(chunk, start[whole.plan.chunk_range(chunk)])
        for step, gradient in enumerate(gradients):
            for share in shares:
                for chunk in share.chunks:
                    share.keep(step, Node(0, 0), chunk, gradient[whole.plan.chunk_range(chunk)])
            for reduction in range(len(whole.plan.reductions)):
                sums = [value for share in shares for value in share.block_sums(step, step, reduction)]
                factors = whole.factors(reduction, sums)
                for share in shares:
                    share.scale(reduction, factors)
            for share in shares:
                assert share.apply(step, step, share.chunks, 1.0)
                share.promote(step + 1, step)
        found.append({name: b"".join(share.slabs[name].tobytes() for share in shares) for name in whole.slabs})
    assert found[0] == found[1] == found[2]
    assert found[0][PARAMETERS] != start.tobytes()


# With chunks of two elements: the second chunk has a parameter and a constant, the last one constants alone.
WITH_CONSTANTS = (Segment("0.weight", (3,)), Segment("mask", (2,), Kind.CONSTANT))


@pytest.mark.parametrize("way", ["initial", "restored", "loaded"])
def test_constants_lie_beside_both_versions_and_no_step_touches_them(way: str) -> None:
    spec = make_spec(microbatches=4)
    spec.optimizer.CopyFrom(json_format.ParseDict({**SGD, "clip_global_norm": 1e6}, job_pb2.Optimizer()))
    parameters = Parameters(Plan(validation.complete(spec), Facts(ELEMENTS, 20, 0, (), WITH_CONSTANTS)))
    start = np.array([1, 2, 3, -np.inf, 5], np.float32)
    for chunk in parameters.chunks:
        part = start[parameters.plan.chunk_range(chunk)]
        if way == "initial":
            parameters.keep_initial(chunk, part)
        elif way == "loaded":
            parameters.load(3, PARAMETERS, chunk, part.tobytes())
    if way == "restored":
        parameters.restore(3, start, None)
    first = parameters.version

    def constants(version: int) -> list[float]:
        chunks = [parameters.chunk(version, chunk) for chunk in parameters.chunks]
        return [float(value) for value in np.concatenate(chunks)[3:]]

    assert constants(first) == constants(first + 1) == [-np.inf, 5]
    # So that it shows if they are copied.
    parameters.chunk(first + 1, 2)[:] = 7
    gradient = np.array([1, 2, 3, np.nan, np.nan], np.float32)
    for chunk in parameters.chunks:
        for leaf in range(4):
            parameters.keep(first, Node(0, leaf), chunk, gradient[parameters.plan.chunk_range(chunk)])
        for parent in (Node(1, 0), Node(1, 1), Node(2, 0)):
            parameters.merge(first, parent, chunk)
    assert apply(parameters)
    parameters.promote(first + 1, first)
    assert parameters.current.tolist() == [-3, -6, -9, -np.inf, 7]


class Recorder(ArithmeticPool):
    """Counts what it is given to divide."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.given: list[int] = []

    def all(self, act: Callable[[Any], bool], items: Iterable[Any]) -> bool:
        listed = list(items)
        self.given.append(len(listed))
        return super().all(act, listed)


@pytest.mark.parametrize("kind", ["sgd", "lamb"])
def test_threads_do_not_change_a_bit_of_reductions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors that are larger than a block, and of many that are smaller, with a norm of all and norms of each."""
    monkeypatch.setattr(norms, "BLOCK", 64)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 4 * 256)
    segments = (Segment("0.weight", (2000,)), *(Segment(f"{number}.bias", (7,)) for number in range(200)))
    size = 2000 + 200 * 7
    spec = make_spec(microbatches=2)
    spec.optimizer.CopyFrom(json_format.ParseDict({kind: {}, "clip_global_norm": 0.5}, job_pb2.Optimizer()))
    course = Plan(validation.complete(spec), Facts(size, 20, 0, (), segments))
    start, *gradients = np.random.default_rng(7).normal(size=(7, size)).astype(np.float32)
    found = []
    for threads in (None, 1, 2, 3):
        crew = Recorder(threads) if threads else None
        parameters = Parameters(course, crew=crew)
        for chunk in parameters.chunks:
            parameters.keep_initial(chunk, start[course.chunk_range(chunk)])
        sums: list[list[float]] = []
        for step in range(3):
            for chunk in parameters.chunks:
                for leaf in range(2):
                    parameters.keep(step, Node(0, leaf), chunk, gradients[2 * step + leaf][course.chunk_range(chunk)])
                parameters.merge(step, Node(1, 0), chunk)
            for reduction in range(len(course.reductions)):
                sums.append(parameters.block_sums(step, step, reduction))
                parameters.scale(reduction, parameters.factors(reduction, sums[-1]))
            assert parameters.apply(step, step, parameters.chunks, 1.0)
            parameters.promote(step + 1, step)
        found.append((sums, {name: slab.tobytes() for name, slab in parameters.slabs.items()}))
        if crew:
            # In each step the sums of the last two terms, those of each reduction, and the update.
            assert len(crew.given) == 3 * (2 + len(course.reductions))
            assert min(crew.given) >= len(parameters.chunks)
            crew.close()
    assert found[0] == found[1] == found[2] == found[3]


def test_sums_of_another_number_of_blocks_are_refused() -> None:
    parameters = make({"lamb": {}, "clip_global_norm": 1.0})
    keep(parameters, Node(0, 0), np.ones(ELEMENTS, np.float32))
    assert parameters.factors(0, parameters.block_sums(0, 0, 0)) == [pytest.approx(5**-0.5)]
    for reduction, sums, wanted in ((0, [], 1), (0, [1.0, 1.0], 1), (1, [1.0] * 5, 6)):
        with pytest.raises(ValueError, match=f"{len(sums)} sums of squares arrived, but {wanted} are needed"):
            parameters.factors(reduction, sums)
    with pytest.raises(ValueError, match="zip"):
        parameters.scale(1, [1.0, 1.0])
