"""Compiles kernels with numba. As numba has no types, no other module imports it, and this one only late."""

import hashlib
import logging
import pickle
import sys
from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core import compiler, registry, serialize

from thalweg.learning.kernels import MAX_SLOTS, Loop, Rule, cache

_log = logging.getLogger(__name__)

# Elements of a gradient with weight decay, which is computed before the loop: a block stays in the nearest cache.
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
    # What is in this process's memory: files may have been replaced since by those of another release.
    sources = [_instructions(function.__code__) for function in (rule, _advance, _update, _compiled)]
    versions = sys.version, np.__version__, numba.__version__, llvmlite.__version__
    target = registry.cpu_target.target_context.codegen().magic_tuple()
    what = rule.__qualname__, slots, constants, dtype.str, _BLOCK
    return hashlib.sha256(repr((sources, versions, target, what)).encode()).hexdigest()


def _instructions(code: CodeType) -> object:
    """What a function and those within it do, the same in every process of the same Python."""
    constants = [_instructions(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    return code.co_code.hex(), code.co_names, code.co_varnames, constants


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
    dispatcher = _jit(nogil=True)(_update(_jit(_advance(_jit(rule), slots, dtype)), dtype))
    dispatcher.compile(signature)
    return dispatcher.overloads[signature]


def _advance(element: Any, slots: int, dtype: np.dtype[np.floating]) -> Callable[..., bool]:
    """The loop of a jitted rule with that number of slots, over a range that begins at `start` of the slots.

    The gradient is (left + right) · factor. It is one loop, so that memory is read and written once. LLVM vectorises it where
    arrays do not overlap: if `out` lies where the parameters do, which is found at run time, it goes element by element.
    """
    largest = dtype.type(np.finfo(dtype).max)

    def without(left: Any, right: Any, factor: Any, at: Any, keep: Any, state: Any, start: int, out: Any, given: Any) -> bool:  # noqa: ARG001
        finite = True
        for i in range(out.size):
            delta, _ = element((left[i] + right[i]) * factor, (), given)
            new = at[i] * keep - delta
            out[i] = new
            finite &= abs(new) <= largest
        return finite

    def with_one(left: Any, right: Any, factor: Any, at: Any, keep: Any, state: Any, start: int, out: Any, given: Any) -> bool:
        first = state[0][start : start + out.size]
        finite = True
        for i in range(out.size):
            delta, (one,) = element((left[i] + right[i]) * factor, (first[i],), given)
            first[i] = one
            new = at[i] * keep - delta
            out[i] = new
            finite &= abs(new) <= largest
        return finite

    def with_two(left: Any, right: Any, factor: Any, at: Any, keep: Any, state: Any, start: int, out: Any, given: Any) -> bool:
        first, second = state[0][start : start + out.size], state[1][start : start + out.size]
        finite = True
        for i in range(out.size):
            delta, (one, two) = element((left[i] + right[i]) * factor, (first[i], second[i]), given)
            first[i], second[i] = one, two
            new = at[i] * keep - delta
            out[i] = new
            finite &= abs(new) <= largest
        return finite

    def with_three(left: Any, right: Any, factor: Any, at: Any, keep: Any, state: Any, start: int, out: Any, given: Any) -> bool:
        first, second = state[0][start : start + out.size], state[1][start : start + out.size]
        third = state[2][start : start + out.size]
        finite = True
        for i in range(out.size):
            delta, (one, two, three) = element((left[i] + right[i]) * factor, (first[i], second[i], third[i]), given)
            first[i], second[i], third[i] = one, two, three
            new = at[i] * keep - delta
            out[i] = new
            finite &= abs(new) <= largest
        return finite

    if slots > MAX_SLOTS:
        raise ValueError(f"a kernel has at most {MAX_SLOTS} slots, not {slots}")
    return (without, with_one, with_two, with_three)[slots]


def _update(advance: Callable[..., bool], dtype: np.dtype[np.floating]) -> Callable[..., bool]:
    # Added to a number, it changes no bit; nor does a factor of 1.
    nothing, once = dtype.type(-0.0), dtype.type(1)

    def with_decay(left: Any, right: Any, factor: Any, parameters: Any, decay: Any, gradient: Any) -> None:
        for i in range(gradient.size):
            gradient[i] = (left[i] + right[i]) * factor + parameters[i] * decay

    add_decay = _jit(with_decay)

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
        if two and not decays:
            return advance(left, right, factor, parameters, keep, state, 0, out, constants)
        scratch, neutral = np.empty(_BLOCK, parameters.dtype), np.full(_BLOCK, nothing, parameters.dtype)
        finite = True
        for start in range(0, out.size, _BLOCK):
            stop = min(start + _BLOCK, out.size)
            at, into, absent = parameters[start:stop], out[start:stop], neutral[: stop - start]
            one, other = left[start:stop], right[start:stop]
            if decays:
                gradient = scratch[: stop - start]
                if two:
                    add_decay(one, other, factor, at, decay, gradient)
                else:
                    add_decay(one, absent, factor, at, decay, gradient)
                finite &= advance(gradient, absent, once, at, keep, state, start, into, constants)
            else:
                finite &= advance(one, absent, factor, at, keep, state, start, into, constants)
        return finite

    return update
