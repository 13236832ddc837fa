"""Computes the reductions of a step: the sums of blocks, here or at shards, and the factors that follow from all of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.optimizers.base import Hyperparameters, Optimizer, OptimizerState
from thalweg.learning.optimizers.groups import Span, Spans
from thalweg.learning.optimizers.updates import proposed
from thalweg.learning.reductions import BLOCK, Quantity, Reduction

# Does something for each number of a range, in any order, perhaps several at a time. Whether it was true of all.
Share: TypeAlias = Callable[[Callable[[int], bool], range], bool]


def in_turn(act: Callable[[int], bool], numbers: range) -> bool:
    """Does something for each number of a range, one after the other. Whether it was true of all."""
    results = [act(number) for number in numbers]
    return all(results)


def block_sums(
    optimizer: Optimizer[Hyperparameters],
    reduction: Reduction,
    parameters: Slab,
    gradient: Slab,
    state: OptimizerState,
    step: int,
    spans: Spans,
    part: slice,
    share: Share = in_turn,
) -> list[float]:
    """The sums of squares, in double precision, of each block of a part of the slab: one for each of the reduction's quantities.

    `spans` are those of the whole slab, with the factors of the reductions before. The arrays are the part's; none is changed. A
    part begins where a block does. `share` may divide the blocks among threads: each block is summed by itself, so that no bit
    depends on it.
    """
    blocks, width = list(_blocks(reduction, spans, part)), len(reduction.quantities)
    sums = [0.0] * (len(blocks) * width)

    def add_up(number: int) -> None:
        block = blocks[number]
        within = spans.within(block)
        for index, quantity in enumerate(reduction.quantities):
            values = np.empty(block.stop - block.start)
            for span in within:
                start = block.start - part.start
                where = slice(start + span.start, start + span.stop)
                of_span = {name: slab[where] for name, slab in state.items()}
                found = _values(optimizer, quantity, parameters[where], gradient[where], of_span, step, span)
                values[span.start : span.stop] = found
            values *= values
            sums[number * width + index] = float(np.add.reduce(values))

    parcels = _parcels(blocks)

    def add_up_parcel(number: int) -> bool:
        # What is not finite shows in the update.
        with np.errstate(all="ignore"):
            for block in parcels[number]:
                add_up(block)
        return True

    share(add_up_parcel, range(len(parcels)))
    return sums


def _parcels(blocks: Sequence[slice]) -> list[range]:
    """Divides blocks, which may be short, into runs that are worth a thread's attention."""
    parcels, first, elements = list[range](), 0, 0
    for number, block in enumerate(blocks):
        elements += block.stop - block.start
        if elements >= BLOCK or number == len(blocks) - 1:
            parcels.append(range(first, number + 1))
            first, elements = number + 1, 0
    return parcels


def factors(reduction: Reduction, sums: Iterable[float], spans: Spans) -> list[float]:
    """The reduction's factor for each span, or the one for the slab, from the sums of all blocks in the order of the slab.

    Raises ValueError if these are not as many as there are blocks.
    """
    given, blocks = list(sums), list(_blocks(reduction, spans, slice(0, spans.elements)))
    width = len(reduction.quantities)
    if len(given) != len(blocks) * width:
        raise ValueError(f"{len(given):,} sums of squares arrived, but {len(blocks) * width:,} are needed")
    totals = [[0.0] * width for _ in range(spans.count if reduction.per_segment else 1)]
    for number, block in enumerate(blocks):
        total = totals[spans.at(block.start) if reduction.per_segment else 0]
        # One by one, in order: Python's `sum` compensates rounding since 3.12.
        for index in range(width):
            total[index] += given[number * width + index]
    return [reduction.factor(total) for total in totals]


def reduced(
    optimizer: Optimizer[Hyperparameters],
    reductions: Sequence[Reduction],
    parameters: Slab,
    gradient: Slab,
    state: OptimizerState,
    step: int,
    spans: Spans,
) -> Spans:
    """The spans of a slab, scaled by the reductions of a step: what `apply` takes. The arrays are those of the whole slab."""
    for reduction in reductions:
        sums = block_sums(optimizer, reduction, parameters, gradient, state, step, spans, slice(0, spans.elements))
        spans = spans.scaled(reduction, factors(reduction, sums, spans))
    return spans


def _blocks(reduction: Reduction, spans: Spans, part: slice) -> Iterator[slice]:
    """The blocks of a part of the slab: equally long from the slab's beginning on, and cut at the borders of segments."""
    start: int = part.start
    while start < part.stop:
        border = spans.end(start) if reduction.per_segment else part.stop
        stop = min((start // BLOCK + 1) * BLOCK, border, part.stop)
        yield slice(start, stop)
        start = stop


def _values(
    optimizer: Optimizer[Hyperparameters],
    quantity: Quantity,
    parameters: Slab,
    gradient: Slab,
    state: OptimizerState,
    step: int,
    span: Span,
) -> Slab | float:
    """A quantity over a span. The arrays are the span's."""
    if not span.counted:
        return 0.0
    match quantity:
        case Quantity.PARAMETERS:
            return parameters
        case Quantity.GRADIENT:
            return gradient if span.gradient_factor == 1 else gradient * gradient.dtype.type(span.gradient_factor)
        case Quantity.UPDATE:
            return proposed(optimizer, parameters, gradient, state, step, span)
