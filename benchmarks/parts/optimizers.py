"""How near each optimizer comes to the memory's bandwidth.

An update has to read parameters, gradient and state, and to write parameters and state: for s slabs of state, 12 + 8 s bytes a
parameter in float32. The bandwidth is that of the sum of two slabs of the same size written to a third one, which moves 12 bytes
an element; both are measured in one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.parts import Cell, Table, run
from thalweg.client.jobfile import load_job
from thalweg.contract.segments import Segment
from thalweg.learning import optimizers
from thalweg.learning.optimizers.groups import Span
from thalweg.server import validation

PARAMETERS = 20_000_000
_ITEM = 4


def bytes_of(slots: int, parameters: int) -> int:
    """The bytes that an update with a number of slabs of state has to move, in float32."""
    return (3 + 2 * slots) * _ITEM * parameters


def measure(options: argparse.Namespace) -> Table:
    """Medians for every optimizer, with its default hyperparameters."""
    generator = np.random.default_rng(0)
    parameters = generator.standard_normal(PARAMETERS, np.float32)
    gradient = generator.standard_normal(PARAMETERS, np.float32)
    used, out = gradient.copy(), np.zeros_like(parameters)

    def seconds(act: Callable[[], object]) -> float:
        taken = []
        for _ in range(options.repeats + 1):
            # An update may use up the gradient.
            np.copyto(used, gradient)
            began = time.perf_counter()
            act()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken[1:])

    bandwidth = 3 * _ITEM * PARAMETERS / seconds(lambda: np.add(parameters, gradient, out=out))
    rows: list[tuple[Cell, ...]] = [
        ("sum of two slabs", 12 * PARAMETERS / 1e6, 12 * PARAMETERS / bandwidth * 1e3, bandwidth / 1e9, 1.0)
    ]
    for kind in optimizers.OPTIMIZERS:
        spec = validation.complete(load_job("digits", {"optimizer": {kind: {}}}).spec).optimizer
        optimizer = optimizers.make(spec)
        state = optimizer.init(PARAMETERS, parameters.dtype)
        for slab in state.values():
            slab.fill(0.5)
        spans = optimizers.spans(spec, (Segment("weight", (PARAMETERS,)),), PARAMETERS)
        for reduction in optimizer.reductions:
            spans = spans.scaled(reduction, [1.0])
        parts = spans.within(slice(0, PARAMETERS))

        def update(
            optimizer: optimizers.AnyOptimizer = optimizer,
            state: optimizers.OptimizerState = state,
            parts: list[Span] = parts,
        ) -> None:
            optimizers.apply(optimizer, parameters, used, state, out, 1e-3, 1, spans=parts)

        taken = seconds(update)
        moved = bytes_of(len(state), PARAMETERS)
        rows.append((kind, moved / 1e6, taken * 1e3, moved / taken / 1e9, moved / taken / bandwidth))
    return Table(("what", "MB moved", "ms", "GB/s", "of the bandwidth"), rows)


if __name__ == "__main__":
    run(measure)
