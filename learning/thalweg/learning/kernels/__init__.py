"""Compiled loops for updates, with the bits of NumPy's form of them.

An optimizer's `rule` says in NumPy's operations what a step does; that is its definition. A **kernel** says the same for one
element, and numba compiles a loop of it that reads and writes each array once and does not hold Python's lock. A kernel is used
from when `prepare` has compiled it, in the process that called it; until then, and where numba is not installed, NumPy's form is.
As both have the same bits, it does not matter when that changes, not even within a step.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from thalweg.contract.layout import Slab

_log = logging.getLogger(__name__)

# Of one element: the gradient, the state's slots, constants. Gives by how much the parameter falls, and the new slots. It may use
# arithmetic, comparisons and `math.sqrt`, and nothing else: with a literal number numba would compute in double precision.
Rule: TypeAlias = Callable[[float, tuple[float, ...], tuple[float, ...]], tuple[float, tuple[float, ...]]]

MAX_SLOTS = 3


class Kernel(NamedTuple):
    """A step of an optimizer for one element. `rule` is a function of a module, the same one for all steps and learning rates."""

    rule: Rule
    constants: tuple[float, ...]


class Loop(Protocol):
    """A compiled loop. Arrays are dense, equally long, and of the dtype for which it was compiled; numbers are rounded to it."""

    def __call__(
        self,
        parameters: Slab,
        left: Slab,
        right: Slab,
        two: bool,
        state: tuple[Slab, ...],
        out: Slab,
        factor: float,
        decay: float,
        decays: bool,
        keep: float,
        constants: tuple[float, ...],
        /,
    ) -> bool:
        """Changes `state`, writes to `out`, which may be `parameters`, and returns whether all that is written is finite.

        The gradient is `left`, or, if there are `two`, the sum of `left` and `right`; it is multiplied by `factor`, and `decay`
        times the parameters is added if it `decays`. What the rule gives is subtracted from `keep` times the parameters.
        """
        ...


# What this process has compiled. Entries are only added, each by one operation, which no other thread interrupts.
_loops: dict[tuple[Rule, str], Loop] = {}
# Whether the log says already that something cannot be compiled.
_reported = False


def compiled(kernel: Kernel, dtype: np.dtype[np.floating]) -> Loop | None:
    """The loop of a kernel, if this process has prepared it."""
    return _loops.get((kernel.rule, dtype.str))


def prepare(kernel: Kernel, slots: int, dtype: np.dtype[np.floating]) -> bool:
    """Compiles a kernel, or loads it from this user's cache, for an optimizer with that number of slots. Whether it can be used.

    Takes some seconds the first time. If it is not possible, the log says why, once.
    """
    global _reported  # noqa: PLW0603
    key = kernel.rule, dtype.str
    if key in _loops:
        return True
    try:
        from thalweg.learning.kernels import compiler  # noqa: PLC0415 - only where updates are compiled

        _loops[key] = compiler.loop(kernel.rule, slots, len(kernel.constants), dtype)
    except Exception as error:  # noqa: BLE001 - whatever numba or a damaged installation raises
        # Numba is not installed, or damaged, or cannot compile this. NumPy's form gives the same result.
        missing = isinstance(error, ModuleNotFoundError)
        if not _reported:
            level = logging.INFO if missing else logging.WARNING
            _log.log(level, "updates are computed by NumPy, which takes longer: %s", error, exc_info=not missing)
        _reported = True
        return False
    return True
