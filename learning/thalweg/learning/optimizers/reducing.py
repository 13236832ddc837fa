"""Computes the reductions of a step: the sums of blocks, here or at shards, and the factors that follow from all of them."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning.optimizers.applying import proposed
from thalweg.learning.optimizers.base import Hyperparameters, Optimizer, OptimizerState
from thalweg.learning.optimizers.groups import Span, Spans
from thalweg.learning.reductions import BLOCK, Quantity, Reduction


def block_sums(
    optimizer: Optimizer[Hyperparameters],
    reduction: Reduction,
    parameters: Slab,
    gradient: Slab,
    state: OptimizerState,
    step: int,
    spans: Spans,
    part: slice,
) -> list[float]:
    """The sums of squares, in double precision, of each block of a part of the slab: one for each of the reduction's quantities.

    `spans` are those of the whole slab, with the factors of the reductions before. The arrays are the part's; none is changed. A
    part begins where a block does.
    """
    sums: list[float] = []
    for block in _blocks(reduction, spans, part):
        within = spans.within(block)
        for quantity in reduction.quantities:
            values = np.empty(block.stop - block.start)
            # Values that are not finite show in the update.
            with np.errstate(all="ignore"):
                for span in within:
                    start = block.start - part.start
                    where = slice(start + span.start, start + span.stop)
                    of_span = {name: slab[where] for name, slab in state.items()}
                    found = _values(optimizer, quantity, parameters[where], gradient[where], of_span, step, span)
                    values[span.start : span.stop] = found
                values *= values
                sums.append(float(np.add.reduce(values)))
    return sums


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
