"""Compiles kernels with numba. As numba has no types, no other module imports it, and this one only late."""

import hashlib
import inspect
import logging
import pickle
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core import compiler, registry, serialize

from thalweg.learning.kernels import MAX_SLOTS, Loop, Rule, cache

_log = logging.getLogger(__name__)

# An update is some small loops over a block, one after the other: each is simple enough for LLVM to vectorise. What one leaves to
# the next stays in the nearest cache.
_BLOCK = 2048

# Without `fastmath` LLVM neither contracts products and sums nor changes their order. With `numpy`, 1 / 0 is no error.
_jit = partial(numba.njit, error_model="numpy")


def loop(rule: Rule, slots: int, constants: int, dtype: np.dtype[np.floating]) -> Loop:
    """The loop of a rule. Raises what numba raises if it cannot be compiled."""
    key = _key(rule, slots, constants, dtype)
    result = _loaded(key)
    if result is None:
        result = _compiled(rule, slots, constants, dtype)
        _save(key, result)
    # Not numba's dispatcher, which would look at the type of each argument at each call.
    found: Loop = result.entry_point
    return found


def _key(rule: Rule, slots: int, constants: int, dtype: np.dtype[np.floating]) -> str:
    """A name for what is compiled: it changes with everything that machine code depends on."""
    sources = [inspect.getsource(module) for module in (sys.modules[__name__], sys.modules[rule.__module__])]
    versions = sys.version, np.__version__, numba.__version__, llvmlite.__version__
    target = registry.cpu_target.target_context.codegen().magic_tuple()
    what = rule.__qualname__, slots, constants, dtype.str
    return hashlib.sha256(repr((sources, versions, target, what)).encode()).hexdigest()


def _loaded(key: str) -> Any:
    """What was compiled in an earlier process; None if there is nothing that can be used."""
    data = cache.load(key)
    if data is None:
        return None
    try:
        context = registry.cpu_target.target_context
        context.refresh()
        return compiler.CompileResult._rebuild(context, *pickle.loads(data))  # noqa: S301 - of this user's folder
    except Exception:  # noqa: BLE001 - whatever is in it
        _log.warning("a compiled kernel in the cache cannot be used, and is compiled again", exc_info=True)
        return None


def _save(key: str, result: Any) -> None:
    try:
        cache.save(key, serialize.dumps(result._reduce()))
    except Exception:  # noqa: BLE001 - no space, no permission, nothing that can be pickled
        # The next process compiles it again.
        _log.info("a compiled kernel is not kept", exc_info=True)


def _compiled(rule: Rule, slots: int, constants: int, dtype: np.dtype[np.floating]) -> Any:
    number = numba.from_dtype(dtype)
    # Gradients are read where they arrived, at any address.
    read = types.Array(number, 1, "C", readonly=True, aligned=False)
    write = types.Array(number, 1, "C", aligned=False)
    state, given = types.UniTuple(write, slots), types.UniTuple(number, constants)
    flag = types.boolean
    signature = (read, read, read, flag, state, write, number, number, flag, number, given)
    dispatcher = _jit(nogil=True)(_update(_jit(_advance(_jit(rule), slots)), dtype))
    dispatcher.compile(signature)
    return dispatcher.overloads[signature]


def _advance(element: Any, slots: int) -> Callable[..., None]:
    """A loop over a block, from `start` on in the slots, for a jitted rule with that number of slots."""

    def without(gradient: Any, kept: Any, state: Any, start: int, out: Any, constants: Any) -> None:  # noqa: ARG001
        for i in range(out.size):
            delta, _ = element(gradient[i], (), constants)
            out[i] = kept[i] - delta

    def with_one(gradient: Any, kept: Any, state: Any, start: int, out: Any, constants: Any) -> None:
        first = state[0][start : start + out.size]
        for i in range(out.size):
            delta, (new,) = element(gradient[i], (first[i],), constants)
            first[i] = new
            out[i] = kept[i] - delta

    def with_two(gradient: Any, kept: Any, state: Any, start: int, out: Any, constants: Any) -> None:
        first, second = state[0][start : start + out.size], state[1][start : start + out.size]
        for i in range(out.size):
            delta, (one, two) = element(gradient[i], (first[i], second[i]), constants)
            first[i], second[i] = one, two
            out[i] = kept[i] - delta

    def with_three(gradient: Any, kept: Any, state: Any, start: int, out: Any, constants: Any) -> None:
        first, second = state[0][start : start + out.size], state[1][start : start + out.size]
        third = state[2][start : start + out.size]
        for i in range(out.size):
            delta, (one, two, three) = element(gradient[i], (first[i], second[i], third[i]), constants)
            first[i], second[i], third[i] = one, two, three
            out[i] = kept[i] - delta

    loops = without, with_one, with_two, with_three
    if slots > MAX_SLOTS:
        raise ValueError(f"a kernel has at most {MAX_SLOTS} slots, not {slots}")
    return loops[slots]


def _update(advance: Any, dtype: np.dtype[np.floating]) -> Callable[..., bool]:
    largest = dtype.type(np.finfo(dtype).max)

    def add(left: Any, right: Any, factor: Any, gradient: Any) -> None:
        for i in range(gradient.size):
            gradient[i] = (left[i] + right[i]) * factor

    def multiply(array: Any, factor: Any, out: Any) -> None:
        # A factor of 1 changes no bit.
        for i in range(out.size):
            out[i] = array[i] * factor

    def add_decay(parameters: Any, decay: Any, gradient: Any) -> None:
        for i in range(gradient.size):
            gradient[i] = gradient[i] + parameters[i] * decay

    def all_finite(array: Any) -> bool:
        finite = True
        for i in range(array.size):
            finite &= abs(array[i]) <= largest
        return finite

    add, multiply, add_decay, all_finite = (_jit(each) for each in (add, multiply, add_decay, all_finite))

    def update(
        parameters: Any,
        left: Any,
        right: Any,
        two: bool,
        state: Any,
        out: Any,
        factor: Any,
        decay: Any,
        decays: bool,
        keep: Any,
        constants: Any,
    ) -> bool:
        scratch = np.empty((2, _BLOCK), parameters.dtype)
        finite = True
        for start in range(0, out.size, _BLOCK):
            stop = min(start + _BLOCK, out.size)
            gradient, kept = scratch[0, : stop - start], scratch[1, : stop - start]
            if two:
                add(left[start:stop], right[start:stop], factor, gradient)
            else:
                multiply(left[start:stop], factor, gradient)
            if decays:
                add_decay(parameters[start:stop], decay, gradient)
            # A copy, as the output may lie where the parameters do.
            multiply(parameters[start:stop], keep, kept)
            advance(gradient, kept, state, start, out[start:stop], constants)
            finite &= all_finite(out[start:stop])
        return finite

    return update
