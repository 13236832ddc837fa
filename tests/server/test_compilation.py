"""The thread that compiles the updates of large jobs, and the bits of jobs with kernels and without."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format

from tests.end_to_end.cluster import running_server, train
from tests.end_to_end.command import wait_for
from tests.end_to_end.test_same_bits import BASE, VARIANTS
from tests.server.specs import make_spec
from thalweg.contract.resources import Memory
from thalweg.learning import kernels, optimizers
from thalweg.server import validation
from thalweg.server.arrays import compilation
from thalweg.server.arrays.budget import Budget
from thalweg.server.arrays.compilation import KernelCompiler
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts
from thalweg.v1 import job_pb2

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(kernels, "_loops", {})
    monkeypatch.setenv("THALWEG_KERNEL_CACHE", str(tmp_path_factory.getbasetemp() / "kernels"))


def plan_of(elements: int) -> Plan:
    return Plan(validation.complete(make_spec()), Facts(elements, 20, 0, (), ()))


def budget_of(free: int) -> Budget:
    return Budget(lambda: Memory(free, free), lambda: 0)


@pytest.fixture
def compiler() -> Iterator[KernelCompiler]:
    compiler = KernelCompiler(budget_of(1 << 30))
    yield compiler
    compiler.close()


def test_updates_of_large_jobs_are_compiled_beside_the_caller(compiler: KernelCompiler) -> None:
    compiler.prepare(plan_of(1 << 20))
    wait_for(lambda: kernels._loops)
    ((rule, dtype),) = kernels._loops
    optimizer = optimizers.make(plan_of(1).optimizer)
    kernel = optimizer.kernel(1.0, 1)
    assert kernel is not None
    assert (rule, dtype) == (kernel.rule, np.dtype(np.float32).str)


@pytest.mark.parametrize(("elements", "free"), [((1 << 20) - 1, 1 << 30), (1 << 20, 100 << 20)], ids=["small", "no memory"])
def test_nothing_is_compiled_for_small_jobs_or_without_memory(elements: int, free: int) -> None:
    compiler = KernelCompiler(budget_of(free))
    compiler.prepare(plan_of(elements))
    compiler.close()
    assert not kernels._loops
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("thalweg-kernels")]


def test_memory_is_promised_once(compiler: KernelCompiler) -> None:
    budget = budget_of(compilation._BYTES)
    compiler = KernelCompiler(budget)
    for _ in range(2):
        compiler.prepare(plan_of(1 << 20))
    assert "reserved for other jobs" in budget.reserve("a job", 1)
    compiler.close()


def test_its_end_drops_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    prepared: list[object] = []

    def prepare(optimizer: object, dtype: object) -> bool:
        prepared.append(optimizer)
        begun.set()
        return go_on.wait()

    monkeypatch.setattr(optimizers, "prepare", prepare)
    compiler = KernelCompiler(budget_of(1 << 30))
    for _ in range(3):
        compiler.prepare(plan_of(1 << 20))
    begun.wait()
    closing = threading.Thread(target=compiler.close)
    closing.start()
    wait_for(lambda: compiler._pool._shutdown)
    go_on.set()
    closing.join()
    assert len(prepared) == 1


@pytest.mark.parametrize("variant", ["adam", "clipped, scheduled", "groups", "lamb", "float64", "more than one chunk"])
def test_a_jobs_bits_are_the_same_with_kernels(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = json_format.ParseDict(BASE | VARIANTS[variant], job_pb2.JobSpec())
    complete, used = validation.complete(spec), 0
    found = kernels.compiled

    def counted(kernel: kernels.Kernel, dtype: np.dtype[np.floating]) -> kernels.Loop | None:
        nonlocal used
        loop = found(kernel, dtype)
        used += loop is not None
        return loop

    monkeypatch.setattr(kernels, "compiled", counted)
    digests = []
    for with_kernels in (False, True):
        if with_kernels:
            assert optimizers.prepare(optimizers.make(complete.optimizer), np.dtype(complete.model.dtype))
        with running_server(tmp_path / str(with_kernels)) as server:
            job = train(server, spec, workers=2)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        assert (used > 0) == with_kernels
        digests.append(job.result.weights_sha256)
    assert digests[0] == digests[1]


def test_a_server_compiles_while_a_job_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compilation, "_MIN_ELEMENTS", 1)
    with caplog.at_level(logging.INFO, "thalweg.learning"), running_server(tmp_path) as server:
        assert train(server, make_spec(epochs=3)).state == job_pb2.JOB_STATE_SUCCEEDED
        wait_for(lambda: kernels._loops)
    assert not caplog.records
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("thalweg-kernels")]
