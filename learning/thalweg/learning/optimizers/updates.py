"""Updates a range of the parameters with an optimizer: in blocks that stay in the cache, or by a compiled loop."""

from collections.abc import Sequence

import numpy as np

from thalweg.contract.layout import Slab
from thalweg.learning import kernels
from thalweg.learning.optimizers.base import Hyperparameters, Optimizer, OptimizerState, Scratch, UpdateRule
from thalweg.learning.optimizers.groups import Span

# Elements that are updated at once: a block stays in the cache from one pass over it to the next, and is large enough that
# NumPy's calls take little of the time.
_BLOCK = 131_072


def apply(
    optimizer: Optimizer[Hyperparameters],
    parameters: Slab,
    gradient: Slab | tuple[Slab, Slab],
    state: OptimizerState,
    out: Slab,
    learning_rate: float,
    step: int,
    scale: float = 1.0,
    spans: Sequence[Span] | None = None,
) -> bool:
    """Updates a range of any length. Returns whether all new values are finite.

    All arrays are one-dimensional and of equal length and dtype. `out` may be `parameters` or not; `state` is changed in place.
    The gradient is the sum of the two arrays, if there are two; they are only read. Except in plain spans it is multiplied by
    `scale`. `learning_rate` is the scheduled one; `step` counts from 0. `spans` cover the range, if parts of it have
    hyperparameters of their own, or there are reductions, by which they were scaled. Raises ValueError if an optimizer's own
    reduction has not scaled them: without it the update would be another one. How a slab is cut into ranges does not
    change a bit of the result, and threads may update different ranges at once. Nor does it whether the optimizer's kernel is
    compiled, and used.
    """
    # Intermediate results use the output, which therefore is in the cache when it is written.
    apart = not np.may_share_memory(parameters, out)

    def summed(block: slice, scratch: Scratch) -> Slab:
        if isinstance(gradient, tuple):
            return np.add(gradient[0][block], gradient[1][block], out=scratch.gradient[: block.stop - block.start])
        return gradient[block]

    def is_finite(new: Slab, scratch: Scratch) -> bool:
        return bool(np.isfinite(new, out=scratch.finite[: new.size]).all())

    def update_block(block: slice, rule: UpdateRule, factor: float, decay: float, keep: float, scratch: Scratch) -> bool:
        p, new = parameters[block], out[block]
        total, other = scratch.gradient[: p.size], scratch.other[: p.size]
        g = summed(block, scratch)
        if factor != 1:
            g = np.multiply(g, parameters.dtype.type(factor), out=total)
        if decay:
            g = np.add(g, np.multiply(p, decay, out=other), out=total)
        delta = new if apart else scratch.delta[: p.size]
        rule(g, {name: values[block] for name, values in state.items()}, delta, other)
        np.subtract(p if keep == 1 else np.multiply(p, keep, out=other), delta, out=new)
        return is_finite(new, scratch)

    def update_by_loop(span: Span, rate: float, factor: float, decay: float, keep: float) -> bool | None:
        """The same, compiled. None if it is not, or not for such arrays."""
        kernel = optimizer.kernel(rate, step)
        loop = kernels.compiled(kernel, parameters.dtype) if kernel else None
        if not (kernel and loop):
            return None
        left, right = gradient if isinstance(gradient, tuple) else (gradient, gradient)
        slots = tuple(state[slot] for slot in optimizer.slots)
        if not all(each.flags.c_contiguous and each.dtype == parameters.dtype for each in (parameters, left, right, out, *slots)):
            return None
        where, two = slice(span.start, span.stop), isinstance(gradient, tuple)
        within = tuple(slot[where] for slot in slots)
        return loop(
            parameters[where],
            left[where],
            right[where],
            two,
            within,
            out[where],
            factor,
            decay,
            decay != 0,
            keep,
            kernel.constants,
        )

    def update_by_numpy(span: Span, rate: float, factor: float, decay: float, keep: float) -> bool:
        rule, finite = optimizer.rule(rate, step), True
        with optimizer.scratch(_BLOCK, parameters.dtype) as scratch:
            for block in blocks(span):
                finite &= update_block(block, rule, factor, decay, keep, scratch)
        return finite

    def blocks(span: Span) -> list[slice]:
        return [slice(start, min(start + _BLOCK, span.stop)) for start in range(span.start, span.stop, _BLOCK)]

    def update(span: Span) -> bool:
        if span.frozen:
            if apart:
                out[span.start : span.stop] = parameters[span.start : span.stop]
            return True
        if span.plain:
            with optimizer.scratch(_BLOCK, parameters.dtype) as scratch:
                for block in blocks(span):
                    np.subtract(parameters[block], summed(block, scratch), out=out[block])
                return all(is_finite(out[block], scratch) for block in blocks(span))
        rate, factor = learning_rate * span.learning_rate_factor, scale * span.gradient_factor
        decay, keep = (0.0, 1 - rate * span.weight_decay) if optimizer.decoupled else (span.weight_decay, 1.0)
        finite = update_by_loop(span, rate, factor, decay, keep)
        return update_by_numpy(span, rate, factor, decay, keep) if finite is None else finite

    if spans is None:
        spans = [Span(0, parameters.size, 1.0, optimizer.weight_decay, frozen=False)]
    _check_reduced(optimizer, spans)
    # Values that are not finite are reported by the result.
    with np.errstate(all="ignore"):
        finite = True
        for span in spans:
            finite &= update(span)
        return finite


def prepare(optimizer: Optimizer[Hyperparameters], dtype: np.dtype[np.floating]) -> bool:
    """Compiles an optimizer's kernel, which may take some seconds; from then on `apply` uses it. Whether there is one.

    Without it `apply` computes the same with NumPy.
    """
    kernel = optimizer.kernel(optimizer.learning_rate, 1)
    return kernel is not None and kernels.prepare(kernel, len(optimizer.slots), dtype)


def _check_reduced(optimizer: Optimizer[Hyperparameters], spans: Sequence[Span]) -> None:
    for reduction in optimizer.reductions:
        if any(span.counted and reduction not in span.reductions for span in spans):
            name = type(optimizer).__name__.lower()
            raise ValueError(f"an update by {name} needs its reductions first: pass the spans that `reduced` gives")


def proposed(
    optimizer: Optimizer[Hyperparameters], parameters: Slab, gradient: Slab, state: OptimizerState, step: int, span: Span
) -> Slab:
    """By how much the parameters of a span would fall at a learning rate of 1. The arrays are the span's; none is changed."""
    g = gradient if span.gradient_factor == 1 else gradient * parameters.dtype.type(span.gradient_factor)
    if span.weight_decay and not optimizer.decoupled:
        g = g + parameters * span.weight_decay
    delta, scratch = np.empty_like(parameters), np.empty_like(parameters)
    optimizer.rule(1.0, step)(g, {name: slab.copy() for name, slab in state.items()}, delta, scratch)
    if span.weight_decay and optimizer.decoupled:
        delta += parameters * span.weight_decay
    return delta
