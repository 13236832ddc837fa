"""Which samples a microbatch holds: a pure function of (seed, step, microbatch)."""

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.randomness import Purpose, generator
from thalweg.v1 import job_pb2

# Up to this number of samples, `auto` draws permutations: 8 MiB each.
MAX_PERMUTED = 1 << 20
# Rounds of the Feistel network. Four make it a pseudorandom permutation if each is pseudorandom; mixing is weaker than that.
_ROUNDS = 8
# Stretches of an epoch that microbatches take samples from side by side, where samples are read by groups. Affects results.
MAX_LANES = 4


class Arrangement(Protocol):
    """The order of the samples in each epoch."""

    def __call__(self, epoch: int, first: int, end: int) -> NDArray[np.intp]:
        """The samples at the positions from `first` to before `end` of an epoch."""


class Permutation:
    """An order that is drawn for each epoch, and kept."""

    def __init__(self, samples: int, seed: int) -> None:
        self._samples = samples
        self._seed = seed
        self._epoch = -1
        self._order: NDArray[np.intp] = np.empty(0, np.intp)

    def __call__(self, epoch: int, first: int, end: int) -> NDArray[np.intp]:
        """The samples at some positions of an epoch."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = generator(self._seed, Purpose.PERMUTATION, epoch).permutation(self._samples)
        return self._order[first:end]


class Bijection:
    """An order that is computed, position by position, with keys that are drawn for each epoch: nothing is kept.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers of some bits. A result that is not below the number of samples
    is mapped again until it is (cycle walking, Black and Rogaway 2002), on average less than twice.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self._samples = samples
        self._seed = seed
        self._keys: tuple[int, NDArray[np.uint64]] = (-1, np.empty(0, np.uint64))

    def __call__(self, epoch: int, first: int, end: int) -> NDArray[np.intp]:
        """The samples at some positions of an epoch."""
        if epoch != self._keys[0]:
            self._keys = epoch, _keys(self._seed, epoch)
        return _bijected(np.arange(first, min(end, self._samples), dtype=np.uint64), self._samples, self._keys[1])


def _keys(seed: int, *ids: int) -> NDArray[np.uint64]:
    return generator(seed, Purpose.PERMUTATION, *ids).integers(0, 1 << 64, _ROUNDS, np.uint64)


def _bijected(values: NDArray[np.uint64], count: int, keys: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Where a keyed bijection of the numbers below `count` maps some of them."""
    bits = max(2, (count - 1).bit_length())
    shift, halves = np.uint64(bits - bits // 2), (bits // 2, bits - bits // 2)
    masks = tuple(np.uint64((1 << half) - 1) for half in halves)

    def network(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> shift, values & masks[1]
        for number, key in enumerate(keys):
            if number % 2:
                right ^= mixed(left ^ key) & masks[1]
            else:
                left ^= mixed(right ^ key) & masks[0]
        return (left << shift) | right

    found = network(values)
    while (outside := np.flatnonzero(found >= count)).size:
        found[outside] = network(found[outside])
    return found.astype(np.intp)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): each bit depends on all bits."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def arrangement(order: str, samples: int, seed: int) -> Arrangement:
    """The arrangement that `data.order` names. A job that was accepted before there was a choice names none."""
    computed = order == "computed" or not keeps_permutations(order, samples)
    return Bijection(samples, seed) if computed else Permutation(samples, seed)


def keeps_permutations(order: str, samples: int) -> bool:
    """Whether permutations of the samples are kept in memory: for few samples, or if `data.order` says so.

    A job that was accepted before there was a choice names no order, and keeps its permutations.
    """
    return samples <= MAX_PERMUTED or order in ("", "permuted")


class _Layout(NamedTuple):
    """The groups in an epoch's order, the numbers of samples up to their ends, and the positions between windows."""

    groups: NDArray[np.intp]
    ends: NDArray[np.intp]
    starts: list[int]

    def window_at(self, position: int) -> int:
        return bisect.bisect_right(self.starts, position) - 1


class Windows:
    """An order in two levels, for samples that are read by groups: few groups are needed at a time.

    In each epoch the groups are permuted, laid one after another, and cut into windows of `window` groups. Within each window,
    the samples are permuted. `ends` are the numbers of samples up to the end of each group, which may be empty.
    """

    def __init__(self, ends: Sequence[int], window: int, seed: int) -> None:
        self._ends = np.asarray(ends, np.intp)
        self._lengths = np.diff(self._ends, prepend=0)
        self._window = window
        self._seed = seed
        # Of the epochs that were asked for last: an epoch's end and the beginning of the next one are needed side by side.
        self._layouts: dict[int, _Layout] = {}
        # The orders of the windows that were asked for last, each as samples.
        self._orders: OrderedDict[tuple[int, int], NDArray[np.intp]] = OrderedDict()

    def __call__(self, epoch: int, first: int, end: int) -> NDArray[np.intp]:
        """The samples at some positions of an epoch."""
        layout, end, parts = self._layout(epoch), min(end, int(self._ends[-1])), [np.empty(0, np.intp)]
        while first < end:
            window = layout.window_at(first)
            start, stop = layout.starts[window], layout.starts[window + 1]
            until = min(end, stop)
            parts.append(self._order(epoch, window)[first - start : until - start])
            first = until
        return np.concatenate(parts)

    def _order(self, epoch: int, window: int) -> NDArray[np.intp]:
        """The samples of a window of an epoch, in order."""
        order = self._orders.pop((epoch, window), None)
        if order is None:
            samples = [np.arange(*self._range(group)) for group in self._groups(self._layout(epoch), window)]
            order = generator(self._seed, Purpose.PERMUTATION, epoch, window).permutation(np.concatenate(samples))
        self._orders[epoch, window] = order
        # Each lane has a window, and comes to the next one.
        while len(self._orders) > MAX_LANES + 1:
            self._orders.popitem(last=False)
        return order

    def _range(self, group: int) -> tuple[int, int]:
        return int(self._ends[group] - self._lengths[group]), int(self._ends[group])

    def ahead(self, epoch: int, position: int, lane: slice) -> tuple[list[int], list[int]]:
        """The groups of the window in which a position of an epoch is, and those of the window that its lane comes to next.

        `lane` are the positions that the lane takes in each epoch.
        """
        layout = self._layout(epoch)
        window = layout.window_at(position)
        current = self._groups(layout, window)
        if layout.starts[window + 1] < lane.stop:
            return current, self._groups(layout, layout.window_at(layout.starts[window + 1]))
        after = self._layout(epoch + 1)
        return current, self._groups(after, after.window_at(lane.start))

    def _groups(self, layout: _Layout, window: int) -> list[int]:
        chosen = layout.groups[window * self._window : (window + 1) * self._window]
        return [int(group) for group in chosen]

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self._layouts:
            groups = generator(self._seed, Purpose.PERMUTATION, epoch).permutation(len(self._ends))
            ends = np.cumsum(self._lengths[groups])
            lasts = [*range(self._window - 1, len(groups) - 1, self._window), len(groups) - 1]
            while len(self._layouts) > 1:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[epoch] = _Layout(groups, ends, [0, *(int(end) for end in ends[lasts])])
        return self._layouts[epoch]


class Ahead(NamedTuple):
    """The groups that a microbatch and those after it take samples from."""

    lane: int
    current: list[int]
    following: list[int]


class Order:
    """Cuts each epoch into minibatches, and those into microbatches. `spec` is complete.

    Where samples are read by groups, of which `groups` are the ends, each *lane* takes a stretch of its own of the epoch: one
    microbatch, or neighbouring ones of many. So one that computes some microbatches only reads some of the groups only.
    """

    def __init__(self, spec: job_pb2.JobSpec, samples: int, groups: Sequence[int] = ()) -> None:
        if groups and groups[-1] != samples:
            raise ValueError(f"groups of {groups[-1]} samples are not those of {samples}")
        self._samples = samples
        self._batch_size = min(spec.training.batch_size, samples)
        self._microbatches = spec.training.microbatches
        self._windows = Windows(groups, spec.data.window, spec.seed) if groups else None
        self._arrangement = self._windows or arrangement(spec.data.order, samples, spec.seed)
        self._lanes = min(self._microbatches, MAX_LANES) if groups else 1
        # The first microbatch of each lane, and their number.
        self._firsts = [-(-lane * self._microbatches // self._lanes) for lane in range(self._lanes + 1)]
        self._step = -1
        self._minibatch: NDArray[np.intp] = np.empty(0, np.intp)
        self.steps_per_epoch = -(-samples // self._batch_size)

    @property
    def sizes(self) -> list[int]:
        """The numbers of samples that microbatches have, but for 0, from the largest to the smallest."""
        last, parts = self._last, self._microbatches
        found = {size // parts + more for size in (self._batch_size, last) for more in ((0, 1) if size % parts else (0,))}
        return sorted(found - {0}, reverse=True)

    @property
    def _last(self) -> int:
        """The size of the last minibatch of an epoch."""
        return self._samples - (self.steps_per_epoch - 1) * self._batch_size

    def minibatch(self, step: int) -> NDArray[np.intp]:
        """The samples of a step. The last minibatch of an epoch may be smaller."""
        if step != self._step:
            epoch, parts = step // self.steps_per_epoch, []
            for lane in range(self._lanes):
                start, before, after = self._stretch(step, lane)
                parts.append(self._arrangement(epoch, start, start + after - before))
            self._step, self._minibatch = step, parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self._minibatch

    def microbatch(self, step: int, microbatch: int) -> tuple[NDArray[np.intp], int]:
        """The samples of a microbatch, possibly none, and the number of samples in the whole minibatch."""
        size, parts = self._size(step), self._microbatches
        first, end = microbatch * size // parts, (microbatch + 1) * size // parts
        if not self._windows:
            return self.minibatch(step)[first:end], size
        # Others' lanes are not computed.
        start, before, _ = self._stretch(step, self._lane(microbatch))
        return self._arrangement(step // self.steps_per_epoch, start + first - before, start + end - before), size

    def ahead(self, step: int, microbatch: int) -> Ahead | None:
        """The groups of the window from which a microbatch takes its last sample, and those of the window after it.

        None if samples are not read by groups, or the lane has none.
        """
        if not self._windows:
            return None
        lane, epoch = self._lane(microbatch), step // self.steps_per_epoch
        whole = slice(*(self._begins(each) for each in (lane, lane + 1)))
        if whole.start == whole.stop:
            return None
        start, before, after = self._stretch(step, lane)
        last = min(max(start, start + after - before - 1), whole.stop - 1)
        return Ahead(lane, *self._windows.ahead(epoch, last, whole))

    def _size(self, step: int) -> int:
        return self._last if (step + 1) % self.steps_per_epoch == 0 else self._batch_size

    def _lane(self, microbatch: int) -> int:
        return microbatch * self._lanes // self._microbatches

    def _stretch(self, step: int, lane: int) -> tuple[int, int, int]:
        """Where a lane's samples of a step begin in the epoch, and before and after how many of the minibatch they are."""
        size, position = self._size(step), step % self.steps_per_epoch
        before, after = (self._before(size, each) for each in (lane, lane + 1))
        taken = position * (self._before(self._batch_size, lane + 1) - self._before(self._batch_size, lane))
        return self._begins(lane) + taken, before, after

    def _begins(self, lane: int) -> int:
        """The first position of a lane in an epoch: after all that earlier ones take in it."""
        return (self.steps_per_epoch - 1) * self._before(self._batch_size, lane) + self._before(self._last, lane)

    def _before(self, size: int, lane: int) -> int:
        """How many of a minibatch of some size are earlier lanes'."""
        return self._firsts[lane] * size // self._microbatches
