"""Compiled kernels: the bits of NumPy's form, whatever the optimizer, its options, the sizes and the values."""

import hashlib
import itertools
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning.test_optimizers import complete
from thalweg.contract.layout import Slab
from thalweg.learning import kernels, optimizers
from thalweg.learning.kernels import cache
from thalweg.learning.optimizers import AnyOptimizer
from thalweg.learning.optimizers.base import UpdateRule
from thalweg.learning.optimizers.groups import Span
from thalweg.v1 import job_pb2

pytest.importorskip("numba")

# Every kernel, and every option that changes which one is used, or with which numbers.
SPECS: dict[str, dict[str, Any]] = {
    "sgd": {"sgd": {}},
    "sgd with decay": {"sgd": {"weight_decay": 0.01}},
    "momentum": {"momentum": {}},
    "dampened": {"momentum": {"dampening": 0.3, "weight_decay": 0.1}},
    "nesterov": {"momentum": {"nesterov": True}},
    "adagrad": {"adagrad": {"learning_rate_decay": 0.1, "weight_decay": 0.02}},
    "rmsprop": {"rmsprop": {}},
    "rmsprop with momentum": {"rmsprop": {"momentum": 0.8}},
    "centered": {"rmsprop": {"centered": True, "weight_decay": 0.3}},
    "centered with momentum": {"rmsprop": {"centered": True, "momentum": 0.8}},
    "adam": {"adam": {}},
    "adam with decay": {"adam": {"weight_decay": 0.01}},
    "amsgrad": {"adam": {"amsgrad": True}},
    "adamw": {"adamw": {"weight_decay": 0.1}},
    "adamw with amsgrad": {"adamw": {"amsgrad": True}},
    "lamb": {"lamb": {"weight_decay": 0.1}},
}
DTYPES: list[np.dtype[np.floating]] = [np.dtype(np.float32), np.dtype(np.float64)]
BLOCK = 2048
# Of each kernel, for each dtype.
MACHINE_CODE: list[tuple[kernels.Rule, str]] = []
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, 3e38, -3e38, 5e-324, 1e-310, 1.0, -1.0]


@pytest.fixture(scope="module", autouse=True)
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All kernels, compiled for these tests alone."""
    from thalweg.learning.kernels import compiler

    def kept(rule: kernels.Rule, *args: Any) -> Any:
        result = compile_anew(rule, *args)
        MACHINE_CODE.append((rule, result.library.get_asm_str()))
        return result

    before, compile_anew = dict(kernels._loops), compiler._compiled
    kernels._loops.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "_compiled", kept)
        patch.setenv("THALWEG_KERNEL_CACHE", str(tmp_path_factory.mktemp("kernels")))
        for spec, dtype in itertools.product(SPECS.values(), DTYPES):
            optimizer = optimizers.make(complete(spec))
            assert kernels.prepare(kernel_of(optimizer), len(optimizer.slots), dtype)
        yield
    kernels._loops.clear()
    kernels._loops.update(before)


def kernel_of(optimizer: AnyOptimizer) -> kernels.Kernel:
    kernel = optimizer.kernel(0.01, 1)
    assert kernel is not None
    return kernel


def of_each(name: str, slabs: Slab) -> bytes:
    """The bits of an array. Which of the values that are not numbers one is, NumPy does not say."""
    return np.where(np.isnan(slabs), np.nan, slabs).tobytes()


def update_twice(
    spec: dict[str, Any],
    arrays: dict[str, Slab],
    two: bool,
    apart: bool,
    spans: list[Span] | None = None,
    scale: float = 1.0,
) -> tuple[list[bool], dict[str, bytes]]:
    """Three steps from given parameters: what `apply` returns, and all arrays afterwards."""
    optimizer = optimizers.make(complete(spec))
    parameters = arrays["parameters"].copy()
    state = optimizer.init(parameters.size, parameters.dtype)
    whole = [Span(0, parameters.size, 1.0, optimizer.weight_decay, frozen=False)] if spans is None else spans
    reduced = [span._replace(reductions=optimizer.reductions) for span in whole]
    finite = []
    for step in range(3):
        out = np.full_like(parameters, 7) if apart else parameters
        left, right = (np.roll(arrays[name], step) for name in ("left", "right"))
        left.flags.writeable = right.flags.writeable = False
        gradient = (left, right) if two else left
        finite.append(optimizers.apply(optimizer, parameters, gradient, state, out, 0.01, step, scale, reduced))
        parameters = out
    return finite, {name: of_each(name, slab) for name, slab in ({"parameters": parameters} | state).items()}


def both(monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The results with kernels and without."""
    used: list[object] = []
    found = kernels.compiled

    def counted(kernel: kernels.Kernel, dtype: np.dtype[np.floating]) -> kernels.Loop | None:
        loop = found(kernel, dtype)
        used.append(loop)
        return loop

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "compiled", counted)
        with_kernels = update_twice(*args, **kwargs)
    assert used
    assert all(used)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "compiled", lambda kernel, dtype: None)
        return with_kernels, update_twice(*args, **kwargs)


def drawn(size: int, dtype: np.dtype[np.floating], seed: int = 0) -> dict[str, Slab]:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(size).astype(dtype) for name in ("parameters", "left", "right")}


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 31, BLOCK, 3 * BLOCK + 5])
def test_bits_are_those_of_numpy(case: str, dtype: np.dtype[np.floating], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for two, apart, scale in itertools.product((True, False), (True, False), (1.0, 0.3)):
        found, expected = both(monkeypatch, SPECS[case], drawn(size, dtype), two, apart, scale=scale)
        assert found == expected
        assert found[0] == [True] * 3


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_extreme_values_are_those_of_numpy(
    case: str, dtype: np.dtype[np.floating], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each triple of zeros, infinities, denormal and large numbers, so that vectors and what is left of them have all."""
    with np.errstate(over="ignore"):
        triples = np.array(list(itertools.product(SPECIAL, repeat=3))).astype(dtype)
    arrays = dict(zip(("parameters", "left", "right"), map(np.ascontiguousarray, triples.T), strict=True))
    for two, apart in itertools.product((True, False), repeat=2):
        with np.errstate(all="ignore"):
            found, expected = both(monkeypatch, SPECS[case], arrays, two, apart)
        assert found == expected
        assert found[0] == [False] * 3


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, BLOCK + 3, 2 * BLOCK + 4])
def test_one_value_that_is_not_finite_is_found(case: str, wrong: float, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = drawn(2 * BLOCK + 5, DTYPES[0])
    arrays["parameters"][at] = wrong
    found, expected = both(monkeypatch, SPECS[case], arrays, True, True)
    assert found == expected
    assert not any(found[0])


@pytest.mark.parametrize("case", SPECS)
@settings(max_examples=10)
@given(
    cuts=st.lists(st.integers(0, 3 * BLOCK), max_size=5),
    seed=st.integers(0, 1 << 30),
    dtype=st.sampled_from(DTYPES),
    two=st.booleans(),
    apart=st.booleans(),
    scale=st.sampled_from([1.0, 1e-3, 1 / 3]),
)
def test_bits_of_spans_are_those_of_numpy(
    case: str, cuts: list[int], seed: int, dtype: np.dtype[np.floating], two: bool, apart: bool, scale: float
) -> None:
    """Frozen tensors, statistics, decay or none, and factors of their own."""
    size = 3 * BLOCK
    generator = np.random.default_rng(seed)
    spans = [
        Span(
            start,
            stop,
            float(generator.choice([1.0, 0.1])),
            float(generator.choice([0.0, 0.01])),
            frozen=bool(generator.random() < 0.2),
            gradient_factor=float(generator.choice([1.0, 0.7])),
            plain=bool(generator.random() < 0.2),
        )
        for start, stop in itertools.pairwise(sorted({0, size, *cuts}))
    ]
    with pytest.MonkeyPatch.context() as patch:
        with_kernels = update_twice(SPECS[case], drawn(size, dtype, seed), two, apart, spans, scale)
        patch.setattr(kernels, "compiled", lambda kernel, dtype: None)
        assert with_kernels == update_twice(SPECS[case], drawn(size, dtype, seed), two, apart, spans, scale)


def test_machine_code_is_vectorised_and_contracts_nothing() -> None:
    """A contracted product and sum would be rounded once, and not twice as NumPy does."""
    assert len(MACHINE_CODE) == 2 * len({kernel_of(optimizers.make(complete(spec))).rule for spec in SPECS.values()})
    for rule, code in MACHINE_CODE:
        assert not re.findall(r"\bv?fn?m(?:add|sub|la|ls)\S*", code)
        if platform.machine() == "x86_64" and "sqrt" in code:
            assert re.search(r"\bv?sqrtp[sd]\b", code), rule


OTHER_PROCESS = """
import sys
import numpy as np
from tests.learning.test_kernels import SPECS, kernel_of
from tests.learning.test_optimizers import complete
from thalweg.learning import optimizers
from thalweg.learning.kernels import compiler
compiled = []
before = compiler._compiled
compiler._compiled = lambda *args: compiled.append(args) or before(*args)
optimizer = optimizers.make(complete(SPECS["amsgrad"]))
assert optimizers.prepare(optimizer, np.dtype(np.float32))
g = np.arange(1, 5001, dtype=np.float32)
out = np.empty_like(g)
assert optimizers.apply(optimizer, g, g, optimizer.init(g.size, g.dtype), out, 0.01, 0)
print(len(compiled), out.tobytes().hex()[-200:])
"""


def in_another_process(folder: Path) -> tuple[int, str]:
    """How many kernels another process had to compile, and the bits that it computed."""
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS],
        env=os.environ | {"THALWEG_KERNEL_CACHE": str(folder)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    compiled, bits = done.stdout.split()
    return int(compiled), bits


def test_kernels_are_compiled_once_for_all_processes(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    compiled, bits = in_another_process(folder)
    assert compiled == 1
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert in_another_process(folder) == (0, bits)


@pytest.fixture
def compiled_anew(monkeypatch: pytest.MonkeyPatch) -> list[kernels.Rule]:
    """Which rules are compiled because they are not in the cache."""
    from thalweg.learning.kernels import compiler

    anew: list[kernels.Rule] = []
    compile_anew = compiler._compiled

    def counted(rule: kernels.Rule, *args: Any) -> Any:
        anew.append(rule)
        return compile_anew(rule, *args)

    monkeypatch.setattr(compiler, "_compiled", counted)
    return anew


def loop_of_sgd() -> kernels.Loop:
    from thalweg.learning.kernels import compiler

    kernel = kernel_of(optimizers.make(complete(SPECS["sgd"])))
    loop = compiler.loop(kernel.rule, 0, len(kernel.constants), DTYPES[0])
    given, out = np.ones(5, np.float32), np.zeros(5, np.float32)
    assert loop(given, given, given, False, (), out, 1.0, 0.0, False, 1.0, (0.5,))
    assert out.tolist() == [0.5] * 5
    return loop


def test_a_damaged_file_is_not_used_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled_anew: list[kernels.Rule]
) -> None:
    monkeypatch.setenv("THALWEG_KERNEL_CACHE", str(tmp_path / "kernels"))
    loop_of_sgd()
    (file,) = (tmp_path / "kernels").iterdir()
    whole = file.read_bytes()
    turned = bytearray(whole)
    turned[len(whole) // 2] ^= 1
    for damaged in (bytes(turned), whole[:-1], b"", hashlib.sha256(b"no kernel").digest() + b"no kernel"):
        file.write_bytes(damaged)
        compiled_anew.clear()
        loop_of_sgd()
        assert len(compiled_anew) == 1
        assert file.read_bytes() != damaged
    compiled_anew.clear()
    loop_of_sgd()
    assert compiled_anew == []


@pytest.mark.parametrize("where", ["file", "file/below", "open"])
def test_a_cache_that_cannot_be_used_does_no_harm(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled_anew: list[kernels.Rule]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("THALWEG_KERNEL_CACHE", str(tmp_path / where))
    loop_of_sgd()
    assert len(compiled_anew) == 1
    # What another user could have written is not read, so nothing is written either.
    assert list((tmp_path / "open").iterdir()) == []


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_KERNEL_CACHE", str(tmp_path))
    tmp_path.chmod(0o700)
    monkeypatch.setattr(cache, "_MAX_FILES", 3)
    for number in range(5):
        cache.save(str(number), b"content")
        os.utime(tmp_path / str(number), (number, number))
    cache.save("last", b"content")
    assert {path.name for path in tmp_path.iterdir()} == {"3", "4", "last"}
    assert cache.load("last") == b"content"
    assert cache.load("0") is None


def test_the_cache_is_this_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THALWEG_KERNEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache.folder() == Path("/caches/thalweg/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.folder() == Path("/home/somebody/.cache/thalweg/kernels")


@pytest.mark.parametrize("broken", ["absent", "damaged", "without a compiler"])
def test_without_numba_it_is_said_once_and_numpy_computes(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = update_twice(SPECS["adam"], drawn(5000, DTYPES[0]), True, True)
    monkeypatch.setattr(kernels, "_loops", {})
    monkeypatch.setattr(kernels, "_reported", False)
    if broken == "without a compiler":

        def fails(*args: object) -> None:
            raise RuntimeError("no compiler")

        from thalweg.learning.kernels import compiler

        monkeypatch.setattr(compiler, "loop", fails)
    else:
        monkeypatch.delattr(kernels, "compiler")
        monkeypatch.delitem(sys.modules, "thalweg.learning.kernels.compiler")
        monkeypatch.setitem(sys.modules, "numba", None if broken == "absent" else ModuleType("numba"))
    optimizer = optimizers.make(complete(SPECS["adam"]))
    with caplog.at_level(logging.INFO, "thalweg"):
        assert not any(optimizers.prepare(optimizer, dtype) for dtype in DTYPES)
    (record,) = caplog.records
    assert record.levelno == (logging.INFO if broken == "absent" else logging.WARNING)
    assert "computed by NumPy" in record.getMessage()
    assert update_twice(SPECS["adam"], drawn(5000, DTYPES[0]), True, True) == expected


def test_every_optimizer_has_a_kernel_and_a_strangers_needs_none() -> None:
    assert {kind for spec in SPECS.values() for kind in spec} == set(optimizers.OPTIMIZERS)

    class Signs(optimizers.Optimizer[job_pb2.Sgd]):
        def rule(self, learning_rate: float, step: int) -> UpdateRule:
            def update(gradient: Slab, state: optimizers.OptimizerState, delta: Slab, scratch: Slab) -> None:
                np.multiply(np.sign(gradient), learning_rate, out=delta)

            return update

    optimizer = Signs(job_pb2.Sgd(learning_rate=0.5))
    assert not optimizers.prepare(optimizer, DTYPES[0])
    parameters = np.ones(10, np.float32)
    assert optimizers.apply(optimizer, parameters, -parameters, {}, parameters, 0.5, 0)
    assert parameters.tolist() == [1.5] * 10


@pytest.mark.parametrize("spoil", [lambda slab: slab[::2], lambda slab: slab.astype(np.float64)], ids=["strided", "other dtype"])
def test_arrays_that_a_loop_cannot_take_are_left_to_numpy(spoil: Callable[[Slab], Slab]) -> None:
    optimizer = optimizers.make(complete(SPECS["adam"]))
    parameters, gradient = np.ones(100, np.float32), np.ones(200, np.float32)
    spoiled = spoil(gradient)[:100]
    out = [np.empty_like(parameters) for _ in range(2)]
    for each, one in zip(out, (spoiled, np.ones(100, np.float32)), strict=True):
        state = optimizer.init(100, parameters.dtype)
        assert optimizers.apply(optimizer, parameters, one, state, each, 0.01, 0)
    assert out[0].tobytes() == out[1].tobytes()


def test_a_rule_that_changes_gets_machine_code_of_its_own() -> None:
    from thalweg.learning.kernels import compiler

    made: list[kernels.Rule] = []
    for body in ("g * constants[0]", "g + constants[0]", "g * constants[1]", "g * state[0]"):
        names: dict[str, Any] = {}
        exec(f"def rule(g, state, constants):\n    return {body}, ()", names)
        made += [names["rule"], names["rule"]]
    keys = [compiler._key(rule, 1, 2, DTYPES[0]) for rule in made]
    assert keys[::2] == keys[1::2]
    assert len({*keys, compiler._key(made[0], 1, 2, DTYPES[1]), compiler._key(made[0], 2, 2, DTYPES[0])}) == 4 + 2
