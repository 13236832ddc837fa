"""How near each optimizer comes to the memory's bandwidth.

An update has to read parameters, gradient and state, and to write parameters and state: for s slabs of state, 12 + 8 s bytes a
parameter in float32. The bandwidth is that of the sum of two slabs of the same size written to a third one, which moves 12 bytes
an element; all are measured in one thread. Each update is measured in NumPy's form and, if numba is installed, compiled; beside
them PyTorch's fused optimizer, if it is installed, which changes the parameters in place.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.parts import Cell, Table, run
from thalweg.client.jobfile import load_job
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Segment
from thalweg.learning import optimizers
from thalweg.server import validation
from thalweg.v1 import job_pb2

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
        ("sum of two slabs", 12 * PARAMETERS / 1e6, 12 * PARAMETERS / bandwidth * 1e3, "-", bandwidth / 1e9, 1.0, "-")
    ]

    def update_seconds(kind: str) -> tuple[float, int]:
        spec = _spec(kind)
        optimizer = optimizers.make(spec)
        state = optimizer.init(PARAMETERS, parameters.dtype)
        for slab in state.values():
            slab.fill(0.5)
        spans = optimizers.spans(spec, (Segment("weight", (PARAMETERS,)),), PARAMETERS)
        for reduction in optimizer.reductions:
            spans = spans.scaled(reduction, [1.0])
        parts = spans.within(slice(0, PARAMETERS))
        taken = seconds(lambda: optimizers.apply(optimizer, parameters, used, state, out, 1e-3, 1, spans=parts))
        return taken, len(state)

    # All before the first is compiled, as optimizers share kernels.
    with_numpy = {kind: update_seconds(kind)[0] for kind in optimizers.OPTIMIZERS}
    for kind, before in with_numpy.items():
        compiled = optimizers.prepare(optimizers.make(_spec(kind)), parameters.dtype)
        taken, slots = update_seconds(kind)
        moved = bytes_of(slots, PARAMETERS)
        speed = moved / taken / 1e9, moved / taken / bandwidth
        theirs = _fused(kind, parameters, used, seconds)
        rows.append((kind, moved / 1e6, before * 1e3, taken * 1e3 if compiled else "-", *speed, theirs))
    return Table(("what", "MB moved", "NumPy, ms", "compiled, ms", "GB/s", "of the bandwidth", "PyTorch's fused, ms"), rows)


def _spec(kind: str) -> job_pb2.Optimizer:
    return validation.complete(load_job("digits", {"optimizer": {kind: {}}}).spec).optimizer


def _fused(kind: str, parameters: Slab, gradient: Slab, seconds: Callable[[Callable[[], object]], float]) -> Cell:
    """Milliseconds of PyTorch's optimizer of the same name; "-" if there is none."""
    try:
        import torch
    except ImportError:
        return "-"
    kinds = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if kind not in kinds:
        return "-"
    torch.set_num_threads(1)
    tensor = torch.nn.Parameter(torch.from_numpy(parameters.copy()))
    tensor.grad = torch.from_numpy(gradient)
    return 1e3 * seconds(kinds[kind]([tensor], lr=1e-3, fused=True).step)


if __name__ == "__main__":
    run(measure)
