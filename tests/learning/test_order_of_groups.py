"""Samples that are read by groups: each once in an epoch, few groups at a time, which are held and read ahead."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.learning.batches import inputs
from thalweg.learning.batch import INPUT, Field
from thalweg.learning.data import DataError
from thalweg.learning.data.groups import Groups, cut
from thalweg.learning.data.microbatches import Microbatches
from thalweg.learning.data.order import MAX_LANES, Bijection, Order, Windows
from thalweg.learning.data.samples import Out
from thalweg.v1 import job_pb2

VECTORS = {1000: [950, 460, 464, 669, 566, 97], 1000000000: [511027717, 748609097, 644640703, 720035428, 702020367, 596421825]}
LAST = [572286020, 294558352, 867750802]
OF_GROUPS = [[4, 2, 17, 19, 13, 14, 15, 10], [3, 1, 16, 18, 12, 9, 5, 7], [0, 11, 6, 8], [2, 7, 1, 9, 8, 15, 18, 19]]


def order_of(ends: list[int], batch_size: int, microbatches: int, seed: int = 0, window: int = 4) -> Order:
    training = job_pb2.Training(batch_size=batch_size, microbatches=microbatches)
    return Order(job_pb2.JobSpec(seed=seed, data=job_pb2.Data(window=window), training=training), ends[-1], ends)


@st.composite
def orders(draw: st.DrawFn) -> Callable[[], Order]:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any))
    ends = list(itertools.accumulate(sizes))
    given = draw(st.tuples(st.integers(1, 90), st.integers(1, 130), st.integers(0, 9), st.integers(1, 5)))
    return lambda: order_of(ends, *given)


def test_computed_orders_permute_every_number_of_samples_up_to_4096() -> None:
    for samples in range(1, 4097):
        found = Bijection(samples, 1)(0, 0, samples)
        assert np.array_equal(np.bincount(found, minlength=samples), np.ones(samples, np.intp)), samples


def test_computed_orders_are_what_they_were_whatever_the_number_of_samples() -> None:
    many = 10**9
    assert Bijection(1000, 7)(0, 0, 6).tolist() == VECTORS[1000]
    assert Bijection(many, 7)(0, 0, 6).tolist() == VECTORS[many]
    assert Bijection(many, 7)(0, many - 3, many).tolist() == Bijection(many, 7)(0, many - 3, many + 9).tolist() == LAST


def test_orders_of_groups_are_what_they_were() -> None:
    """The numbers that jobs were trained with: of another order the weights have other bits."""
    order = order_of([3, 5, 11, 12, 20], 8, 3, seed=5, window=2)
    assert [order.minibatch(step).tolist() for step in range(4)] == OF_GROUPS


@given(orders(), st.data())
def test_each_epoch_uses_each_sample_of_all_groups_once_also_from_the_middle_on(
    make: Callable[[], Order], drawn: st.DataObject
) -> None:
    order = make()
    samples, microbatches, batch_size = order._samples, order._microbatches, order._batch_size
    epochs = []
    for epoch in (0, 1):
        seen: list[int] = []
        for position in range(order.steps_per_epoch):
            step = epoch * order.steps_per_epoch + position
            parts = [order.microbatch(step, microbatch) for microbatch in range(microbatches)]
            together = np.concatenate([indices for indices, _ in parts])
            last = position == order.steps_per_epoch - 1
            wanted = samples - position * batch_size if last else batch_size
            assert {denominator for _, denominator in parts} == {len(together)} == {wanted}
            assert np.array_equal(order.minibatch(step), together)
            assert {len(indices) for indices, _ in parts} - {0} <= {*order.sizes}
            seen += together.tolist()
        assert sorted(seen) == list(range(samples))
        epochs.append(seen)
    # A worker that begins at any step, with the epochs in any order, finds the same samples.
    begins = drawn.draw(st.integers(0, 2 * order.steps_per_epoch - 1))
    resumed = make()
    found = [*epochs[0], *epochs[1]][begins // order.steps_per_epoch * samples + begins % order.steps_per_epoch * batch_size :]
    rest = [resumed.minibatch(step).tolist() for step in range(begins, 2 * order.steps_per_epoch)]
    assert [*itertools.chain.from_iterable(rest)] == found
    resumed.minibatch(0)
    assert resumed.minibatch(begins).tolist() == rest[0]


@given(orders())
def test_what_is_read_ahead_is_what_a_lane_takes_from_next(make: Callable[[], Order]) -> None:
    order = make()
    ends = np.asarray(order._windows._ends if order._windows else [])
    known: dict[int, set[int]] = {}
    for step, microbatch in itertools.product(range(2 * order.steps_per_epoch), range(order._microbatches)):
        groups = {*np.searchsorted(ends, order.microbatch(step, microbatch)[0], side="right").tolist()}
        ahead = order.ahead(step, microbatch)
        if ahead is None:
            assert not groups
            continue
        if order._batch_size == 1:
            # One sample at a time: from no window but those that were told before.
            assert groups <= known.get(ahead.lane, groups)
        known[ahead.lane] = {*ahead.current, *ahead.following}


def test_microbatches_take_from_the_groups_of_few_windows_at_a_time() -> None:
    ends = list(range(100, 64_001, 100))
    order, used = order_of(ends, 64, 16), []
    for step in range(order.steps_per_epoch):
        used.append({int(index) // 100 for index in order.minibatch(step)})
        assert len(used[-1]) <= MAX_LANES * 2 * 4
    for lane in range(MAX_LANES):
        assert (
            len({int(index) // 100 for s in range(20) for m in range(4) for index in order.microbatch(s, 4 * lane + m)[0]}) <= 8
        )
    # Samples of a window are mixed: those of a step are of all of its groups.
    assert np.mean([len(groups) for groups in used]) > 14


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 50))
def test_large_groups_are_cut_into_equal_parts(sizes: list[int], most: int) -> None:
    ends = list(itertools.accumulate(sizes))
    found = cut(ends, most)
    assert {*ends} - {0} <= {*found} | {0}
    parts = np.diff(found, prepend=0)
    assert parts.sum() == ends[-1]
    assert parts.max(initial=0) <= most
    for start, end in itertools.pairwise([0, *ends]):
        inside = [part for part, stop in zip(parts, found, strict=True) if start < stop <= end]
        assert max(inside, default=0) - min(inside, default=0) <= 1
        assert len(inside) == -(-(end - start) // most)


def test_windows_mix_differently_in_each_epoch_and_for_each_seed() -> None:
    ends = list(range(50, 1001, 50))
    found = [Windows(ends, 4, seed)(epoch, 0, 1000) for seed, epoch in ((5, 0), (5, 1), (6, 0))]
    for one, other in itertools.combinations(found, 2):
        assert np.count_nonzero(one == other) < 20
    assert len({int(index) // 50 for index in found[0][:200]}) == 4


def test_groups_are_those_of_the_samples() -> None:
    with pytest.raises(ValueError, match="groups of 9 samples are not those of 10"):
        Order(job_pb2.JobSpec(training=job_pb2.Training(batch_size=1, microbatches=1)), 10, [9])


class Source:
    """Samples that are their positions, and what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[tuple[int, int]] = []
        self.threads: set[str] = set()
        self.fails = False
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, where: slice, out: Out) -> None:
        self.may_go.wait()
        self.loaded.append((where.start, where.stop))
        self.threads.add(threading.current_thread().name)
        if self.fails:
            raise DataError("data.parquet: 'a.parquet' has changed")
        out[INPUT][:] = np.arange(where.start, where.stop)


def groups_of(ends: list[int], limit: int) -> tuple[Groups, Source]:
    source = Source()
    groups = Groups({INPUT: Field(np.dtype(np.float64), ())}, ends, source, limit)
    groups.read_with(ThreadPoolExecutor(1, "thalweg-groups").submit)
    return groups, source


@pytest.mark.parametrize("limit", [1, 80, 10_000])
def test_samples_of_groups_are_those_of_all_at_once_within_the_limit(limit: int) -> None:
    ends = [5, 5, 15, 30]
    groups, _ = groups_of(ends, limit)
    generator = np.random.default_rng(0)
    for _ in range(50):
        indices = generator.integers(0, 30, 7)
        assert inputs(groups).tolist() == list(range(30))
        out = {INPUT: np.empty(7)}
        assert groups.take(indices, out) is out
        assert out[INPUT].tolist() == indices.tolist()
        groups.read_ahead([0], [2, 3])
        assert groups.bytes <= max(limit, 15 * 8)
    assert groups.take(slice(4, 4))[INPUT].shape == (0,)


def test_rising_order_loads_each_group_once() -> None:
    groups, source = groups_of([10, 20, 30], 80)
    for start in range(0, 30, 3):
        groups.take(slice(start, start + 3))
    assert source.loaded == [(0, 10), (10, 20), (20, 30)]


def test_what_is_read_ahead_is_loaded_once_on_another_thread_and_never_beyond_the_limit() -> None:
    groups, source = groups_of([10, 20, 30, 40], 240)
    groups.take(slice(0, 10))
    groups.read_ahead([0], [1, 2, 3])
    assert groups.bytes == 240
    groups.take(slice(10, 30))
    assert source.loaded == [(0, 10), (10, 20), (20, 30)]
    assert len(source.threads) == 2
    groups.take(slice(0, 10))
    assert len(source.loaded) == 3
    # Groups that are no longer used make room.
    groups.read_ahead([1], [3])
    groups.take(slice(30, 40))
    groups.take(slice(10, 20))
    assert source.loaded[3:] == [(30, 40)]


def test_errors_of_reading_ahead_reach_who_takes_and_are_no_answer_afterwards() -> None:
    groups, source = groups_of([10, 20], 1000)
    source.fails = True
    groups.read_ahead([0], [1])
    with pytest.raises(DataError, match=r"'a\.parquet' has changed"):
        groups.take(slice(10, 20))
    source.fails = False
    assert groups.take(slice(10, 12))[INPUT].tolist() == [10, 11]


def test_a_group_that_waits_to_be_read_ahead_is_loaded_at_once() -> None:
    groups, source = groups_of([10, 20, 30], 1000)
    source.may_go.clear()
    groups.read_ahead([], [0, 1])
    source.may_go.set()
    assert groups.take(slice(10, 12))[INPUT].tolist() == [10, 11]
    assert groups.take(slice(0, 2))[INPUT].tolist() == [0, 1]
    assert sorted(source.loaded) == [(0, 10), (10, 20)]


def test_microbatches_have_their_next_groups_read_ahead() -> None:
    """All groups but those that were needed first are loaded by the other thread, or waited for less."""
    ends = list(range(20, 1601, 20))
    groups, source = groups_of(ends, 40 * 20 * 8)
    order = order_of(ends, 32, 4)
    gathered = Microbatches(groups, order)
    seen = []
    for step in range(order.steps_per_epoch):
        for microbatch in range(4):
            seen += gathered(step, microbatch).batch[INPUT].tolist()
    assert sorted(seen) == list(range(1600))
    # Windows across the ends of lanes are needed twice.
    assert len(source.loaded) <= len(ends) + 2 * 4 * MAX_LANES
    assert any(name.startswith("thalweg-groups") for name in source.threads)
