"""A thread that compiles the loops of jobs' updates."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from thalweg.learning import optimizers
from thalweg.server.arrays.budget import Budget, OverBudgetError
from thalweg.server.deciding.plan import Plan

# From that number of parameters on, a step's update takes NumPy about a millisecond.
_MIN_ELEMENTS = 1 << 20
# What numba, LLVM and all kernels take of this process's memory.
_BYTES = 160 << 20


class KernelCompiler:
    """Compiles what the updates of large jobs use, one after the other, while they train with NumPy. Belongs to an event loop.

    `budget` is asked for the memory that this takes. Without it nothing is compiled.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._promised = False
        # Its thread begins with the first job that needs it.
        self._pool = ThreadPoolExecutor(thread_name_prefix="thalweg-kernels", max_workers=1)

    def prepare(self, plan: Plan) -> None:
        """Has the updates of a job compiled, if that pays. Does not wait for it."""
        if plan.elements < _MIN_ELEMENTS or not self._reserve():
            return
        self._pool.submit(optimizers.prepare, optimizers.make(plan.optimizer), np.dtype(plan.spec.model.dtype))

    def _reserve(self) -> bool:
        if not self._promised:
            try:
                self._promised = self._budget.reserve(self, _BYTES) == ""
            except OverBudgetError:
                return False
        return self._promised

    def close(self) -> None:
        """Ends the thread, after the kernel that it compiles now, which takes a second."""
        self._pool.shutdown(cancel_futures=True)
